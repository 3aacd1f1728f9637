"""Board profiles: what a kind of board is called, where its sensors are and what its clock table costs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import policies
from agent.errors import ConfigError
from policies.reading import OperatingPoint

EMULATED_PREFIX = "Emulated "
"""A device-tree model that begins so belongs to an emulated board: its power is modelled, never measured."""

CPU_ZONES = ("cpu-thermal", "cpu_thermal", "tj-thermal", "x86_pkg_temp", "acpitz")
AMBIENT_ZONES = ("ambient-thermal",)
_POLICIES = Path(policies.__file__).parent  # importlib.resources would load zipfile into every daemon: 0.2 MB
FANS = ("pwm-fan", "gpio-fan", "rpi-poe-fan", "Fan")  # the last: what the firmware of an x86 board calls by ACPI


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Supply power of a board: rest + C V^2 f u + leakage.

    The usual CMOS model (Rabaey, Digital Integrated Circuits).
    """

    rest_watts: float
    """Everything that does not follow the clock: memory, regulators, network."""
    switched_farads: float
    """Effective switched capacitance of all cores together."""
    leakage_watts: float
    """Leakage of the die at 25 °C; it doubles every 30 K (assumed; 20..40 K are usual for planar silicon)."""

    def watts(self, point: OperatingPoint, utilisation: float, celsius: float) -> float:
        """Power at `point` with `utilisation` 0..1 of all cores busy and a die of `celsius`."""
        # Clamped: beyond its rating the exponential would run away, a real board is off by then.
        die = min(max(celsius, -40.0), 125.0)
        leakage = self.leakage_watts * math.exp2((die - 25.0) / 30.0)
        dynamic = self.switched_farads * point.volts * point.volts * point.frequency_hz * utilisation
        return self.rest_watts + dynamic + leakage


@dataclass(frozen=True, slots=True)
class BoardProfile:
    """A kind of board."""

    name: str
    models: tuple[str, ...]
    """Parts of /proc/device-tree/model that identify it."""
    policy_name: str
    points: tuple[OperatingPoint, ...] = ()
    """Clock table, slowest first. Volts are looked up here; frequencies come from cpufreq where it lists them."""
    zone_types: tuple[str, ...] = CPU_ZONES
    """Thermal zones that measure the die, in order of preference; zones are never chosen by number."""
    ambient_types: tuple[str, ...] = AMBIENT_ZONES
    highest_resting_celsius: float = 50.0
    """Without an ambient sensor the baseline is the coolest die seen so far, but never above this: a daemon that
    starts on a hot board must not take the heat for its rest."""
    frozen_after_s: float | None = None
    """A die temperature that does not move in its last digit for so long is a stuck sensor; `None`: coarse sensor."""
    fan_types: tuple[str, ...] = FANS
    power: PowerModel | None = None
    memory_bytes: int = 0
    """Of the emulated board; 0: unknown."""
    emulated: bool = False


def _table(*rows: tuple[int, float]) -> tuple[OperatingPoint, ...]:
    return tuple(OperatingPoint(mhz * 1_000_000, volts) for mhz, volts in rows)


# Pi 4: clock table of the kernel; volts assumed linear (they differ by chip). Power fits 2.1 W at rest and 6.4 W with
# four busy cores: Raspberry Pi, "Thermal testing Raspberry Pi 4" (November 2019).
_PI4 = BoardProfile(
    name="raspberry-pi-4",
    models=("Raspberry Pi 4", "Raspberry Pi Compute Module 4"),
    policy_name="raspberry-pi-4",
    points=_table(*((mhz, round(0.72 + (mhz - 600) / 1200 * 0.16, 4)) for mhz in range(600, 1801, 100))),
    frozen_after_s=120.0,  # steps of 0.5 K, and load or air move it far more often (assumed)
    power=PowerModel(rest_watts=1.75, switched_farads=2.9e-9, leakage_watts=0.25),
    memory_bytes=4 << 30,
)
# Pi 5: 1.5..2.4 GHz; volts assumed along 0.9 -> 0.8 V of the reference figure R5; about 2.7 W at rest, 8.8 W with four
# busy cores (assumed from published reviews, to be replaced by a measurement).
_PI5 = BoardProfile(
    name="raspberry-pi-5",
    models=("Raspberry Pi 5", "Raspberry Pi Compute Module 5"),
    policy_name="raspberry-pi-5",
    points=_table(*((mhz, round(0.74 + (mhz - 1500) / 900 * 0.16, 4)) for mhz in range(1500, 2401, 100))),
    frozen_after_s=120.0,
    power=PowerModel(rest_watts=2.3, switched_farads=2.9e-9, leakage_watts=0.35),
    memory_bytes=8 << 30,
)
# Orin Nano: a shortened table of its 15 W mode; volts and watts assumed (7 W and 15 W are the module's power modes).
_ORIN_NANO = BoardProfile(
    name="jetson-orin-nano",
    models=("Jetson Orin Nano",),
    policy_name="jetson-orin-nano",
    points=_table((729, 0.62), (883, 0.65), (1036, 0.69), (1190, 0.73), (1344, 0.77), (1510, 0.82)),
    zone_types=("tj-thermal", "cpu-thermal"),
    frozen_after_s=120.0,
    power=PowerModel(rest_watts=4.2, switched_farads=9.0e-9, leakage_watts=0.5),
    memory_bytes=8 << 30,
)
# The part of the reference figure R6, not a board one can buy: 22 W at its top clock, 12 W at a clock 1/1.18 as fast.
# Clock and watts follow from the figure. Volts, and the share of rest and leakage in the watts, are assumed: so steep
# a fall of power takes 1.12 -> 0.874 V between the two clocks, the upper end of a voltage curve.
_EDGE_22W = BoardProfile(
    name="edge-22w",
    models=("Edge 22 W",),
    policy_name="default",
    points=_table(
        (800, 0.65),
        (1000, 0.68),
        (1200, 0.71),
        (1400, 0.74),
        (1600, 0.78),
        (1800, 0.82),
        (2000, 0.874),
        (2180, 0.98),
        (2360, 1.12),
    ),
    frozen_after_s=120.0,
    power=PowerModel(rest_watts=0.8, switched_farads=6.66e-9, leakage_watts=0.6),
    memory_bytes=8 << 30,
)
GENERIC = BoardProfile(name="generic", models=(), policy_name="default")
"""Any other machine: no clock table of its own, the default policy, the low baseline."""

PROFILES = {profile.name: profile for profile in (_PI4, _PI5, _ORIN_NANO, _EDGE_22W, GENERIC)}


def pick_profile(model: str) -> BoardProfile:
    """The profile for a device-tree model text; `GENERIC` for an unknown one.

    A model that begins with `Emulated ` gives the same profile marked emulated, with the emulated policy and a stuck
    sensor recognised sooner: by its noise the emulated one rests on a value for 30 s once in 20 years.
    """
    text = model.strip("\0 \n")
    real = text.removeprefix(EMULATED_PREFIX)
    found = next((p for p in PROFILES.values() if any(part in real for part in p.models)), GENERIC)
    if real == text:
        return found
    return dataclasses.replace(found, policy_name="emulated", frozen_after_s=30.0, emulated=True)


def named_profile(name: str) -> BoardProfile:
    """The profile called `name`.

    Raises:
        ConfigError: there is none; lists those there are.
    """
    if name not in PROFILES:
        raise ConfigError(f"no board profile {name!r}", fix=f"Known profiles: {', '.join(sorted(PROFILES))}")
    return PROFILES[name]


def policy_names() -> tuple[str, ...]:
    """Names of the policies that ship, sorted."""
    return tuple(sorted(file.stem for file in _POLICIES.glob("*.toml")))


def named_policy_text(name: str) -> str:
    """The TOML text of a policy that ships.

    Raises:
        ConfigError: there is none of that name; lists those there are.
    """
    if name not in policy_names():
        raise ConfigError(f"no policy {name!r}", fix=f"Known policies: {', '.join(policy_names())}")
    return _POLICIES.joinpath(f"{name}.toml").read_text(encoding="utf-8")
