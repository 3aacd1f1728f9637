"""What a board is now, as far as whoever commands it has to know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from service.commands import CANCEL, COMMAND_ID, FINE_TUNE, PAUSE, PROMOTE, RESUME, SCRUB
from service.config import NAME
from service.console.schema_form import MAX_WHOLE
from service.fleet.boards import is_final, table
from service.fleet.plain import plain

if TYPE_CHECKING:
    from service.console.room import Room
    from service.fleet.boards import Board

NOT_FOUND = 404
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEVER_CANCELED = frozenset({SCRUB, "pause", "resume", "cancel", "set-policy", "collect-report"})


@dataclass(frozen=True, slots=True)
class JobNow:
    """A command that a board told of: its id, type and status."""

    id: str
    kind: str
    status: str


@dataclass(frozen=True, slots=True)
class BoardNow:
    """One board. Empty texts and `None`: not known.

    Attributes:
        name: its name.
        online: whether it is there.
        state: see `service.console.rows.State`.
        last_seen: seconds since 1970.
        model: name of the active model; empty also where none is.
        model_version: of it.
        model_sha256: of it; empty where none is active.
        policy: name of the policy in force.
        policy_source: where that comes from, as in `service.policy_file.Source`.
        policy_where: the path on the board, or the name of the policy that ships.
        policy_sha256: of its text.
        policy_complaint: why a source that should be in force is not.
        state_version: see docs/mqtt.md.
        clock: whether the board knows the time, in its words.
        agent: version of temperd.
    """

    name: str
    online: bool
    state: str
    last_seen: float | None
    model: str
    model_version: str
    model_sha256: str | None
    policy: str
    policy_source: str
    policy_where: str
    policy_sha256: str
    policy_complaint: str
    state_version: int | None
    clock: str
    agent: str

    def conditions(self) -> dict[str, object]:
        """What a command may expect of the board, as it is now."""
        found = {"active_model": self.model_sha256, "policy": self.policy_sha256 or None}
        found_all: dict[str, object] = {key: value for key, value in found.items() if value is not None}
        return found_all if self.state_version is None else found_all | {"state_version": self.state_version}


async def board_now(room: Room, name: str) -> BoardNow:
    """What a board is.

    Raises:
        HTTPException: 404, no board of that name is known.
    """
    row = room.hub.row(name) if NAME.fullmatch(name) else None
    board = room.hub.board(name) if NAME.fullmatch(name) else None
    if row is None and board is None:
        raise HTTPException(NOT_FOUND, "no such board")
    birth = _newer(await room.hub.birth(name), board.birth if board else {})
    model, policy = birth.get("active_model"), table(birth.get("policy"))
    return BoardNow(
        name=name,
        online=row.online if row else board is not None and board.online,
        state=str(row.state) if row else "",
        last_seen=row.last_seen if row else None,
        model=_word(table(model), "name"),
        model_version=_word(table(model), "version"),
        model_sha256=_model(birth),
        policy=_word(policy, "name"),
        policy_source=_word(policy, "source"),
        policy_where=_word(policy, "where"),
        policy_sha256=_hash(policy.get("sha256")),
        policy_complaint=_word(policy, "complaint"),
        state_version=_version(birth.get("state_version")),
        clock=_word(birth, "clock"),
        agent=_word(birth, "agent"),
    )


def _newer(whole: Mapping[str, object], live: Mapping[str, object]) -> Mapping[str, object]:
    """The whole birth may come from the store, which is some seconds behind what the broker said."""
    known, heard = _version(whole.get("state_version")), _version(live.get("state_version"))
    return live if heard is not None and (known is None or heard > known) else whole


def _word(found: Mapping[str, object], key: str) -> str:
    value = found.get(key)
    return plain(value) if isinstance(value, str) else ""


def _model(birth: Mapping[str, object]) -> str | None:
    if "active_model" not in birth:
        return None
    return "" if birth["active_model"] is None else _hash(table(birth["active_model"]).get("model_sha256")) or None


def _hash(value: object) -> str:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else ""


def _version(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_WHOLE - 1 else None


def jobs_for(board: Board | None, kind: str) -> list[JobNow]:
    """The commands that a command of this type could be about, the newest first."""
    if board is None:
        return []
    found = [
        JobNow(key, plain(job_kind, 32), plain(body.get("status"), 32))
        for key, (job_kind, body) in board.statuses.items()
        if COMMAND_ID.fullmatch(key) and _concerns(kind, job_kind, body)
    ]
    return sorted(found, key=lambda job: job.id, reverse=True)


def _concerns(kind: str, job_kind: str, body: Mapping[str, object]) -> bool:
    status = body.get("status")
    if kind == PROMOTE:
        return job_kind == FINE_TUNE and status == "succeeded"
    if is_final(body):
        return False
    if kind == CANCEL:
        return job_kind not in _NEVER_CANCELED
    if job_kind != FINE_TUNE:
        return False
    return (kind == RESUME and status in ("paused", "deferred")) or (kind == PAUSE and status != "paused")
