"""One fine-tune job from order to promotion: each stage is asked for before it is entered."""

from __future__ import annotations

import hashlib
import io
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.bandwidth import MemoryBandwidth, admit, at_pace, measure
from agent.board.cache import last_level_cache_bytes
from agent.board.files import BoardRoots
from agent.card import Target
from agent.engine import choose_engine
from agent.engine.base import TrainingRun, TrainingSetup
from agent.engine.infer import Inference, feature_tensor
from agent.engine.ir import Graph, parse, serialize
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import BoardError, EngineError, SealedFileError, SpecError
from agent.evaluate import Score
from agent.features import FeatureCache, job_cache
from agent.frozen_guard import FrozenGuard, digests, kept
from agent.gate import Bounds, Gate, Judged, RefusedError, told_score
from agent.gate_held_out import owners_data
from agent.gate_weights import Start, start_of
from agent.int8 import choose_form
from agent.keys import DeviceIdentity, load_identity
from agent.messages import (
    MEMORY_CORRUPT,
    OUT_OF_MEMORY,
    WORKER_KILLED,
    Finished,
    Message,
    Order,
    Planned,
    Progress,
    Warned,
)
from agent.model import BaseModel, choose_head, load_base, with_head
from agent.orders import Obedience, Orders
from agent.plan import Plan, make_plan, parse_plan, plan_table, shrink
from agent.promote import promote, settle
from agent.pull import pull
from agent.similarity import cosine_of_means
from agent.slices import choose_slices
from agent.spec import FineTuneSpec, parse_spec
from agent.store import Store
from agent.study import Study, optimizer
from agent.switch import staged_by
from agent.task import Task, load_task
from agent.trainer import Seen, Trainer, World
from agent.trust import ModelRepository
from policies.policy import Policy, PolicyError, parse_policy

SIMILARITY_SAMPLES = 128  # the mean of 128 feature vectors is stable to about 0.01 in cosine
SELF_TEST_SAMPLES = 64

Ask = Callable[[str, str], None]
Emit = Callable[[Message], None]


def identity_folder(state: Path) -> Path:
    """Where the device's keys lie."""
    return state / "keys"


def open_store(state: Path, identity: DeviceIdentity) -> Store:
    """The board's slots and checkpoints."""
    return Store(state / "store", *identity.storage_keys)


class FineTune:
    """Carries out one order."""

    def __init__(self, order: Order, ask: Ask, emit: Emit, orders: Orders) -> None:
        self._order, self._ask, self._emit, self._orders = order, ask, emit, orders
        self._spec: FineTuneSpec = parse_spec(order.spec)
        self._state = Path(order.state_dir)
        self._began = time.monotonic()
        self._bandwidth: dict[str, object] = {}
        self._obedience = Obedience(orders, emit, ask)

    def execute(self) -> Finished:
        """Run all stages.

        Raises:
            TemperdError: the job cannot go on; the active model is as it was.
        """
        identity = load_identity(identity_folder(self._state))
        store = open_store(self._state, identity)
        done = settle(store, self._order.job_id, self._warn)
        if done is not None:
            result = {"model_sha256": done.plaintext_sha256, "slot": done.slot, "recovered": True}
            return Finished("SUCCEEDED", "", result)
        if waiting := staged_by(store.folder, self._order.job_id):
            result = {"model_sha256": waiting[1], "slot": waiting[0], "recovered": True, "staged": True}
            return Finished("SUCCEEDED", "", result)
        target, plaintext = self._pull(identity)
        self._obedience.enter("PLANNING", "")
        base = load_base(plaintext, target.card, self._spec.image_size)
        del plaintext
        unsealed = digests(base.graph.initializers)
        task = self._load_data(target)
        plan, task = self._plan(base, task, target, store)
        graph, _ = with_head(base, plan.head, plan.classes, self._spec.seed)
        self._obedience.enter("COMPILING", f"{plan.engine}, {plan.depth_percent} % frozen")
        run, cache = self._compile(graph, plan, task), self._open_cache()
        unsealed = kept(base.graph.initializers, graph.initializers, unsealed)
        start = start_of(graph, base.graph, plan.frozen_layers(0)[1])
        graph = _without_weights(graph)  # the run has them; a second copy would cost a small board its memory
        del base
        try:
            guard = FrozenGuard(run, task, time.monotonic, self._policy().memory.verify_every_s, unsealed)
            return self._learn(run, plan, task, target, store, graph, cache, guard, start=start)
        finally:
            run.close()
            cache.remove()

    # --- stages ------------------------------------------------------------------------------------------------------

    def _pull(self, identity: DeviceIdentity) -> tuple[Target, bytes]:
        root = Path(self._order.repository_root)
        repository = ModelRepository(
            self._order.repository_url,
            root,
            self._state / "repository",
            pause=self._obedience.nap,
            obey=self._obedience.obey,
        )
        kept = (self._order.resume_plan or {}).get("version")
        wanted = (self._spec.model, str(kept or self._spec.version), self._order.board)
        return pull(
            repository,
            identity,
            wanted,
            self._obedience.enter,
            self._warn,
            metered=self._order.metered,
            obey=self._obedience.obey,
        )

    def _load_data(self, target: Target) -> Task:
        task = load_task(self._spec, target.card, self._obedience.obey)
        count, told = task.skipped()
        if count:
            self._warn(told)
        return task

    def _plan(self, base: BaseModel, task: Task, target: Target, store: Store) -> tuple[Plan, Task]:
        data_sha256 = task.fingerprint()
        memory_short = self._order.last_end in (OUT_OF_MEMORY, WORKER_KILLED)
        plan = self._kept_plan(data_sha256, store)
        if plan is None:
            head = choose_head(self._spec.head, task.classes, base.card.labels) if task.classes else "keep"
            graph, classes = with_head(base, head, task.classes, self._spec.seed)
            study = Study(self._spec, graph, task.with_classes(classes), self._order.threads, self._obedience.obey)
            self._bandwidth = admit(study.costs.weight_bytes(), self._spec.budget_ms, self._memory_bandwidth())
            policy = self._policy()
            plan = make_plan(
                self._spec, policy, study.costs, self._similarity(base, task),
                engine=choose_engine(self._spec.engine).name, classes=classes, head=head, samples=task.train_samples,
                data_sha256=data_sha256, chosen=None if memory_short else study.depth(policy.freezing),
                learners=study.learners(),
            )  # fmt: skip
            self._tell_plan(plan, target)
        elif memory_short and (smaller := shrink(plan)) != plan:
            plan = smaller
            self._tell_plan(plan, target)
            self._warn(f"memory ran out before: {plan.micro_batch} samples at once now, of a batch of {plan.batch}")
        return plan, task.with_classes(plan.classes)

    def _tell_plan(self, plan: Plan, target: Target) -> None:
        told = {"version": target.version, "model": target.card.plaintext_sha256, "bandwidth": self._bandwidth}
        self._emit(Planned({"plan": plan_table(plan), **told}))

    def _memory_bandwidth(self) -> MemoryBandwidth:
        order = self._order
        return MemoryBandwidth(
            self._state, order.board, order.boot_id, order.threads, order.clock_share,
            lambda: measure(order.threads, time.perf_counter, last_level_cache_bytes(BoardRoots().sys)),
        )  # fmt: skip

    def _kept_plan(self, data_sha256: str, store: Store) -> Plan | None:
        """The plan of an earlier attempt, if the data are still those it was made for."""
        kept = (self._order.resume_plan or {}).get("plan")
        if not isinstance(kept, dict):
            return None
        plan = parse_plan(kept)
        if plan.data_sha256 == data_sha256:
            told = (self._order.resume_plan or {}).get("bandwidth")
            self._bandwidth = told if isinstance(told, dict) else {}
            return plan
        store.drop_checkpoint(self._order.job_id)
        self._warn("the data changed since the job began: it starts over with a new plan")
        return None

    def _policy(self) -> Policy:
        try:
            return parse_policy(Path(self._order.policy).read_text(encoding="utf-8"))
        except OSError as error:
            raise BoardError("the policy file cannot be read", where=self._order.policy) from error
        except PolicyError as error:
            raise SpecError(error.what, where=f"{self._order.policy}: {error.key}") from error

    def _similarity(self, base: BaseModel, task: Task) -> float | None:
        """R2 compares mean features of the target's training samples with the publisher's signature of the source."""
        if not base.card.signature_of_source_features:
            return None
        chosen = np.random.default_rng(self._spec.seed).permutation(task.train_samples)[:SIMILARITY_SAMPLES]
        inference = Inference(base.graph, self._order.threads, feature_tensor(base.graph))
        features = []
        for rows in np.split(chosen, range(FORWARD_CHUNK, len(chosen), FORWARD_CHUNK)):
            self._obedience.obey()
            features.append(inference.run(task.inputs(rows)))
        return cosine_of_means(np.concatenate(features), base.card.signature_of_source_features)

    def _compile(self, graph: Graph, plan: Plan, task: Task) -> TrainingRun:
        return choose_engine(plan.engine).start(training_setup(self._spec, plan, graph, task, self._order.threads))

    def _open_cache(self) -> FeatureCache:
        fresh = self._spec.cache == "off" or self._order.last_end in (WORKER_KILLED, MEMORY_CORRUPT)
        return job_cache(self._state / "features", self._order.job_id, self._warn, fresh=fresh)

    def _learn(
        self,
        run: TrainingRun,
        plan: Plan,
        task: Task,
        target: Target,
        store: Store,
        graph: Graph,
        cache: FeatureCache,
        guard: FrozenGuard,
        *,
        start: Start,
    ) -> Finished:
        job_id = self._order.job_id
        world = World(
            self._orders.steer, self._orders.verified, lambda seen: self._emit(_progress(seen, self._spec, plan)),
            lambda data: store.seal_checkpoint(job_id, data), time.monotonic, time.sleep,
        )  # fmt: skip
        trainer = Trainer(run, plan, self._spec, task, world, guard, None if self._spec.cache == "off" else cache)
        self._obedience.enter("TRAINING", f"{self._spec.epochs} epochs of {plan.steps} steps")
        gate = self._gate(trainer, run, plan, task, target, start)
        self._go_on(trainer, store)
        slices = choose_slices(run, self._spec, task)
        form = choose_form(run, self._spec, task)
        trainer.train()
        after = trainer.final_score()
        self._ask("EVALUATING", "")
        trainer.wait_or_end()
        gate.score(after, run.outputs, trainer.score_with)
        gate.score_running(store, self._order.threads, self._warn, trainer.score_with)
        verdict = gate.verdict(dict(run.parameters()))
        result = self._result(trainer, plan, task, gate.own.before, after, gate.own.running) | {
            "gate": gate.told,
            "cache": trainer.cache_told(),
            "prefix": form,
            "slices": slices,
        }
        if not verdict.accepted:
            raise RefusedError(verdict, result)
        decision = task.decision(run.outputs)
        self._ask("SEALING", "")
        trainer.wait_or_end()
        model = serialize(graph.with_weights(dict(run.parameters())))
        manifest = self._manifest(task, target, model, after) | decision
        trainer.wait_or_end()
        guard.check(parse(model).initializers)
        result |= decision
        result |= {"model_sha256": manifest["model_sha256"], "base_sha256": target.sealed_sha256}
        samples = task.test_inputs(0, SELF_TEST_SAMPLES)
        trainer.wait_or_end()
        hold = self._spec.promote == "ask"
        slot, problem = promote(
            store, model, manifest, samples, run.outputs(samples), self._order.threads,
            lambda slot: self._ask("PROMOTING", f"slot {slot}"),
            guard.never_learn if self._policy().store.form == "delta" else (), hold=hold,
        )  # fmt: skip
        result |= {"slot": slot, "staged": hold and not problem}
        if problem:
            return Finished("ROLLED_BACK", problem, result)
        store.drop_checkpoint(job_id)
        return Finished("SUCCEEDED", "", result)

    def _go_on(self, trainer: Trainer, store: Store) -> None:
        """Resume from the checkpoint of an earlier attempt; a broken one costs the work, not the job."""
        try:
            saved = store.open_checkpoint(self._order.job_id)
            if saved is not None:
                trainer.resume(saved)
        except (SealedFileError, EngineError) as error:
            store.drop_checkpoint(self._order.job_id)
            self._warn(f"training starts over, the checkpoint is of no use: {error}")

    # --- parts -------------------------------------------------------------------------------------------------------

    def _gate(self, trainer: Trainer, run: TrainingRun, plan: Plan, task: Task, target: Target, start: Start) -> Gate:
        """What will judge the job; the base is scored now, while the run still has its weights."""
        policy = self._policy().gate
        owners = owners_data(policy.held_out, self._spec, target.card, plan.classes)
        bounds = Bounds.of(policy, self._spec.least_gain, keeps_head=plan.head == "keep")
        judged = Judged(owners, trainer.score_with(run.outputs, owners)) if owners else None
        return Gate(bounds, start, Judged(task, trainer.evaluate()), judged)

    def _warn(self, what: str) -> None:
        self._emit(Warned(what))

    def _result(
        self, trainer: Trainer, plan: Plan, task: Task, before: Score, after: Score, running: Score | None
    ) -> dict[str, object]:
        at, metric = trainer.position, after.metric
        return {
            "task": task.name,
            "metric": metric,
            f"{metric}_before": told_score(before),
            f"{metric}_after": told_score(after),
            f"{metric}_running": told_score(running),
            "baselines": {line.name: line.value for line in task.baselines},
            "held_out": after.samples,
            "train_samples": task.train_samples,
            "samples": at.samples,
            "dropped_steps": at.dropped,
            "busy_s": at.busy_s,
            "samples_per_s": at.samples / at.busy_s if at.busy_s else None,
            "wall_s": time.monotonic() - self._began,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "depth_changes": at.depth_changes,
            "depth_percent": plan.depth_percent,
            "depth_rule": plan.rule,
            "similarity": plan.similarity,
            "engine": plan.engine,
            "micro_batch": plan.micro_batch or plan.batch,
            "update": self._spec.update,
            "depth_trials": {str(trial.percent): trial.loss for trial in plan.trials},
            "macs_per_step_sample": plan.step_macs,
            "bandwidth": at_pace(self._bandwidth, at.busy_s, plan.passes(self._spec.epochs)),
            "skipped": task.skipped()[0],
        }

    def _manifest(self, task: Task, target: Target, model: bytes, after: Score) -> dict[str, object]:
        card = target.card
        return {
            "name": card.name,
            "task": task.name,
            "base_version": card.version,
            "base_sha256": card.plaintext_sha256,
            "model_sha256": hashlib.sha256(model).hexdigest(),
            after.metric: after.value,
            "job": self._order.job_id,
            **task.manifest(),
        }


def training_setup(spec: FineTuneSpec, plan: Plan, graph: Graph, task: Task, threads: int) -> TrainingSetup:
    """What the engine is asked to compile for a job."""
    _, frozen = plan.frozen_layers(0)
    return TrainingSetup(
        graph, plan.batch, graph.input_shape, frozen, optimizer(spec), threads, task.loss, plan.micro_batch,
        plan.update(frozen).learning,
    )  # fmt: skip


def _without_weights(graph: Graph) -> Graph:
    """The graph with zeros that take no memory in place of its parameters."""
    names = {name for layer in graph.layers() for name in layer.parameters}
    nothing = {
        name: np.broadcast_to(np.zeros((), value.dtype), value.shape) if name in names else value
        for name, value in graph.initializers.items()
    }
    return replace(graph, initializers=nothing)


def _progress(seen: Seen, spec: FineTuneSpec, plan: Plan) -> Progress:
    loss = seen.loss if np.isfinite(seen.loss) else 0.0
    score, metric = (told_score(seen.score), seen.score.metric) if seen.score else (None, "")
    return Progress(
        seen.epoch, spec.epochs, seen.step, plan.steps, seen.samples, float(loss), score, seen.frozen_layers,
        seen.depth_percent, seen.step_s * 1e3, _resident_bytes(), "" if seen.event == "step" else seen.event, seen.rule,
        metric, seen.dropped, seen.obeyed, seen.obeyed_s, seen.reused, seen.micro_batch,
    )  # fmt: skip


def _resident_bytes() -> int:
    with io.open("/proc/self/statm", encoding="ascii") as stream:  # noqa: UP020 - the builtin is not patched here
        return int(stream.read().split()[1]) * resource.getpagesize()
