"""Two jobs as figures side by side: what each is, how far they lie apart, and which is better. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from service.console.compare_curves import Curve
from service.fleet.boards import is_final, number, table

MAX_RULES = 24  # the governor has some thirty; a board may name what it likes
MAX_TEXT = 200  # characters of what a board or a command says
MAX_ARGUMENTS = 60  # a fine-tune has some forty
HIGHER = frozenset({"accuracy", "auc"})  # as agent.evaluate has it: of every other score less is better
EQUAL_SHARE = 1e-9  # of the larger: what arithmetic makes of equal figures


class Verdict(StrEnum):
    """What the two figures of a line say."""

    A = "a"
    """The first is better."""
    B = "b"
    EQUAL = "equal"
    NONE = "none"
    """Neither is better: the figure describes, it does not judge."""
    OPEN = "open"
    """One of the jobs has not ended."""
    UNKNOWN = "unknown"
    """One of them is not known."""
    OTHER_METRIC = "other-metric"
    """The scores are not of one kind."""
    OTHER_SOURCE = "other-source"
    """One power was measured and the other modelled, or by another meter."""
    OTHER_WORK = "other-work"
    """They learnt another number of samples, so their sums do not compare."""


class Measure(NamedTuple):
    """A figure that jobs are compared by."""

    key: str
    unit: str
    """In which it is shown; empty for counts and scores."""
    digits: int
    better: int
    """1: more is better, -1: less is, 0: it only describes; 2: as the score's metric has it."""
    needs: str = ""
    """`metric`, `source` (of the power), `work` or `energy` (source and work): what both must share before
    one can be called better."""


BY_METRIC = 2
MEASURES = (
    Measure("score_before", "", 4, 0, "metric"),
    Measure("score_after", "", 4, BY_METRIC, "metric"),
    Measure("score_running", "", 4, 0, "metric"),
    Measure("held_out", "", 0, 0),
    Measure("samples", "", 0, 0),
    Measure("dropped_steps", "", 0, -1),
    Measure("wall_s", "s", 1, -1, "work"),
    Measure("busy_s", "s", 1, -1, "work"),
    Measure("samples_per_s", "/s", 1, 1),
    Measure("peak_rss_mib", "MiB", 0, -1),
    Measure("joules", "J", 1, -1, "energy"),
    Measure("joules_per_sample", "J", 5, -1, "source"),
    Measure("gops_per_watt", "GOPS/W", 2, 1, "source"),
    Measure("temperature_max_celsius", "°C", 1, -1),
    Measure("delta_t_max_celsius", "K", 1, -1),
    Measure("power_mean_watts", "W", 2, 0),
    Measure("frequency_mean_mhz", "MHz", 0, 0),
    Measure("depth_mean_percent", "%", 1, 0),
    Measure("duty_mean_percent", "%", 1, 0),
    Measure("depth_changes", "", 0, 0),
    Measure("attempts", "", 0, -1),
)
"""In the order in which they are shown."""
OF_ENERGY = frozenset({"joules", "joules_per_sample", "gops_per_watt", "power_mean_watts"})
"""Figures that a model may have made up."""
_SCALES: Mapping[str, tuple[str, float]] = {
    "peak_rss_mib": ("peak_rss_bytes", 2.0**-20),
    "frequency_mean_mhz": ("frequency_hz", 1e-6),
    "duty_mean_percent": ("duty", 100.0),
}
"""Of figures that are shown in another unit than boards tell: the name there, and the factor."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job.

    Attributes:
        board: its name.
        id: of its command.
        status: the last word of it, as in docs/mqtt.md.
        began: when it first ran, seconds since 1970 by the board's clock; `None`: it never did.
        ended: when its final status came; `None`: it has not ended.
        arguments: what it was asked to do; `None`: it was not sent from here, or that is forgotten.
        profile: of the board.
        curves: by metric, over seconds since it began.
        power_is_modelled: as its telemetry says; `None`: it does not.
        decisions_cut: what was decided at its beginning is not in `rules` and `actions`.
        rules: seconds under each rule of the governor.
        actions: seconds under each action of it.
    """

    board: str
    id: str
    status: Mapping[str, object] = field(default_factory=dict)
    began: float | None = None
    ended: float | None = None
    arguments: Mapping[str, object] | None = None
    profile: str = ""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    power_is_modelled: bool | None = None
    decisions_cut: bool = False
    rules: Mapping[str, float] = field(default_factory=dict)
    actions: Mapping[str, float] = field(default_factory=dict)

    @property
    def result(self) -> Mapping[str, object]:
        """Of a finished job; empty before."""
        return table(self.status.get("result"))

    @property
    def metric(self) -> str:
        """What its score is; empty: not known."""
        return short(self.result.get("metric"))

    @property
    def energy(self) -> Mapping[str, object]:
        """What it took, as its result says; see docs/energy.md."""
        return table(self.result.get("energy"))

    @property
    def modelled(self) -> bool | None:
        """Whether any of its energy was modelled, by its result or, before there is one, by its telemetry."""
        found = self.energy.get("modelled")
        return found if isinstance(found, bool) else self.power_is_modelled

    @property
    def model(self) -> str:
        """The model that was tuned, as the arguments name it; empty: not known."""
        return short((self.arguments or {}).get("model"))


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of both jobs; the difference is the second less the first."""

    key: str
    unit: str
    digits: int
    a: float | None
    b: float | None
    difference: float | None
    share: float | None
    """The difference as a share of the first."""
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Words:
    """One property of both jobs in words; empty: not known."""

    key: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        """Whether they are not the same."""
        return self.a != self.b


def short(value: object) -> str:
    """A text of a board, cut; anything else as an empty one."""
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def lines(a: Job, b: Job) -> list[Line]:
    """The figures of two jobs that at least one of them has."""
    first, second = figures(a), figures(b)
    found = []
    for measure in MEASURES:
        x, y = first.get(measure.key), second.get(measure.key)
        if x is None and y is None:
            continue
        difference = y - x if x is not None and y is not None and _comparable(measure, a, b) else None
        share = difference / abs(x) if difference is not None and x else None
        verdict = _verdict(measure, a, b, x, y)
        found.append(Line(measure.key, measure.unit, measure.digits, x, y, difference, share, verdict))
    return found


def figures(job: Job) -> dict[str, float]:
    """What is known of a job in figures, by the keys of `MEASURES`."""
    result, energy, curves = job.result, job.energy, job.curves
    found: dict[str, object] = {
        name: result.get(name)
        for name in (*("held_out", "samples", "dropped_steps", "wall_s", "busy_s", "samples_per_s", "depth_changes"),)
    }
    if job.metric:
        found |= {f"score_{when}": result.get(f"{job.metric}_{when}") for when in ("before", "after", "running")}
    found |= {name: energy.get(name) for name in ("joules", "joules_per_sample", "gops_per_watt")}
    found["joules"] = found["joules"] if found["joules"] is not None else job.status.get("energy_j")
    highs = {name: curve.most() for name, curve in curves.items()}
    means = {name: curve.mean() for name, curve in curves.items()}
    found |= {
        "temperature_max_celsius": highs.get("temperature_celsius"),
        "delta_t_max_celsius": highs.get("delta_t_celsius"),
        "power_mean_watts": means.get("power_watts"),
        "depth_mean_percent": means.get("depth_percent"),
        "attempts": job.status.get("attempt"),
    }
    for key, (name, factor) in _SCALES.items():
        value = number(result.get(name, means.get(name)))
        found[key] = None if value is None else value * factor
    numbers = {key: number(value) for key, value in found.items()}
    return {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}


def _comparable(measure: Measure, a: Job, b: Job) -> bool:
    return measure.needs != "metric" or a.metric == b.metric


def _verdict(measure: Measure, a: Job, b: Job, x: float | None, y: float | None) -> Verdict:
    hurdle = _hurdle(measure, a, b)
    if x is None or y is None:
        return Verdict.UNKNOWN
    if measure.better and not (is_final(a.status) and is_final(b.status)):
        return Verdict.OPEN
    if hurdle is not None:
        return hurdle
    if abs(y - x) <= EQUAL_SHARE * max(abs(x), abs(y)):
        return Verdict.EQUAL
    if measure.better == 0:
        return Verdict.NONE
    more = 1 if a.metric in HIGHER else -1
    rises = measure.better if measure.better != BY_METRIC else more
    return Verdict.B if (y > x) == (rises > 0) else Verdict.A


def _hurdle(measure: Measure, a: Job, b: Job) -> Verdict | None:
    """Why neither may be called better, whatever the figures are."""
    if measure.needs == "metric" and a.metric != b.metric:
        return Verdict.OTHER_METRIC
    if measure.needs in ("source", "energy") and (a.modelled is None or _meter(a) != _meter(b)):
        return Verdict.OTHER_SOURCE
    if measure.needs in ("work", "energy") and a.result.get("samples") != b.result.get("samples"):
        return Verdict.OTHER_WORK
    return None


def _meter(job: Job) -> tuple[object, ...]:
    return job.modelled, *sorted(map(str, table(job.energy.get("sources"))))[:MAX_RULES]


def words(a: Job, b: Job) -> list[Words]:
    """What two jobs are, beside figures."""
    pairs = [
        ("profile", a.profile, b.profile),
        ("model", a.model, b.model),
        *((name, short(a.result.get(name)), short(b.result.get(name))) for name in ("task", "metric", "engine")),
        *((name, short(a.result.get(name)), short(b.result.get(name))) for name in ("depth_rule", "base_sha256")),
        ("model_sha256", short(a.result.get("model_sha256")), short(b.result.get("model_sha256"))),
        ("reason", short(a.status.get("reason")), short(b.status.get("reason"))),
    ]
    return [Words(*pair) for pair in pairs if pair[1] or pair[2]]


def arguments(a: Job, b: Job) -> list[Words]:
    """What both were asked to do, key by key, those first that differ; empty where neither is known."""
    first, second = _written(a.arguments), _written(b.arguments)
    found = [Words(key, first.get(key, ""), second.get(key, "")) for key in sorted(first.keys() | second.keys())]
    return sorted(found, key=lambda one: not one.differs)


def _written(given: Mapping[str, object] | None) -> dict[str, str]:
    items = list((given or {}).items())[:MAX_ARGUMENTS]
    return {key[:MAX_TEXT]: value if isinstance(value, str) else _told(value) for key, value in items}


def _told(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{found:g}" if (found := number(value)) is not None else ""
    return ", ".join(map(_told, value))[:MAX_TEXT] if isinstance(value, list | tuple) else str(value)[:MAX_TEXT]


def spans(a: Mapping[str, float], b: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Seconds under each name in both, longest first; beyond `MAX_RULES` summed under an empty name."""
    names = sorted(a.keys() | b.keys(), key=lambda name: -(a.get(name, 0.0) + b.get(name, 0.0)))
    shown = [(name, a.get(name, 0.0), b.get(name, 0.0)) for name in names[:MAX_RULES]]
    rest = names[MAX_RULES:]
    if rest:
        shown.append(("", sum(a.get(name, 0.0) for name in rest), sum(b.get(name, 0.0) for name in rest)))
    return shown


def held(changes: Sequence[tuple[float, str]], until: float) -> dict[str, float]:
    """Seconds for which each text held.

    Args:
        changes: moments, in order, from which on the text of that moment holds.
        until: when the last one ends.
    """
    found: dict[str, float] = {}
    for (when, text), (end, _) in itertools.pairwise([*changes, (until, "")]):
        found[text[:MAX_TEXT]] = found.get(text[:MAX_TEXT], 0.0) + max(0.0, end - when)
    return found
