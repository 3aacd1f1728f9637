"""A job as files: its telemetry as CSV, its charts as one SVG picture. Pure."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from service.chart import LEFT, RIGHT, WIDTH, Line, Panel, chart
from service.console.device_chart import (
    METRICS,
    OF_WORK,
    PANELS,
    ChartNumbers,
    ChartPanel,
    Column,
    Curve,
    by_group,
    utc,
)
from service.console.formats import no_formula
from service.console.job_facts import Stage
from service.fleet.store_chart import MAX_BUCKETS, Changes, Chart

WINDOW_S = 600.0  # a board at work tells a message a second in each group: so long fits into what is asked for at once
WINDOWS_MOST = 4500  # a month: what runs longer has its last weeks cut off, and says so
DOT = 0.004  # of the width: a value that stands alone is a short dash
COLORS = ("#1d5594", "#b3441e", "#1a6b3c")
LETTER = 7.0  # pixels of a letter in the picture's font


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a job's telemetry."""

    drawn: Chart
    changes: Changes


@dataclass(slots=True)
class JobRows:
    """Rows of the CSV, a piece at a time; texts hold until they change.

    Attributes:
        since: when the job began, seconds since 1970: from then on a column counts.
        metrics: columns of numbers.
        texts: columns of texts of the group `board`.
        buckets: of one question to the store: with fewer messages each comes as it is.
    """

    since: float
    stages: Sequence[Stage] = ()
    metrics: Sequence[str] = METRICS
    texts: Sequence[str] = ("action", "rule")
    buckets: int = MAX_BUCKETS
    _held: dict[str, str] = field(default_factory=dict)

    def wanted(self) -> dict[str, list[str]]:
        """The metrics by group, as the store wants them."""
        return by_group(self.metrics)

    def head(self) -> str:
        """The first row."""
        return _line(["time_utc", "unix_s", "job_s", "stage", *self.metrics, *(f"board.{name}" for name in self.texts)])

    def rows(self, window: Window) -> Iterator[str]:
        """The rows of a piece, oldest first."""
        changes = list(window.changes.rows)
        columns = [window.drawn.columns[metric].lasts for metric in self.metrics]
        for at, ts in enumerate(window.drawn.starts):
            while changes and changes[0].ts <= ts:
                values = changes.pop(0).values
                self._held |= {name: str(value) for name, value in values.items() if isinstance(value, str)}
            numbers = ["" if column[at] is None else f"{column[at]:.9g}" for column in columns]
            texts = [no_formula(self._held.get(name, "")) for name in self.texts]
            yield _line([utc(ts), f"{ts:.3f}", f"{ts - self.since:.3f}", no_formula(self._stage(ts)), *numbers, *texts])

    def _stage(self, ts: float) -> str:
        return next((stage.name for stage in self.stages if stage.since <= ts < stage.until), "")


def _line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue()


def picture(
    title: str, numbers: ChartNumbers, stages: Sequence[Stage], since: float, words: Mapping[str, str], modelled: str
) -> str:
    """The charts of a job as an SVG document, seconds since it began.

    Args:
        title: above the charts.
        numbers: what is drawn.
        stages: shaded behind, with their names where there is room.
        since: when the job began, seconds since 1970.
        words: `panel.<name>` and `curve.<name>` in the reader's language.
        modelled: said beside the power where a model gave it; else empty.
    """
    panels = [
        made
        for panel in PANELS
        if (made := _panel(panel, numbers, since, words, modelled if panel.name == "power" else "")) is not None
    ]
    end = max([1.0, *(point[0] for panel in panels for line in panel.lines for point in line.points)])
    bands = [band for at, stage in enumerate(stages) if (band := _band(stage, since, end, shaded=at % 2 > 0))]
    return chart(title, panels, bands)


def _band(stage: Stage, since: float, end: float, *, shaded: bool) -> tuple[float, float, str] | None:
    """A stage behind the charts: every second one is shaded, of the others their beginning is a line."""
    begin, until = max(0.0, stage.since - since), min(stage.until - since, end)
    if until <= begin:
        return None
    fits = (WIDTH - LEFT - RIGHT) * (until - begin) / end >= LETTER * len(stage.name)
    return begin, until if shaded else begin, stage.name if fits else ""


def _panel(
    panel: ChartPanel, numbers: ChartNumbers, since: float, words: Mapping[str, str], beside: str
) -> Panel | None:
    lines: list[Line] = []
    dot = DOT * max((numbers.starts[-1] if numbers.starts else 0.0) - since, 1.0)
    for place, curve in enumerate(panel.curves):
        low, high, last = numbers.columns.get(curve.metric, ((), (), ()))
        parts = list(
            _parts(
                numbers.starts,
                low,
                high,
                last,
                since,
                _gap(numbers, curve),
                steps=curve.steps,
                scale=curve.scale,
            )
        )
        label = words[f"curve.{curve.name}"] + (f" ({curve.unit})" if curve.unit else "")
        lines += [
            Line(label if not at else "", _seen(points, dot), COLORS[place], steps=curve.steps)
            for at, points in enumerate(parts)
        ]
    values = [value for line in lines for _, value in line.points]
    if not values:
        return None
    title = " ".join(part for part in (words[f"panel.{panel.name}"], panel.unit, beside) if part)
    room = (max(values) - min(values)) * 0.05 or 0.5
    least = panel.low if panel.low is not None else _round(min(values) - room, panel.digits)
    most = panel.high if panel.high is not None else _round(max(values) + room, panel.digits)
    lines.sort(key=lambda line: not line.label)  # names first: they stand below each other
    return Panel(title, lines, least, most)


def _gap(numbers: ChartNumbers, curve: Curve) -> float:
    """How long a curve goes on without a value, seconds."""
    of_work = curve.metric.partition(".")[0] in OF_WORK
    return max(numbers.work_gap_s if of_work else numbers.gap_s, curve.holds_s)


def _seen(points: list[tuple[float, float]], dot: float) -> list[tuple[float, float]]:
    """Points of a line that is seen: one alone would be none."""
    return (
        points if len(points) > 1 else [(seconds + beside, value) for seconds, value in points for beside in (0, dot)]
    )


def _round(value: float, digits: int) -> float:
    return round(value, digits)


def _parts(
    starts: Sequence[float], low: Column, high: Column, last: Column, since: float, gap_s: float,
    *, steps: bool, scale: float,
) -> Iterator[list[tuple[float, float]]]:  # fmt: skip
    """The points of a curve, a list for each stretch without a gap; a course goes through least and greatest."""
    known = [at for at, value in enumerate(last) if value is not None]
    for _, stretch in itertools.groupby(_numbered(known, starts, gap_s), key=lambda pair: pair[0]):
        points: list[tuple[float, float]] = []
        for _, at in stretch:
            values = (last[at],) if steps else dict.fromkeys((low[at], high[at], last[at]))
            points += [(starts[at] - since, value * scale) for value in values if value is not None]
        yield points


def _numbered(known: Sequence[int], starts: Sequence[float], gap_s: float) -> Iterator[tuple[int, int]]:
    """Each place with the number of its stretch."""
    stretch, before = 0, None
    for at in known:
        if before is not None and starts[at] - starts[before] > gap_s:
            stretch += 1
        before = at
        yield stretch, at
