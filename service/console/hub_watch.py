"""Who looks at what, and what they have not been told yet. Bounded: of what nobody fetches only the last is kept.

Nothing here waits or connects: the hub puts in what changed, twice a second it wakes whoever has news, and a reader
takes what there is then. A slow reader so loses what was in between, and no memory is lost to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.console.rows import finite
from service.fleet.boards import MAX_GROUPS, MAX_KEYS, MAX_NAME, MAX_TEXT, Board, table

MAX_PENDING = 300  # kinds of news for one reader: a board has 20 statuses, 64 alarms and 16 groups
MAX_VALUES = 256  # of one telemetry message; the longest group has about 60
METRIC_CHARACTERS = 64  # of a metric's name


@dataclass(frozen=True, slots=True)
class Event:
    """Something for open pages: `name` of the server-sent event, its data as JSON values, and the hub's revision."""

    name: str
    data: Mapping[str, Any]
    revision: int


News = tuple[str, ...]
"""What is news: `conn`, `birth`, or `status`, `alarm`, `metrics` and which."""


@dataclass(slots=True)
class Look:
    """Telemetry of a board that somebody looks at, with all its values."""

    users: int = 0
    metrics: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    """By group: when, by the board's clock, and the values."""

    def take(self, group: str, body: Mapping[str, object], now: float) -> bool:
        """Fold a message in; whether something of it was kept."""
        if len(group) > MAX_NAME or (group not in self.metrics and len(self.metrics) >= MAX_GROUPS):
            return False
        self.metrics[group] = (finite(body.get("ts")) or now, cut_values(table(body.get("values"))))
        return True


@dataclass(eq=False, slots=True)
class Watcher:
    """One reader.

    Attributes:
        boards: rows that it shows.
        board: the one that it looks at, or empty.
        roll_outs: whether it wants to know of roll-outs.
        seen: the revision up to which it was told of rows.
        connected: what it was told of the broker.
        fleet: what it was told of the summary.
        news: what changed at `board` since it was told.
        made: events of the console's own, the last of each.
        wake: set when there is something to take.
    """

    boards: Collection[str]
    board: str
    roll_outs: bool
    seen: int
    connected: bool
    fleet: object = None
    news: dict[News, None] = field(default_factory=dict)
    made: dict[tuple[str, str], Event] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, news: News) -> None:
        """Something changed at the board."""
        self.news[news] = None
        if len(self.news) > MAX_PENDING:
            del self.news[next(iter(self.news))]

    def put(self, event: Event) -> None:
        """An event of the console's own."""
        key = event.name, str(event.data.get("id", ""))
        self.made.pop(key, None)
        self.made[key] = event
        if len(self.made) > MAX_PENDING:
            del self.made[next(iter(self.made))]

    def wants(self, event: Event) -> bool:
        """Whether an event of the console's own is for this reader."""
        if event.name == "roll-out":
            return self.roll_outs
        board = event.data.get("board")
        return board is None or board == self.board


def all_news(board: Board | None, look: Look) -> list[News]:
    """Everything that can be told of a board."""
    if board is None:
        return []
    return [
        ("conn",),
        ("birth",),
        *(("status", command_id) for command_id in sorted(board.statuses)),
        *(("alarm", kind) for kind in sorted(board.alarms)),
        *(("metrics", group) for group in sorted(look.metrics)),
    ]


def news_of(levels: list[str]) -> News | None:
    """What a message of a board is news of, by the levels below the board's root."""
    match levels:
        case ["conn" | "birth" as name]:
            return (name,)
        case ["cmd", _, command_id, "sts"]:
            return "status", command_id
        case ["a", kind]:
            return "alarm", kind
    return None


def tell(news: News, name: str, board: Board | None, look: Look | None) -> tuple[str, dict[str, Any]] | None:
    """Name and data of the event that tells the news as it is now; `None`: it is not there any more."""
    found: tuple[str, dict[str, Any]] | None = None
    match news:
        case ["conn"] if board is not None:
            found = "conn", {"board": name, **board.conn, "online": board.online}
        case ["birth"] if board is not None:
            found = "birth", {"board": name, "birth": board.birth, "complaint": board.complaint}
        case ["status", command_id] if board is not None and command_id in board.statuses:
            kind, body = board.statuses[command_id]
            found = "status", {"board": name, "id": command_id, "type": kind, "body": body}
        case ["alarm", kind] if board is not None:
            found = "alarm", {"board": name, "type": kind, "body": board.alarms.get(kind)}
        case ["metrics", group] if look is not None and group in look.metrics:
            ts, values = look.metrics[group]
            found = "metrics", {"board": name, "group": group, "values": values, "ts": ts}
    return found


def retained_of(board: Board) -> list[tuple[str, str]]:
    """Name and levels of what a broker keeps of a board and may lose: that it is there, and its alarms."""
    there = ["conn"] if board.online else []
    return [(board.name, levels) for levels in (*there, *(f"a/{kind}" for kind in board.alarms))]


def cut_values(values: Mapping[str, object]) -> dict[str, Any]:
    """Telemetry cut to a size: some keys, numbers that are finite, short texts, and tables one level deep."""
    return {key: _cut(value) for key, value in list(values.items())[:MAX_VALUES] if len(key) <= METRIC_CHARACTERS}


def _cut(value: object) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, dict):
        inner = list(value.items())[:MAX_KEYS]
        return {key: _plain(item) for key, item in inner if len(key) <= METRIC_CHARACTERS}
    if isinstance(value, list):
        return [_plain(item) for item in value[:MAX_KEYS]]
    return _plain(value)


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if value is None or isinstance(value, bool):
        return value
    return finite(value)
