"""What a stress run showed: figures of its stages, and whether the board passes (R7, R8). Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from policies.power_model import fan_share
from policies.reading import Health
from service.qualify_fit import Fit, heat_error_kelvin, power_error
from service.qualify_plan import COOLED, HEATING, LOWEST, STAGES, Drill, Tick

LEAST_LOAD = 0.9
"""Of the cores at full load; with less, something else used the board and the heat was not all there."""
SICK_SHARE = 0.05  # of the readings: a sensor that failed more often is not healthy
OBEYED_SHARE = 0.8  # of the readings of a capped stage: the clock at or below the cap
CLOCK_TOLERANCE = 0.01  # of the top clock: measured clocks are rounded
SLOWER = 0.95
"""Work at the lowest clock must be below this share of that at the top clock, or the cap changed a number only."""
SURE_ERRORS = 2.0
"""Standard errors by which full cooling must make a difference in the long run, or the fan is not believed to turn."""
MOST_FAN_ERROR_KELVIN = 4.0
"""With a larger standard error nothing is said: the cooling of a small board makes some 10 K of difference."""
MOST_POWER_ERROR = 0.10
MOST_HEAT_ERROR_KELVIN = 3.0  # a tenth of the 30 K that the governor has to hold
LEAST_READINGS = 3  # of a stage from which anything is concluded


class Reason(NamedTuple):
    """Why a board did not pass."""

    code: str
    text: str


@dataclass(slots=True)
class Verdict:
    """How a run ended."""

    reasons: list[Reason] = field(default_factory=list)
    untested: list[str] = field(default_factory=list)
    """What the board has no sensor, lever or permission for."""
    delta_t_kelvin: float | None = None
    """Highest die over ambient in the second half of the stage with full load and full cooling."""
    steady_kelvin: float | None = None
    """The same in the long run, by the fitted models: modelled."""
    ambient_celsius: float | None = None
    fan_effect_kelvin: float | None = None
    """How much cooler full cooling keeps the board in the long run than the level found, by the fitted model."""
    slowed_to: float | None = None
    """Work at the lowest clock over that at the top clock."""
    power_error: float | None = None
    """Mean distance of the power model from the meter, as a share of the meter's, over the second half of each stage:
    meters and load counters average over a second or two, so they do not agree just after a change."""
    heat_error_kelvin: float | None = None
    """Mean distance of delta-T from what the heat model, fed with the power alone, makes of the run."""

    @property
    def passed(self) -> bool:
        """Nothing that was tested failed."""
        return not self.reasons

    def fail(self, code: str, text: str) -> None:
        """One more reason."""
        self.reasons.append(Reason(code, text))


def judge(drill: Drill, fitted: Fit, *, wrong: int, lost: int) -> Verdict:
    """Judge a run that has ended.

    Args:
        drill: the run.
        fitted: what was learnt.
        wrong: results of the load that differed.
        lost: processes of the load that ended early.
    """
    verdict = Verdict()
    _judge_end(verdict, drill)
    _judge_heat(verdict, drill)
    _judge_sensors(verdict, drill)
    _judge_clock(verdict, drill)
    _judge_cooling(verdict, drill, fitted)
    _judge_models(verdict, drill, fitted)
    if wrong:
        verdict.fail("wrong-results", f"{wrong} results of the load were wrong: core, cache or memory err under heat")
    if lost:
        verdict.fail("load-lost", f"{lost} processes of the load ended early: short of memory?")
    return verdict


def _judge_end(verdict: Verdict, drill: Drill) -> None:
    told = {
        "too-hot": "a thermal trip that pauses training was reached; more cooling is needed",
        "sensor-lost": "the temperature could not be read",
        "battery": "the battery was too low; repeat it on mains",
        "stopped": "it was interrupted",
    }
    if drill.ended != "done":
        rule = drill.ticks[-1].rule if drill.ticks else ""
        verdict.fail(drill.ended or "stopped", told.get(drill.ended or "stopped", f"paused by {rule}"))


def _judge_heat(verdict: Verdict, drill: Drill) -> None:
    ticks = second_half(drill, COOLED)
    deltas = [delta for tick in ticks if (delta := tick.reading.delta_t_celsius) is not None]
    ambients = [tick.reading.ambient_celsius for tick in ticks if tick.reading.ambient_celsius is not None]
    if not deltas:
        if drill.ended == "done":
            verdict.fail("no-delta-t", "delta-T at full load could not be read")
        return
    verdict.delta_t_kelvin, verdict.ambient_celsius = max(deltas), statistics.fmean(ambients)
    most = drill.policy.thermal.slow.delta_kelvin
    if verdict.delta_t_kelvin >= most:
        text = f"{verdict.delta_t_kelvin:.1f} K over ambient at full load with full cooling; the bound is {most:g} K"
        verdict.fail("delta-t", text)
    busy = [tick.reading.utilisation for tick in ticks if tick.reading.utilisation is not None]
    if not busy:
        verdict.untested.append("load: this board does not say how busy its cores are")
    elif statistics.fmean(busy) < LEAST_LOAD:
        text = f"cores were busy for {statistics.fmean(busy):.0%} only: stop other programs and repeat it"
        verdict.fail("load-too-low", text)


def _judge_sensors(verdict: Verdict, drill: Drill) -> None:
    count = len(drill.ticks)
    for name in ("temperature", "charge", "power"):
        states = [dict(tick.reading.health).get(name) for tick in drill.ticks]
        sick = [state for state in states if state not in (None, Health.OK)]
        if sick and len(sick) == count and set(sick) == {Health.MISSING}:
            verdict.untested.append(f"{name}: this board has no such sensor")
        elif len(sick) > SICK_SHARE * count:
            verdict.fail(f"sensor-{name}", f"{name} was {sick[-1]} in {len(sick)} of {count} readings")
    if all(dict(tick.reading.health).get("ambient") is Health.MISSING for tick in drill.ticks):
        verdict.untested.append("ambient: no sensor, delta-T is over the coolest die seen")
    for name, what in (("undervoltage", "the supply dropped"), ("throttled", "firmware or kernel held the clock down")):
        found = sum(bool(getattr(tick.reading, name)) for tick in drill.ticks)
        if found:
            verdict.fail(name, f"{what} in {found} of {count} readings")


def _judge_clock(verdict: Verdict, drill: Drill) -> None:
    capped = [tick for tick in drill.ticks if tick.order.frequency_cap_hz is not None]
    held = [state for tick in drill.ticks if (state := dict(tick.reading.health).get("frequency-cap")) is not None]
    if Health.REFUSED in held or not capped:
        why = "may not be written" if Health.REFUSED in held else "this board has none, or the run did not get there"
        verdict.untested.append(f"frequency-cap: {why}")
        return
    obeyed = total = 0
    for index in {tick.stage for tick in capped}:
        for tick in stage_half(drill, index):
            if tick.reading.frequency_hz is not None and tick.order.frequency_cap_hz is not None:
                top = max((point.frequency_hz for point in tick.reading.operating_points), default=0)
                total += 1
                obeyed += tick.reading.frequency_hz <= tick.order.frequency_cap_hz + CLOCK_TOLERANCE * top
    if total and obeyed < OBEYED_SHARE * total:
        verdict.fail("cap-not-obeyed", f"the clock was above its cap in {total - obeyed} of {total} readings")
    fast, slow = _rate(drill, HEATING) or _rate(drill, COOLED), _rate(drill, LOWEST)
    if fast and slow is not None:
        verdict.slowed_to = slow / fast
        if verdict.slowed_to >= SLOWER:
            text = f"at the lowest clock as much was worked as at the top clock ({verdict.slowed_to:.0%})"
            verdict.fail("cap-without-effect", text)


def _judge_cooling(verdict: Verdict, drill: Drill, fitted: Fit) -> None:
    before = [tick for tick in drill.ticks if STAGES[tick.stage].name == HEATING]
    if not before or not before[-1].reading.cooling_max:
        verdict.untested.append("cooling: this board has none that can be switched")
        return
    states = [state for tick in drill.ticks if (state := dict(tick.reading.health).get("cooling")) is not None]
    last = before[-1].reading
    if Health.REFUSED in states or (last.cooling_level is not None and last.cooling_level >= last.cooling_max):
        why = "may not be written" if Health.REFUSED in states else "was at its highest level before the run asked"
        verdict.untested.append(f"cooling: {why}")
        return
    watts = [tick.reading.power_watts for tick in second_half(drill, COOLED) if tick.reading.power_watts is not None]
    found = fitted.cooling(statistics.fmean(watts), fan_share(last)) if watts else None
    if found is None or found[1] > MOST_FAN_ERROR_KELVIN:
        verdict.untested.append("cooling: what it does could not be told; a longer run tells more")
        return
    verdict.fan_effect_kelvin, error = found
    if verdict.fan_effect_kelvin < SURE_ERRORS * error:
        text = f"full cooling makes {verdict.fan_effect_kelvin:.1f} ± {error:.1f} K of difference: does the fan turn?"
        verdict.fail("fan-without-effect", text)


def _judge_models(verdict: Verdict, drill: Drill, fitted: Fit) -> None:
    readings = [tick.reading for tick in drill.ticks]
    steady = [tick.reading for index in range(len(STAGES)) for tick in stage_half(drill, index)]
    verdict.power_error = power_error(fitted, steady)
    if verdict.power_error is None:
        verdict.untested.append("power model: no meter, or too little steady time to learn from it")
    elif verdict.power_error > MOST_POWER_ERROR:
        verdict.fail("power-model", f"the fitted power is {verdict.power_error:.0%} off the meter's on average")
    verdict.heat_error_kelvin = heat_error_kelvin(fitted, readings)
    if verdict.heat_error_kelvin is None:
        verdict.untested.append("heat model: power and delta-T were read too seldom")
    elif verdict.heat_error_kelvin > MOST_HEAT_ERROR_KELVIN:
        text = f"the fitted delta-T is {verdict.heat_error_kelvin:.1f} K off the sensor's on average"
        verdict.fail("heat-model", text)
    if verdict.ambient_celsius is not None and drill.ended == "done":
        _judge_long_run(verdict, drill, fitted.steady_kelvin(verdict.ambient_celsius, readings[-1]))


def _judge_long_run(verdict: Verdict, drill: Drill, steady: float | None) -> None:
    """The stage at full load is too short for a heavy board to end its warming: the models go on from there."""
    if steady is None:
        return
    verdict.steady_kelvin = steady if math.isfinite(steady) else None
    most = drill.policy.thermal.slow.delta_kelvin
    if steady >= most:
        shown = f"{steady:.1f} K" if math.isfinite(steady) else "more than silicon bears"
        verdict.fail("delta-t-long-run", f"by the fitted models it would grow to {shown}; the bound is {most:g} K")


def second_half(drill: Drill, name: str) -> list[Tick]:
    """Readings of the second half of the stage `name`."""
    return stage_half(drill, next(index for index, stage in enumerate(STAGES) if stage.name == name))


def stage_half(drill: Drill, stage: int) -> list[Tick]:
    """Readings of the second half of a stage."""
    ticks = [tick for tick in drill.ticks if tick.stage == stage]
    return ticks[len(ticks) // 2 :]


def _rate(drill: Drill, name: str) -> float | None:
    """Pieces of work a second in the second half of a stage; `None` where it was too short to tell."""
    ticks = second_half(drill, name)
    if len(ticks) < LEAST_READINGS or ticks[-1].at_s <= ticks[0].at_s:
        return None
    return (ticks[-1].products - ticks[0].products) / (ticks[-1].at_s - ticks[0].at_s)
