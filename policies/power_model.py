"""What the board draws: P = rest + c V^2 f u + leakage 2^((T - 25) / 30) + fan, learnt from its own meter.

The usual CMOS model (Rabaey, Digital Integrated Circuits): switching power follows V^2 f and the share u of busy cores,
leakage follows the die's temperature (it doubles every 30 K: assumed, 20..40 K are usual for planar silicon). The model
is linear in its four coefficients, so recursive least squares learn it from windows in which clock, fan and load stood
still. A modelled power reading teaches nothing: the model would learn itself.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from dataclasses import dataclass, field

from policies.reading import OperatingPoint, Reading
from policies.rls import Estimate, Prior, update

PRIOR = Prior(mean=(4.0, 5.0, 0.4, 0.5), deviation=(4.0, 5.0, 0.4, 0.7), least=(0.0, 0.0, 0.0, 0.0), drift=(4e-4,) * 4)
"""Rest in watts, effective capacitance in nF, leakage at 25 °C in watts, a fan at full speed in watts. What credit-card
sized computers between 2 and 30 W have, wide enough for all of them. Drift: 1 % of that width an hour (assumed)."""
DOUBLING_KELVIN = 30.0
WINDOW_S = 5.0
"""Clock, fan and load must stand still for so long: power meters average over a second or two."""
SETTLE_S = 2.0  # of each window, not counted: what the meter still averages in from before
LONGEST_GAP_S = 5.0  # between two readings of one window
STEADY_LOAD = 0.15
"""How much the utilisation may move inside a window: a training step and the pause after it make it ripple."""
NOISE_SHARE = 0.02
"""Standard deviation of a window's mean power: meters of boards are specified to 1-2 %, and loads ripple."""
LEAST_NOISE_WATTS = 0.05
MOST_WATTS = 1000.0
SOURCES = ("hwmon", "power_supply", "powercap")


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over the steady readings so far."""

    began_s: float
    last_s: float
    frequency_hz: int
    share: float
    utilisation: float
    """Of the first reading."""
    source: str = ""
    """Another meter measures another part of the board."""
    readings: int = 0
    watts: float = 0.0
    switched: float = 0.0
    leaking: float = 0.0


@dataclass(frozen=True, slots=True)
class PowerModel:
    """What is known of the board's power."""

    estimate: Estimate = field(default_factory=PRIOR.start)
    window: Window | None = None

    def watts(self, switching: float, share: float, celsius: float) -> tuple[float, float]:
        """(watts, standard error) of the board.

        Args:
            switching: V^2 f u, see `switching`.
            share: fan level as a share of the highest.
            celsius: die temperature.
        """
        mean, error = self.estimate.predict((1.0, switching, leaking(celsius), share))
        return max(mean, 0.0), error

    def expected_watts(self, switching: float, share: float, leaking: float) -> float:
        """The watts alone, with `leaking` as the function of that name gives it: the inner step of a search."""
        rest, capacitance, leakage, fan = self.estimate.mean
        return rest + capacitance * switching + leakage * leaking + fan * share

    def fan_watts(self, share: float) -> float:
        """Power of the fan, which does not heat the die."""
        return self.estimate.mean[3] * share


def switching(points: tuple[OperatingPoint, ...], frequency_hz: int, utilisation: float) -> float:
    """V^2 f u in V^2 GHz; f u where the table has no volts.

    The volts are those of the slowest point at or above `frequency_hz`, of the fastest where none is.
    """
    index = min(bisect.bisect_left([point.frequency_hz for point in points], frequency_hz), len(points) - 1)
    volts = points[index].volts if points and points[index].volts > 0.0 else 1.0
    return volts * volts * frequency_hz * 1e-9 * utilisation


def leaking(celsius: float) -> float:
    """Leakage at `celsius` over that at 25 °C; the temperature is held to what silicon survives."""
    return math.exp2((min(max(celsius, -40.0), 125.0) - 25.0) / DOUBLING_KELVIN)


def fan_share(reading: Reading) -> float:
    """Cooling level now as a share of the highest; 0 where there is no cooling."""
    if reading.cooling_max <= 0 or reading.cooling_level is None:
        return 0.0
    return min(max(reading.cooling_level / reading.cooling_max, 0.0), 1.0)


def learn(model: PowerModel, reading: Reading) -> PowerModel:
    """The model after `reading`; one that teaches nothing only ends the window."""
    if not _teaches(reading):
        return dataclasses.replace(model, window=None)
    window = model.window
    if window is None or not _continues(window, reading):
        return dataclasses.replace(model, window=_opened(reading))
    window = _added(window, reading)
    if reading.mono_s - window.began_s < WINDOW_S or not window.readings:
        return dataclasses.replace(model, window=window)
    count = window.readings
    watts = window.watts / count
    regressors = (1.0, window.switched / count, window.leaking / count, window.share)
    noise = max(NOISE_SHARE * watts, LEAST_NOISE_WATTS)
    return PowerModel(update(model.estimate, PRIOR, regressors, watts, noise), _opened(reading, settled=True))


def _teaches(reading: Reading) -> bool:
    return (
        reading.power_source in SOURCES
        and reading.power_watts is not None
        and 0.0 < reading.power_watts <= MOST_WATTS
        and reading.utilisation is not None
        and 0.0 <= reading.utilisation <= 1.0
        and reading.frequency_hz is not None
        and reading.frequency_hz > 0
        and reading.temperature_celsius is not None
        and math.isfinite(reading.temperature_celsius)
    )


def _opened(reading: Reading, *, settled: bool = False) -> Window:
    assert reading.utilisation is not None
    assert reading.frequency_hz is not None
    began = reading.mono_s - (SETTLE_S if settled else 0.0)
    return Window(
        began, reading.mono_s, reading.frequency_hz, fan_share(reading), reading.utilisation, reading.power_source
    )


def _continues(window: Window, reading: Reading) -> bool:
    assert reading.utilisation is not None
    return (
        0.0 < reading.mono_s - window.last_s <= LONGEST_GAP_S
        and reading.frequency_hz == window.frequency_hz
        and reading.power_source == window.source
        and fan_share(reading) == window.share
        and abs(reading.utilisation - window.utilisation) <= STEADY_LOAD
    )


def _added(window: Window, reading: Reading) -> Window:
    assert reading.utilisation is not None
    assert reading.frequency_hz is not None
    assert reading.temperature_celsius is not None
    assert reading.power_watts is not None
    if reading.mono_s - window.began_s < SETTLE_S:
        return dataclasses.replace(window, last_s=reading.mono_s)
    return dataclasses.replace(
        window,
        last_s=reading.mono_s,
        readings=window.readings + 1,
        watts=window.watts + reading.power_watts,
        switched=window.switched + switching(reading.operating_points, reading.frequency_hz, reading.utilisation),
        leaking=window.leaking + leaking(reading.temperature_celsius),
    )
