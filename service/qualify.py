"""A stress run of the board it stands on (R8): drive load and levers through the stages, judge, keep the record."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from agent.board.board import Board
from agent.board.record import BoardRecord, Qualification, read_record, write_record
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.reading import Reading
from service.logs import logger
from service.qualify_fit import Fit, fit
from service.qualify_judge import LEAST_READINGS, Verdict, judge, stage_half
from service.qualify_load import StressLoad
from service.qualify_plan import STAGES, Drill, Place

log = logger("qualify")


class Outcome(NamedTuple):
    """What a run gave."""

    drill: Drill
    fitted: Fit
    verdict: Verdict


class Trial:
    """A board under a drill, steered by nobody else.

    Args:
        board: to be read, and its levers to be written.
        drill: the run.
        load: its processes.
    """

    def __init__(self, board: Board, drill: Drill, load: StressLoad) -> None:
        self._board, self._drill, self._load = board, drill, load
        self._state = GovernorState()

    def tick(self, mono_s: float) -> None:
        """Look at the board, let the governor judge, follow the drill; once a second as a rule."""
        reading = self._board.read(mono_s)
        self._state, decision = decide(self._drill.policy, self._state, reading, Outlook())
        for complaint in self._board.apply(self._drill.step(reading, decision, self._load.products)):
            log.warning("lever refused", complaint=complaint)


async def drive(
    drill: Drill, load: StressLoad, wait: Callable[[], Awaitable[bool]], show: Callable[[Drill], None]
) -> None:
    """Let the load follow the drill until it ends; putting the limits back is the caller's.

    Args:
        drill: the run; somebody makes its steps, `wait` or another task.
        load: its processes.
        wait: lets some time pass, a second as a rule; False: stop.
        show: told after each.
    """
    try:
        while not drill.ended:
            await load.set(drill.load)
            if not await wait():
                drill.ended = drill.ended or "stopped"
            show(drill)
    finally:
        await load.set(0.0)


def conclude(drill: Drill, *, wrong: int, lost: int) -> Outcome:
    """Fit the models to a run that has ended, and judge it."""
    fitted = fit(tick.reading for tick in drill.ticks)
    return Outcome(drill, fitted, judge(drill, fitted, wrong=wrong, lost=lost))


def keep(outcome: Outcome, place: Place, now: float) -> dict[str, object]:
    """Write the outcome into the board's record; a run that was interrupted leaves it as it was.

    Args:
        outcome: of the run.
        place: the board.
        now: wall clock, seconds since 1970.

    Returns:
        The models that the predictive policy begins with from now on; empty where they are those from before.

    Raises:
        BoardError: the disk fails.
        ArtifactError: the record would be too long.
    """
    if outcome.drill.ended == "stopped":
        return {}
    found = read_record(place.state, place.model)
    if found.complaint:
        log.warning("the record begins anew", why=found.complaint)
    record = found.record or BoardRecord(place.model, place.profile)
    verdict = outcome.verdict
    qualification = Qualification(
        passed=verdict.passed,
        unix_s=max(now, 0.0),
        duration_s=_length(outcome.drill),
        delta_t_kelvin=verdict.delta_t_kelvin,
        ambient_celsius=verdict.ambient_celsius,
        modelled=_modelled(outcome.drill, place),
        reasons=tuple(reason.code for reason in verdict.reasons),
    )
    models = outcome.fitted.models(record.models) if outcome.drill.ended == "done" else {}
    kept = models or record.models
    write_record(
        place.state, dataclasses.replace(record, profile=place.profile, qualification=qualification, models=kept)
    )
    return models


def report(outcome: Outcome, place: Place) -> dict[str, object]:
    """Everything that was found, for JSON; docs/qualify.md explains it."""
    drill, fitted, verdict = outcome
    power = fitted.power.estimate.mean
    heats = {"still": fitted.heat(0.0), "cooled": fitted.heat(1.0)}
    return {
        "bench": "qualify",
        "passed": verdict.passed,
        "ended": drill.ended,
        "board": place.model,
        "profile": place.profile,
        "modelled": _modelled(drill, place),
        "seconds": _length(drill),
        "reasons": [reason._asdict() for reason in verdict.reasons],
        "untested": list(verdict.untested),
        "delta_t_kelvin": verdict.delta_t_kelvin,
        "steady_kelvin": verdict.steady_kelvin,
        "ambient_celsius": verdict.ambient_celsius,
        "fan_effect_kelvin": verdict.fan_effect_kelvin,
        "slowed_to": verdict.slowed_to,
        "power_error": verdict.power_error,
        "heat_error_kelvin": verdict.heat_error_kelvin,
        "stages_cut": list(drill.cut),
        "stages": rows(drill),
        "power_model": dict(zip(("rest_watts", "switched_nf", "leakage_watts", "fan_watts"), power, strict=True))
        if fitted.known_power
        else None,
        "heat_model": {name: heat and heat._asdict() for name, heat in heats.items()},
    }


def rows(drill: Drill) -> list[dict[str, object]]:
    """A row a stage that was reached: what it asked for and means over its second half."""
    told: list[dict[str, object]] = []
    for index, stage in enumerate(STAGES):
        ticks = stage_half(drill, index)
        if not ticks:
            continue
        readings = [tick.reading for tick in ticks]
        span = ticks[-1].at_s - ticks[0].at_s
        worked = ticks[-1].products - ticks[0].products
        told.append(
            {
                "stage": stage.name,
                "seconds": span,
                "clock_ghz": _mean(readings, lambda reading: _scaled(reading.frequency_hz, 1e-9)),
                "cooling_level": readings[-1].cooling_level,
                "utilisation": _mean(readings, lambda reading: reading.utilisation),
                "watts": _mean(readings, lambda reading: reading.power_watts),
                "delta_t_kelvin": readings[-1].delta_t_celsius,
                "work_per_s": worked / span if len(ticks) >= LEAST_READINGS and span > 0.0 else None,
            }
        )
    return told


def _modelled(drill: Drill, place: Place) -> bool:
    return place.emulated or any(tick.reading.power_is_modelled for tick in drill.ticks)


def _length(drill: Drill) -> float:
    return drill.ticks[-1].at_s if drill.ticks else 0.0


def _mean(readings: list[Reading], value: Callable[[Reading], float | None]) -> float | None:
    found = [number for reading in readings if (number := value(reading)) is not None]
    return statistics.fmean(found) if found else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
