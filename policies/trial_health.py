"""Whether a release on trial heats the board more than the one before it did. Pure.

Like is compared with like: a board at rest with itself at rest, a board that trains with itself training, each once it
has settled. What is compared is the die over the air where the air is measured, else the die itself, with a wider
margin. Both sides are averages of minutes, so one hot reading is nobody's fault; the peak is that of such a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from policies.strict import TableError, build, limits

IDLE, TRAINING = "idle", "training"
LOADS = (IDLE, TRAINING)
MINUTE_S = 60.0
MAX_MINUTES = 60  # of each load are kept: an hour says how the board is, and a baseline of yesterday says less
SETTLE_S = 120.0  # a heat sink follows a change of load within two minutes
SETTLE_SHARE = 0.25  # of the window at most: a short one has to see something too
LEAST_SHARE = 0.25  # of a window that a load must have been seen for, else nothing is said of it
LEAST_READINGS = 5

_KELVIN = limits(0.5, 100.0)


@dataclass(frozen=True, slots=True)
class HeatMargins:
    """How much hotter than before is no accident.

    Attributes:
        mean_kelvin: of the average of die over air.
        peak_kelvin: of its hottest minute.
        without_air_kelvin: added to both where the air is not measured: a room warms by so much in a day.
    """

    mean_kelvin: float = field(default=5.0, metadata=_KELVIN)
    peak_kelvin: float = field(default=8.0, metadata=_KELVIN)
    without_air_kelvin: float = field(default=7.0, metadata=_KELVIN)


@dataclass(frozen=True, slots=True)
class Heat:
    """How hot the board was under one load.

    Attributes:
        mean: kelvin over the air, or degrees Celsius of the die.
        peak: of the hottest minute.
        readings: how many were averaged.
        over_air: whether the air was measured.
    """

    mean: float
    peak: float
    readings: int = field(metadata=limits(1))
    over_air: bool


@dataclass(frozen=True, slots=True)
class _Minute:
    total: float = 0.0
    readings: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.readings


class HeatBook:
    """Averages of the latest minutes of each load.

    Args:
        settle_s: readings sooner after a change of load do not count.
        minute_s: what is averaged.
    """

    def __init__(self, settle_s: float = SETTLE_S, minute_s: float = MINUTE_S) -> None:
        self._settle_s, self._minute_s = settle_s, minute_s
        self._minutes: dict[tuple[str, bool], list[_Minute]] = {}
        self._load, self._since_s, self._minute_began_s = "", 0.0, 0.0

    def add(self, mono_s: float, load: str, celsius: float | None, over_air: float | None) -> None:
        """Take one reading.

        Args:
            mono_s: monotonic clock, seconds.
            load: one of `LOADS`; empty: something else is done, which is compared with nothing.
            celsius: of the die; `None`: not believed.
            over_air: the same over a measured ambient; `None`: that is not measured.
        """
        if load != self._load:
            self._load, self._since_s = load, mono_s
        value = celsius if over_air is None else over_air
        if not load or value is None or mono_s - self._since_s < self._settle_s:
            return
        minutes = self._minutes.setdefault((load, over_air is not None), [])
        if not minutes or mono_s - self._minute_began_s >= self._minute_s:
            minutes.append(_Minute())
            self._minute_began_s = mono_s
            del minutes[:-MAX_MINUTES]
        minutes[-1] = _Minute(minutes[-1].total + value, minutes[-1].readings + 1)

    def heats(self) -> dict[str, Heat]:
        """What is known, by load; over the air where both are known."""
        found: dict[str, Heat] = {}
        for (load, over_air), minutes in sorted(self._minutes.items()):
            readings = sum(minute.readings for minute in minutes)
            mean = sum(minute.total for minute in minutes) / readings
            found[load] = Heat(mean, max(minute.mean for minute in minutes), readings, over_air)
        return found


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the release before measured, to be kept until the trial has ended.

    Attributes:
        heat: by load.
        had_link: the board was connected to its broker.
        critical: it was above the abort trip already.
    """

    heat: dict[str, Heat] = field(default_factory=dict)
    had_link: bool = False
    critical: bool = False

    def table(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)


def baseline_of(table: Mapping[str, object]) -> Baseline:
    """Read a baseline; of one that cannot be read nothing counts, as if nothing had been measured."""
    known = {key: table[key] for key in ("had_link", "critical") if isinstance(table.get(key), bool)}
    heat = table.get("heat")
    found: dict[str, Heat] = {}
    for load in LOADS if isinstance(heat, Mapping) else ():
        one = heat.get(load) if isinstance(heat, Mapping) else None
        if not isinstance(one, Mapping):
            continue
        try:
            found[load] = build(Heat, {key: one[key] for key in one if key in Heat.__slots__})
        except TableError:
            continue
    return build(Baseline, {**known, "heat": {load: asdict(one) for load, one in found.items()}})


def settle_s(window_s: float) -> float:
    """How long after a change of load readings do not count, in a trial of so many seconds."""
    return min(SETTLE_S, SETTLE_SHARE * window_s)


def compared(before: Mapping[str, Heat], now: Mapping[str, Heat], least_readings: int) -> tuple[str, ...]:
    """Loads that both saw for long enough, with the same kind of sensor."""
    least = max(LEAST_READINGS, least_readings)
    return tuple(
        load
        for load in LOADS
        if load in before
        and load in now
        and before[load].over_air == now[load].over_air
        and min(before[load].readings, now[load].readings) >= least
    )


def too_hot(margins: HeatMargins, before: Mapping[str, Heat], now: Mapping[str, Heat], least_readings: int) -> str:
    """What of the trial is hotter than before by more than the margin, for people; empty: nothing that is compared."""
    for load in compared(before, now, least_readings):
        was, is_now = before[load], now[load]
        more = 0.0 if was.over_air else margins.without_air_kelvin
        unit = "K over the air" if was.over_air else "°C"
        for word, old, new, margin in (
            ("on average", was.mean, is_now.mean, margins.mean_kelvin + more),
            ("in the hottest minute", was.peak, is_now.peak, margins.peak_kelvin + more),
        ):
            if new > old + margin:
                return f"{load}: {new:.1f} {unit} {word}, {old:.1f} before; {margin:g} K more are allowed"
    return ""
