"""Real training for `bench govern`: what each epoch at each freeze depth costs here, and what it teaches.

What a network has learnt after some epochs depends on the depths it was trained at and not on how long they took. So
each sequence of depths is trained once, when first asked for, and remembered; heat and clocks are reckoned elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.card import Preprocess
from agent.cost import cost_table
from agent.dataset import epoch_batches
from agent.engine import choose_engine
from agent.engine.base import Float32, OptimizerSpec, TrainingRun, TrainingSetup
from agent.errors import EngineError
from agent.evaluate import score_logits
from agent.images import Images, preprocessed
from agent.publish import IMAGENET_OFFSET, IMAGENET_SCALE
from agent.schedule import rate_share, rewarmed_share
from policies.freezing import HEAD_ONLY_PERCENT
from policies.policy import DEPTH_LADDER
from service.bench_files import bench_graph, layers_at

CHUNK = 64
WARM_UP_SHARE = 0.05  # as a job's
KEPT_STATES = 12  # of some 40 MB each: a run that leaves an old one begins at a state that is kept, not at the start
KEPT_EVERY = 4  # epochs between two states that outlast those of single epochs
COST_ROUNDS = 5
RULE = Preprocess(IMAGENET_SCALE, IMAGENET_OFFSET)

Depths = tuple[int, ...]
"""Freeze depth of each epoch so far, in percent."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is trained: the same for every governor."""

    model: str
    size: int
    batch: int
    epochs: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class EpochCost:
    """Measured seconds of an epoch at one depth on one thread of this machine.

    Attributes:
        depth_percent: nominal.
        frozen_layers: layers the depth freezes.
        steps_s: the steps, what crosses the boundary being at hand.
        judging_s: the held-out samples after the epoch, the same.
        prefix_s: running the frozen part once over training and held-out samples; 0 with nothing frozen.
        compile_s: moving the boundary here.
        sample_s: of the steps, for one sample.
    """

    depth_percent: int
    frozen_layers: int
    steps_s: float
    judging_s: float
    prefix_s: float
    compile_s: float
    sample_s: float


@dataclass(frozen=True, slots=True)
class Learnt:
    """What an epoch gave: mean training loss of its steps, and held-out accuracy after it."""

    loss: float
    accuracy: float


def runs_prefix(depths: Depths) -> bool:
    """Whether the last epoch of `depths` has to run the frozen part: what it kept is gone, or there is none yet.

    What crosses a boundary stays as it was while nothing before the boundary learns; one boundary is kept at a time.
    """
    if depths[-1] == 0:
        return False
    return len(depths) < 2 or depths[-2] != depths[-1]  # noqa: PLR2004 - the epoch before


def rate_share_after(depths: Depths, step: int, steps: int, epochs: int) -> float:
    """Share of the peak rate, as a job's, after `step` of `steps` in the last epoch of `depths`, of `epochs` in all."""
    done, total = (len(depths) - 1) * steps + step, epochs * steps
    moves = zip(range(1, len(depths)), depths, depths[1:], strict=False)
    joined = [at * steps for at, before, now in moves if now < before == HEAD_ONLY_PERCENT]
    again = rewarmed_share(done, joined[-1] if joined else None, total, WARM_UP_SHARE)
    return rate_share(done, total, WARM_UP_SHARE, falls=True) * again


class Learning:
    """One course on one data set.

    Args:
        course: what is trained.
        images: what it learns from.
        known: what an earlier run with the same course and images found.

    Attributes:
        learnt: what is known of each sequence of depths.
        epochs_trained: how many epochs were really trained here.

    Raises:
        EngineError, ModelError: the model cannot be trained.
    """

    def __init__(self, course: Course, images: Images, known: Mapping[Depths, Learnt] | None = None) -> None:
        graph = bench_graph(course.model, course.size, len(images.classes), course.seed)
        table = cost_table(graph)
        self._layers = {depth: layers_at(table, depth) for depth in DEPTH_LADDER}
        setup = TrainingSetup(
            graph, course.batch, graph.input_shape, 0, OptimizerSpec("sgd"), threads=1
        )  # fmt: skip
        self._course, self._images = course, images
        self._run: TrainingRun = choose_engine("graph").start(setup)
        self._train, self._test = preprocessed(images.x_train, RULE), preprocessed(images.x_test, RULE)
        self._steps = -(-len(images.y_train) // course.batch)
        self.learnt: dict[Depths, Learnt] = dict(known or {})
        self._states: OrderedDict[Depths, Mapping[str, npt.NDArray[np.generic]]] = OrderedDict()
        self._start = self._run.state()
        self._at: Depths = ()
        self._boundary: tuple[bytes, list[Float32], list[Float32]] | None = None
        self.epochs_trained = 0

    def close(self) -> None:
        """Release the run."""
        self._run.close()

    def after(self, depths: Depths) -> Learnt:
        """What was learnt by training one epoch at each of `depths`, in their order.

        Raises:
            EngineError: loss or gradient were not finite.
        """
        if depths not in self.learnt:
            if self._at != depths[:-1]:
                self._go_to(depths[:-1])
            self.learnt[depths] = self._epoch(len(self._at), depths[-1])
            self._at = depths
            self._keep(depths)
        return self.learnt[depths]

    def _go_to(self, depths: Depths) -> None:
        """Bring the network to where it was after `depths`: from the nearest state kept, by the same steps again."""
        known = next((depths[:n] for n in range(len(depths), 0, -1) if depths[:n] in self._states), ())
        self._load(known)
        for epoch in range(len(known), len(depths)):
            self._epoch(epoch, depths[epoch])
            self._at = depths[: epoch + 1]

    def _load(self, depths: Depths) -> None:
        self._freeze(depths[-1] if depths else 0)  # a state holds the momentum of what learns
        self._run.load_state(self._states.get(depths, self._start))
        self._at, self._boundary = depths, None

    def _keep(self, depths: Depths) -> None:
        # A run goes on from its latest state; another one most likely leaves it at an epoch it has in common.
        if len(depths) % KEPT_EVERY:
            return
        self._states[depths] = self._run.state()
        while len(self._states) > KEPT_STATES:
            self._states.popitem(last=False)

    def _epoch(self, epoch: int, depth: int) -> Learnt:
        course, labels = self._course, self._images.y_train
        self._freeze(depth)
        kept, held_out = self._crossing()
        losses = []
        for step, chosen in enumerate(epoch_batches(len(labels), course.batch, course.seed, epoch)):
            share = rate_share_after((*self._at[:epoch], depth), step, self._steps, course.epochs)
            done = self._run.step_from_boundary(
                [rows[chosen] for rows in kept], labels[chosen], course.learning_rate * share
            )
            if not done.kept:
                raise EngineError("training diverged", where=f"{depth} %, epoch {epoch + 1}", fix="Lower the rate")
            losses.append(done.loss)
        outputs = [self._run.outputs_from_boundary(part) for part in _chunks(held_out)]
        self.epochs_trained += 1
        return Learnt(statistics.fmean(losses), score_logits(np.concatenate(outputs), self._images.y_test).value)

    def _freeze(self, depth: int) -> None:
        if self._run.frozen_layers != self._layers[depth]:
            self._run.set_frozen_layers(self._layers[depth])

    def _crossing(self) -> tuple[list[Float32], list[Float32]]:
        """What crosses the boundary for training and held-out samples; run again only when it changed."""
        digest = self._run.prefix_digest
        if self._boundary is None or self._boundary[0] != digest:
            self._boundary = (digest, _boundary(self._run, self._train), _boundary(self._run, self._test))
        return self._boundary[1], self._boundary[2]

    def costs(self, depths: Sequence[int] = DEPTH_LADDER) -> tuple[EpochCost, ...]:
        """Measure an epoch's cost at each depth, in processor time of one thread: the fastest of some turns.

        Other work on the machine does not count, and only slows a turn down where it takes caches away.

        Moving the boundary is the slowest instead: a network keeps what it compiled, and a job moves here once.
        The network is brought back to its start afterwards.
        """
        found: dict[int, list[tuple[float, float, float, float]]] = {depth: [] for depth in depths}
        for _ in range(COST_ROUNDS):
            for depth in depths:
                found[depth].append(self._time(depth))
        self._load(())
        return tuple(self._cost(depth, found[depth]) for depth in depths)

    def _time(self, depth: int) -> tuple[float, float, float, float]:
        """Seconds to move here, and a sample of the frozen part, of a step and of a held-out output."""
        began = time.process_time()
        self._freeze(depth)
        moved = time.process_time() - began
        count = self._course.batch
        samples, labels = self._train[:count], self._images.y_train[:count]
        crossing = self._run.boundary(samples)  # wakes caches and threads; so do the first two steps
        prefix = _per_sample(lambda: self._run.boundary(samples), count, 4) if depth else 0.0
        for _ in range(2):
            self._run.step_from_boundary(crossing, labels, 1e-6)
        step = _per_sample(lambda: self._run.step_from_boundary(crossing, labels, 1e-6), count, 6)
        judged = _per_sample(lambda: self._run.outputs_from_boundary(crossing), count, 4)
        return moved, prefix, step, judged

    def _cost(self, depth: int, found: Sequence[tuple[float, float, float, float]]) -> EpochCost:
        moves, *rest = zip(*found, strict=True)
        moved, (prefix, step, judged) = max(moves), (min(column) for column in rest)
        train, test = len(self._images.y_train), len(self._images.y_test)
        return EpochCost(
            depth, self._layers[depth], step * self._steps * self._course.batch, judged * test,
            prefix * (train + test), moved, step,
        )  # fmt: skip


def _per_sample(work: Callable[[], object], samples: int, calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        work()
    return (time.process_time() - began) / (calls * samples)


def _boundary(run: TrainingRun, samples: Float32) -> list[Float32]:
    parts = [run.boundary(samples[start : start + CHUNK]) for start in range(0, len(samples), CHUNK)]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _chunks(arrays: Sequence[Float32]) -> list[list[Float32]]:
    return [[rows[start : start + CHUNK] for rows in arrays] for start in range(0, len(arrays[0]), CHUNK)]
