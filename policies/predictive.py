"""Steering by what the board is predicted to do: the most useful samples per joule within delta-T, deadline and charge.

Two models, of power and of heat, are learnt from every reading. While they are sure, each search foresees power,
temperature and speed of every operating point and fan level and takes the one with the most samples per joule that
stays below the limit, standard errors included. While they are not, nothing is asked for and the fixed rules serve
alone.

What is chosen depends on the models as they were before the reading, never on its temperature: a hotter reading cannot
make the board faster.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies import power_model, thermal_model
from policies.bounds import LOWEST, Bound
from policies.charge import LONGEST_SPAN_S, ChargeUse, drawn
from policies.choice import Choice, Moment, Search, costs_from, limit_kelvin
from policies.dvfs import TABLE_TOLERANCE
from policies.outlook import Outlook
from policies.policy import Policy
from policies.power_model import PowerModel, fan_share, switching
from policies.progress import samples_to_go
from policies.reading import FULL_DUTY, Action, Health, Reading
from policies.rls import Estimate
from policies.search import Grid
from policies.strict import TableError, build, limits
from policies.thermal_model import ThermalModel

SEARCH_S = 5.0
"""A search this often: heat moves in tens of seconds, and a search costs as much as many readings."""
NEAR_KELVIN, LEFT_KELVIN = 0.8, 2.0
"""Smoothed readings so near the limit switch all cooling on, whatever was predicted, until they are so far below it."""
LEAST_WINDOWS = 12
"""Steady windows before the power model may be sure: a minute."""
LEAST_LEARNT_S = 240.0
"""History before the thermal model may be sure: several times its filters' time constant."""
SURE_SHARE, SURE_KELVIN = 0.10, 2.5
"""Largest standard errors of power and steady delta-T, under load at the present clock and fan, for models to count
as sure."""
UNSURE_FACTOR = 1.5
"""Once sure, they count so until the errors are this much larger."""
DOUBT_S = 60.0
"""Models that were sure may be unsure for so long: the setting may be a new one, and a minute teaches much of it."""
SILENT_S = 30.0
"""A meter or an ambient sensor may be silent for so long: air changes in minutes, and a bus that is busy for a second
must not move the clock to and fro."""
UNSURE_DWELLS = 3.0
"""Dwells for which models that were sure before have to wait to be so again."""
SURE_SURPRISE = 4.0
"""Errors of predictions, squared over the expected ones (1 is expected), above which they do not become sure.
Where they are sure already, something new heats the board: all cooling on, while the offset follows."""
BUSY_UP_S, BUSY_DOWN_S = 10.0, 300.0
"""The load of a job is believed higher at once and lower slowly: caution first."""
LEAST_BUSY = 0.05
_SENSORS = ("temperature", "ambient", "power")


@dataclass(frozen=True, slots=True)
class PredictiveState:
    """What is remembered between two readings."""

    power: PowerModel = field(default_factory=PowerModel)
    thermal: ThermalModel = field(default_factory=ThermalModel)
    battery: ChargeUse = field(default_factory=ChargeUse)
    busy: float = field(default=1.0, metadata=limits(0.0, 1.0))
    """Utilisation of a job at full duty."""
    duty: float = field(default=FULL_DUTY, metadata=limits(0.0, 1.0))
    """Of the latest Decision."""
    mono_s: float | None = None
    sure: bool = False
    doubt_since_s: float | None = None
    """Since when the errors are too large for models that were sure; `None`: they are not."""
    unsure_since_s: float | None = None
    """When the models were last sure; `None`: never."""
    near: bool = False
    """Near the limit, or not as predicted: all cooling is on."""
    choice: Choice | None = None
    from_baseline: bool = False
    """No ambient sensor: delta-T counts from the resting baseline."""
    told_s: float | None = None
    """When power and ambient were both last told."""


@dataclass(frozen=True, slots=True)
class Models:
    """What is worth keeping of a board: the models without the moment."""

    power: Estimate
    thermal: Estimate
    learnt_s: float = field(metadata=limits(0.0, 1e12))
    busy: float = field(metadata=limits(LEAST_BUSY, 1.0))
    joules_full: float = field(metadata=limits(0.0, 1e9))
    from_baseline: bool = False
    """Delta-T counted from a resting baseline, which another start may find elsewhere."""


def models_of(state: PredictiveState) -> dict[str, object]:
    """The learnt part as plain numbers, lists and tables, for a board's record; about 3 KB of JSON."""
    kept = Models(
        power=state.power.estimate,
        thermal=state.thermal.estimate,
        learnt_s=state.thermal.learnt_s,
        busy=max(state.busy, LEAST_BUSY),
        joules_full=state.battery.joules_full,
        from_baseline=state.from_baseline,
    )
    return dataclasses.asdict(kept)


def with_models(state: PredictiveState, table: Mapping[str, object]) -> PredictiveState:
    """`state` with the models that `models_of` gave, of the same board: the caller makes sure of that.

    Raises:
        policies.strict.TableError: not such a table, or numbers that no board can have taught.
    """
    kept = build(Models, table)
    after = PredictiveState(
        power=PowerModel(kept.power),
        thermal=ThermalModel(kept.thermal, learnt_s=kept.learnt_s),
        battery=ChargeUse(kept.joules_full),
        busy=kept.busy,
        duty=state.duty,
        from_baseline=kept.from_baseline,
    )
    refuse_unsound(after)
    if kept.from_baseline:
        heat = thermal_model.from_another_start(after.thermal.estimate)
        after = dataclasses.replace(after, thermal=dataclasses.replace(after.thermal, estimate=heat))
    return after


def refuse_unsound(state: PredictiveState) -> None:
    """Check what came from outside.

    Raises:
        policies.strict.TableError: an estimate is none that an update can have left.
    """
    for key, estimate, prior in (
        ("power", state.power.estimate, power_model.PRIOR),
        ("thermal", state.thermal.estimate, thermal_model.BASELINE_PRIOR),
    ):
        if not estimate.fits(prior):
            raise TableError(key, "is no estimate of this model: wrong shape, or numbers that no reading can teach")


def learn(state: PredictiveState, reading: Reading, outlook: Outlook, duty: float = FULL_DUTY) -> PredictiveState:
    """The state after `reading`: models, load and battery. Absurd values teach nothing.

    Args:
        state: what was known.
        reading: the board, under the Decision before.
        outlook: the job, if there is one.
        duty: of the Decision that holds from now on.
    """
    if not math.isfinite(reading.mono_s):
        return state
    power = power_model.learn(state.power, reading)
    share = fan_share(reading)
    heat = None if reading.power_watts is None else reading.power_watts - power.fan_watts(share)
    if reading.power_source not in power_model.SOURCES or not _reliable(reading):
        heat = None
    return dataclasses.replace(
        state,
        power=power,
        thermal=thermal_model.learn(
            state.thermal, reading.mono_s, reading.delta_t_celsius, heat, share, baseline=reading.ambient_is_baseline
        ),
        battery=drawn(state.battery, reading, state.mono_s),
        busy=_busy(state, reading, outlook),
        duty=duty,
        mono_s=reading.mono_s,
        from_baseline=reading.ambient_is_baseline,
        told_s=reading.mono_s if _told(reading) else state.told_s,
    )


def choose(
    policy: Policy, state: PredictiveState, reading: Reading, outlook: Outlook, bounds: Sequence[Bound]
) -> tuple[PredictiveState, Bound | None]:
    """The setting that the models think best.

    Args:
        policy: `predictive`, and of the thermal trips the first stage's.
        state: what the readings before this one taught.
        reading: the board now. Of its temperature only its presence counts.
        outlook: the job.
        bounds: what other rules ask for, without those that follow the temperature: no setting above their clock is
            tried, and the job is thought to train at least as deep as they say.

    Returns:
        The state with the choice, and the bound; `None` where the models are not sure, a sensor is ill, or there is no
        clock to steer: the fixed rules serve.
    """
    if not _able(policy, state, reading):
        return dataclasses.replace(state, choice=None, sure=False), None
    state = _judged(state, reading.mono_s, sure=_sure(policy, state, reading))
    if not state.sure:
        return dataclasses.replace(state, choice=None), None
    cap = min((bound.ratio for bound in bounds), default=1.0)
    # A depth that soon ends says nothing of the job's length.
    wanted = max([outlook.plan_depth_percent, *(bound.depth for bound in bounds if not bound.depth_until_samples)])
    choice = state.choice
    if choice is None or _stale(choice, reading, cap, wanted) or choice.deadline_mono_s != outlook.deadline_mono_s:
        choice = _searched(policy, state, reading, outlook, Moment(reading.mono_s, cap, wanted, None, choice))
    near = _near(policy, state, reading.ambient_celsius or 0.0)
    return dataclasses.replace(state, choice=choice, near=near), _bound(choice, reading, wanted, near=near)


def _known(reading: Reading) -> tuple[tuple[str, Health], ...]:
    """The health that is told; sensors of which nothing is told count as well."""
    told = {name for name, _ in reading.health}
    return (*reading.health, *((name, Health.OK) for name in _SENSORS if name not in told))


def _reliable(reading: Reading) -> bool:
    """Whether delta-T is one: an ambient sensor that fell silent leaves the air of some time ago."""
    known = _known(reading)
    return ("temperature", Health.OK) in known and (reading.ambient_is_baseline or ("ambient", Health.OK) in known)


def _told(reading: Reading) -> bool:
    return _reliable(reading) and ("power", Health.OK) in _known(reading)


def _able(policy: Policy, state: PredictiveState, reading: Reading) -> bool:
    known, silent_s = _known(reading), 0.0
    if not _told(reading):
        silent_s = SILENT_S if state.told_s is None else reading.mono_s - state.told_s
    ambient, points = reading.ambient_celsius, reading.operating_points
    return (
        policy.predictive.enabled
        and reading.steerable
        and min(point.frequency_hz for point in points) > 0
        and reading.temperature_celsius is not None
        and ambient is not None
        and math.isfinite(ambient)
        and math.isfinite(reading.mono_s)
        and ("temperature", Health.OK) in known
        and 0.0 <= silent_s < SILENT_S
        and ("frequency-cap", Health.OVERRIDDEN) not in known
    )


def _judged(state: PredictiveState, mono_s: float, *, sure: bool) -> PredictiveState:
    """Models that were sure stay so for `DOUBT_S`: a new setting is learnt within that."""
    if sure or not state.sure:
        return dataclasses.replace(state, sure=sure, doubt_since_s=None)
    since_s = mono_s if state.doubt_since_s is None else state.doubt_since_s
    if 0.0 <= mono_s - since_s < DOUBT_S:
        return dataclasses.replace(state, doubt_since_s=since_s)
    return dataclasses.replace(state, sure=False, doubt_since_s=None, unsure_since_s=mono_s)


def _sure(policy: Policy, state: PredictiveState, reading: Reading) -> bool:
    power, thermal = state.power, state.thermal
    factor = UNSURE_FACTOR if state.sure else 1.0
    if power.estimate.samples < LEAST_WINDOWS or thermal.learnt_s < LEAST_LEARNT_S:
        return False
    # Not at once again: the fixed rules' clock is another one, and models may be sure at one and not at the other.
    lost_s = None if state.sure or state.unsure_since_s is None else reading.mono_s - state.unsure_since_s
    if lost_s is not None and 0.0 <= lost_s < UNSURE_DWELLS * policy.predictive.dwell_s:
        return False
    if not state.sure and max(power.estimate.surprise, thermal.estimate.surprise) > SURE_SURPRISE:
        return False
    assert reading.ambient_celsius is not None
    points = tuple(sorted(reading.operating_points))
    share = fan_share(reading)
    # At the clock there is: of others the search knows the errors, and goes as far from here as they allow.
    switched = switching(points, reading.frequency_hz or points[-1].frequency_hz, state.busy)
    limit = max(limit_kelvin(policy, reading.ambient_celsius), 0.0)  # the errors count where the limit is
    watts, error = power.watts(switched, share, reading.ambient_celsius + limit)
    if not error <= SURE_SHARE * factor * watts:
        return False
    heat = watts - power.fan_watts(share)
    return thermal.error_kelvin(heat, share, error) <= SURE_KELVIN * factor


def _stale(choice: Choice, reading: Reading, cap: float, wanted: int) -> bool:
    return (
        not 0.0 <= reading.mono_s - choice.searched_s < SEARCH_S
        or (choice.cap_ratio, choice.wanted_depth) != (cap, wanted)
        or choice.setting.level > reading.cooling_max
        or _held_level(reading) not in (None, choice.setting.level)
        or all(point.frequency_hz != choice.setting.frequency_hz for point in reading.operating_points)
    )


def _searched(policy: Policy, state: PredictiveState, reading: Reading, outlook: Outlook, moment: Moment) -> Choice:
    assert reading.ambient_celsius is not None
    costs = costs_from(outlook, moment.wanted_depth)
    to_go = samples_to_go(policy.predictive, outlook, moment.wanted_depth)
    grid = Grid(
        power=state.power,
        thermal=state.thermal,
        points=tuple(sorted(reading.operating_points)),
        levels=max(reading.cooling_max, 0),
        busy=state.busy,
        ambient_celsius=reading.ambient_celsius,
        cost=costs[0] if costs else None,
        samples_left=None if to_go is None else math.ceil(to_go),
        horizon_s=policy.predictive.horizon_s,
        held_level=_held_level(reading),
    )
    limit = limit_kelvin(policy, reading.ambient_celsius)
    moment = dataclasses.replace(moment, held_joules=_held_joules(policy, state, reading))
    return Search(policy.predictive, grid, limit, outlook, costs, moment).choice()


def _held_level(reading: Reading) -> int | None:
    """Level of a fan that may not be set, or that another program keeps setting back; `None`: it obeys."""
    if dict(reading.health).get("cooling", Health.OK) is Health.OK or reading.cooling_max <= 0:
        return None
    return min(max(reading.cooling_level or 0, 0), reading.cooling_max)


def _held_joules(policy: Policy, state: PredictiveState, reading: Reading) -> float | None:
    full = state.battery.joules_full
    if reading.on_mains is not False or reading.charge is None or full <= 0.0:
        return None
    return max(reading.charge - policy.battery.pause_charge, 0.0) * full


def _near(policy: Policy, state: PredictiveState, ambient_celsius: float) -> bool:
    if state.thermal.filters is None:
        return state.near
    below = limit_kelvin(policy, ambient_celsius) - state.thermal.filters.smooth_delta
    surprise = state.thermal.estimate.surprise
    if state.near:
        return below < LEFT_KELVIN or surprise > SURE_SURPRISE / 2
    return below < NEAR_KELVIN or surprise > SURE_SURPRISE


def _bound(choice: Choice, reading: Reading, wanted: int, *, near: bool) -> Bound:
    setting, top = choice.setting, max(point.frequency_hz for point in reading.operating_points)
    # Half a tolerance and a quarter level less: both are rounded up again, and must not land on the next one.
    cooling = max(setting.level - 0.25, 0.0) / reading.cooling_max if reading.cooling_max > 0 else 0.0
    return Bound(
        choice.rule,
        Action.RUN if setting.duty >= FULL_DUTY else Action.SLOW,
        ratio=1.0 if setting.frequency_hz == top else max(setting.frequency_hz / top - TABLE_TOLERANCE / 2, LOWEST),
        duty=setting.duty,
        depth=setting.depth if setting.depth > wanted else 0,
        cooling=1.0 if near else cooling,
    )


def _busy(state: PredictiveState, reading: Reading, outlook: Outlook) -> float:
    seen = reading.utilisation
    if seen is None or not 0.0 <= seen <= 1.0 or state.mono_s is None or not _has_job(outlook) or state.duty <= 0.0:
        return state.busy
    span = min(max(reading.mono_s - state.mono_s, 0.0), LONGEST_SPAN_S)
    full = min(seen / state.duty, 1.0)
    weight = -math.expm1(-span / (BUSY_UP_S if full > state.busy else BUSY_DOWN_S))
    return min(max(state.busy + weight * (full - state.busy), LEAST_BUSY), 1.0)


def _has_job(outlook: Outlook) -> bool:
    return outlook.samples_left is not None or bool(outlook.costs)
