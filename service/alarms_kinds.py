"""What may be wrong with a board: a closed table of alarms, each with its cause and its hold times. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TypeAlias

from policies.reading import Decision, Health, Reading

Evidence: TypeAlias = Mapping[str, object]

SHORT_HOLD_S = 10.0  # a reading or two may be wrong, ten in a row are not
LONG_HOLD_S = 60.0  # longer than a supply or a die needs to swing once
CLOCK_HOLD_S = 300.0  # a board without a real-time clock gets the time from the network soon after its start
HOUR_S, DAY_S = 3600.0, 86400.0

FAILURES = 3  # jobs in a row: one has a reason of its own, three have one in common
LEAST_FREE_BYTES = 16 << 20  # less is not enough for a checkpoint of the smallest model and the journal's log
MAX_LISTED = 16  # names in one piece of evidence: sensors, levers, files
MAX_TEXT = 500  # characters of a complaint that is evidence

_UNBELIEVED = frozenset({Health.MISSING, Health.FROZEN, Health.IMPOSSIBLE})
_PAUSED_BY_HEAT = frozenset({"thermal.delta-t-pause", "thermal.absolute-pause"})
_SHORT_OF_CHARGE = frozenset({"battery.low", "battery.pause"})


class Severity(StrEnum):
    """How soon somebody should look."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at one moment. The defaults are those of a board on which all is well."""

    reading: Reading = field(default_factory=lambda: Reading(mono_s=0.0))
    decision: Decision = field(default_factory=Decision)
    clock_synchronised: bool = True
    unrepairable: int = 0
    """Damaged files that the last scrub could not mend."""
    unusable: tuple[str, ...] = ()
    """Why the model that was to run by command cannot, and its hash; empty: nothing is known of one."""
    rolled_back: tuple[str, ...] = ()
    """Why the last release of temperd was left, and its version; empty: it stayed."""
    safe_mode: tuple[str, ...] = ()
    """Why the installed release runs without work, and its version; empty: it is not so."""
    memory_faults: int = 0
    """Times that weights were found changed in memory since the daemon started."""
    new_memory_faults: int = 0
    """Of those, since the facts before."""
    takeovers: int = 0
    """Times that another client took our id since the daemon started."""
    new_takeovers: int = 0
    """Of those, since the facts before."""
    disk_refusal: str = ""
    """`no-space` or `disk`: why the disk refused the latest write of journal or outbox; empty: it did not."""
    free_bytes: int | None = None
    """Free where the daemon keeps its state; `None`: not known."""
    quarantined: tuple[str, ...] = ()
    """Names of broken journals that lie in the state folder."""
    policy_complaint: str = ""
    failed_jobs: int = 0
    """Jobs that failed since the last that did not."""
    last_failure: str = ""
    """`reason_code` of the job that ended last; empty: it did not fail."""

    @property
    def rules(self) -> frozenset[str]:
        """Every rule of the governor that applies."""
        return frozenset({self.decision.rule, *self.decision.notes})

    def with_health(self, *wanted: Health) -> tuple[str, ...]:
        """Sensors and levers with one of these healths."""
        return tuple(name for name, health in self.reading.health if health in wanted)[:MAX_LISTED]


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of alarm.

    Attributes:
        keys: of its evidence.
        cause: the evidence while the cause is there, else `None`.
        raise_after_s: how long the cause must last without a gap.
        clear_after_s: how long the cause must stay away.
    """

    type: str
    severity: Severity
    reason: str
    keys: tuple[str, ...]
    cause: Callable[[Facts], Evidence | None]
    raise_after_s: float
    clear_after_s: float


# --- causes ----------------------------------------------------------------------------------------------------------


def _heat(facts: Facts, rules: frozenset[str]) -> Evidence | None:
    found, reading = sorted(facts.rules & rules), facts.reading
    heat = {"temperature_celsius": reading.temperature_celsius, "delta_t_celsius": reading.delta_t_celsius}
    return {"rules": found, **heat} if found else None


def _charge(facts: Facts, rules: frozenset[str]) -> Evidence | None:
    found = sorted(facts.rules & rules)
    return {"rules": found, "charge": facts.reading.charge} if found else None


def _temperature_lost(facts: Facts) -> Evidence | None:
    health = dict(facts.reading.health).get("temperature", Health.OK)
    return {"health": str(health)} if health in _UNBELIEVED else None


def _levers(facts: Facts, health: Health) -> Evidence | None:
    names = facts.with_health(health)
    return {"levers": list(names)} if names else None


def _supply(facts: Facts, *, wrong: bool) -> Evidence | None:
    reading = facts.reading
    return {"frequency_hz": reading.frequency_hz, "power_watts": reading.power_watts} if wrong else None


def _disk_full(facts: Facts) -> Evidence | None:
    low = facts.free_bytes is not None and facts.free_bytes < LEAST_FREE_BYTES
    return {"free_bytes": facts.free_bytes} if low or facts.disk_refusal == "no-space" else None


_TABLE = (
    Kind(
        "overheated",
        Severity.WARNING,
        "The die is above the pause trip: training rests until it has cooled",
        ("rules", "temperature_celsius", "delta_t_celsius"),
        lambda facts: _heat(facts, _PAUSED_BY_HEAT),
        0.0,
        LONG_HOLD_S,
    ),
    Kind(
        "critical-temperature",
        Severity.CRITICAL,
        "The die is above the abort trip",
        ("rules", "temperature_celsius", "delta_t_celsius"),
        lambda facts: _heat(facts, frozenset({"thermal.critical"})),
        0.0,
        LONG_HOLD_S,
    ),
    Kind(
        "temperature-lost",
        Severity.CRITICAL,
        "The temperature of the die is missing or cannot be believed",
        ("health",),
        _temperature_lost,
        SHORT_HOLD_S,
        SHORT_HOLD_S,
    ),
    Kind(
        "battery-low",
        Severity.WARNING,
        "The charge is below a mark of the policy",
        ("rules", "charge"),
        lambda facts: _charge(facts, _SHORT_OF_CHARGE),
        SHORT_HOLD_S,
        LONG_HOLD_S,
    ),
    Kind(
        "battery-unknown",
        Severity.WARNING,
        "The board is off mains and its charge cannot be believed",
        ("rules", "charge"),
        lambda facts: _charge(facts, frozenset({"battery.unknown"})),
        SHORT_HOLD_S,
        LONG_HOLD_S,
    ),
    Kind(
        "undervoltage",
        Severity.WARNING,
        "The supply voltage drops: the supply or its cable is too weak",
        ("frequency_hz", "power_watts"),
        lambda facts: _supply(facts, wrong=facts.reading.undervoltage),
        0.0,
        LONG_HOLD_S,
    ),
    Kind(
        "throttled",
        Severity.WARNING,
        "The firmware or the kernel holds the clock down",
        ("frequency_hz", "power_watts"),
        lambda facts: _supply(facts, wrong="supply.throttled" in facts.rules),  # held, as firmware lifts it for moments
        LONG_HOLD_S,
        LONG_HOLD_S,
    ),
    Kind(
        "lever-refused",
        Severity.WARNING,
        "A clock cap or a fan level may not be written: heat is held by pauses alone",
        ("levers",),
        lambda facts: _levers(facts, Health.REFUSED),
        SHORT_HOLD_S,
        LONG_HOLD_S,
    ),
    Kind(
        "lever-overridden",
        Severity.WARNING,
        "Another program keeps setting back what the governor writes",
        ("levers",),
        lambda facts: _levers(facts, Health.OVERRIDDEN),
        SHORT_HOLD_S,
        LONG_HOLD_S,
    ),
    Kind(
        "memory-faults",
        Severity.CRITICAL,
        "Weights were found changed in memory: memory or power may be failing",
        ("count",),
        lambda facts: {"count": facts.memory_faults} if facts.new_memory_faults > 0 else None,
        0.0,
        DAY_S,
    ),
    Kind(
        "store-damaged",
        Severity.CRITICAL,
        "The last scrub found damaged files that it could not mend",
        ("unrepairable",),
        lambda facts: {"unrepairable": facts.unrepairable} if facts.unrepairable > 0 else None,
        0.0,
        0.0,
    ),
    Kind(
        "model-unusable",
        Severity.WARNING,
        "The model that was to run cannot: it is damaged, or does not answer with numbers. The one before runs",
        ("code", "model"),
        lambda facts: {"code": facts.unusable[0], "model": facts.unusable[1]} if facts.unusable else None,
        0.0,
        0.0,
    ),
    Kind(
        "agent-rolled-back",
        Severity.WARNING,
        "A release of temperd failed here and was left: the one before runs",
        ("code", "version"),
        lambda facts: {"code": facts.rolled_back[0], "version": facts.rolled_back[1]} if facts.rolled_back else None,
        0.0,
        0.0,
    ),
    Kind(
        "safe-mode",
        Severity.CRITICAL,
        "No release of temperd runs healthily: the installed one tells how the board is, and does no work",
        ("code", "version"),
        lambda facts: {"code": facts.safe_mode[0], "version": facts.safe_mode[1]} if facts.safe_mode else None,
        0.0,
        0.0,
    ),
    Kind(
        "disk-full",
        Severity.CRITICAL,
        "The disk is full: jobs and commands wait",
        ("free_bytes",),
        _disk_full,
        0.0,
        LONG_HOLD_S,
    ),
    Kind(
        "disk-failing",
        Severity.CRITICAL,
        "The disk refuses writes: it is read-only or fails",
        ("code",),
        lambda facts: {"code": facts.disk_refusal} if facts.disk_refusal not in ("", "no-space") else None,
        0.0,
        LONG_HOLD_S,
    ),
    Kind(
        "clock-unsynchronised",
        Severity.WARNING,
        "The board does not know the time: most commands wait",
        (),
        lambda facts: None if facts.clock_synchronised else {},
        CLOCK_HOLD_S,
        0.0,
    ),
    Kind(
        "journal-quarantined",
        Severity.CRITICAL,
        "The journal was broken and put aside: what it knew of jobs and commands is lost. Take the files away",
        ("files",),
        lambda facts: {"files": list(facts.quarantined)} if facts.quarantined else None,
        0.0,
        0.0,
    ),
    Kind(
        "taken-over",
        Severity.WARNING,
        "Another client connects to the broker under this board's id",
        ("count",),
        lambda facts: {"count": facts.takeovers} if facts.new_takeovers > 0 else None,
        0.0,
        HOUR_S,
    ),
    Kind(
        "jobs-failing",
        Severity.WARNING,
        "The last jobs all failed",
        ("count", "code"),
        lambda facts: (
            {"count": facts.failed_jobs, "code": facts.last_failure} if facts.failed_jobs >= FAILURES else None
        ),
        0.0,
        0.0,
    ),
    Kind(
        "repository-expired",
        Severity.CRITICAL,
        "The repository's metadata is expired: its publisher must sign anew, or the board's clock is wrong",
        ("code",),
        lambda facts: {"code": facts.last_failure} if facts.last_failure == "metadata-expired" else None,
        0.0,
        0.0,
    ),
    Kind(
        "policy-invalid",
        Severity.WARNING,
        "The policy that should be in force is not: the one before stays",
        ("complaint",),
        lambda facts: {"complaint": facts.policy_complaint[:MAX_TEXT]} if facts.policy_complaint else None,
        0.0,
        0.0,
    ),
)

KINDS: Mapping[str, Kind] = MappingProxyType({kind.type: kind for kind in _TABLE})
"""Every type of alarm, as docs/alarms.md lists them."""
