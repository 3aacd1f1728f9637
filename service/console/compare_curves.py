"""Curves of two jobs over the time since each began: as columns, as one picture, as rows of a table. Pure."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.chart import Line, Panel, chart
from service.console.formats import no_formula
from service.fleet.store_chart import Chart

GAP_S = 120.0  # an idle board speaks once a minute: after two without a word nobody knows what went on
BUCKETS = 600  # of one job: a picture is not wider
COLORS = ("#1d5594", "#b3441e")  # blue and brown: told apart by who sees no red or no green; the pages' first two


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one job; all of one length, all finite.

    Attributes:
        seconds: since the job began, rising.
        lows: least of each moment.
        highs: greatest of it.
        lasts: latest of it.
    """

    seconds: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]
    lasts: Sequence[float]

    def most(self) -> float | None:
        """The greatest value."""
        return max(self.highs, default=None)

    def mean(self) -> float | None:
        """Over time: each value holds until the next, but no longer than `GAP_S`."""
        whole = weighted = 0.0
        for (when, value), (following, _) in itertools.pairwise(zip(self.seconds, self.lasts, strict=True)):
            lasts = min(max(0.0, following - when), GAP_S)
            whole, weighted = whole + lasts, weighted + lasts * value
        if whole:
            return weighted / whole
        return self.lasts[-1] if self.lasts else None

    def drawn(self) -> list[tuple[float, float]]:
        """Points of a line that goes through the least and the greatest of each moment."""
        points: list[tuple[float, float]] = []
        for when, low, high, last in zip(self.seconds, self.lows, self.highs, self.lasts, strict=True):
            points += [(when, value) for value in dict.fromkeys((low, high, last))]
        return points


@dataclass(frozen=True, slots=True)
class Metric:
    """What is drawn of both jobs.

    Attributes:
        group: of the telemetry.
        key: of the metric.
        unit: in which it is shown.
        scale: from the metric's own unit to that.
        least: of the axis, where it is fixed.
        most: the same.
        steps: whether it is a level that holds until the next.
        digits: after the point.
    """

    group: str
    key: str
    unit: str
    scale: float = 1.0
    least: float | None = None
    most: float | None = None
    steps: bool = False
    digits: int = 1


METRICS = (
    Metric("board", "temperature_celsius", "°C"),
    Metric("board", "delta_t_celsius", "K"),
    Metric("board", "frequency_hz", "MHz", 1e-6, 0.0, digits=0),
    Metric("board", "duty", "%", 100.0, 0.0, 100.0, steps=True, digits=0),
    Metric("training", "depth_percent", "%", 1.0, 0.0, 100.0, steps=True, digits=0),
    Metric("board", "power_watts", "W", 1.0, 0.0, digits=2),
    Metric("board", "charge", "%", 100.0, 0.0, 100.0, digits=0),
    Metric("training", "loss", "", 1.0, 0.0, digits=4),
    Metric("training", "score", "", digits=4),
)


def wanted() -> dict[str, list[str]]:
    """The metrics by group, as `Store.chart` wants them."""
    return {group: [metric.key for metric in METRICS if metric.group == group] for group in ("board", "training")}


def curves(found: Chart, began: float) -> dict[str, Curve]:
    """Each metric that has a value, by key, over the seconds since `began`."""
    made: dict[str, Curve] = {}
    for metric in METRICS:
        column = found.columns.get(f"{metric.group}.{metric.key}")
        if column is None:
            continue
        rows = [
            (start - began, low, high, last)
            for start, low, high, last in zip(found.starts, column.lows, column.highs, column.lasts, strict=True)
            if low is not None and high is not None and last is not None
        ]
        if rows:
            made[metric.key] = Curve(*zip(*rows, strict=True))
    return made


def picture(title: str, sides: Sequence[tuple[str, Mapping[str, Curve]]], names: Mapping[str, str]) -> str:
    """Both jobs in one SVG document, a panel for each metric that one of them has.

    Args:
        title: above it.
        sides: of each job its name and its curves.
        names: of the metrics, by key.
    """
    panels = []
    for metric in METRICS:
        lines = [
            Line(name, _scaled(by_key[metric.key], metric), COLORS[index], metric.steps)
            for index, (name, by_key) in enumerate(sides)
            if metric.key in by_key
        ]
        if lines:
            low, high = _bounds(metric, [value for line in lines for _, value in line.points])
            unit = f" ({metric.unit})" if metric.unit else ""
            panels.append(Panel(f"{names[metric.key]}{unit}", lines, low, high))
    return chart(title, panels)


def _scaled(curve: Curve, metric: Metric) -> list[tuple[float, float]]:
    # Before it began nothing is the job's: the first bucket may begin earlier.
    return [(max(0.0, when), value * metric.scale) for when, value in curve.drawn()]


def _bounds(metric: Metric, values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis: fixed ones, or whole steps of a power of ten around what there is."""
    low = metric.least if metric.least is not None else min(values)
    high = metric.most if metric.most is not None else max(values)
    step = 10.0 ** math.floor(math.log10(max(high - low, abs(high) * 1e-3, 1e-9)))
    if metric.least is None:
        low = math.floor(low / step) * step
    if metric.most is None:
        high = math.ceil(high / step) * step
    low, high = (float(f"{end:.6g}") for end in (low, high))
    return low, high if high > low else low + step


def numbers(sides: Mapping[str, Mapping[str, Curve]]) -> dict[str, object]:
    """The same for `charts.js`: the `panels`, whose curves are those of both sides, and the `data` over one time.

    Args:
        sides: by letter.
    """
    used = [metric for metric in METRICS if any(metric.key in by_key for by_key in sides.values())]
    panels = [
        {
            "name": metric.key,
            "unit": metric.unit,
            "digits": metric.digits,
            "low": metric.least,
            "high": metric.most,
            "curves": [
                {"metric": f"{letter}.{metric.key}", "side": letter, "scale": metric.scale, "steps": metric.steps}
                for letter in sides
            ],
        }
        for metric in used
    ]
    moments = sorted({when for by_key in sides.values() for curve in by_key.values() for when in curve.seconds})
    place = {when: index for index, when in enumerate(moments)}
    columns: dict[str, dict[str, list[float | None]]] = {}
    for letter, by_key in sides.items():
        for key, curve in by_key.items():
            columns[f"{letter}.{key}"] = {
                name: _spread(curve.seconds, values, place)
                for name, values in (("min", curve.lows), ("max", curve.highs), ("last", curve.lasts))
            }
    until = max(moments, default=1.0)
    data = {"since": 0, "until": until, "ts": [_short(when) for when in moments], "metrics": columns, "gap_s": GAP_S}
    return {"panels": panels, "data": data}


def _spread(seconds: Sequence[float], values: Sequence[float], place: Mapping[float, int]) -> list[float | None]:
    column: list[float | None] = [None] * len(place)
    for when, value in zip(seconds, values, strict=True):
        column[place[when]] = _short(value)
    return column


def _short(value: float) -> float:
    """Six digits: a screen has fewer."""
    return float(f"{value:.6g}")


def rows(sides: Sequence[tuple[str, str, str, Mapping[str, Curve]]]) -> str:
    """A table as CSV: one row for each moment of each metric of each job.

    Args:
        sides: of each job its letter, board, id and curves.
    """
    lines: list[Sequence[object]] = [("job", "board", "id", "metric", "seconds", "least", "greatest", "last")]
    for letter, board, job, by_key in sides:
        for metric in METRICS:
            curve = by_key.get(metric.key)
            if curve is None:
                continue
            head = letter, board, job, metric.key
            moments = zip(curve.seconds, curve.lows, curve.highs, curve.lasts, strict=True)
            lines += [(*head, *(f"{value:.9g}" for value in moment)) for moment in moments]
    return csv_text(lines)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; a text that begins like a formula gets an apostrophe before it, numbers stay."""
    out = io.StringIO()
    csv.writer(out).writerows([_cell(value) for value in line] for line in lines)
    return out.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        return no_formula(value)
    return value
