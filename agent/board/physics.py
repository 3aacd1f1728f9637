"""The physics of an emulated board: power, heat, battery. Pure arithmetic, no file, no clock.

Heat flows through two nodes, die -> board -> air, each a capacity with a resistance to the next. The fan lowers the
resistance to the air. Constants say where they come from or that they are assumed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.board.profile import PowerModel, named_profile
from agent.errors import ConfigError
from policies.reading import OperatingPoint
from policies.strict import limits

LONGEST_STEP_S = 0.25
"""Explicit Euler is stable while a step is short against the die's ~1.5 s; longer spans are cut into such steps."""
LONGEST_SPAN_S = 3600.0  # a suspended host must not cost an hour of arithmetic
SOFT_LIMIT_CELSIUS, HARD_LIMIT_CELSIUS = 80.0, 85.0
"""Between these the Raspberry Pi firmware takes the clock down (Raspberry Pi documentation, frequency management)."""

# A lithium-ion cell: 3000 mAh (R6) at a nominal 3.7 V; resistance, converter and charger are assumed.
CELL_JOULES = 3.0 * 3.7 * 3600.0
CELL_OHMS = 0.08
CONVERTER_EFFICIENCY = 0.9
CHARGER_WATTS = 5.0
OPEN_CIRCUIT_VOLTS = ((0.0, 3.0), (0.1, 3.45), (0.2, 3.58), (0.4, 3.7), (0.6, 3.83), (0.8, 4.0), (1.0, 4.2))
"""(state of charge, volts): the usual shape of an NMC cell, assumed."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The thermal side of one board.

    With R the resistances and C the capacities, the board's time constant at fan level k is
    R_air(k) C_board, where R_air(k) = R_air / (1 + gain k).
    """

    power: PowerModel
    points: tuple[OperatingPoint, ...]
    die_kelvin_per_watt: float
    air_kelvin_per_watt: float
    """Board to air without fan."""
    die_joules_per_kelvin: float
    board_joules_per_kelvin: float
    fan_gain: float
    """How much a fan level adds to the conductance to the air, as a share of still air's."""
    fan_watts: float
    """Electric power of one fan level; it does not heat the board."""
    fan_levels: int = 4
    resting_fan_level: int = 1
    """A case fan that always turns slowly."""


def _constants(name: str, die: float, air: float, die_capacity: float, board_capacity: float) -> Constants:
    profile = named_profile(name)
    assert profile.power is not None
    return Constants(profile.power, profile.points, die, air, die_capacity, board_capacity, fan_gain=0.5, fan_watts=0.1)


# Pi 4, still air: 38.5 K over ambient with four busy cores (pi-plates.com, thermocouples on a bare Pi 4) at 6.4 W gives
# 6 K/W in all; its split and the capacities are assumed (46 g of board at about 0.9 J/gK).
# The others are assumed: scaled so that full load without fan ends near 40 K, as with their usual heat sinks.
CONSTANTS: Mapping[str, Constants] = {
    "raspberry-pi-4": _constants("raspberry-pi-4", 0.8, 5.2, 1.5, 40.0),
    "raspberry-pi-5": _constants("raspberry-pi-5", 0.6, 3.9, 2.0, 50.0),
    "jetson-orin-nano": _constants("jetson-orin-nano", 0.4, 2.3, 4.0, 160.0),
}


def named_constants(name: str) -> Constants:
    """The constants of the board `name`.

    Raises:
        ConfigError: that board is not emulated; lists those that are.
    """
    if name not in CONSTANTS:
        raise ConfigError(f"no emulated board {name!r}", fix=f"Emulated boards: {', '.join(sorted(CONSTANTS))}")
    return CONSTANTS[name]


@dataclass(frozen=True, slots=True)
class PhysicsState:
    """What the board has in it."""

    ambient_celsius: float = field(default=22.0, metadata=limits(-40.0, 85.0))
    die_celsius: float = field(default=30.0, metadata=limits(-40.0, 200.0))
    board_celsius: float = field(default=28.0, metadata=limits(-40.0, 200.0))
    charge: float = field(default=0.8, metadata=limits(0.0, 1.0))
    watts: float = field(default=0.0, metadata=limits(0.0, 1000.0))
    """Supply power of the board, fan included, during the last step."""
    on_mains: bool = True


class BoardPhysics:
    """One board: `state` now, `step` into the future.

    Args:
        constants: what the board is made of.
        state: where it begins.
    """

    def __init__(self, constants: Constants, state: PhysicsState | None = None) -> None:
        self.constants = constants
        self.state = state or PhysicsState()

    def step(
        self,
        dt_s: float,
        utilisation: float,
        frequency_index: int,
        cooling_level: int,
        extra_heat_watts: float = 0.0,
        *,
        on_mains: bool = True,
    ) -> PhysicsState:
        """Let `dt_s` seconds pass (at most an hour) and return the new state.

        Args:
            dt_s: seconds, 0 or more.
            utilisation: share of all cores that is busy, 0..1.
            frequency_index: row of the board's clock table, slowest first.
            cooling_level: fan level, 0..fan_levels.
            extra_heat_watts: heat from outside into the board (sun, a neighbour); no supply power.
            on_mains: the mains feeds the board and charges the cell.
        """
        span = min(max(dt_s, 0.0), LONGEST_SPAN_S)
        steps = max(1, math.ceil(span / LONGEST_STEP_S))
        for _ in range(steps):
            self._euler(span / steps, utilisation, frequency_index, cooling_level, extra_heat_watts)
        self._discharge(span, on_mains=on_mains)
        return self.state

    def firmware_index(self) -> int:
        """Fastest row of the clock table that the firmware allows at this die temperature."""
        top = len(self.constants.points) - 1
        over = (self.state.die_celsius - SOFT_LIMIT_CELSIUS) / (HARD_LIMIT_CELSIUS - SOFT_LIMIT_CELSIUS)
        return top if over <= 0.0 else max(0, math.floor(top * (1.0 - over)))

    def cell_volts(self) -> float:
        """Voltage at the cell's terminals."""
        return _open_circuit(self.state.charge) - self.cell_amperes() * CELL_OHMS

    def cell_amperes(self) -> float:
        """Current out of the cell; negative while it charges."""
        volts = _open_circuit(self.state.charge)
        if self.state.on_mains:
            return 0.0 if self.state.charge >= 1.0 else -CHARGER_WATTS / volts
        return self.state.watts / CONVERTER_EFFICIENCY / volts

    def _euler(self, dt_s: float, utilisation: float, index: int, fan: int, extra_watts: float) -> None:
        parts, now = self.constants, self.state
        level = min(max(fan, 0), parts.fan_levels)
        point = parts.points[min(max(index, 0), len(parts.points) - 1)]
        watts = parts.power.watts(point, min(max(utilisation, 0.0), 1.0), now.die_celsius)
        to_board = (now.die_celsius - now.board_celsius) / parts.die_kelvin_per_watt
        conductance = (1.0 + parts.fan_gain * level) / parts.air_kelvin_per_watt
        to_air = (now.board_celsius - now.ambient_celsius) * conductance
        self.state = PhysicsState(
            ambient_celsius=now.ambient_celsius,
            die_celsius=now.die_celsius + dt_s * (watts - to_board) / parts.die_joules_per_kelvin,
            board_celsius=now.board_celsius + dt_s * (to_board + extra_watts - to_air) / parts.board_joules_per_kelvin,
            charge=now.charge,
            watts=watts + parts.fan_watts * level,
            on_mains=now.on_mains,
        )

    def _discharge(self, dt_s: float, *, on_mains: bool) -> None:
        now = self.state
        flow = CHARGER_WATTS if on_mains else -now.watts / CONVERTER_EFFICIENCY
        self.state = PhysicsState(
            ambient_celsius=now.ambient_celsius,
            die_celsius=now.die_celsius,
            board_celsius=now.board_celsius,
            charge=min(max(now.charge + flow * dt_s / CELL_JOULES, 0.0), 1.0),
            watts=now.watts,
            on_mains=on_mains,
        )


def _open_circuit(charge: float) -> float:
    for (low, low_volts), (high, high_volts) in itertools.pairwise(OPEN_CIRCUIT_VOLTS):
        if charge <= high:
            return low_volts + (high_volts - low_volts) * (charge - low) / (high - low)
    return OPEN_CIRCUIT_VOLTS[-1][1]
