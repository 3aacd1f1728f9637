"""What boards said, folded into one view of each. Pure: messages in, views out, whatever a board or broker sends.

Bounded in every direction: a broker may hold what strangers wrote. What does not fit is counted, not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from service.commands import COMMAND_ID
from service.config import NAME
from service.fleet.outcome import Outcome, of_status

MAX_BOARDS = 20_000  # one tenant on one broker; a view has about 6 KB
MAX_STATUSES = 20  # of one board, the newest by id; its retained ones come to about a hundred
MAX_ALARMS = 64  # the list of alarm types is closed and shorter
MAX_GROUPS = 16  # five are documented
MAX_CAPABILITIES = 32  # thirteen are documented
MAX_NAME = 32  # a command type, group or alarm
KNOWN_SCHEMA = 1  # of birth; a larger one may mean something else by the same keys
MAX_KEYS, MAX_TEXT, MAX_DEPTH = 16, 200, 1  # of what a list keeps of a message
MAX_NUMBER = 2**64  # whole ones of JSON may have thousands of digits
MAX_KEPT_BYTES = 512 << 20  # of all boards in memory: 20,000 with a few commands each take a quarter
_OF_CONN = ("online", "session", "connection", "boot_id", "ts")
_OF_BIRTH = ("schema", "agent", "board", "active_model", "policy", "state_version", "engine", "clock")
_OF_STATUS = (
    *("status", "step", "version", "attempt", "reason_code", "reason", "progress", "eta_s", "until", "ts"),
    *("energy_j",),
)
_OF_METRICS = (
    *("temperature_celsius", "delta_t_celsius", "charge", "power_watts", "power_is_modelled", "action", "rule"),
)
_OF_ALARM = ("severity", "since", "reason")


@dataclass(slots=True)
class Board:
    """One board as its messages tell."""

    name: str
    conn: dict[str, object] = field(default_factory=dict)
    birth: dict[str, object] = field(default_factory=dict)
    statuses: dict[str, tuple[str, dict[str, object]]] = field(default_factory=dict)
    """By command id: type and the status with the highest version."""
    alarms: dict[str, dict[str, object]] = field(default_factory=dict)
    metrics: dict[str, dict[str, object]] = field(default_factory=dict)
    """By group: the latest values."""
    heard: dict[str, float] = field(default_factory=dict)
    """By group: when they came, seconds since 1970, by our clock."""
    capabilities: dict[str, dict[str, object]] = field(default_factory=dict)
    seen: float = 0.0
    """When it was last heard of, seconds since 1970, by our clock; 0 where only retained messages tell of it."""
    complaint: str = ""
    """Why its birth is not read."""

    @property
    def online(self) -> bool:
        """Whether it is there, as far as the broker knows."""
        return self.conn.get("online") is True

    @property
    def last_seen(self) -> float:
        """Seconds since 1970: by our clock, or else by its own; 0 when nobody knows."""
        return self.seen or number(self.conn.get("ts")) or 0.0

    def job(self) -> tuple[str, str, dict[str, object]] | None:
        """Id, type and status of what it does: the newest that has not ended, else the newest."""
        if not self.statuses:
            return None
        going = [key for key, (_, body) in self.statuses.items() if not is_final(body)]
        running = [key for key in going if self.statuses[key][1].get("status") in ("running", "paused")]
        chosen = max(running or going or self.statuses)
        return chosen, *self.statuses[chosen]


class Boards:
    """The boards of one tenant.

    Args:
        tenant: messages of others are not read.
        whole: keep every part of a birth; for few boards.
    """

    def __init__(self, tenant: str, *, whole: bool = False) -> None:
        self.boards: dict[str, Board] = {}
        self.left_out = 0
        """Messages of boards beyond `MAX_BOARDS`, of names that no board has, or beyond `MAX_KEPT_BYTES`."""
        self._kept = 0
        self._prefix, self._whole = f"temper/v1/{tenant}/", whole

    def take(self, topic: str, body: Mapping[str, object] | None, *, now: float, retained: bool) -> str:
        """Fold one message in.

        Args:
            topic: where it came.
            body: what it said; `None` for an empty payload, which clears.
            now: our clock, seconds since 1970.
            retained: it was there before we looked.

        Returns:
            The name of the board whose view changed, or an empty text.
        """
        levels = topic.removeprefix(self._prefix).split("/") if topic.startswith(self._prefix) else []
        board = self._board(levels[0]) if len(levels) > 1 else None
        if board is None:
            self.left_out += 1
            return ""
        if not self._fold(board, levels[1:], body):
            return ""
        if levels[1] == "m":
            board.heard[levels[2]] = now
        if not retained and levels[1] != "conn":  # a last will is said by the broker
            board.seen = now
        return board.name

    def _board(self, name: str) -> Board | None:
        found = self.boards.get(name)
        if found is None and NAME.fullmatch(name) and len(self.boards) < MAX_BOARDS:
            found = self.boards[name] = Board(name)
        return found

    def _fold(self, board: Board, levels: list[str], body: Mapping[str, object] | None) -> bool:
        if body is None:
            gone = board.alarms.pop(levels[1], None) if len(levels) == 2 and levels[0] == "a" else None  # noqa: PLR2004 - a/<type>
            self._kept -= _weight(gone)
            return gone is not None
        match levels:
            case ["conn"]:
                return self._take_conn(board, body)
            case ["birth"]:
                return self._take_birth(board, body)
            case ["cmd", kind, command_id, "sts"] if COMMAND_ID.fullmatch(command_id):
                return self._take_status(board, kind[:MAX_NAME], command_id, body)
            case [name, kind]:
                return self._take_named(board, name, kind, body)
        return False

    def _take_named(self, board: Board, name: str, kind: str, body: Mapping[str, object]) -> bool:
        """A capability, telemetry or an alarm."""
        values = table(body.get("values")) if name == "m" else dict(body)
        places = {
            "cmd": (board.capabilities, MAX_CAPABILITIES, ()),
            "m": (board.metrics, MAX_GROUPS, _OF_METRICS),
            "a": (board.alarms, MAX_ALARMS, _OF_ALARM),
        }
        if name not in places or len(kind) > MAX_NAME or kind == "backfill":  # of the past: nothing shown changes
            return False
        kept, most, keys = places[name]
        if kind not in kept and len(kept) >= most:
            return False
        value = values if self._whole else slim(values, keys)
        if not self._fits(value, kept.get(kind)):
            return False
        kept[kind] = value
        return True

    def _take_conn(self, board: Board, body: Mapping[str, object]) -> bool:
        """The latest presence; a will that comes late carries lower numbers than the connection after it."""
        conn = slim(body, _OF_CONN)
        if connection_of(conn) < connection_of(board.conn) or not self._fits(conn, board.conn):
            return False
        board.conn = conn
        return True

    def _fits(self, value: object, before: object) -> bool:
        """Whether there is room for a value in another's place, which is then taken."""
        grown = _weight(value) - _weight(before)
        if grown > 0 and self._kept + grown > MAX_KEPT_BYTES:
            self.left_out += 1
            return False
        self._kept += grown
        return True

    def _take_birth(self, board: Board, body: Mapping[str, object]) -> bool:
        schema = body.get("schema")
        if not isinstance(schema, int) or schema > KNOWN_SCHEMA:
            board.complaint = f"its birth has schema {schema!r}, this console reads up to {KNOWN_SCHEMA}: update it"[
                :120
            ]
            self._kept -= _weight(board.birth)
            board.birth = {}
            return True
        birth = dict(body) if self._whole else slim(body, _OF_BIRTH)
        if not self._fits(birth, board.birth):
            return False
        board.complaint, board.birth = "", birth
        return True

    def _take_status(self, board: Board, kind: str, command_id: str, body: Mapping[str, object]) -> bool:
        before = board.statuses.get(command_id)
        if before is not None and not is_newer(body, before[1]):
            return False
        told = kind, dict(body) if self._whole else slim(body, _OF_STATUS)
        if not self._fits(told, before):
            return False
        board.statuses[command_id] = told
        if len(board.statuses) > MAX_STATUSES:
            ended = [key for key, (_, status) in board.statuses.items() if is_final(status)]
            self._kept -= _weight(board.statuses.pop(min(ended or board.statuses)))
        return command_id in board.statuses


def connection_of(body: Mapping[str, object]) -> tuple[float, float]:
    """Session and connection of a presence; the one with the higher numbers is true."""
    return number(body.get("session")) or 0.0, number(body.get("connection")) or 0.0


def slim(body: Mapping[str, object], names: Iterable[str]) -> dict[str, object]:
    """What is kept of a message: some keys, cut to a size: 20,000 hostile boards fill neither memory nor disk."""
    return {name: _cut(body[name], MAX_DEPTH) for name in names if name in body}


def _cut(value: object, depth: int) -> object:
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, dict):
        return {key[:MAX_TEXT]: _cut(item, depth - 1) for key, item in list(value.items())[:MAX_KEYS]} if depth else {}
    if isinstance(value, list):
        return [_cut(item, depth - 1) for item in value[:MAX_KEYS]] if depth else []
    return None if isinstance(value, int) and abs(value) > MAX_NUMBER else value


def _weight(value: object) -> int:
    """Bytes that a value of messages takes in memory."""
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = (part for item in value.items() for part in item)
    elif isinstance(value, list | tuple):
        inner = value
    return (sys.getsizeof(value) if value else 0) + sum(map(_weight, inner))


def is_final(status: Mapping[str, object]) -> bool:
    """Whether a status is the last of its command."""
    return of_status(status.get("status")) is not Outcome.OPEN


def is_newer(status: Mapping[str, object], before: Mapping[str, object]) -> bool:
    """Whether a status replaces one seen before.

    It does with a higher version, or with the same one and its progress; a final status never changes.
    """
    if is_final(before) and status.get("status") != before.get("status"):
        return False
    return (number(status.get("version")) or 0.0) >= (number(before.get("version")) or 0.0)


def number(value: object) -> float | None:
    """The value, if it is a number that a float holds."""
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > sys.float_info.max:
        return None
    return float(value)


def summary(board: Board) -> dict[str, object]:
    """One line of a list, as `fleet list --json` gives it. Values are as the board sent them."""
    birth, job = board.birth, board.job()
    about, model = table(birth.get("board")), table(birth.get("active_model"))
    heat = number(table(board.metrics.get("board")).get("temperature_celsius"))
    line: dict[str, object] = {
        "board": board.name,
        "online": board.online,
        "last_seen": board.last_seen or None,
        "agent": birth.get("agent"),
        "profile": about.get("profile"),
        "model": model.get("name"),
        "model_version": model.get("version"),
        "model_sha256": model.get("model_sha256"),
        "policy": table(birth.get("policy")).get("name"),
        "state_version": birth.get("state_version"),
        "temperature_celsius": heat,
        "temperature_at": board.heard.get("board") if heat is not None else None,
        "alarms": sorted(board.alarms),
        "job": None,
        "complaint": board.complaint,
    }
    if job:
        command_id, kind, body = job
        keys = ("status", "step", "progress", "eta_s", "reason_code", "reason", "until")
        line["job"] = {"id": command_id, "type": kind, **{key: body.get(key) for key in keys}}
    return line


def details(board: Board) -> dict[str, object]:
    """All that is known of a board, as `fleet show --json` gives it."""
    statuses = [
        {"id": key, "type": kind, **{name: value for name, value in body.items() if name != "id"}}
        for key, (kind, body) in sorted(board.statuses.items(), reverse=True)
    ]
    return {
        **summary(board),
        "conn": board.conn,
        "birth": board.birth,
        "capabilities": sorted(board.capabilities),
        "commands": statuses,
        "alarms": board.alarms,
        "telemetry": board.metrics,
    }


def table(value: object) -> dict[str, object]:
    """The value, if it is a table; else an empty one."""
    return value if isinstance(value, dict) else {}
