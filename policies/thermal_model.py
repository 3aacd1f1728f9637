"""How warm the board gets: heat flows die -> board -> air, learnt from power and temperature alone.

Two nodes, seen from the die. The die follows its power P within seconds, the board within minutes:

    delta    = delta_b + R P - offset
    delta_b' = a P - (b + f s) delta_b

with delta the die over ambient, delta_b the board over ambient, s the fan level as a share of the highest, R the die's
resistance to the board, a = 1 / C with C the board's capacity, b = G / C with G its conductance to still air, and f
what the fan adds to b. The offset takes up what sensors and picture leave out: the resting baseline where there is no
ambient sensor, the sun on the case.

delta_b cannot be seen and derivatives of a noisy temperature are worth nothing, so both sides pass through a low pass
of time constant T first (state variable filters: Young, Recursive Estimation and Time-Series Analysis, chapter 8). With
x_f the filtered x that begins at x(0), and x_g the one that begins at 0, the two equations become one without delta_b:

    delta - delta_f = R (P - P_f) + T (A P_g + h (s P)_g - b delta_g - f (s delta)_g - c 1_g - k s_g) - l (P' - P'_f)

where A = a + b R, h = f R, c = b offset, k = f offset, and P is what leaves the die: the power read, a second late; l
is R times what the die is later than that. The equation is linear in its eight coefficients and the noise of the
temperature stays on the left, so recursive least squares learn it without bias. Their covariance gives every prediction
a standard error: a fan level never seen is predicted, widely.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from policies.rls import Estimate, Prior, quadratic, update, widened
from policies.strict import limits

DIE, RISE, RISE_BLOWN, LOSS, LOSS_BLOWN, SINK, SINK_BLOWN, LATE = range(8)
"""Places of R in K/W, A and h in K/J, b and f in 1/s, c and k in K/s, l in K s/W."""

_MEAN = (0.8, 0.022, 0.006, 0.008, 0.008, 0.0, 0.0, 0.0)
_LEAST = (0.0, 0.0, 0.0, 1e-4, 0.0, -math.inf, -math.inf, -math.inf)
_AGEING = (4e-5,) * 5
PRIOR = Prior(_MEAN, (0.8, 0.03, 0.02, 0.01, 0.02, 0.002, 0.002, 1.0), _LEAST, (*_AGEING, 1e-2, 4e-5, 4e-5))
"""Credit-card sized computers weigh 30 to 500 g with their heat sink, cool down within 1 to 10 minutes in still air,
two or three times as fast with a fan; a die is 0.2 to 2 K/W away from its board; the offset is half a kelvin. Drift:
0.2 % of that an hour (dust, paste), of the offset 60 % (the sun; it is followed within minutes). All assumed."""
BASELINE_PRIOR = Prior(_MEAN, (0.8, 0.03, 0.02, 0.01, 0.02, 0.05, 0.05, 1.0), _LEAST, (*_AGEING, 4e-4, 4e-5, 4e-5))
"""Where delta-T counts from a resting baseline: a board at rest is up to 15 K above its room."""
FILTER_S = 60.0
"""T: below a board's time constant, so that it is seen, and far above the die's, which is left out."""
SENSOR_KELVIN = 0.6
"""Standard deviation of one delta-T: sensors step by up to 0.5 K and have noise, and the picture is only a picture."""
LAG_KELVIN_PER_WATT = 1.0
"""How far delta-T may be from its place in the first second after a step of power."""
DIE_S = 1.0
"""How late a die follows its power (assumed; the model learns what it is later)."""
DELTA_SMOOTHING_S = 5.0
SETTLE_S = 8.0
"""The filters begin so long after the first reading: by then the die is where its power puts it."""
LONGEST_GAP_S = 10.0
"""After a longer gap the filters begin anew; what was learnt stays."""
MOST_KELVIN, MOST_WATTS = 150.0, 1000.0
SLOWEST_RATE = 1e-4
"""1/s; a board that takes hours to cool down is not understood yet."""


@dataclass(frozen=True, slots=True)
class Filters:
    """The filtered signals at the latest reading."""

    began_s: float
    mono_s: float
    delta: float
    watts: float
    """Of the latest reading."""
    smooth_delta: float
    late_watts: float
    """What leaves the die."""
    delta_f: float
    watts_f: float
    watts_g: float = 0.0
    watts_blown_g: float = 0.0
    delta_g: float = 0.0
    delta_blown_g: float = 0.0
    one_g: float = 0.0
    share_g: float = 0.0


@dataclass(frozen=True, slots=True)
class ThermalModel:
    """What is known of the board's heat."""

    estimate: Estimate = field(default_factory=PRIOR.start)
    filters: Filters | None = None
    learnt_s: float = field(default=0.0, metadata=limits(0.0, 1e12))
    """Seconds of history in it."""

    def delta_kelvin(self, watts: float, share: float, after_s: float = math.inf) -> float:
        """Delta-T that constant `watts` of heat at fan level `share` reach after `after_s` seconds; inf: unknown."""
        steady, rate = self._steady(watts, share)
        if after_s == math.inf or self.filters is None or rate < SLOWEST_RATE:
            return steady
        return steady + (self._now(watts) - steady) * math.exp(-rate * after_s)

    def error_kelvin(self, watts: float, share: float, watts_error: float, after_s: float = math.inf) -> float:
        """Standard error of `delta_kelvin`, where `watts` itself is known to `watts_error`; inf: unknown."""
        steady, rate = self._steady(watts, share)
        if rate < SLOWEST_RATE:
            return math.inf
        gone, die, late = 1.0, 0.0, 0.0
        if after_s != math.inf and self.filters is not None:
            gone = 1.0 - math.exp(-rate * after_s)
            die = (watts - self.filters.late_watts) * (1.0 - gone)
            late = (steady - self._now(watts)) * (1.0 - gone) * rate * after_s
        by_rate = (late - steady * gone) / rate
        lift = watts * gone / rate
        slope = (die, lift, share * lift, by_rate, share * by_rate, -gone / rate, -share * gone / rate, 0.0)
        by_watts = gone * (self.estimate.mean[RISE] + share * self.estimate.mean[RISE_BLOWN]) / rate
        by_watts += (1.0 - gone) * self.estimate.mean[DIE]
        return math.sqrt(max(quadratic(self.estimate.covariance, slope), 0.0) + (by_watts * watts_error) ** 2)

    def _steady(self, watts: float, share: float) -> tuple[float, float]:
        mean = self.estimate.mean
        rate = mean[LOSS] + mean[LOSS_BLOWN] * share
        if rate < SLOWEST_RATE:
            return math.inf, rate
        lift = (mean[RISE] + mean[RISE_BLOWN] * share) * watts - mean[SINK] - mean[SINK_BLOWN] * share
        return lift / rate, rate

    def _now(self, watts: float) -> float:
        """Delta-T once the die has followed a step to `watts`."""
        assert self.filters is not None
        step = watts - self.filters.late_watts
        return self.filters.smooth_delta + self.estimate.mean[DIE] * step


def learn(
    model: ThermalModel, mono_s: float, delta_kelvin: float | None, watts: float | None, share: float, *, baseline: bool
) -> ThermalModel:
    """The model after one reading.

    Args:
        model: what was known.
        mono_s: monotonic time.
        delta_kelvin: die over ambient; `None` or absurd: nothing is learnt and the filters begin anew.
        watts: heat in the die since the reading before; `None` or absurd: the same.
        share: fan level since the reading before as a share of the highest, 0..1.
        baseline: delta-T counts from a resting baseline, not from an ambient sensor.
    """
    if delta_kelvin is None or watts is None or not math.isfinite(mono_s):
        return _lost(model)
    if not (abs(delta_kelvin) <= MOST_KELVIN and abs(watts) <= MOST_WATTS):  # NaN, too
        return _lost(model)
    before = model.filters
    if before is None or not 0.0 <= mono_s - before.mono_s <= LONGEST_GAP_S:
        start = Filters(mono_s, mono_s, delta_kelvin, watts, delta_kelvin, watts, delta_kelvin, watts)
        return dataclasses.replace(model, filters=start)
    if mono_s == before.mono_s:
        return model
    now = _filtered(before, mono_s, delta_kelvin, watts, share)
    if mono_s - now.began_s < SETTLE_S:
        return dataclasses.replace(model, filters=_unfiltered(now))
    late = watts - now.late_watts
    regressors = (
        now.late_watts - now.watts_f,
        FILTER_S * now.watts_g,
        FILTER_S * now.watts_blown_g,
        -FILTER_S * now.delta_g,
        -FILTER_S * now.delta_blown_g,
        -FILTER_S * now.one_g,
        -FILTER_S * now.share_g,
        (now.late_watts - now.watts_f) / FILTER_S - late / DIE_S,
    )
    prior = BASELINE_PRIOR if baseline else PRIOR
    known = model.estimate if model.estimate.samples else prior.start()
    noise = math.hypot(SENSOR_KELVIN, LAG_KELVIN_PER_WATT * late)
    estimate = update(known, prior, regressors, delta_kelvin - now.delta_f, noise)
    return ThermalModel(estimate, now, min(model.learnt_s + mono_s - before.mono_s, 1e12))


def from_another_start(estimate: Estimate) -> Estimate:
    """What is left of an estimate whose delta-T counted from the resting baseline of an earlier start.

    Resistances and capacities are the board's; the offset was that baseline's.
    """
    return widened(estimate, BASELINE_PRIOR, (SINK, SINK_BLOWN))


def _lost(model: ThermalModel) -> ThermalModel:
    return model if model.filters is None else dataclasses.replace(model, filters=None)


def _unfiltered(now: Filters) -> Filters:
    return Filters(
        began_s=now.began_s,
        mono_s=now.mono_s,
        delta=now.delta,
        watts=now.watts,
        smooth_delta=now.smooth_delta,
        late_watts=now.late_watts,
        delta_f=now.delta,
        watts_f=now.late_watts,
    )


def _filtered(before: Filters, mono_s: float, delta: float, watts: float, share: float) -> Filters:
    span = mono_s - before.mono_s
    new, old = -math.expm1(-span / FILTER_S), math.exp(-span / FILTER_S)
    left = math.exp(-span / DIE_S)
    late = watts + (before.late_watts - watts) * left
    passed = watts + (before.late_watts - watts) * (1.0 - left) * DIE_S / span  # mean of what left the die in the span
    middle = 0.5 * (delta + before.delta)  # the temperature is of an instant, power and fan level are of the span
    by_delta = -math.expm1(-span / DELTA_SMOOTHING_S)
    return Filters(
        began_s=before.began_s,
        mono_s=mono_s,
        delta=delta,
        watts=watts,
        smooth_delta=before.smooth_delta + by_delta * (delta - before.smooth_delta),
        late_watts=late,
        delta_f=old * before.delta_f + new * middle,
        watts_f=old * before.watts_f + new * passed,
        watts_g=old * before.watts_g + new * passed,
        watts_blown_g=old * before.watts_blown_g + new * passed * share,
        delta_g=old * before.delta_g + new * middle,
        delta_blown_g=old * before.delta_blown_g + new * middle * share,
        one_g=old * before.one_g + new,
        share_g=old * before.share_g + new * share,
    )
