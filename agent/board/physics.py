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

LONGEST_STEP_S = 2.0
"""Within a step heat flows by the exact solution; only the leakage is held, at the mean of the die's temperatures."""
LONGEST_SPAN_S = 3600.0  # a suspended host must not cost an hour of arithmetic
COLDEST_AIR_CELSIUS, WARMEST_AIR_CELSIUS = -40.0, 85.0
"""Air in °C that industrial boards are rated for."""
MOST_FLOWS = 256  # different (fan level, span) pairs remembered: a steady rhythm has a handful

# Lithium-ion cells of 3000 mAh (R6); resistance, converter, charger and cut-off are assumed.
CELL_COULOMBS = 3.0 * 3600.0
CELL_OHMS = 0.08
CONVERTER_EFFICIENCY = 0.9
CHARGER_WATTS = 5.0
"""Of each cell."""
CUT_OFF_VOLTS = 3.0
"""Below this, at the terminals of a cell, its protection takes the board off."""
OPEN_CIRCUIT_VOLTS = ((0.0, 3.0), (0.1, 3.45), (0.2, 3.58), (0.4, 3.7), (0.6, 3.83), (0.8, 4.0), (1.0, 4.2))
"""(state of charge, volts): the usual shape of an NMC cell, assumed."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The thermal side of one board, its fan and its battery.

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
    fan_gain: float = 0.5
    """How much a fan level adds to the conductance to the air, as a share of still air's."""
    fan_watts: float = 0.1
    """Electric power of one fan level; it does not heat the board."""
    fan_levels: int = 4
    resting_fan_level: int = 1
    """A case fan that always turns slowly."""
    cells: int = 1
    """Cells in series."""
    soft_limit_celsius: float = 80.0
    hard_limit_celsius: float = 85.0
    """Between these the firmware takes the clock down to its lowest."""


def _constants(
    name: str,
    heat: tuple[float, float, float, float],
    *,
    fan_watts: float = 0.1,
    cells: int = 1,
    limits_celsius: tuple[float, float] = (80.0, 85.0),
) -> Constants:
    profile = named_profile(name)
    assert profile.power is not None
    soft, hard = limits_celsius
    return Constants(
        profile.power,
        profile.points,
        *heat,
        fan_watts=fan_watts,
        cells=cells,
        soft_limit_celsius=soft,
        hard_limit_celsius=hard,
    )


# (K/W die to board, K/W board to air without fan, J/K of the die, J/K of the board).
# Pi 4, still air: 38.5 K over ambient with four busy cores (pi-plates.com, thermocouples on a bare Pi 4) at 6.4 W gives
# 6 K/W in all; its split and the capacities are assumed (46 g of board at about 0.9 J/gK).
# The others are assumed: scaled so that full load without fan ends near 40 K, as with their usual heat sinks.
# Limits: 80 and 85 °C are the Raspberry Pi firmware's (its documentation, frequency management); the others assumed.
CONSTANTS: Mapping[str, Constants] = {
    "raspberry-pi-4": _constants("raspberry-pi-4", (0.8, 5.2, 1.5, 40.0)),
    "raspberry-pi-5": _constants("raspberry-pi-5", (0.6, 3.9, 2.0, 50.0)),
    "jetson-orin-nano": _constants("jetson-orin-nano", (0.4, 2.3, 4.0, 160.0), cells=3, limits_celsius=(99.0, 103.0)),
    "edge-22w": _constants("edge-22w", (0.3, 1.6, 5.0, 220.0), fan_watts=0.3, cells=4, limits_celsius=(90.0, 95.0)),
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

    ambient_celsius: float = field(default=22.0, metadata=limits(COLDEST_AIR_CELSIUS, WARMEST_AIR_CELSIUS))
    die_celsius: float = field(default=30.0, metadata=limits(-40.0, 200.0))
    board_celsius: float = field(default=28.0, metadata=limits(-40.0, 200.0))
    charge: float = field(default=0.8, metadata=limits(0.0, 1.0))
    watts: float = field(default=0.0, metadata=limits(0.0, 1000.0))
    """Supply power of the board, fan included, at the end of the last step."""
    on_mains: bool = True
    alive: bool = True
    """False: the battery was cut off. The board is on again as soon as the mains is back."""


class BoardPhysics:
    """One board: `state` now, `step` into the future.

    Args:
        constants: what the board is made of.
        state: where it begins.
    """

    def __init__(self, constants: Constants, state: PhysicsState | None = None) -> None:
        self.constants = constants
        self.state = state or PhysicsState()
        self.joules = 0.0
        """Supply energy since the beginning."""
        self._flows: dict[tuple[int, float], _Flow] = {}

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
            on_mains: the mains feeds the board and charges the cells.
        """
        parts, now = self.constants, self.state
        span = min(max(dt_s, 0.0), LONGEST_SPAN_S)
        steps = max(1, math.ceil(span / LONGEST_STEP_S))
        level = min(max(cooling_level, 0), parts.fan_levels)
        point = parts.points[min(max(frequency_index, 0), len(parts.points) - 1)]
        busy = min(max(utilisation, 0.0), 1.0)
        part_s, flow = span / steps, self._flow(level, span / steps)
        die, board, charge, watts = now.die_celsius, now.board_celsius, now.charge, now.watts
        alive = now.alive or on_mains
        fan_watts = parts.fan_watts * level
        for _ in range(steps):
            heat = parts.power.watts(point, busy, die) if alive else 0.0
            if alive and part_s > 0.0:  # once more with the leakage of the step's mean temperature
                ahead, _ = flow.after(die, board, now.ambient_celsius, heat, extra_heat_watts)
                heat = parts.power.watts(point, busy, (die + ahead) / 2.0)
            die, board = flow.after(die, board, now.ambient_celsius, heat, extra_heat_watts)
            watts = heat + fan_watts if alive else 0.0
            self.joules += watts * part_s
            charge, alive = _charge_after(charge, watts, part_s, parts.cells, on_mains=on_mains)
        self.state = PhysicsState(now.ambient_celsius, die, board, charge, watts, on_mains, alive)
        return self.state

    def firmware_index(self) -> int:
        """Fastest row of the clock table that the firmware allows at this die temperature."""
        parts, top = self.constants, len(self.constants.points) - 1
        width = parts.hard_limit_celsius - parts.soft_limit_celsius
        over = (self.state.die_celsius - parts.soft_limit_celsius) / width
        return top if over <= 0.0 else max(0, math.floor(top * (1.0 - over)))

    def cell_volts(self) -> float:
        """Voltage at the terminals of all cells in series."""
        one = open_circuit_volts(self.state.charge) - self.cell_amperes() * CELL_OHMS
        return one * self.constants.cells

    def cell_amperes(self) -> float:
        """Current out of the cells; negative while they charge."""
        if self.state.on_mains:
            return 0.0 if self.state.charge >= 1.0 else -CHARGER_WATTS / open_circuit_volts(self.state.charge)
        amperes = _amperes(self.state.charge, self.state.watts, self.constants.cells)
        return 0.0 if amperes is None else amperes

    def _flow(self, level: int, dt_s: float) -> _Flow:
        flow = self._flows.get((level, dt_s))
        if flow is None:
            if len(self._flows) >= MOST_FLOWS:
                self._flows.clear()
            flow = self._flows[level, dt_s] = _Flow.over(self.constants, level, dt_s)
        return flow


@dataclass(frozen=True, slots=True)
class _Flow:
    """How both nodes come nearer to their steady state in a fixed time: x(t) = x_end + e^(At) (x(0) - x_end)."""

    die_kelvin_per_watt: float
    air_kelvin_per_watt: float
    die_die: float
    die_board: float
    board_die: float
    board_board: float

    @staticmethod
    def over(parts: Constants, level: int, dt_s: float) -> _Flow:
        """e^(At) of the two nodes. Both eigenvalues of such a chain are real, negative and different."""
        air = parts.air_kelvin_per_watt / (1.0 + parts.fan_gain * level)
        inner = 1.0 / parts.die_kelvin_per_watt
        a, b = -inner / parts.die_joules_per_kelvin, inner / parts.die_joules_per_kelvin
        c, d = inner / parts.board_joules_per_kelvin, -(inner + 1.0 / air) / parts.board_joules_per_kelvin
        root = math.sqrt((a - d) ** 2 + 4.0 * b * c)
        slow, fast = (a + d + root) / 2.0, (a + d - root) / 2.0
        p, q = math.exp(slow * dt_s) / root, math.exp(fast * dt_s) / root
        return _Flow(
            parts.die_kelvin_per_watt,
            air,
            p * (a - fast) - q * (a - slow),
            (p - q) * b,
            (p - q) * c,
            p * (d - fast) - q * (d - slow),
        )

    def after(self, die: float, board: float, air: float, watts: float, extra_watts: float) -> tuple[float, float]:
        """Die and board in °C, after `watts` into the die and `extra_watts` into the board."""
        board_end = air + (watts + extra_watts) * self.air_kelvin_per_watt
        die_end = board_end + watts * self.die_kelvin_per_watt
        x, y = die - die_end, board - board_end
        return (
            die_end + self.die_die * x + self.die_board * y,
            board_end + self.board_die * x + self.board_board * y,
        )


def open_circuit_volts(charge: float) -> float:
    """Voltage of one cell without load at a state of charge 0..1."""
    for (low, low_volts), (high, high_volts) in itertools.pairwise(OPEN_CIRCUIT_VOLTS):
        if charge <= high:
            return low_volts + (high_volts - low_volts) * (charge - low) / (high - low)
    return OPEN_CIRCUIT_VOLTS[-1][1]


def _amperes(charge: float, watts: float, cells: int) -> float | None:
    """Current that gives the converter its power; `None`: the cells cannot. Solves (E - I R) I = P for one cell."""
    volts, each = open_circuit_volts(charge), watts / CONVERTER_EFFICIENCY / cells
    root = volts * volts - 4.0 * CELL_OHMS * each
    return None if root < 0.0 else (volts - math.sqrt(root)) / (2.0 * CELL_OHMS)


def _charge_after(charge: float, watts: float, dt_s: float, cells: int, *, on_mains: bool) -> tuple[float, bool]:
    """State of charge after `dt_s` seconds, and whether the board is still on."""
    if on_mains:
        if charge >= 1.0:
            return charge, True
        amperes = CHARGER_WATTS / open_circuit_volts(charge)
        return min(charge + amperes * dt_s / CELL_COULOMBS, 1.0), True
    if watts <= 0.0:
        return charge, False
    drawn = _amperes(charge, watts, cells)
    if drawn is None or open_circuit_volts(charge) - drawn * CELL_OHMS < CUT_OFF_VOLTS:
        return charge, False
    return max(charge - drawn * dt_s / CELL_COULOMBS, 0.0), True
