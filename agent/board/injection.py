"""Heat and faults on demand of an emulated board, as its `inject.json` asks for them."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.strict import limits

TEMPERATURE_FAULTS = ("", "missing", "unreadable", "zero", "frozen", "impossible", "jump")
BATTERY_FAULTS = ("", "unknown", "over-full", "undervolted")
JUMP_KELVIN = 60.0
IMPOSSIBLE_CELSIUS = -256.0
OVER_FULL_PERCENT = 101


@dataclass(frozen=True, slots=True)
class Injection:
    """What is asked for; the defaults ask for nothing."""

    seconds: float | None = field(default=None, metadata=limits(0.0, 86_400.0))
    """How long it holds; `None`: until something else is asked for."""
    heat_watts: float = field(default=0.0, metadata=limits(0.0, 100.0))
    """Heat from outside into the board."""
    unplug: bool = False
    """The mains goes away."""
    charge: float | None = field(default=None, metadata=limits(0.0, 1.0))
    """Set the battery to this state of charge, once."""
    undervoltage: bool = False
    temperature: str = field(default="", metadata=limits(choices=TEMPERATURE_FAULTS))
    """What the die's sensor says instead of the truth."""
    battery: str = field(default="", metadata=limits(choices=BATTERY_FAULTS))
    """`unknown`: status Unknown and no charge; `over-full`: 101 %; `undervolted`: 100 % at the cut-off voltage."""
    overrides_cap: bool = False
    """Another program sets the clock cap back to the top, again and again."""
    refuses_cap: bool = False
    """The clock cap cannot be written; what root writes nevertheless is set back."""
    renumbers_zones: bool = False
    """The thermal zones change their numbers."""
    memory_mib: float | None = field(default=None, metadata=limits(0.0, 1_000_000.0))
    """At most so much memory is available; `None`: as much as there is."""
    memory_pressure: float | None = field(default=None, metadata=limits(0.0, 1.0))
    """Share of the last 10 s in which some task waited for memory; `None`: the truth."""


NOTHING = Injection()
