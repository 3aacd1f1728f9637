"""Measures training side by side: step times in turns, memory of whole processes, and whether all learn the same."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import EngineError
from service.bench_files import Case, write_batches
from service.bench_peers import Entry, Side

BLOCK = 5  # counted steps of a turn: short, so that the drift of a shared machine hits all sides
WARM_UP = 2  # first steps of a turn wake threads and caches and are not counted
LEARNING_RATE = 1e-4
CHECKED_STEPS = 4  # from the common start; more would measure how rounding grows (docs/engines.md)
CHECKED_RATE = 1e-5  # small for the same reason
LOSS_TOLERANCE = 2e-3  # relative
UPDATE_TOLERANCES = {"sgd": 0.05, "adamw": 0.15}
"""Largest |difference of the updates| / |update|. Where a sum is near a ReLU's corner, rounding decides on which side;
AdamW also makes whole steps of gradients that are next to nothing. Measured 0.001 to 0.02 and 0.03 to 0.06; a momentum
of 0.8 instead of 0.9 gives 0.2."""
EPOCH_SAMPLES, EPOCHS = 400, 10  # the small job that amortised figures are for
LINEAR_BATCHES = (4, 8, 16, 24, 32)
LINEAR_DEPTHS = (0, 15, 30, 45, 60, 75, 90)
KIB_IN_MIB = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """What every side does the same."""

    batch: int
    optimizer: str
    threads: int
    rounds: int


@dataclass(slots=True)
class Figures:
    """What was measured of one side at one depth.

    Attributes:
        name: the side; entries of one name are variants of it.
        variant: which one.
        version: library and version.
        ready_s: from a graph in memory to a step that can run; of PyTorch, which compiles nothing, reading included.
        start_mib: resident memory with the libraries loaded and nothing else.
        peak_mib: peak resident memory of the process after the steps.
        step_ms: times of the counted steps.
        losses: of the checked steps from the common start.
        update_difference: |own update - temperd's| / |temperd's| over all learning weights after the checked steps.
        first_epoch_ms, cached_step_ms: steps of an epoch that keeps boundary activations, and of those after it.
        cached_peak_mib: peak memory after those.
    """

    name: str
    variant: str
    version: str = ""
    ready_s: float = 0.0
    start_mib: float = 0.0
    peak_mib: float = 0.0
    step_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    update_difference: float = 0.0
    first_epoch_ms: list[float] = field(default_factory=list)
    cached_step_ms: list[float] = field(default_factory=list)
    cached_peak_mib: float = 0.0

    def summary(self) -> dict[str, object]:
        """The medians and what follows from them, for reports."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("step_ms", "first_epoch_ms", "cached_step_ms")}
        return kept | {
            "step_ms": statistics.median(self.step_ms),
            "cached_step_ms": statistics.median(self.cached_step_ms) if self.cached_step_ms else None,
        }


def measure_depth(case: Case, load: Load, frozen_layers: int, entries: Sequence[Entry]) -> list[Figures]:
    """All sides at one freeze boundary, each a fresh process, in turns.

    Raises:
        EngineError: a side fails, or does not learn what temperd learns.
    """
    batches = write_batches(case, load.batch)
    with ExitStack() as stack:
        sides = [Side(entry, case.folder) for entry in entries]
        for side in sides:
            stack.callback(side.close)
        figures = [Figures(entry.name, entry.variant) for entry in entries]
        pairs = list(zip(sides, figures, strict=True))
        for side, found in pairs:
            found.start_mib = side.ask("memory")["resident_kib"] / KIB_IN_MIB
            opened = side.ask("open", **_request(case, load, frozen_layers, batches), **side.entry.request)
            found.version, found.ready_s = opened["version"], opened["ready_s"]
        _check_agreement(case, load, pairs)
        _in_turns(load.rounds, pairs, "steps", lambda found: found.step_ms)
        for side, found in pairs:
            found.peak_mib = side.ask("memory")["peak_kib"] / KIB_IN_MIB
        if frozen_layers:
            _measure_cached(load, [(side, found) for side, found in pairs if found.name != "ort-training"])
    return figures


def _request(case: Case, load: Load, frozen_layers: int, batches: Path) -> dict[str, object]:
    return {
        "folder": str(case.folder),
        "batches": str(batches),
        "frozen_layers": frozen_layers,
        "optimizer": load.optimizer,
        "threads": load.threads,
    }


def _in_turns(
    rounds: int, pairs: Sequence[tuple[Side, Figures]], do: str, times: Callable[[Figures], list[float]]
) -> None:
    for turn in range(rounds):
        for side, found in pairs:
            request = {"first": turn * (WARM_UP + BLOCK), "count": WARM_UP + BLOCK}
            taken = side.ask(do, learning_rate=LEARNING_RATE, **request)["ms"]
            times(found).extend(taken[WARM_UP:])


def _measure_cached(load: Load, pairs: Sequence[tuple[Side, Figures]]) -> None:
    """An epoch that keeps the frozen part's outputs, then turns of steps that start from them."""
    for side, found in pairs:
        request = {"count": epoch_steps(load.batch), "learning_rate": LEARNING_RATE}
        found.first_epoch_ms = side.ask("first_epoch", **request)["ms"]
    _in_turns(load.rounds, pairs, "cached_steps", lambda found: found.cached_step_ms)
    for side, found in pairs:
        found.cached_peak_mib = side.ask("memory")["peak_kib"] / KIB_IN_MIB


def epoch_steps(batch: int) -> int:
    """Steps of an epoch of `EPOCH_SAMPLES`."""
    return -(-EPOCH_SAMPLES // batch)


def epochs_s(found: Figures, batch: int, *, cached: bool) -> tuple[float, float, float]:
    """Seconds of the first epoch, of each later one, and of `EPOCHS` in all.

    They come from medians of steps, so that one hiccup of the machine does not count for an epoch; but for a first
    epoch that writes a cache, whose steps are not alike: that is the sum of an epoch's steps.
    """
    steps = epoch_steps(batch)
    plain = steps * statistics.median(found.step_ms) / 1e3
    if not (cached and found.cached_step_ms):
        return plain, plain, EPOCHS * plain
    first = sum(found.first_epoch_ms) / 1e3
    later = steps * statistics.median(found.cached_step_ms) / 1e3
    return first, later, first + (EPOCHS - 1) * later


def _check_agreement(case: Case, load: Load, pairs: Sequence[tuple[Side, Figures]]) -> None:
    """The first steps from the common start: same losses, same weights after them."""
    start = {name: np.asarray(value, np.float64) for name, value in case.graph.initializers.items()}
    reference: dict[str, Any] = {}
    for side, found in pairs:
        found.losses = side.ask("steps", first=0, count=CHECKED_STEPS, learning_rate=CHECKED_RATE)["losses"]
        file = case.folder / f"{side.name.replace(' ', '-')}.npz"
        side.ask("parameters", file=str(file))
        with np.load(file) as arrays:
            update = {name: arrays[name] - start[name] for name in arrays.files}
        file.unlink()
        reference = reference or update
        found.update_difference = relative_difference(update, reference)
        check_agreement(found, pairs[0][1], UPDATE_TOLERANCES[load.optimizer])


def check_agreement(found: Figures, reference: Figures, update_tolerance: float) -> None:
    """Refuse figures of sides that do not learn the same.

    Raises:
        EngineError: losses or updates differ by more than rounding explains.
    """
    apart = float(
        np.max(np.abs(np.subtract(found.losses, reference.losses)) / np.maximum(np.abs(reference.losses), 1e-6))
    )
    for what, value, bound in (
        ("losses", apart, LOSS_TOLERANCE),
        ("weight updates", found.update_difference, update_tolerance),
    ):
        if not value <= bound:  # not a number is no agreement
            raise EngineError(
                f"{found.name} and {reference.name} do not learn the same: {what} differ by {value:.2g}",
                where=f"{found.variant}, first {CHECKED_STEPS} steps, at most {bound:g} is rounding",
            )


def relative_difference(update: dict[str, Any], reference: dict[str, Any]) -> float:
    """|a - b| / |b| over all weights taken together; infinite when they are not the same weights."""
    if set(update) != set(reference):
        return math.inf
    apart = sum(float(((update[name] - value) ** 2).sum()) for name, value in reference.items())
    whole = sum(float((value**2).sum()) for value in reference.values())
    return math.sqrt(apart / whole) if whole else math.inf


def best(figures: Sequence[Figures], name: str) -> Figures | None:
    """One side's best over its variants, figure by figure (the fastest may not be the smallest)."""
    mine = [found for found in figures if found.name == name]
    if not mine:
        return None
    fastest = min(mine, key=lambda found: statistics.median(found.step_ms))
    whole = replace(fastest, peak_mib=min(found.peak_mib for found in mine))
    whole.start_mib = min(found.start_mib for found in mine)
    if fastest.cached_step_ms:
        cached = min(mine, key=lambda found: statistics.median(found.cached_step_ms))
        whole.cached_step_ms, whole.first_epoch_ms = cached.cached_step_ms, cached.first_epoch_ms
        whole.cached_peak_mib = min(found.cached_peak_mib for found in mine)
    return whole


def measure_linearity(case: Case, load: Load, entry: Entry) -> dict[str, object]:
    """Temperd's step time against the samples of a batch, and against the learning layers and their work.

    The points are measured over and over in turns (`Load.rounds`), like sides; each is a median.
    """
    samples = {batch: (batch, 0) for batch in LINEAR_BATCHES}
    layers = {case.frozen_layers(depth): (load.batch, case.frozen_layers(depth)) for depth in LINEAR_DEPTHS}
    points = dict.fromkeys([*samples.values(), *layers.values()])
    times: dict[tuple[int, int], list[float]] = {point: [] for point in points}
    with ExitStack() as stack:
        pairs = []
        for (batch, frozen), taken in times.items():
            side = Side(entry, case.folder)
            stack.callback(side.close)
            request = _request(case, load, frozen, write_batches(case, batch))
            side.ask("open", **request, **entry.request)
            pairs.append((side, Figures(entry.name, f"{batch}/{frozen}", step_ms=taken)))
        _in_turns(load.rounds, pairs, "steps", lambda found: found.step_ms)
    median = {point: statistics.median(found) for point, found in times.items()}
    total = len(case.graph.layers())
    by_layers = [(float(total - frozen), median[point]) for frozen, point in layers.items()]
    by_work = [(case.costs.step_macs(frozen) * load.batch / 1e6, median[point]) for frozen, point in layers.items()]
    by_samples = [(float(batch), median[point]) for batch, point in samples.items()]
    return {
        name: {"points": points_, **line(points_)}
        for name, points_ in (("samples", by_samples), ("learning_layers", by_layers), ("million_macs", by_work))
    }


def line(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Least-squares line through (x, y): `slope`, `intercept`, and `r_squared`, the share of variance it explains."""
    x_mean, y_mean = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    s_xx = sum((x - x_mean) ** 2 for x, _ in points)
    s_yy = sum((y - y_mean) ** 2 for _, y in points)
    s_xy = sum((x - x_mean) * (y - y_mean) for x, y in points)
    slope = s_xy / s_xx
    r_squared = s_xy**2 / (s_xx * s_yy) if s_yy else 1.0
    return {"slope": slope, "intercept": y_mean - slope * x_mean, "r_squared": r_squared}
