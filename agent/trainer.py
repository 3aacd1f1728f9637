"""The step loop: engine, data, the governor's orders and the clock are all handed in."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.checkpoint import BASE, WEIGHT, Position, read_checkpoint, write_checkpoint
from agent.dataset import epoch_batches
from agent.engine.base import Float32, StepResult, TrainingRun
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import BoardError, EngineError, ModelError, TemperdError
from agent.evaluate import Score
from agent.features import FeatureCache
from agent.features_prefix import FrozenPrefix
from agent.frozen_guard import FrozenGuard
from agent.messages import Steer
from agent.plan import Plan
from agent.schedule import rate_share, rewarmed_share
from agent.spec import FineTuneSpec
from agent.task import Task
from policies.freezing import HEAD_ONLY_PERCENT
from policies.reading import least_depth_after

CHECKPOINT_EVERY_S = 30.0  # work lost to a power cut, against wear: a checkpoint of MobileNetV2 writes 27 MB
PROGRESS_EVERY_S = 0.25  # four lines a second are live to a person and cost nothing
PAUSE_POLL_S = 0.1
MAX_NAP_S = 0.5  # an order is obeyed within a second of its reading, however low the duty
MAX_DROPPED_STEPS = 10  # a spike now and then is survived; ten are no accident
MAX_DROPPED_IN_A_ROW = 3  # the weights are unchanged after each: what fails on three batches fails on all

FREE = Steer("RUN", 1.0, 0, reverify=False, rule="run")


class JobEndedError(TemperdError):
    """The governor or an operator ended the job."""

    reason = "aborted"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the loop tells of itself.

    `event` is `step`, `epoch`, `depth`, `batch` (another micro-batch), `paused`, `resumed`, `checkpoint`,
    `no-checkpoint` or `verified`.
    """

    event: str
    epoch: int
    step: int
    samples: int
    loss: float
    score: Score | None
    frozen_layers: int
    depth_percent: int
    step_s: float
    rule: str
    dropped: int = 0
    obeyed: int = 0
    obeyed_s: float = 0.0
    reused: int = 0
    micro_batch: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """What the loop needs from outside.

    Attributes:
        steer: the latest order; called before every step and while paused.
        verified: called once frozen weights were verified as ordered.
        tell: receives what happened.
        save: stores a checkpoint durably (sealed by the caller).
        clock: monotonic seconds.
        nap: sleeps so many seconds.
    """

    steer: Callable[[], Steer]
    verified: Callable[[], None]
    tell: Callable[[Seen], None]
    save: Callable[[bytes], object]
    clock: Callable[[], float]
    nap: Callable[[float], None]


class Trainer:
    """Runs a plan to its end, or until an order or an error ends it."""

    def __init__(
        self,
        run: TrainingRun,
        plan: Plan,
        spec: FineTuneSpec,
        task: Task,
        world: World,
        guard: FrozenGuard,
        cache: FeatureCache | None = None,
    ) -> None:
        self._prefix = FrozenPrefix(run, task, spec, plan, cache)
        self._run, self._plan, self._spec, self._task, self._world = run, plan, spec, task, world
        self._at = Position()
        self._depth = plan.depth_percent
        self._share = 1.0
        self._loss = math.nan
        self._dropped_in_a_row = 0
        self._binding = "plan"
        self._saved_at = world.clock()
        self._begun = False
        self._told_at = -math.inf
        self._obeyed, self._obeyed_s = 0, 0.0
        self._guard = guard

    @property
    def position(self) -> Position:
        """Where the loop stands."""
        return self._at

    def cache_told(self) -> dict[str, object]:
        """What the feature cache did, as JSON values."""
        return self._prefix.told()

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint that `World.save` was given.

        Raises:
            EngineError: the checkpoint does not fit the model.
        """
        state, position, depth = read_checkpoint(checkpoint)
        if not np.array_equal(state.pop(BASE, np.empty(0)), self._guard.fingerprint()):
            raise EngineError("the checkpoint was made from another base", reason="checkpoint-mismatch")
        _, boundary = self._plan.frozen_layers(depth)
        self._run.set_plan(self._plan.update(boundary))
        frozen = self._run.frozen_memory()
        state |= {WEIGHT + name: frozen[name] for name in self._guard.never_learn}
        try:
            self._run.load_state(state)
        except EngineError:
            self._run.set_plan(self._plan.update(self._plan.frozen_layers(self._depth)[1]))
            self._guard.take()
            raise
        self._depth, self._at = depth, position
        self._guard.take(loaded=True)

    def train(self) -> Score:
        """Train to the last epoch.

        Returns:
            The held-out score after the last epoch.

        Raises:
            JobEndedError: an order said so; a checkpoint was saved before.
            EngineError: too many steps were not finite, or frozen weights changed in memory.
        """
        self._begun = True
        self._guard.verify()  # and take the answers of the form that was chosen
        latest: Score | None = None
        for epoch in range(self._at.epoch, self._spec.epochs):
            order = epoch_batches(self._task.train_samples, self._plan.batch, self._spec.seed, epoch)
            for step, chosen in enumerate(order):
                if step >= self._at.step:
                    self._obey()
                    self._one_step(step, chosen)
            latest = self.evaluate()
            self._prefix.flush()
            self._move(epoch=epoch + 1, step=0)
            self._tell("epoch", latest)
        return latest or self.evaluate()

    def final_score(self) -> Score:
        """The held-out score of what is judged and promoted: float32, and trained in memory that was verified.

        Raises:
            EngineError: frozen weights changed in memory.
        """
        self._guard.verify()
        self._run.use_float32()
        self._guard.verify()
        return self.evaluate()

    def evaluate(self) -> Score:
        """Score the current weights on the held-out samples."""
        return self._scored(self._prefix.outputs, self._task)

    def score_with(self, forward: Callable[[Float32], Float32], task: Task) -> Score:
        """Score any model on the held-out samples, a few at a time; pauses and ends are obeyed in between."""
        return self._scored(lambda start, stop: forward(task.test_inputs(start, stop)), task)

    def _scored(self, outputs: Callable[[int, int], Float32], task: Task) -> Score:
        parts = []
        for start in range(0, task.test_samples, FORWARD_CHUNK):
            self._follow(self.wait_or_end())
            began = self._world.clock()
            parts.append(task.measured(outputs(start, start + FORWARD_CHUNK), start))
            self._rest(self._world.clock() - began)
        return task.score(np.concatenate(parts))

    # --- orders ------------------------------------------------------------------------------------------------------

    def wait_or_end(self) -> Steer:
        """Wait out a pause; the order that lets work go on.

        Raises:
            JobEndedError: an order ends the job.
        """
        order = self._world.steer()
        if order.action == "PAUSE":
            self._follow(order)
            self._checkpoint()
            self._binding = order.rule
            self._tell("paused")
            while order.action == "PAUSE":
                self._world.nap(PAUSE_POLL_S)
                order = self._world.steer()
            self._binding = order.rule
            self._tell("resumed")
        if order.action == "ABORT":
            try:
                self._checkpoint()
            except EngineError as error:  # an order to end is obeyed, whatever the memory is like
                self._binding = error.code
                self._tell("no-checkpoint")
            raise JobEndedError("the job was ended", where=order.rule, reason=order.rule)
        return order

    def _follow(self, order: Steer) -> None:
        """From now on training does as `order` says."""
        if order.number != self._obeyed:
            self._obeyed, self._obeyed_s = order.number, self._world.clock()

    def _obey(self) -> None:
        order = self.wait_or_end()
        self._binding = order.rule
        if order.reverify:  # memory is suspect after great heat
            self._guard.verify_and_renew()
            self._world.verified()
            self._tell("verified")
        self._split(order)
        depth, boundary = self._plan.frozen_layers(least_depth_after(order, self._at.samples))
        if boundary != self._run.frozen_layers:
            was_head_alone = self._run.frozen_layers == self._plan.frozen_layers(HEAD_ONLY_PERCENT)[1]
            head_until = self._done() if was_head_alone else self._at.head_until
            self._guard.verify()
            self._run.set_plan(self._plan.update(boundary))
            self._guard.take()
            self._guard.verify()
            self._depth = depth
            self._move(depth_changes=self._at.depth_changes + 1, head_until=head_until)
            self._tell("depth")
        self._follow(order)

    def _split(self, order: Steer) -> None:
        """Let as much of a batch through at once as ordered; before the depth moves, which may need memory."""
        if order.micro_batch_share == self._share:
            return
        self._share, before = order.micro_batch_share, self._run.micro_batch
        self._guard.verify()
        with contextlib.suppress(ModelError):  # an engine that takes whole batches only goes on with them
            self._run.set_micro_batch_share(self._share)
        self._guard.verify()
        if self._run.micro_batch != before:
            self._tell("batch")

    def _one_step(self, step: int, chosen: npt.NDArray[np.int64]) -> None:
        began = self._world.clock()
        result = self._prefix.step(chosen, self._at.epoch, self._learning_rate())
        took = self._world.clock() - began
        self._count(step, len(chosen), took, result)
        if self._world.clock() - self._told_at >= PROGRESS_EVERY_S:
            self._tell("step", step_s=took)
        if self._world.clock() - self._saved_at >= CHECKPOINT_EVERY_S:
            self._checkpoint()
        self._guard.advance()
        self._rest(took)

    def _count(self, step: int, samples: int, took: float, result: StepResult) -> None:
        """Book a step: only the samples of a kept one count.

        Raises:
            EngineError: `not-finite`: too many steps were dropped.
        """
        at = self._at
        busy_s = at.busy_s + took
        if result.kept:
            self._dropped_in_a_row = 0
            self._loss = result.loss
            self._move(step=step + 1, samples=at.samples + samples, busy_s=busy_s)
            return
        self._dropped_in_a_row += 1
        self._move(step=step + 1, dropped=at.dropped + 1, busy_s=busy_s)
        if self._dropped_in_a_row >= MAX_DROPPED_IN_A_ROW or self._at.dropped >= MAX_DROPPED_STEPS:
            raise EngineError(
                f"{self._at.dropped} steps were not finite and were dropped, {self._dropped_in_a_row} in a row",
                where=f"epoch {at.epoch + 1}, step {step + 1}, loss {result.loss}",
                fix="Lower learning_rate or set clip_norm; the model in the active slot is untouched",
                reason="not-finite",
            )

    def _rest(self, took: float) -> None:
        """Sleep so that steps take the ordered share of time (duty); a stricter order ends the rest early."""
        began = self._world.clock()
        while (order := self._world.steer()).action in ("RUN", "SLOW"):
            left = began + took * (1 / max(order.duty, 0.01) - 1) - self._world.clock()
            if left <= 0:
                return
            self._follow(order)
            self._world.nap(min(left, MAX_NAP_S))

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to zero, or the same to the end; again a warm-up after the head alone."""
        spec, done = self._spec, self._done()
        total = spec.epochs * self._plan.steps
        share = rate_share(done, total, spec.warm_up, falls=spec.schedule != "constant")
        return spec.learning_rate * share * rewarmed_share(done, self._at.head_until, total, spec.warm_up)

    def _done(self) -> int:
        """Steps made of the whole training, dropped ones too."""
        return self._at.epoch * self._plan.steps + self._at.step

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _move(self, **changes: float | None) -> None:
        values = {name: getattr(self._at, name) for name in Position.__slots__} | changes
        self._at = Position(**values)

    def _tell(self, event: str, score: Score | None = None, step_s: float = 0.0) -> None:
        self._told_at = self._world.clock()
        at = self._at
        self._world.tell(
            Seen(
                event, at.epoch, at.step, at.samples, self._loss, score, self._run.frozen_layers, self._depth,
                step_s, self._binding, at.dropped, self._obeyed, self._obeyed_s,
                self._prefix.reused, self._run.micro_batch,
            )
        )  # fmt: skip

    def _checkpoint(self) -> None:
        if not self._begun:  # an earlier attempt's checkpoint is worth more than the start
            return
        self._guard.verify()
        fixed = {WEIGHT + name for name in self._guard.never_learn}
        state = {key: value for key, value in self._run.state().items() if key not in fixed}
        try:
            self._world.save(write_checkpoint(state | {BASE: self._guard.fingerprint()}, self._at, self._depth))
            self._tell("checkpoint")
        except BoardError as error:  # a full disk must not end a job that can still finish
            self._binding = error.code
            self._tell("no-checkpoint")
        self._saved_at = self._world.clock()
