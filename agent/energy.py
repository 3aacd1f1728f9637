"""Energy from power readings: joules by the monotonic clock, and the two figures made of them (R9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from policies.strict import build, limits

LONGEST_GAP_S = 5.0
"""Readings come once a second; over a longer silence nobody knows what the power was."""
MOST_NAMES = 8  # states and sources told apart: there are three and four
OTHER = "other"
"""State of everything that is not named: what prepares training, and what judges and keeps its outcome."""
TRAINING, PAUSED = "training", "paused"
COUNTED = (TRAINING, PAUSED)
"""States whose joules are E_total of R9: a pause in a job is a price of its training, opening a model is not."""
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Spent:
    """Joules, and the seconds that they cover."""

    joules: float = field(default=0.0, metadata=limits(0.0))
    seconds: float = field(default=0.0, metadata=limits(0.0))

    def more(self, joules: float, seconds: float) -> Spent:
        """This and more."""
        return Spent(self.joules + joules, self.seconds + seconds)


@dataclass(frozen=True, slots=True)
class Energy:
    """What was integrated of one job, all its attempts together. `asdict` gives JSON."""

    states: dict[str, Spent] = field(default_factory=dict)
    """By what the job did: `training`, `paused`, `other`."""
    sources: dict[str, float] = field(default_factory=dict, metadata=limits(0.0))
    """Joules by where the watts came from: `hwmon`, `power_supply`, `powercap`, `model` or `unknown`."""
    gap_s: float = field(default=0.0, metadata=limits(0.0))
    """Time that passed without being integrated."""
    gaps: int = field(default=0, metadata=limits(0))
    modelled: bool = False
    """True as soon as any part comes from a model instead of a sensor."""
    operations: float = field(default=0.0, metadata=limits(0.0))
    """Arithmetic operations of the training steps, multiply and add counted apart."""

    def spent(self, *states: str) -> Spent:
        """Joules and seconds of these states together; of all without a name."""
        chosen = [part for name, part in self.states.items() if not states or name in states]
        return Spent(sum(part.joules for part in chosen), sum(part.seconds for part in chosen))

    @property
    def source(self) -> str:
        """Where most of the joules came from; empty before the first."""
        return max(self.sources, key=lambda name: self.sources[name], default="")


def energy_table(energy: Energy) -> dict[str, object]:
    """The energy as JSON values."""
    return asdict(energy)


def parse_energy(table: Mapping[str, object]) -> Energy:
    """What `energy_table` made.

    Raises:
        policies.strict.TableError: not such a table.
    """
    return build(Energy, table)


class EnergyMeter:
    """Integrates watts over monotonic time by the trapezoid rule.

    A span between two readings that is longer than `longest_gap_s`, or that has a reading without power at one end, is
    not integrated: it counts in `gap_s`, so that the reader knows what is missing from `joules`.
    """

    def __init__(self, longest_gap_s: float = LONGEST_GAP_S, before: Energy | None = None) -> None:
        """`before` is what earlier attempts of the same job spent; the time in between counts as nothing."""
        self._longest_gap_s = longest_gap_s
        self._last: tuple[float, float | None, bool, str] | None = None
        self.energy = before or Energy()

    @property
    def joules(self) -> float:
        """Of all states."""
        return self.energy.spent().joules

    @property
    def seconds(self) -> float:
        """Time that `joules` covers."""
        return self.energy.spent().seconds

    def add(
        self, mono_s: float, watts: float | None, *, modelled: bool, source: str = "", state: str = TRAINING
    ) -> None:
        """Take one reading.

        Args:
            mono_s: monotonic clock, in seconds.
            watts: power, or `None` when unknown.
            modelled: the power comes from a model, or from an emulated board.
            source: where the watts come from; a span counts for the source at its end.
            state: what the job does from now on; a span counts for the state in which it began.

        Raises:
            ValueError: the clock went backwards.
        """
        before, self._last = self._last, (mono_s, watts, modelled, state)
        if before is None:
            return
        since_s, since_watts, since_modelled, since_state = before
        span = mono_s - since_s
        if span < 0:
            self._last = before
            raise ValueError(f"monotonic time went back from {since_s} to {mono_s}")
        if span == 0:
            return
        if span > self._longest_gap_s or watts is None or since_watts is None:
            self.energy = replace(self.energy, gap_s=self.energy.gap_s + span, gaps=self.energy.gaps + 1)
            return
        self._book((watts + since_watts) / 2.0 * span, span, since_state, source or UNKNOWN)
        if modelled or since_modelled:
            self.energy = replace(self.energy, modelled=True)

    def count(self, operations: float) -> None:
        """Add arithmetic operations of training steps."""
        self.energy = replace(self.energy, operations=self.energy.operations + operations)

    def _book(self, joules: float, seconds: float, state: str, source: str) -> None:
        states, sources = dict(self.energy.states), dict(self.energy.sources)
        if state not in states and len(states) >= MOST_NAMES:
            state = OTHER
        if source not in sources and len(sources) >= MOST_NAMES:
            source = UNKNOWN
        states[state] = states.get(state, Spent()).more(joules, seconds)
        sources[source] = sources.get(source, 0.0) + joules
        self.energy = replace(self.energy, states=states, sources=sources)


def energy_figures(energy: Energy, samples: int) -> dict[str, object]:
    """The figures of R9 as JSON values; joules are `None` before the first span.

    Args:
        energy: of the job so far.
        samples: N_success, the samples whose update was finite and kept.
    """
    counted = energy.spent(*COUNTED)
    known = counted.joules > 0
    return {
        "joules": counted.joules if known else None,
        "joules_per_sample": joules_per_sample(counted.joules, samples) if known else None,
        "gops_per_watt": gops_per_watt(energy.operations, counted.joules),
        "operations": energy.operations,
        "covered_s": counted.seconds,
        "gap_s": energy.gap_s,
        "modelled": energy.modelled,
        "source": energy.source,
        "sources": energy.sources,
        "states": {name: asdict(part) for name, part in energy.states.items()},
    }


def joules_per_sample(joules: float, samples: int) -> float | None:
    """E_sample = E_total / N_success (R9), N_success being the samples whose update was finite and kept.

    `None` when there was none.
    """
    return joules / samples if samples > 0 else None


def gops_per_watt(operations: float, joules: float) -> float | None:
    """Giga-operations a second per watt (R9): the same as giga-operations a joule. `None` without energy."""
    return operations / 1e9 / joules if joules > 0 else None
