"""What a console may ask for: types of command, their arguments, who may, and why one is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

from agent.errors import CommandError
from agent.keys_consoles import Role
from agent.spec import EvaluateSpec, FineTuneSpec, parse_spec
from agent.switch import BASE
from policies.policy import MAX_POLICY_BYTES
from policies.strict import TableError, build, limits
from service.qualify_plan import DEFAULT_MINUTES, LEAST_MINUTES, MOST_MINUTES
from service.update_arguments import AgentArguments, SystemArguments

SCHEMA = 1
"""Form of a request. A new field is no new form: boards refuse fields that they do not know."""
MAX_TIME_S = 253_402_300_799  # the last second of the year 9999
_MOST_STATE_VERSION = (1 << 53) - 1  # what every JSON reader holds exactly

COMMAND_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_ID_MS = (1 << 48) - 1

FINE_TUNE, CANCEL, PAUSE, RESUME, SCRUB = "fine-tune", "cancel", "pause", "resume", "scrub"
SET_POLICY, QUALIFY = "set-policy", "qualify"
COLLECT_REPORT, EVALUATE, PROMOTE, ROLLBACK = "collect-report", "evaluate", "promote", "rollback"
UPDATE_AGENT, UPDATE_SYSTEM = "update-agent", "update-system"
SUPPORTED = (
    *(FINE_TUNE, CANCEL, PAUSE, RESUME, SCRUB, SET_POLICY, QUALIFY, COLLECT_REPORT),
    *(EVALUATE, PROMOTE, ROLLBACK, UPDATE_AGENT, UPDATE_SYSTEM),
)
KNOWN = SUPPORTED
WITHOUT_CLOCK = frozenset({CANCEL, PAUSE, COLLECT_REPORT})
"""What runs while the board does not know the time: nothing here starts work or changes a model."""

_OPERATED = frozenset({FINE_TUNE, EVALUATE, CANCEL, PAUSE, RESUME, SCRUB, QUALIFY})
PERMITTED: Mapping[Role, frozenset[str]] = {
    Role.VIEWER: frozenset({COLLECT_REPORT}),
    Role.OPERATOR: frozenset({COLLECT_REPORT}) | _OPERATED,
    Role.OWNER: frozenset(KNOWN),
}
"""Which types of command a console of each role may send."""


class Refusal(StrEnum):
    """Why a command is refused: the closed set of `reason_code` on the wire. Listed in docs/mqtt.md."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    BAD_SIGNATURE = "bad-signature"
    UNKNOWN_SCHEMA = "unknown-schema"
    OTHER_DEVICE = "other-device"
    TOPIC_MISMATCH = "topic-mismatch"
    UNKNOWN_TYPE = "unknown-type"
    NOT_PERMITTED = "not-permitted"
    CLOCK_UNSYNCHRONISED = "clock-unsynchronised"
    EXPIRED = "expired"
    NOT_YET = "not-yet"
    LIFETIME_TOO_LONG = "lifetime-too-long"
    UNKNOWN_EXPECTATION = "unknown-expectation"
    BAD_ARGUMENTS = "bad-arguments"
    EXPECTATION_FAILED = "expectation-failed"
    """Decided by the command desk: the board's state is not as the console believes."""
    SAFE_MODE = "safe-mode"
    """Decided by the command desk: no release of temperd runs healthily, and work is what may be wrong."""
    QUEUE_FULL = "queue-full"
    """Decided by the command desk: too many jobs have not ended."""
    REPLAY = "replay"
    """Decided by the journal: an id seen with other bytes, or older than the kept ledger."""


STRANGERS = frozenset(
    {
        *(Refusal.TOO_LARGE, Refusal.MALFORMED, Refusal.UNSIGNED, Refusal.UNKNOWN_KEY, Refusal.BAD_SIGNATURE),
        *(Refusal.UNKNOWN_SCHEMA, Refusal.OTHER_DEVICE, Refusal.TOPIC_MISMATCH, Refusal.REPLAY),
    }
)
"""Refusals of what anybody on the broker can send: an old envelope of a trusted console under any topic is enough."""


def refuse(refusal: Refusal, what: str, where: str = "", fix: str = "") -> CommandError:
    """The error with which a command is refused."""
    return CommandError(what, where=where, fix=fix, reason=refusal)


@dataclass(frozen=True, slots=True)
class Request:
    """What a console signs. Times are whole seconds since 1970, UTC."""

    id: str = field(metadata=limits(longest=36))
    """UUIDv7, see `new_id`: ids sort by the time they were made."""
    device: str = field(metadata=limits(longest=63))
    type: str = field(metadata=limits(longest=32))
    issued_at: int = field(metadata=limits(0, MAX_TIME_S))
    not_after: int = field(metadata=limits(0, MAX_TIME_S))
    args: dict[str, object]
    expect: dict[str, object] = field(default_factory=dict)
    """Conditions on the board's state, see `Expectation`."""
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a console believes of the board; `None` is no condition."""

    active_model: str | None = None
    """SHA-256 of the running model, hex; empty: none runs."""
    policy: str | None = None
    """SHA-256 of the policy in force, hex."""
    state_version: int | None = field(default=None, metadata=limits(0, _MOST_STATE_VERSION))
    """See `service.state_version`."""

    def __post_init__(self) -> None:
        """Refuse what can never hold."""
        if self.active_model and not _SHA256.fullmatch(self.active_model):
            raise TableError("active_model", "is neither 64 hexadecimal digits nor empty")
        if self.policy is not None and not _SHA256.fullmatch(self.policy):
            raise TableError("policy", "is not 64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Command(Request):
    """A request whose signature and target were checked."""

    digest: str = ""
    """SHA-256 of the signed bytes, hex: two envelopes with one digest ask for the same thing."""
    keyid: str = ""
    """The console that signed."""
    role: Role = Role.VIEWER
    """Of that console."""

    @property
    def spec(self) -> FineTuneSpec:
        """Arguments of a fine-tune command."""
        return parse_spec(self.args)

    @property
    def job(self) -> str:
        """The job that a cancel, pause, resume or promote command names."""
        return build(JobArguments, self.args).job

    @property
    def evaluation(self) -> EvaluateSpec:
        """Arguments of an evaluate command."""
        return build(EvaluateSpec, self.args)

    @property
    def back_to(self) -> str:
        """What a rollback command names, see `agent.switch.way_back`."""
        return build(RollbackArguments, self.args).to

    @property
    def nothing(self) -> None:
        """Arguments of a scrub command: there are none."""
        build(NoArguments, self.args)

    @property
    def minutes(self) -> int:
        """Length of the run that a qualify command asks for."""
        return build(QualifyArguments, self.args).minutes

    @property
    def policy(self) -> PolicyArguments:
        """Arguments of a set-policy command."""
        return build(PolicyArguments, self.args)

    @property
    def update(self) -> AgentArguments:
        """Arguments of an update-agent command."""
        return build(AgentArguments, self.args)

    @property
    def system_update(self) -> SystemArguments:
        """Arguments of an update-system command."""
        return build(SystemArguments, self.args)

    @property
    def expectation(self) -> Expectation:
        """What must hold.

        Raises:
            TableError: a key that this version does not check, or a value that can never hold.
        """
        return build(Expectation, self.expect)


@dataclass(frozen=True, slots=True)
class PolicyArguments:
    """What a set-policy command asks for: exactly one of these."""

    text: str = field(default="", metadata=limits(longest=MAX_POLICY_BYTES))
    """A policy in TOML."""
    name: str = field(default="", metadata=limits(longest=63))
    """One that ships."""
    reset: bool = False
    """None from a console any more."""

    def __post_init__(self) -> None:
        """Refuse none and several."""
        given = [key for key in ("text", "name", "reset") if getattr(self, key)]
        if len(given) != 1:
            raise TableError(given[-1] if given else "text", "give exactly one of text, name and reset")


@dataclass(frozen=True, slots=True)
class NoArguments:
    """Of commands that take none."""


@dataclass(frozen=True, slots=True)
class QualifyArguments:
    """What a qualify command asks for."""

    minutes: int = field(default=DEFAULT_MINUTES, metadata=limits(LEAST_MINUTES, MOST_MINUTES))


@dataclass(frozen=True, slots=True)
class RollbackArguments:
    """Which model a rollback command goes back to."""

    to: str = field(default="", metadata=limits(longest=64))
    """Hash of one that ran before, `base`, or empty: the one before the active one."""

    def __post_init__(self) -> None:
        """Refuse what is none of these."""
        if self.to not in ("", BASE) and not _SHA256.fullmatch(self.to):
            raise TableError("to", "is neither the hash of a model (64 hexadecimal digits) nor base nor empty")


@dataclass(frozen=True, slots=True)
class JobArguments:
    """The job that a cancel, pause, resume or promote command is about."""

    job: str = field(metadata=limits(longest=36))
    """Id of its fine-tune command."""

    def __post_init__(self) -> None:
        """Refuse what is no id."""
        if not COMMAND_ID.fullmatch(self.job):
            raise TableError("job", "is no job id (a job has the id of its fine-tune command)")


ARGUMENTS: Mapping[str, Callable[[Command], object]] = {
    FINE_TUNE: attrgetter("spec"),
    **dict.fromkeys((SCRUB, COLLECT_REPORT), attrgetter("nothing")),
    SET_POLICY: attrgetter("policy"),
    QUALIFY: attrgetter("minutes"),
    **dict.fromkeys((CANCEL, PAUSE, RESUME, PROMOTE), attrgetter("job")),
    EVALUATE: attrgetter("evaluation"),
    ROLLBACK: attrgetter("back_to"),
    UPDATE_AGENT: attrgetter("update"),
    UPDATE_SYSTEM: attrgetter("system_update"),
}
"""What reads the arguments of each supported command."""


def new_id(now_ms: int, random: Callable[[int], bytes]) -> str:
    """A UUIDv7 (RFC 9562, 5.7).

    Args:
        now_ms: milliseconds since 1970; ids of later milliseconds sort after.
        random: gives that many unpredictable bytes, e.g. `secrets.token_bytes`.
    """
    if not 0 <= now_ms <= _MAX_ID_MS:
        raise ValueError(f"{now_ms} ms does not fit 48 bits")
    noise = int.from_bytes(random(10))
    value = now_ms << 80 | 0x7 << 76 | (noise >> 62 & 0xFFF) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def id_time_s(command_id: str) -> float:
    """When a UUIDv7 says that it was made, seconds since 1970."""
    return int(command_id.replace("-", "")[:12], 16) / 1000
