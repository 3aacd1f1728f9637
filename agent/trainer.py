"""The step loop: engine, data, the governor's orders and the clock are all handed in."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.card import Preprocess
from agent.dataset import Dataset, epoch_batches, preprocessed
from agent.engine.base import Float32, TrainingRun
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import BoardError, EngineError, TemperdError
from agent.evaluate import Score, score
from agent.messages import Steer
from agent.plan import Plan
from agent.spec import FineTuneSpec

CHECKPOINT_EVERY_S = 30.0  # work lost to a power cut, against wear: a checkpoint of MobileNetV2 writes 27 MB
PROGRESS_EVERY_S = 0.25  # four lines a second are live to a person and cost nothing
PAUSE_POLL_S = 0.1
MAX_NAP_S = 1.0  # obey the governor at least once a second, however low the duty
WARM_UP_SHARE = 0.05  # of all steps: fresh classifier weights would else throw the frozen features' gradients about

FREE = Steer("RUN", 1.0, 0, reverify=False, rule="run")


class JobEndedError(TemperdError):
    """The governor or an operator ended the job."""

    reason = "aborted"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the loop tells of itself.

    `event` is `step`, `epoch`, `depth`, `paused`, `resumed`, `checkpoint`, `no-checkpoint` or `verified`.
    """

    event: str
    epoch: int
    step: int
    samples: int
    loss: float
    accuracy: float | None
    frozen_layers: int
    depth_percent: int
    step_s: float
    rule: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where the loop stands: enough, with the engine's state, to go on."""

    epoch: int = 0
    step: int = 0
    samples: int = 0
    depth_changes: int = 0
    busy_s: float = 0.0


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
        self, run: TrainingRun, plan: Plan, spec: FineTuneSpec, data: Dataset, rule: Preprocess, world: World
    ) -> None:
        self._run, self._plan, self._spec, self._data, self._rule, self._world = run, plan, spec, data, rule, world
        self._at = Position()
        self._depth = plan.depth_percent
        self._loss = math.nan
        self._binding = "plan"
        self._saved_at = world.clock()
        self._begun = False
        self._told_at = -math.inf
        self._digests = self._frozen_digests()

    @property
    def position(self) -> Position:
        """Where the loop stands."""
        return self._at

    def resume(self, checkpoint: bytes) -> None:
        """Go on from a checkpoint that `World.save` was given.

        Raises:
            EngineError: the checkpoint does not fit the model.
        """
        state, position, depth = read_checkpoint(checkpoint)
        _, boundary = self._plan.frozen_layers(depth)
        self._run.set_frozen_layers(boundary)
        self._run.load_state(state)
        self._depth, self._at = depth, position
        self._digests = self._frozen_digests()

    def train(self) -> Score:
        """Train to the last epoch.

        Returns:
            The held-out score after the last epoch.

        Raises:
            JobEndedError: an order said so; a checkpoint was saved before.
            EngineError: the loss is not finite, or frozen weights changed in memory.
        """
        self._begun = True
        latest: Score | None = None
        for epoch in range(self._at.epoch, self._spec.epochs):
            order = epoch_batches(len(self._data.y_train), self._plan.batch, self._spec.seed, epoch)
            for step, chosen in enumerate(order):
                if step >= self._at.step:
                    self._obey()
                    self._one_step(step, chosen)
            latest = self.evaluate()
            self._move(epoch=epoch + 1, step=0)
            self._tell("epoch", latest.accuracy)
        return latest or self.evaluate()

    def evaluate(self) -> Score:
        """Score the current weights on the held-out samples."""
        return self.score_with(self._run.logits, self._rule)

    def score_with(self, logits: Callable[[Float32], Float32], rule: Preprocess) -> Score:
        """Score any model on the held-out samples, a few at a time; pauses and ends are obeyed in between."""
        pixels = self._data.x_test
        parts = []
        for start in range(0, len(pixels), FORWARD_CHUNK):
            self._wait_or_end()
            parts.append(logits(preprocessed(pixels[start : start + FORWARD_CHUNK], rule)))
        return score(np.concatenate(parts), self._data.y_test)

    # --- orders ------------------------------------------------------------------------------------------------------

    def _wait_or_end(self) -> Steer:
        """Wait out a pause; the order that lets work go on.

        Raises:
            JobEndedError: an order ends the job.
        """
        order = self._world.steer()
        if order.action == "PAUSE":
            self._checkpoint()
            self._binding = order.rule
            self._tell("paused")
            while order.action == "PAUSE":
                self._world.nap(PAUSE_POLL_S)
                order = self._world.steer()
            self._binding = order.rule
            self._tell("resumed")
        if order.action == "ABORT":
            self._checkpoint()
            raise JobEndedError("the job was ended", where=order.rule, reason=order.rule)
        return order

    def _obey(self) -> None:
        order = self._wait_or_end()
        self._binding = order.rule
        if order.reverify:
            self._verify_frozen()
            self._world.verified()
        depth, boundary = self._plan.frozen_layers(order.least_depth_percent)
        if boundary != self._run.frozen_layers:
            self._run.set_frozen_layers(boundary)
            self._depth = depth
            self._digests = self._frozen_digests()
            self._move(depth_changes=self._at.depth_changes + 1)
            self._tell("depth")

    def _one_step(self, step: int, chosen: npt.NDArray[np.int64]) -> None:
        samples = preprocessed(self._data.x_train[chosen], self._rule)
        began = self._world.clock()
        self._loss = self._run.step(samples, self._data.y_train[chosen], self._learning_rate())
        if not math.isfinite(self._loss):
            raise EngineError(
                f"the loss is {self._loss} at epoch {self._at.epoch + 1}, step {step + 1}",
                fix="Lower learning_rate; the model in the active slot is untouched",
                reason="not-finite",
            )
        took = self._world.clock() - began
        self._move(step=step + 1, samples=self._at.samples + len(chosen), busy_s=self._at.busy_s + took)
        if self._world.clock() - self._told_at >= PROGRESS_EVERY_S:
            self._tell("step", step_s=took)
        if self._world.clock() - self._saved_at >= CHECKPOINT_EVERY_S:
            self._checkpoint()
        self._rest(took)

    def _rest(self, took: float) -> None:
        """Sleep so that steps take the ordered share of time (duty); a stricter order ends the rest early."""
        rest = took * (1 / max(self._world.steer().duty, 0.01) - 1)
        until = self._world.clock() + rest
        while (left := until - self._world.clock()) > 0 and self._world.steer().action in ("RUN", "SLOW"):
            self._world.nap(min(left, MAX_NAP_S))

    def _learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017)."""
        total = self._spec.epochs * self._plan.steps
        done = self._at.epoch * self._plan.steps + self._at.step
        warm = max(1, int(total * WARM_UP_SHARE))
        if done < warm:
            return self._spec.learning_rate * (done + 1) / warm
        return self._spec.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))

    # --- bookkeeping -------------------------------------------------------------------------------------------------

    def _move(self, **changes: float) -> None:
        values = {name: getattr(self._at, name) for name in Position.__slots__} | changes
        self._at = Position(**values)

    def _tell(self, event: str, accuracy: float | None = None, step_s: float = 0.0) -> None:
        self._told_at = self._world.clock()
        at = self._at
        self._world.tell(
            Seen(
                event, at.epoch, at.step, at.samples, self._loss, accuracy, self._run.frozen_layers, self._depth,
                step_s, self._binding,
            )
        )  # fmt: skip

    def _checkpoint(self) -> None:
        if not self._begun:  # an earlier attempt's checkpoint is worth more than the start
            return
        try:
            self._world.save(write_checkpoint(self._run.state(), self._at, self._depth))
            self._tell("checkpoint")
        except BoardError as error:  # a full disk must not end a job that can still finish
            self._binding = error.code
            self._tell("no-checkpoint")
        self._saved_at = self._world.clock()

    def _frozen_digests(self) -> dict[str, str]:
        learning = set(self._run.trainable)
        return {
            name: hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()
            for name, value in self._run.parameters().items()
            if name not in learning
        }

    def _verify_frozen(self) -> None:
        """Memory is suspect after great heat: frozen weights must still hash to what they did."""
        now = self._frozen_digests()
        changed = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if changed:
            raise EngineError("frozen weights changed in memory", where=", ".join(changed[:3]), reason="memory-corrupt")
        self._tell("verified")


# what NumPy and zipfile raise on bytes that are no checkpoint
_UNREADABLE = (KeyError, ValueError, TypeError, IndexError, ArithmeticError, RuntimeError, OSError, EOFError)
_POSITION = ("epoch", "step", "samples", "depth_changes", "busy_s")


def write_checkpoint(state: Mapping[str, npt.NDArray[np.generic]], position: Position, depth_percent: int) -> bytes:
    """Weights, optimizer state and position as .npz bytes (to be sealed before they touch a disk)."""
    buffer = io.BytesIO()
    place = np.asarray([*(getattr(position, name) for name in _POSITION), depth_percent], np.float64)
    arrays: dict[str, Any] = {f"state/{name}": value for name, value in state.items()}
    np.savez(buffer, position=place, **arrays)
    return buffer.getvalue()


def read_checkpoint(data: bytes) -> tuple[dict[str, npt.NDArray[np.generic]], Position, int]:
    """What `write_checkpoint` wrote.

    Raises:
        EngineError: not such a file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            place = archive["position"]
            state = {key.removeprefix("state/"): archive[key] for key in archive if key.startswith("state/")}
        epoch, step, samples, changes = (int(value) for value in place[:4])
        return state, Position(epoch, step, samples, changes, float(place[4])), int(place[5])
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise EngineError("the checkpoint cannot be read", fix="The job starts over") from error
