"""A stress run for people: lines with small curves while it goes on, an SVG picture and a summary at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.reading import Reading
from service.chart import Line, Panel, chart
from service.qualify_fit import Fit
from service.qualify_judge import Verdict
from service.qualify_plan import COOLED, STAGES, Drill, Tick

WIDTH = 60  # characters of a curve: fits a terminal of 80 columns with name and value
_LEVELS = "▁▂▃▄▅▆▇█"
_RED, _BLUE, _GREEN, _GREY, _ORANGE = "#c2410c", "#1d4ed8", "#15803d", "#6b7280", "#b45309"


def lines(drill: Drill) -> list[str]:
    """How the run stands, in at most 80 columns."""
    if not drill.ticks:
        return ["waiting for the first reading"]
    now = drill.ticks[-1]
    rows = [f"{drill.share:4.0%}  {STAGES[drill.stage].name}, {now.at_s:.0f} of {drill.seconds:.0f} s"]
    for name, unit, value in (
        ("delta-T", "K", _delta),
        ("clock", "GHz", lambda reading: _scaled(reading.frequency_hz, 1e-9)),
        ("power", "W", lambda reading: reading.power_watts),
        ("cooling", "", lambda reading: _scaled(reading.cooling_level, 1.0)),
        ("busy", "%", lambda reading: _scaled(reading.utilisation, 100.0)),
    ):
        values = [value(tick.reading) for tick in drill.ticks]
        shown = "-" if values[-1] is None else f"{values[-1]:.4g}"
        rows.append(f"{name:8}{curve(values):{WIDTH}} {shown} {unit}".rstrip())
    return rows


def line(drill: Drill) -> str:
    """The same as one line, for logs and terminals that cannot move the cursor."""
    if not drill.ticks:
        return "waiting for the first reading"
    reading = drill.ticks[-1].reading
    values = (
        ("delta-T", _delta(reading), "K"),
        ("clock", _scaled(reading.frequency_hz, 1e-9), "GHz"),
        ("power", reading.power_watts, "W"),
    )
    shown = ", ".join(f"{name} {value:.3g} {unit}" for name, value, unit in values if value is not None)
    return f"{drill.share:4.0%} {STAGES[drill.stage].name}: {shown}"


def curve(values: Sequence[float | None], width: int = WIDTH) -> str:
    """The values as a row of blocks, lowest to highest; a space where there is none."""
    stride = max(-(-len(values) // width), 1)
    picked = [values[min(start + stride, len(values)) - 1] for start in range(0, len(values), stride)]
    known = [value for value in picked if value is not None]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    return "".join(
        " " if value is None else _LEVELS[0 if span <= 0.0 else int((value - low) / span * (len(_LEVELS) - 1))]
        for value in picked
    )


def summary(verdict: Verdict, rows: Sequence[dict[str, object]]) -> list[str]:
    """The end of a run."""
    told = [f"{'stage':26}{'clock GHz':>10}{'busy':>7}{'power W':>9}{'delta-T K':>11}{'work/s':>8}"]
    for row in rows:
        cells = [
            (row["clock_ghz"], "10.2f"),
            (row["utilisation"], "7.0%"),
            (row["watts"], "9.2f"),
            (row["delta_t_kelvin"], "11.1f"),
            (row["work_per_s"], "8.0f"),
        ]
        told.append(f"{row['stage']:26}" + "".join(_cell(value, style) for value, style in cells))
    for name, value, style in (
        ("delta-T at full load with full cooling", verdict.delta_t_kelvin, ".1f"),
        ("  in the long run, by the fitted model", verdict.steady_kelvin, ".1f"),
        ("fitted power off the meter", verdict.power_error, ".1%"),
        ("fitted delta-T off the sensor, K", verdict.heat_error_kelvin, ".1f"),
    ):
        if value is not None:
            told.append(f"{name}: {value:{style}}{' K' if 'delta-T at' in name or 'long run' in name else ''}")
    told += [f"not tested: {text}" for text in verdict.untested]
    told += [f"{reason.code}: {reason.text}" for reason in verdict.reasons]
    return [*told, "passed" if verdict.passed else "NOT PASSED"]


def _cell(value: object, style: str) -> str:
    width = style.partition(".")[0].rstrip("%")
    return format(value, style) if isinstance(value, float) else f"{'-':>{width}}"


def picture(drill: Drill, fitted: Fit, limit_kelvin: float, title: str) -> str:
    """The whole run as an SVG document."""
    deltas, watts = _series(drill.ticks, _delta), _series(drill.ticks, lambda reading: reading.power_watts)
    clocks = _series(drill.ticks, lambda reading: _scaled(reading.frequency_hz, 1e-9))
    caps = [(t.at_s, t.order.frequency_cap_hz * 1e-9) for t in drill.ticks if t.order.frequency_cap_hz is not None]
    fans = _series(drill.ticks, lambda reading: _scaled(reading.cooling_level, 1.0))
    busy = _series(drill.ticks, lambda reading: _scaled(reading.utilisation, 100.0))
    told = [(mono_s - drill.begin_s, delta) for mono_s, delta in fitted.replayed([t.reading for t in drill.ticks])]
    heat = [Line("die", deltas, _RED), Line("fitted", told, _ORANGE)]
    power = [Line("meter", watts, _BLUE), Line("fitted", _series(drill.ticks, fitted.watts), _ORANGE)]
    cooled = [tick.at_s for tick in drill.ticks if STAGES[tick.stage].name == COOLED]
    return chart(
        title,
        [
            Panel("delta-T, K", heat, 0, _top(deltas, limit_kelvin + 5), ((limit_kelvin, "bound"),)),
            Panel("power, W", power, 0, _top(watts, 1.0)),
            Panel("clock, GHz", [Line("clock", clocks, _BLUE), Line("cap", caps, _GREY)], 0, _top(clocks, 1.0)),
            Panel("cooling level", [Line("level", fans, _GREEN, steps=True)], 0, _top(fans, 1.0)),
            Panel("busy, %", [Line("cores", busy, _GREY)], 0, 100),
        ],
        [(cooled[0], cooled[-1], COOLED)] if cooled else [],
    )


def _series(ticks: Sequence[Tick], value: Callable[[Reading], float | None]) -> list[tuple[float, float]]:
    return [(tick.at_s, found) for tick in ticks if (found := value(tick.reading)) is not None]


def _top(points: Sequence[tuple[float, float]], least: float) -> float:
    return max([least, *(value for _, value in points)])


def _delta(reading: Reading) -> float | None:
    return reading.delta_t_celsius


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
