"""What the kernel does with clock and fan when nobody else steers: `ondemand` and `step_wise`, as pure functions.

Sources: the kernel's admin-guide (pm/cpufreq, "ondemand") and drivers/thermal/gov_step_wise.c; the fan's trips are
those of the Raspberry Pi 5 (its documentation, "Cooling a Raspberry Pi 5").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from agent.board.simulated import SimulatedBoard
from policies.reading import OperatingPoint, Reading

UP_THRESHOLD = 0.80
"""A load above this takes the clock to its top at once."""
POLL_S = 1.0
"""Thermal zones are looked at this often (polling-delay of the Raspberry Pi's device tree)."""
_PI5_FAN = (50.0, 60.0, 67.5, 75.0)


@dataclass(frozen=True, slots=True)
class KernelTrips:
    """The trip points of one board's device tree."""

    passive_celsius: float | None
    """From here on `step_wise` holds the clock down; `None`: no such trip, the firmware alone does."""
    passive_hysteresis_kelvin: float = 0.0
    fan_celsius: tuple[float, ...] = ()
    """The fan's level is the number of trips exceeded."""
    fan_hysteresis_kelvin: float = 5.0


# Raspberry Pis have no passive trip: their firmware holds the clock. A Pi 4 has no fan trips by itself: its case fan
# turns at the resting level. Jetson: 95 °C and the Pi 5's fan trips are assumed; the edge part is assumed throughout.
TRIPS: Mapping[str, KernelTrips] = {
    "raspberry-pi-4": KernelTrips(None),
    "raspberry-pi-5": KernelTrips(None, fan_celsius=_PI5_FAN),
    "jetson-orin-nano": KernelTrips(95.0, fan_celsius=_PI5_FAN),
    "edge-22w": KernelTrips(85.0, fan_celsius=_PI5_FAN),
}


def ondemand(points: tuple[OperatingPoint, ...], load: float) -> int:
    """Row of the clock table (slowest first) that `ondemand` chooses.

    Above 80 % load the top clock, else the row nearest to f_min + load (f_max - f_min).

    Args:
        points: the clock table, not empty.
        load: share of the time busy since the last look, at the clock there was, 0..1.
    """
    if load > UP_THRESHOLD:
        return len(points) - 1
    low, high = points[0].frequency_hz, points[-1].frequency_hz
    wanted = low + min(max(load, 0.0), 1.0) * (high - low)
    return min(range(len(points)), key=lambda row: abs(points[row].frequency_hz - wanted))


def step_wise(state: int, highest: int, celsius: float, before: float, trip: float, hysteresis: float = 0.0) -> int:
    """Next cooling state: one more while it is hot and rises, one less while it is cool and falls.

    Args:
        state: cooling state now.
        highest: the highest there is.
        celsius: temperature now.
        before: temperature at the last look.
        trip: hot from here on.
        hysteresis: and until so far below it, while a state is on.
    """
    threshold = trip - hysteresis if state > 0 else trip
    if celsius >= threshold:
        return min(state + 1, highest) if celsius > before else state
    return max(state - 1, 0) if celsius < before else state


def fan_level(level: int, celsius: float, trips: tuple[float, ...], hysteresis: float) -> int:
    """Next level of a fan with one trip for each level: up at the trip, down only `hysteresis` kelvin below it."""
    reached = sum(celsius >= trip for trip in trips)
    held = sum(celsius >= trip - hysteresis for trip in trips)
    return max(reached, min(level, held))


@dataclass(frozen=True, slots=True)
class KernelState:
    """What the kernel's governors remember and ask for."""

    clock_index: int
    cooling_state: int = 0
    fan_level: int = 0
    celsius: float | None = None


def look(trips: KernelTrips, state: KernelState, highest: int, celsius: float | None) -> KernelState:
    """The thermal zone is polled once: both thermal governors. Without a temperature nothing changes."""
    if celsius is None:
        return state
    cooling = state.cooling_state
    if trips.passive_celsius is not None and state.celsius is not None:
        band = trips.passive_hysteresis_kelvin
        cooling = step_wise(cooling, highest, celsius, state.celsius, trips.passive_celsius, band)
    fan = fan_level(state.fan_level, celsius, trips.fan_celsius, trips.fan_hysteresis_kelvin)
    return KernelState(state.clock_index, cooling, fan, celsius)


class KernelSteered:
    """Steers a simulated board as its kernel would: in the place of temperd with `step`, beneath it with `follow`.

    Args:
        board: the board.
    """

    def __init__(self, board: SimulatedBoard) -> None:
        self._trips = TRIPS[board.profile.name]
        self._state = KernelState(len(board.constants.points) - 1)
        self._looked_s: float | None = None

    def step(self, board: SimulatedBoard, mono_s: float) -> Reading:
        """Look at the board and set clock and fan for the time until the next step; the reading it was based on."""
        reading = board.read(mono_s)
        self.follow(board, reading)
        return reading

    def follow(self, board: SimulatedBoard, reading: Reading, load: float | None = None) -> None:
        """Set clock and fan after a reading that someone else took.

        Args:
            board: the board.
            reading: of now.
            load: what `ondemand` sees in its looks, a few milliseconds apart; `None`: the reading's utilisation. Work
                that rests by a duty comes in bursts of full load, whatever its mean.
        """
        highest = len(board.constants.points) - 1
        seen = reading.utilisation if load is None else load
        if seen is not None:
            self._state = dataclasses.replace(self._state, clock_index=ondemand(board.constants.points, seen))
        if self._looked_s is None or reading.mono_s - self._looked_s >= POLL_S:
            self._looked_s = reading.mono_s
            self._state = look(self._trips, self._state, highest, reading.temperature_celsius)
        now = self._state
        board.kernel_asks(clock_index=now.clock_index, cooling_state=now.cooling_state, fan_level=now.fan_level)
