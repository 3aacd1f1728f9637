"""One fine-tune job from order to promotion: each stage is asked for before it is entered."""

from __future__ import annotations

import hashlib
import io
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from agent import dataset, evaluate
from agent.card import ModelCard, Preprocess, Target
from agent.cost import cost_table
from agent.engine import choose_engine
from agent.engine.base import OptimizerSpec, TrainingRun, TrainingSetup
from agent.engine.infer import Inference, feature_tensor
from agent.engine.ir import Graph, parse, serialize
from agent.errors import BoardError, EngineError, SealedFileError, SpecError, TemperdError
from agent.keys import DeviceIdentity, load_identity
from agent.messages import Finished, Message, Order, Planned, Progress, Steer, Warned
from agent.model import BaseModel, choose_head, load_base, with_head
from agent.plan import Plan, make_plan, parse_plan, plan_table
from agent.promote import active_slot, load_active, promote, settle
from agent.sealed import Binding, unseal
from agent.similarity import cosine_of_means
from agent.spec import FineTuneSpec, parse_spec
from agent.store import Store
from agent.trainer import Seen, Trainer, World
from agent.trust import ModelRepository, verify_sealed
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
    return Store(state / "store", identity.storage_key)


class Orders(Protocol):
    """Where the daemon's orders arrive."""

    def steer(self) -> Steer:
        """The latest order."""

    def verified(self) -> None:
        """The frozen weights were verified as ordered."""


class FineTune:
    """Carries out one order."""

    def __init__(self, order: Order, ask: Ask, emit: Emit, orders: Orders) -> None:
        self._order, self._ask, self._emit, self._orders = order, ask, emit, orders
        self._spec: FineTuneSpec = parse_spec(order.spec)
        self._state = Path(order.state_dir)
        self._began = time.monotonic()

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
        target, plaintext = self._pull(identity)
        self._ask("PLANNING", "")
        base = load_base(plaintext, target.card, self._spec.image_size)
        del plaintext
        data = self._load_data()
        plan, data = self._plan(base, data, target, store)
        graph, _ = with_head(base, plan.head, plan.classes, self._spec.seed)
        self._ask("COMPILING", f"{plan.engine}, {plan.depth_percent} % frozen")
        run = self._compile(graph, plan)
        try:
            return self._learn(run, plan, data, target, store, graph)
        finally:
            run.close()

    # --- stages ------------------------------------------------------------------------------------------------------

    def _pull(self, identity: DeviceIdentity) -> tuple[Target, bytes]:
        self._ask("PULLING", f"{self._spec.model} {self._spec.version}")
        root = Path(self._order.repository_root)
        repository = ModelRepository(self._order.repository_url, root, self._state / "repository")
        repository.refresh()
        kept = (self._order.resume_plan or {}).get("version")
        target = repository.find(self._spec.model, str(kept or self._spec.version), self._order.board)
        path = repository.fetch(target)
        self._ask("VERIFYING", f"{target.name} {target.version}")
        verify_sealed(path, target)
        self._ask("UNSEALING", "")
        key = repository.grant(identity, target)
        card: ModelCard = target.card
        binding = Binding(card.name, card.version, card.plaintext_sha256)
        with path.open("rb") as stream:
            return target, unseal(stream, key, binding, card.plaintext_length)

    def _load_data(self) -> dataset.Dataset:
        spec = self._spec
        data = dataset.load(spec.data, spec.image_size, spec.held_out, spec.seed, spec.most_samples)
        if data.skipped:
            named = "; ".join(data.skipped_names)
            self._warn(f"{data.skipped} unreadable image{'s' * (data.skipped > 1)} skipped: {named}")
        return data

    def _plan(
        self, base: BaseModel, data: dataset.Dataset, target: Target, store: Store
    ) -> tuple[Plan, dataset.Dataset]:
        data_sha256 = dataset.fingerprint(data)
        plan = self._kept_plan(data_sha256, store)
        if plan is None:
            head = choose_head(self._spec.head, data.classes, base.card.labels)
            graph, classes = with_head(base, head, data.classes, self._spec.seed)
            plan = make_plan(
                self._spec, self._policy(), cost_table(graph), self._similarity(base, data),
                engine=choose_engine(self._spec.engine).name, classes=classes, head=head, samples=len(data.y_train),
                data_sha256=data_sha256,
            )  # fmt: skip
            self._emit(Planned({"plan": plan_table(plan), "version": target.version}))
        return plan, _relabelled(data, plan.classes)

    def _kept_plan(self, data_sha256: str, store: Store) -> Plan | None:
        """The plan of an earlier attempt, if the data are still those it was made for."""
        kept = (self._order.resume_plan or {}).get("plan")
        if not isinstance(kept, dict):
            return None
        plan = parse_plan(kept)
        if plan.data_sha256 == data_sha256:
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

    def _similarity(self, base: BaseModel, data: dataset.Dataset) -> float | None:
        """R2 compares mean features of the target's training samples with the publisher's signature of the source."""
        if not base.card.signature_of_source_features:
            return None
        chosen = np.random.default_rng(self._spec.seed).permutation(len(data.y_train))[:SIMILARITY_SAMPLES]
        inference = Inference(base.graph, self._order.threads, feature_tensor(base.graph))
        features = inference.run(dataset.preprocessed(data.x_train[chosen], base.card.preprocess))
        return cosine_of_means(features, base.card.signature_of_source_features)

    def _compile(self, graph: Graph, plan: Plan) -> TrainingRun:
        spec = self._spec
        optimizer = OptimizerSpec(spec.optimizer, momentum=spec.momentum, weight_decay=spec.weight_decay)
        _, frozen = plan.frozen_layers(0)
        setup = TrainingSetup(graph, plan.batch, graph.input_shape, frozen, optimizer, self._order.threads)
        return choose_engine(plan.engine).start(setup)

    def _learn(
        self, run: TrainingRun, plan: Plan, data: dataset.Dataset, target: Target, store: Store, graph: Graph
    ) -> Finished:
        job_id, rule = self._order.job_id, target.card.preprocess
        world = World(
            self._orders.steer, self._orders.verified, lambda seen: self._emit(_progress(seen, self._spec, plan)),
            lambda data: store.seal_checkpoint(job_id, data), time.monotonic, time.sleep,
        )  # fmt: skip
        trainer = Trainer(run, plan, self._spec, data, rule, world)
        self._ask("TRAINING", f"{self._spec.epochs} epochs of {plan.steps} steps")
        before = trainer.evaluate()
        self._go_on(trainer, store)
        after = trainer.train()
        self._ask("EVALUATING", "")
        running = self._running_score(store, plan, trainer)
        verdict = evaluate.gate(after, before, running, evaluate.majority_share(data.y_test), self._spec.least_gain)
        result = self._result(trainer, plan, data, before, after, running)
        if not verdict.accepted:
            raise RefusedError(verdict, result)
        self._ask("SEALING", "")
        model = serialize(graph.with_weights(dict(run.parameters())))
        manifest = self._manifest(plan, target, model, after)
        result |= {"model_sha256": manifest["model_sha256"], "base_sha256": target.sealed_sha256}
        samples = dataset.preprocessed(data.x_test[:SELF_TEST_SAMPLES], rule)
        slot, problem = promote(
            store, model, manifest, samples, run.logits(samples), self._order.threads,
            lambda slot: self._ask("PROMOTING", f"slot {slot}"),
        )  # fmt: skip
        result["slot"] = slot
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

    def _running_score(self, store: Store, plan: Plan, trainer: Trainer) -> evaluate.Score | None:
        """The active model on the same held-out samples, when it knows the same classes."""
        active = active_slot(store, self._warn)
        if active is None or tuple(active.manifest.get("classes", ())) != plan.classes:  # type: ignore[arg-type]  # a list of names
            return None
        if active.manifest.get("image_size") != self._spec.image_size:
            return None
        loaded = load_active(store, self._warn)
        if loaded is None:
            return None
        model, manifest = loaded
        rule = Preprocess(float(manifest["scale"]), float(manifest["offset"]))  # type: ignore[arg-type]  # numbers
        return trainer.score_with(Inference(parse(model), self._order.threads).run, rule)

    def _warn(self, what: str) -> None:
        self._emit(Warned(what))

    def _result(
        self, trainer: Trainer, plan: Plan, data: dataset.Dataset, before: evaluate.Score, after: evaluate.Score,
        running: evaluate.Score | None,
    ) -> dict[str, object]:  # fmt: skip
        at = trainer.position
        return {
            "accuracy_before": before.accuracy,
            "accuracy_after": after.accuracy,
            "accuracy_running": running.accuracy if running else None,
            "held_out": after.samples,
            "train_samples": len(data.y_train),
            "samples": at.samples,
            "busy_s": at.busy_s,
            "samples_per_s": at.samples / at.busy_s if at.busy_s else None,
            "wall_s": time.monotonic() - self._began,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "depth_changes": at.depth_changes,
            "depth_percent": plan.depth_percent,
            "depth_rule": plan.rule,
            "similarity": plan.similarity,
            "engine": plan.engine,
            "macs_per_step_sample": plan.rung(plan.depth_percent).step_macs,
            "skipped": data.skipped,
        }

    def _manifest(self, plan: Plan, target: Target, model: bytes, after: evaluate.Score) -> dict[str, object]:
        card = target.card
        return {
            "name": card.name,
            "base_version": card.version,
            "base_sha256": card.plaintext_sha256,
            "model_sha256": hashlib.sha256(model).hexdigest(),
            "classes": list(plan.classes),
            "image_size": self._spec.image_size,
            "scale": card.preprocess.scale,
            "offset": card.preprocess.offset,
            "accuracy": after.accuracy,
            "job": self._order.job_id,
        }


class RefusedError(TemperdError):
    """The gate refused the tuned model; the active one stays."""

    def __init__(self, verdict: evaluate.Verdict, result: dict[str, object]) -> None:
        super().__init__("the tuned model is not better", where=verdict.evidence, reason=verdict.reason)
        self.result = result


def _relabelled(data: dataset.Dataset, classes: tuple[str, ...]) -> dataset.Dataset:
    """Labels as indices into the model's classes (they differ from the data's when the head is kept)."""
    if classes == data.classes:
        return data
    index = np.asarray([classes.index(name) for name in data.classes], np.int64)
    return replace(data, y_train=index[data.y_train], y_test=index[data.y_test], classes=classes)


def _progress(seen: Seen, spec: FineTuneSpec, plan: Plan) -> Progress:
    loss = seen.loss if np.isfinite(seen.loss) else 0.0
    return Progress(
        seen.epoch, spec.epochs, seen.step, plan.steps, seen.samples, float(loss), seen.accuracy, seen.frozen_layers,
        seen.depth_percent, seen.step_s * 1e3, _resident_bytes(), "" if seen.event == "step" else seen.event, seen.rule,
    )  # fmt: skip


def _resident_bytes() -> int:
    with io.open("/proc/self/statm", encoding="ascii") as stream:  # noqa: UP020 - the builtin is not patched here
        return int(stream.read().split()[1]) * resource.getpagesize()
