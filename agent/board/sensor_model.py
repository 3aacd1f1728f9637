"""What the sensors of an emulated board say: the truth with noise, in the steps of its converters, or a fault.

Repeatable: the same seed and the same calls give the same values.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from agent.board.injection import IMPOSSIBLE_CELSIUS, JUMP_KELVIN


@dataclass(frozen=True, slots=True)
class Sensors:
    """The converters of one board."""

    celsius_step: float
    """One step of the die's temperature."""
    celsius_offset: float = 0.0
    """Any temperature the converter can say."""
    celsius_noise: float = 0.25
    """Standard deviation of the die's temperature (assumed; a Pi's moves one or two of its steps at rest)."""
    chip: str = "ina219"
    """Name of the power meter's hwmon chip."""
    watt_step: float = 0.002
    """One step of the power meter: for the INA219 20 current steps of 0.1 mA at 1 V (its data sheet, 8.5)."""
    gain_error: float = 0.005
    """Largest error of the meter's gain (INA219 data sheet: 0.5 % at 25 °C)."""
    watt_noise: float = 0.005
    """Standard deviation, as a share of the value: what is left after the chip's averaging (assumed)."""


# Steps of the die's sensor: slope and offset in the kernel's device trees of BCM2711 (410.04 °C - 0.487 K) and BCM2712
# (450 °C - 0.55 K); a Jetson's boot processor gives 1/32 K (seen in printed logs; assumed). The edge part is assumed.
# Jetson: an INA3221 at 5 V with 5 mΩ has current steps of 40 µV / 5 mΩ = 8 mA, 40 mW.
SENSORS: Mapping[str, Sensors] = {
    "raspberry-pi-4": Sensors(0.487, 410.04, 0.4),
    "raspberry-pi-5": Sensors(0.55, 450.0, 0.4),
    "jetson-orin-nano": Sensors(1 / 32, chip="ina3221", watt_step=0.04),
    "edge-22w": Sensors(0.1),
}


class SensorModel:
    """The sensors of one board.

    Args:
        sensors: its converters.
        seed: of the noise and of the meter's gain error.
    """

    def __init__(self, sensors: Sensors, seed: int) -> None:
        self.sensors = sensors
        self._random = random.Random(seed)  # noqa: S311 - noise, no secret
        self._gain = 1.0 + self._random.uniform(-sensors.gain_error, sensors.gain_error)
        self._last: int | None = None

    def die_millidegrees(self, celsius: float, fault: str = "") -> int | None:
        """What the die's zone says in m°C; `None`: it cannot be read.

        Args:
            celsius: the truth.
            fault: one of `injection.TEMPERATURE_FAULTS`.
        """
        if fault in ("missing", "unreadable"):
            return None
        if fault == "zero":
            return 0
        if fault == "impossible":
            return round(IMPOSSIBLE_CELSIUS * 1000)
        if fault == "frozen" and self._last is not None:
            return self._last
        parts = self.sensors
        seen = celsius + self._random.gauss(0.0, parts.celsius_noise) + (JUMP_KELVIN if fault == "jump" else 0.0)
        steps = round((seen - parts.celsius_offset) / parts.celsius_step)
        self._last = round((parts.celsius_offset + steps * parts.celsius_step) * 1000)
        return self._last

    def watts(self, watts: float) -> float:
        """What the power meter says."""
        seen = watts * self._gain * (1.0 + self._random.gauss(0.0, self.sensors.watt_noise))
        return max(round(seen / self.sensors.watt_step) * self.sensors.watt_step, 0.0)
