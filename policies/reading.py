"""What the board says (Reading) and what temperd decides (Decision): frozen values with units in their names."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Protocol

FULL_DUTY = 1.0


class Health(StrEnum):
    """What is known of a sensor or a lever."""

    OK = "ok"
    MISSING = "missing"
    """Not there, or it cannot be read."""
    FROZEN = "frozen"
    """The same value to the last digit for too long."""
    IMPOSSIBLE = "impossible"
    """A value no board can have, or a jump no board can make."""
    REFUSED = "refused"
    """A lever that may not be written."""
    OVERRIDDEN = "overridden"
    """A lever that another program keeps setting back."""


class Action(IntEnum):
    """What training does next; a larger value is stricter, so the strictest rule is the maximum."""

    RUN = 0
    SLOW = 1
    PAUSE = 2
    ABORT = 3


@dataclass(frozen=True, slots=True, order=True)
class OperatingPoint:
    """One row of a board's DVFS table."""

    frequency_hz: int
    volts: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the board. `None` means: no such sensor, or its value cannot be believed."""

    mono_s: float
    temperature_celsius: float | None = None
    ambient_celsius: float | None = None
    """Ambient temperature, or the resting baseline where the board has no ambient sensor."""
    frequency_hz: int | None = None
    frequency_cap_hz: int | None = None
    """Clock cap in force, whoever set it."""
    gpu_frequency_hz: int | None = None
    """Clock of the graphics processor, where the board tells it; training does not use it."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """The board's own DVFS table, slowest first; empty where frequency cannot be steered."""
    charge: float | None = None
    """Battery state of charge, 0..1."""
    on_mains: bool | None = None
    undervoltage: bool = False
    throttled: bool = False
    """The firmware or the kernel already holds the clock down."""
    cooling_max: int = 0
    """Highest cooling level; 0 where the board has no switchable cooling."""
    cooling_level: int | None = None
    """Cooling level now, of the strongest cooling device."""
    power_watts: float | None = None
    power_is_modelled: bool = True
    power_source: str = ""
    """`hwmon`, `power_supply`, `powercap` or `model`; empty without one."""
    utilisation: float | None = None
    """Share of all cores that was busy since the reading before, 0..1."""
    memory_available_bytes: int | None = None
    pressure: tuple[tuple[str, float], ...] = ()
    """(`cpu`, `memory`, `io`; share of the last 10 s in which some task waited for it, 0..1), where PSI is there."""
    health: tuple[tuple[str, Health], ...] = ()
    """(sensor or lever, health) for those the board is expected to have: `temperature`, `ambient`, `charge`, `power`,
    `frequency-cap`, `cooling`."""
    ambient_is_baseline: bool = False
    """`ambient_celsius` is the resting baseline: nothing measures the air."""

    @property
    def steerable(self) -> bool:
        """Whether a clock cap can be set: there is a table, and writing it was not refused."""
        return len(self.operating_points) > 1 and ("frequency-cap", Health.REFUSED) not in self.health

    @property
    def delta_t_celsius(self) -> float | None:
        """Die over ambient (or resting baseline) in kelvin; `None` when either is unknown."""
        if self.temperature_celsius is None or self.ambient_celsius is None:
            return None
        return self.temperature_celsius - self.ambient_celsius


@dataclass(frozen=True, slots=True)
class Decision:
    """What training and the board do until the next Decision. Every field is bound by the rule named."""

    action: Action = Action.RUN
    rule: str = "run"
    """The rule that bound the action, e.g. `thermal.delta-t-slow`."""
    frequency_cap_hz: int | None = None
    """Highest clock allowed; `None` where the board's frequency cannot be steered."""
    frequency_rule: str = "unlimited"
    duty: float = FULL_DUTY
    """Share of time spent in training steps, 0..1; 0 when paused."""
    least_depth_percent: int = 0
    """Freeze at least this share of the parametric layers (0, 25, 50, 75 or 100: head only)."""
    depth_rule: str = "plan"
    cooling_level: int = 0
    reverify: bool = False
    """Memory is suspect: re-hash resident frozen weights before going on."""
    notes: tuple[str, ...] = field(default=())
    """Rules that also applied but were not the strictest."""
    depth_until_samples: int = 0
    """Once so many samples of the job are done, `depth_after_percent` holds, without waiting for another Decision:
    steps of a head alone are so short that a job could be over before there is one. 0: no such end."""
    depth_after_percent: int = 0
    micro_batch_share: float = 1.0
    """Most of the usual micro-batch that goes through a step at once: 1, 1/2, 1/4 or 1/8. The optimizer's batch stays,
    and so does what is learnt."""
    batch_rule: str = "plan"


class DepthOrder(Protocol):
    """An order of a freeze depth, perhaps with an end: a Decision, or what a worker is told of it."""

    @property
    def least_depth_percent(self) -> int:
        """Until `depth_until_samples`."""
        ...

    @property
    def depth_until_samples(self) -> int:
        """Samples of the job; 0: no end."""
        ...

    @property
    def depth_after_percent(self) -> int:
        """From then on."""
        ...


def least_depth_after(order: DepthOrder, samples: float) -> int:
    """The least depth that `order` asks for once so many samples of the job are done, in percent."""
    over = 0 < order.depth_until_samples <= samples
    return order.depth_after_percent if over else order.least_depth_percent
