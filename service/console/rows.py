"""The list of boards: a row each, filters, sorting, pages, and a summary. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from service.command_types import FINE_TUNE
from service.fleet.boards import MAX_TEXT, Board, is_final, number, table
from service.fleet.store import DeviceRow

PAGE_ROWS = 50
MAX_PAGE_ROWS = 200
HEAT_RULES = frozenset(("thermal.critical", "thermal.delta-t-pause", "thermal.absolute-pause"))
"""Rules that pause or end a job because of heat; docs/policy.md. A pause for a lost sensor is no heat."""
HEAT_ALARMS = frozenset(("overheated", "critical-temperature"))
HOLDING = frozenset(("PAUSE", "ABORT"))
_READINGS = (
    *("temperature_celsius", "delta_t_celsius", "charge", "power_watts", "power_is_modelled", "action", "rule"),
)
FIRST_CELSIUS, STEP_CELSIUS, BANDS = 30.0, 5.0, 14
"""Bands of the summary: below 30 °C, twelve of 5 K up to 90 °C, and above."""


class State(StrEnum):
    """What a board is doing, in one word: the first that holds."""

    OFFLINE = "offline"
    HOT = "hot"
    """The governor pauses or aborts because of heat, or an overheating alarm is raised."""
    TRAINING = "training"
    """A fine-tune runs. Other work, such as a scrub, is in the row's job alone."""
    PAUSED = "paused"
    DEFERRED = "deferred"
    """Work waits for something: `until` says for what."""
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Row:
    """One board of the list. Empty texts and `None`: not known."""

    name: str
    revision: int
    """Of the hub, when this row changed last."""
    state: State
    online: bool
    last_seen: float | None
    """Seconds since 1970."""
    agent: str
    profile: str
    policy: str
    model: str
    model_version: str
    model_sha256: str
    temperature_celsius: float | None
    delta_t_celsius: float | None
    charge: float | None
    """0..1."""
    power_watts: float | None
    power_is_modelled: bool
    action: str
    rule: str
    job: Mapping[str, Any] | None
    """What it does, or did last: id, type and what of the status `service.fleet.boards.summary` tells."""
    alarms: tuple[str, ...]
    complaint: str


@dataclass(frozen=True, slots=True)
class Summary:
    """How many boards there are, of each state, with alarms, and where their temperatures lie."""

    total: int
    states: Mapping[str, int]
    alarmed: int
    temperatures: tuple[int, ...]
    """Boards by temperature: below 30 °C, then in steps of 5 K, last 90 °C and above; offline ones not counted."""


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """What of the list is wanted; see `read_query` for its form in a URL."""

    search: str = ""
    """Part of name, model, profile, agent or reason; letters of either case."""
    states: tuple[State, ...] = ()
    alarmed: bool | None = None
    group: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 1
    rows: int = PAGE_ROWS


@dataclass(frozen=True, slots=True)
class FleetPage:
    """Rows of one page; `total` boards fit the filter."""

    rows: tuple[Row, ...]
    total: int
    page: int
    pages: int
    revision: int


def make_row(board: Board | None, stored: DeviceRow | None, *, broker_knows: bool = True) -> Row:
    """The row of a board; its revision is 0 until the hub gives it one.

    Args:
        board: what was heard of it; `None`: nothing.
        stored: what the store had when the console started; used where nothing was heard. One of both is there.
        broker_knows: all that the broker retains was heard: a board of which it has nothing is not there.
    """
    if board is None:
        assert stored is not None
        board = Board(stored.name)
    birth, job = _birth(board, stored), _job(board) or _stored_job(stored)
    readings = board.metrics.get("board") or _stored_readings(stored)
    model = table(birth.get("active_model"))
    online = board.online if board.conn or stored is None else stored.online and not broker_knows
    action, rule, alarms = text(readings.get("action")), text(readings.get("rule")), tuple(sorted(board.alarms))
    hot = (action in HOLDING and rule in HEAT_RULES) or not HEAT_ALARMS.isdisjoint(alarms)
    return Row(
        name=board.name,
        revision=0,
        state=_state(online=online, hot=hot, job=job),
        online=online,
        last_seen=_last_seen(board, stored),
        agent=text(birth.get("agent")),
        profile=text(table(birth.get("board")).get("profile")),
        policy=text(table(birth.get("policy")).get("name")),
        model=text(model.get("name")),
        model_version=text(model.get("version")),
        model_sha256=text(model.get("model_sha256")),
        temperature_celsius=finite(readings.get("temperature_celsius")),
        delta_t_celsius=finite(readings.get("delta_t_celsius")),
        charge=finite(readings.get("charge")),
        power_watts=finite(readings.get("power_watts")),
        power_is_modelled=readings.get("power_is_modelled") is True,
        action=action,
        rule=rule,
        job=job,
        alarms=alarms,
        complaint=board.complaint,
    )


def _birth(board: Board, stored: DeviceRow | None) -> Mapping[str, object]:
    if board.birth or board.complaint or stored is None:
        return board.birth
    name, _, version = stored.model.rpartition(" ") if " " in stored.model else (stored.model, "", "")
    model = {"name": name, "version": version}
    return {"agent": stored.agent, "board": {"profile": stored.board}, "active_model": model}


def _stored_readings(stored: DeviceRow | None) -> Mapping[str, object]:
    return {} if stored is None else {name: getattr(stored, name) for name in _READINGS}


def row_table(row: Row) -> dict[str, Any]:
    """A row as JSON has it."""
    found = {name: getattr(row, name) for name in Row.__slots__}
    return {**found, "alarms": list(row.alarms)}


def summarise(rows: Iterable[Row]) -> Summary:
    """The summary of all rows."""
    states, bands, total, alarmed = dict.fromkeys(State, 0), [0] * BANDS, 0, 0
    for row in rows:
        total += 1
        states[row.state] += 1
        alarmed += bool(row.alarms)
        if row.online and row.temperature_celsius is not None:
            bands[band_of(row.temperature_celsius)] += 1
    return Summary(total, {str(state): count for state, count in states.items()}, alarmed, tuple(bands))


def summary_table(summary: Summary) -> dict[str, Any]:
    """A summary as JSON has it."""
    return {
        "total": summary.total,
        "states": dict(summary.states),
        "alarmed": summary.alarmed,
        "temperatures": list(summary.temperatures),
    }


def band_of(celsius: float) -> int:
    """In which band of the summary a temperature lies, 0 to `BANDS` - 1."""
    return int(min(max((celsius - FIRST_CELSIUS) // STEP_CELSIUS + 1, 0), BANDS - 1))


def text(value: object) -> str:
    """The value, if it is a text, cut; else an empty one."""
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def finite(value: object) -> float | None:
    """The value, if it is a number that is finite."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def _state(*, online: bool, hot: bool, job: Mapping[str, Any] | None) -> State:
    if not online:
        return State.OFFLINE
    if hot:
        return State.HOT
    by_status = {"paused": State.PAUSED, "deferred": State.DEFERRED}
    if job is None:
        return State.IDLE
    if job["status"] == "running" and job["type"] in (FINE_TUNE, ""):  # empty: of the store, which keeps no type
        return State.TRAINING
    return by_status.get(job["status"], State.IDLE)


def _job(board: Board) -> Mapping[str, Any] | None:
    found = board.job()
    if found is None:
        return None
    command_id, kind, body = found
    progress, until = finite(body.get("progress")), table(body.get("until"))
    return {
        "id": command_id,
        "type": kind,
        **{key: text(body.get(key)) for key in ("status", "step", "reason_code", "reason")},
        "progress": None if progress is None else min(max(progress, 0.0), 1.0),
        "eta_s": finite(body.get("eta_s")),
        "until": {"what": text(until.get("what")), **{key: finite(until.get(key)) for key in ("below", "above", "ts")}}
        if until
        else None,
        "ts": finite(body.get("ts")),
        "ended": is_final(body),
    }


def _stored_job(stored: DeviceRow | None) -> Mapping[str, Any] | None:
    """The newest command as the store has it: a console that starts shows it until the board tells more."""
    if stored is None or not stored.command_id:
        return None
    told = {"status": stored.command_status, "ts": stored.command_ts}
    return _job(Board(stored.name, statuses={stored.command_id: (stored.command_type, dict(told))}))


def _last_seen(board: Board, stored: DeviceRow | None) -> float | None:
    heard = finite(board.last_seen)
    if heard or stored is None:
        return heard or None
    return stored.telemetry_ts or stored.since
