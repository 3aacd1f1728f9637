"""The report of a board: what somebody far away needs to understand it, as one bounded JSON object without secrets."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent import __version__
from agent.errors import BoardError
from service.command_types import Command
from service.config import Config
from service.journal import JobRecord, Journal
from service.kept import recall_table
from service.logs import logger
from service.report_log import HIDDEN, LONG_NUMBER, MAX_NUMBER, RecentLog
from service.statuses import Clock

SCHEMA = 1
MAX_REPORT_BYTES = 96 << 10  # with the rest of the status it stays below the 128 KiB that clients usually take
JOBS_TOLD = 20  # the newest
MAX_TEXT = 500  # characters of one text
MAX_ITEMS = 64  # of one list or table
MAX_DEPTH = 6
LAST = "report"
"""Name in the journal's memory: the last report that a command asked for."""

log = logger("report")


@dataclass(frozen=True, slots=True)
class Views:
    """What the report asks for, each as JSON values.

    Attributes:
        birth: as the fleet sees it.
        live: as `temperd status` sees it.
        link: counters of the connection.
    """

    birth: Callable[[], Mapping[str, object]]
    live: Callable[[], Mapping[str, object]]
    link: Callable[[], Mapping[str, object]]


class Reports:
    """Makes reports, and keeps the last one that a command asked for.

    Args:
        config: of the daemon.
        journal: asked for jobs and figures; remembers.
        clock: see `Clock`. A report is made whether or not it is synchronised.
        recent: the last warnings and errors.
        views: see `Views`.
    """

    def __init__(self, config: Config, journal: Journal, clock: Clock, recent: RecentLog, views: Views) -> None:
        self._config, self._journal, self._clock = config, journal, clock
        self._recent, self._views = recent, views
        self._began_s = clock.mono()

    def marks(self, command: Command) -> dict[str, str]:
        """A report for `command`, as the journal is to remember it together with the answer."""
        result = self.make()
        log.info("report made", id=command.id, keyid=command.keyid[:16], bytes=len(_dump(result)))
        return {LAST: _dump({"id": command.id, "result": result})}

    def make(self) -> dict[str, object]:
        """The report of this moment; at most `MAX_REPORT_BYTES` as JSON. What cannot be read is said in its place."""
        live = dict(self._views.live())
        parts = {
            "schema": SCHEMA,
            "ts": self._clock.now(),
            "clock": self._clock.word(),
            "uptime_s": self._clock.mono() - self._began_s,
            "versions": _versions(),
            "birth": {key: value for key, value in self._views.birth().items() if key != "metrics"},
            "alarms": live.pop("alarms", []),
            "live": live,
            "link": self._views.link(),
            "disk": _disk(Path(self._config.device.state_dir)),
            "journal": self._journal_told(),
            "jobs": self._jobs_told(),
            "configuration": _configuration(self._config),
            "log_total": self._recent.total,
            "log": [json.loads(line) for line in self._recent.lines()],
        }
        return _fitted({key: _bounded(value) if key != "log" else value for key, value in parts.items()})

    def _journal_told(self) -> dict[str, object]:
        path = Path(self._config.device.state_dir) / "journal.sqlite"
        told: dict[str, object] = {"refusal": self._journal.refusal}
        for suffix, name in (("", "bytes"), ("-wal", "log_bytes")):
            try:
                told[name] = path.with_name(path.name + suffix).stat().st_size
            except OSError:
                told[name] = None
        return told

    def _jobs_told(self) -> object:
        try:
            return [_job(record) for record in self._journal.jobs(JOBS_TOLD)]
        except BoardError as error:
            return {"unreadable": str(error)}


def no_report(_command: Command) -> dict[str, str]:
    """Where nobody makes reports: the answer has no result."""
    return {}


def report_of(journal: Journal, command_id: str) -> object:
    """The report that the command with this id asked for; `None` where it is not the last."""
    kept = recall_table(journal, LAST)
    return kept.get("result") if kept.get("id") == command_id else None


def _job(record: JobRecord) -> dict[str, object]:
    """A job with the short values of its specification and result."""
    standing = record.standing
    return {
        "id": record.id,
        "state": str(standing.state),
        "attempt": standing.attempt,
        "reason_code": standing.reason_code,
        "reason": standing.reason,
        "created": record.created,
        "updated": record.updated,
        "energy_j": record.energy_j,
        "spec": _short(record.spec),
        "result": _short(record.result or {}),
    }


def _short(table: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in table.items() if isinstance(value, str | int | float | bool | None)}


def _versions() -> dict[str, object]:
    system = os.uname()
    return {
        "agent": __version__,
        "python": sys.version.partition(" ")[0],
        "sqlite": sqlite3.sqlite_version,
        "kernel": system.release,
        "machine": system.machine,
    }


def _disk(state: Path) -> dict[str, object]:
    try:
        found = os.statvfs(state)
    except OSError as error:
        return {"unreadable": error.strerror}
    return {
        "bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
        "files_free": found.f_favail,
    }


def _configuration(config: Config) -> dict[str, object]:
    """The configuration but for the name by which the board is known to its broker."""
    table = dataclasses.asdict(config)
    if table["mqtt"]["username"]:
        table["mqtt"]["username"] = HIDDEN
    return table


# --- bounds ----------------------------------------------------------------------------------------------------------


def _bounded(value: object, depth: int = 0) -> object:
    """The value with long texts cut, long lists and tables shortened, and what is no JSON number left out."""
    if isinstance(value, Mapping | list | tuple) and depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key)[:MAX_TEXT]: _bounded(item, depth + 1) for key, item in list(value.items())[:MAX_ITEMS]}
    if isinstance(value, list | tuple):
        return [_bounded(item, depth + 1) for item in value[:MAX_ITEMS]]
    return _scalar(value)


def _scalar(value: object) -> object:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, int | float):
        return value if isinstance(value, float) or abs(value) < MAX_NUMBER else LONG_NUMBER
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _fitted(report: dict[str, object]) -> dict[str, object]:
    """The report within its bound: the oldest lines of the log go first, then the oldest jobs, then whole parts."""
    for key, newest_last in (("log", True), ("jobs", False)):
        while len(_dump(report)) > MAX_REPORT_BYTES and isinstance(items := report[key], list) and items:
            half = len(items) // 2
            report = report | {key: items[len(items) - half :] if newest_last else items[:half], "shortened": True}
    for key in ("configuration", "live", "birth", "alarms", "link"):
        if len(_dump(report)) > MAX_REPORT_BYTES:
            report = report | {key: None, "shortened": True}
    return report


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
