"""A board in memory: the physics and the sensors of an emulated board behind the `Board` protocol, without files.

Time passes only in `advance`, so a day of a board takes seconds. Everything it says is modelled.
"""

from __future__ import annotations

import dataclasses
import math

from agent.board.injection import OVER_FULL_PERCENT, Injection
from agent.board.physics import BoardPhysics, PhysicsState, named_constants
from agent.board.plausible import DieSensor, judge_millidegrees
from agent.board.profile import named_profile
from agent.board.sensor_model import SENSORS, SensorModel
from policies.reading import Decision, Health, OperatingPoint, Reading

SLICE_S = 1.0
"""Firmware and kernel look at the temperature at least this often."""
SETTLING_S = 3600.0  # several time constants of the slowest board: it begins at rest
MIB = 1 << 20
FREE_MEMORY_SHARE = 0.75  # of a board that runs little else (assumed)
TICKS_PER_S = 100.0  # /proc/stat counts busy time in 10 ms of each core
_CORES = 4


class SimulatedBoard:
    """One board, at rest and in thermal balance at first.

    Args:
        name: profile of the board (`physics.CONSTANTS`).
        ambient_celsius: temperature of the air; may be set later.
        charge: state of charge of the battery, 0..1.
        on_mains: whether the mains feeds it; may be set later.
        seed: of the sensors' noise.
        start_fan: fan level that is never undercut; `None`: the board's resting level.
        ambient_sensor: False: the ambient reading is the coolest die seen, as on boards without such a sensor.

    Raises:
        ConfigError: that board is not emulated.
    """

    def __init__(
        self,
        name: str,
        *,
        ambient_celsius: float = 25.0,
        charge: float = 1.0,
        on_mains: bool = True,
        seed: int = 0,
        start_fan: int | None = None,
        ambient_sensor: bool = True,
    ) -> None:
        self.profile, self.constants = named_profile(name), named_constants(name)
        self.ambient_celsius, self.on_mains = ambient_celsius, on_mains
        parts = self.constants
        self._least_fan = parts.resting_fan_level if start_fan is None else min(max(start_fan, 0), parts.fan_levels)
        start = PhysicsState(ambient_celsius, ambient_celsius, ambient_celsius, charge=1.0)
        self._physics = BoardPhysics(parts, start)
        self._physics.step(SETTLING_S, 0.0, 0, self._least_fan)
        self._physics.joules = 0.0
        self._physics.state = dataclasses.replace(self._physics.state, charge=charge, on_mains=on_mains)
        self._sensors = SensorModel(SENSORS[name], seed)
        self._die = DieSensor(self.profile.frozen_after_s)
        self._baseline = None if ambient_sensor else self.profile.highest_resting_celsius
        top = len(parts.points) - 1
        self._cap_index, self._kernel_index, self._kernel_state = top, top, 0
        self._asked_fan, self._kernel_fan = 0, 0
        self._injection, self._injected_s = Injection(), 0.0
        self._busy_s, self._span_s = 0.0, 0.0
        self._complained = ""
        self.elapsed_s = 0.0
        """Seconds since the beginning."""

    @property
    def truth(self) -> PhysicsState:
        """What the sensors try to say."""
        return self._physics.state

    @property
    def joules(self) -> float:
        """Supply energy since the beginning."""
        return self._physics.joules

    @property
    def alive(self) -> bool:
        """Whether the board is on: False once its battery was cut off, until the mains is back."""
        return self.truth.alive

    @property
    def index(self) -> int:
        """Row of the clock table it runs at: the slowest of cap, kernel and firmware."""
        held = len(self.constants.points) - 1 - self._kernel_state
        return max(min(self._cap_index, self._kernel_index, held, self._physics.firmware_index()), 0)

    @property
    def clock_share(self) -> float:
        """The present clock over the top clock; 0 while the board is off."""
        return self._point().frequency_hz / self.constants.points[-1].frequency_hz if self.alive else 0.0

    @property
    def fan_level(self) -> int:
        """Level of the fan: the highest that the board's rest, the kernel and the Decision ask for."""
        return max(self._least_fan, self._kernel_fan, self._asked_fan)

    def inject(self, injection: Injection) -> None:
        """Ask for heat or faults from now on, instead of what was asked for before."""
        self._injection, self._injected_s = injection, self.elapsed_s
        if injection.charge is not None:
            self._physics.state = dataclasses.replace(self.truth, charge=injection.charge)

    def kernel_asks(
        self, *, clock_index: int | None = None, cooling_state: int | None = None, fan_level: int | None = None
    ) -> None:
        """What the kernel's own governors want; `None` leaves it as it was.

        Args:
            clock_index: row of the clock table that its cpufreq governor chose.
            cooling_state: steps below the top clock that its thermal governor holds the clock down.
            fan_level: what its fan trips ask for.
        """
        top = len(self.constants.points) - 1
        if clock_index is not None:
            self._kernel_index = min(max(clock_index, 0), top)
        if cooling_state is not None:
            self._kernel_state = min(max(cooling_state, 0), top)
        if fan_level is not None:
            self._kernel_fan = min(max(fan_level, 0), self.constants.fan_levels)

    def advance(self, seconds: float, utilisation: float) -> float:
        """Let time pass.

        Args:
            seconds: 0 or more.
            utilisation: share of all cores busy at the clock there is, 0..1.

        Returns:
            Seconds of it in which the board was on.
        """
        slices = max(math.ceil(seconds / SLICE_S), 1)
        alive_s, part_s = 0.0, max(seconds, 0.0) / slices
        for _ in range(slices):
            self._pass(part_s, utilisation)
            alive_s += part_s if self.alive else 0.0
        return alive_s

    def read(self, mono_s: float) -> Reading:
        """What the sensors say at `mono_s`; of a board that is off, nothing."""
        if not self.alive:
            return Reading(mono_s)
        celsius, health = self._temperature(mono_s)
        charge, charge_health = self._charge()
        busy = self._busy_s / self._span_s if self._span_s > 0.0 else None
        ticks = self._span_s * TICKS_PER_S * _CORES
        self._busy_s = self._span_s = 0.0
        asked, free = self._injection, self.profile.memory_bytes * FREE_MEMORY_SHARE
        return Reading(
            mono_s=mono_s,
            temperature_celsius=celsius,
            ambient_celsius=self._ambient(celsius),
            ambient_is_baseline=self._baseline is not None,
            frequency_hz=self._point().frequency_hz,
            frequency_cap_hz=self.constants.points[self._cap_index].frequency_hz,
            operating_points=self.constants.points,
            charge=charge,
            on_mains=self.truth.on_mains,
            undervoltage=self._injection.undervoltage,
            throttled=self._kernel_state > 0 or self._firmware_throttles(),
            cooling_max=self.constants.fan_levels,
            cooling_level=self.fan_level,
            power_watts=self._sensors.watts(self.truth.watts),
            power_source="hwmon",
            utilisation=None if busy is None else min(round(busy * ticks) / ticks, 1.0),
            memory_available_bytes=int(min(free, math.inf if asked.memory_mib is None else asked.memory_mib * MIB)),
            pressure=() if asked.memory_pressure is None else (("memory", asked.memory_pressure),),
            health=(
                ("temperature", health),
                ("ambient", Health.OK if self._baseline is None else Health.MISSING),
                ("charge", charge_health),
                ("power", Health.OK),
                ("frequency-cap", self._cap_health()),
                ("cooling", Health.OK),
            ),
        )

    def apply(self, decision: Decision) -> tuple[str, ...]:
        """Set clock cap and fan; a lever that does not obey is complained about once, until it has worked."""
        health = self._cap_health()
        top, cap = len(self.constants.points) - 1, decision.frequency_cap_hz
        asked = top if cap is None else self._row_below(cap)
        self._cap_index = self._cap_index if health is Health.REFUSED else asked
        self._asked_fan = min(max(decision.cooling_level, 0), self.constants.fan_levels)
        if health is Health.OK:
            self._complained = ""
        elif asked < top and self._complained != health.value:
            self._complained = health.value
            return (f"clock cap {health.value}",)
        return ()

    def restore(self) -> tuple[str, ...]:
        """Lift the clock cap and let the fan rest."""
        return self.apply(Decision())

    def _pass(self, dt_s: float, utilisation: float) -> None:
        asked = self._injection
        if asked.seconds is not None and self.elapsed_s - self._injected_s >= asked.seconds:
            self._injection = asked = Injection()
        if asked.overrides_cap:
            self._cap_index = len(self.constants.points) - 1
        self._physics.state = dataclasses.replace(self.truth, ambient_celsius=self.ambient_celsius)
        on_mains = self.on_mains and not asked.unplug
        self._physics.step(dt_s, utilisation, self.index, self.fan_level, asked.heat_watts, on_mains=on_mains)
        self.elapsed_s += dt_s
        self._busy_s += min(max(utilisation, 0.0), 1.0) * dt_s
        self._span_s += dt_s

    def _temperature(self, mono_s: float) -> tuple[float | None, Health]:
        raw = self._sensors.die_millidegrees(self.truth.die_celsius, self._injection.temperature)
        judged = self._die.judge(judge_millidegrees(raw), mono_s)
        return judged.value, judged.health

    def _ambient(self, celsius: float | None) -> float:
        if self._baseline is None:
            return round(self.ambient_celsius, 3)
        if celsius is not None:
            self._baseline = min(self._baseline, celsius)
        return self._baseline

    def _charge(self) -> tuple[float | None, Health]:
        percent = OVER_FULL_PERCENT if self._injection.battery == "over-full" else round(self.truth.charge * 100)
        if self._injection.battery == "unknown":
            return None, Health.MISSING
        return (percent / 100, Health.OK) if percent <= 100 else (None, Health.IMPOSSIBLE)  # noqa: PLR2004 - percent

    def _cap_health(self) -> Health:
        if self._injection.refuses_cap:
            return Health.REFUSED
        return Health.OVERRIDDEN if self._injection.overrides_cap else Health.OK

    def _row_below(self, cap_hz: int) -> int:
        return max((i for i, point in enumerate(self.constants.points) if point.frequency_hz <= cap_hz), default=0)

    def _firmware_throttles(self) -> bool:
        return self._physics.firmware_index() < len(self.constants.points) - 1

    def _point(self) -> OperatingPoint:
        return self.constants.points[self.index]
