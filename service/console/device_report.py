"""The report of a board as its page shows it, above all its log. Pure; bounded, whatever the board sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.command_types import COLLECT_REPORT
from service.console.device_facts import Command, text
from service.console.rows import finite
from service.fleet.boards import table

MAX_LINES = 200  # as many as boards keep
MAX_LINE = 400  # characters of what a line says beside its event
MAX_PARTS = 12  # keys of a line, as boards cut theirs
LEVELS = ("warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the log. Empty texts: not told."""

    ts: float | None
    """Seconds since 1970, if the line has such a time."""
    when: str
    """As the line says it."""
    level: str
    room: str
    event: str
    rest: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a page shows of a report."""

    id: str
    """Of the command that asked for it."""
    ts: float | None
    clock: str
    uptime_s: float | None
    versions: tuple[tuple[str, str], ...]
    disk_bytes: float | None
    disk_free_bytes: float | None
    lines: tuple[Line, ...]
    """The newest first."""
    total: float | None
    shortened: bool


def report_of(one: Command) -> Report | None:
    """The report that a command gave; `None`: it gave none."""
    body = one.result
    if one.type not in ("", COLLECT_REPORT) or not isinstance(body.get("log"), list):
        return None
    versions = table(body.get("versions"))
    disk = table(body.get("disk"))
    return Report(
        id=one.id,
        ts=finite(body.get("ts")),
        clock=text(body.get("clock"), 32),
        uptime_s=finite(body.get("uptime_s")),
        versions=tuple((text(key, 32), text(value, 120)) for key, value in list(versions.items())[:MAX_PARTS]),
        disk_bytes=finite(disk.get("bytes")),
        disk_free_bytes=finite(disk.get("free_bytes")),
        lines=tuple(_line(table(item)) for item in reversed(body["log"][-MAX_LINES:])),
        total=finite(body.get("log_total")),
        shortened=body.get("shortened") is True,
    )


def newest_report(commands: Iterable[Command]) -> Report | None:
    """The first report among commands that are newest first."""
    return next((made for one in commands if (made := report_of(one)) is not None), None)


def _line(body: Mapping[str, Any]) -> Line:
    rest = [(key, value) for key, value in list(body.items())[:MAX_PARTS] if key not in _OWN]
    told = " ".join(f"{text(key, 64)}={_short(value)}" for key, value in rest)
    level = text(body.get("level"), 16)
    return Line(
        _time(body.get("ts")),
        text(body.get("ts"), 40),
        level,
        text(body.get("room"), 32),
        text(body.get("event")),
        told[:MAX_LINE],
    )


def _time(value: object) -> float | None:
    """Seconds since 1970 of a time as logs write it, with its zone."""
    try:
        return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else finite(value)
    except (ValueError, OverflowError, OSError):
        return None


_OWN = ("ts", "level", "room", "event")


def _short(value: object) -> str:
    number = finite(value)
    if number is not None:
        return f"{number:g}"
    return text(value) if isinstance(value, str) else text(str(value)[:200])
