"""What the store knows of two jobs, and of which there are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from service.command_types import COMMAND_ID, FINE_TUNE, MAX_TIME_S, id_time_s
from service.config import NAME
from service.console.audit import Wanted
from service.console.compare_curves import BUCKETS, curves, wanted
from service.console.compare_facts import Job, held, short
from service.console.device_reads import parsed
from service.fleet.boards import is_final, number, table
from service.fleet.state import FleetState
from service.fleet.store import Filter
from service.fleet.store_chart import MAX_CHART_S, Change

if TYPE_CHECKING:
    from service.console.audit import Audit, Record
    from service.console.room import Room, Settings
    from service.fleet.store import Store

MAX_BOARDS = 10  # of the chooser: a longer list is searched by name
MAX_JOBS = 8  # of one of them
MAX_SEARCH = 63  # a board's name is not longer
AROUND_S = 30.0  # between the id of a command and the record that tells of it
BEGUN = "roll-out-begun"  # as the audit trail calls it
DECIDED = ("rule", "action", "power_is_modelled")
MAX_LOOKS = 10  # each gives a thousand changes: one in ten seconds for a day
MAX_BEGUN = 20  # roll-outs to a board, the newest before the job, that are searched for it
MAX_ALIKE = 200  # boards of one roll-out whose names hold that of the board
LEAST_SPAN_S = 1.0  # of a chart: a job that ended at once has one moment


class Named(NamedTuple):
    """A job as a URL names it: `BOARD:JOB`."""

    board: str
    id: str

    @property
    def text(self) -> str:
        """As the URL has it."""
        return f"{self.board}:{self.id}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A job to choose."""

    named: Named
    status: str
    made: float
    """When its command was made, seconds since 1970."""
    metric: str
    score: float | None


def read_named(text: str) -> Named | None:
    """A job of a URL; `None`: that is none."""
    board, _, job = text[: MAX_SEARCH + 40].partition(":")
    return Named(board, job) if NAME.fullmatch(board) and COMMAND_ID.fullmatch(job) else None


async def read_job(room: Room, named: Named, arguments: Mapping[str, object] | None) -> Job | None:
    """All that is known of a job; `None`: the store knows none of this id.

    Raises:
        BoardError, NetworkError: as the methods of `Store`.
    """
    tenant, now = room.settings.tenant, room.now()
    return await room.reads(lambda store: _job(store, tenant, named, arguments, now))


def _job(store: Store, tenant: str, named: Named, arguments: Mapping[str, object] | None, now: float) -> Job | None:
    texts = [text for text in store.statuses(tenant, named.board) if named.id in text]
    status = next((body for body in map(parsed, texts) if body.get("id") == named.id), None)
    if status is None:
        return None
    history = [parsed(text) for text in store.history(tenant, named.board, named.id)]
    began, ended = span_of(named.id, status, history)
    profile = short(table(parsed(store.birth(tenant, named.board)).get("board")).get("profile"))
    if began is None:
        return Job(named.board, named.id, status, None, ended, arguments, profile)
    # A clock may be off by years: then there is nothing in this span, and no chart is longer than the store draws.
    until = min(max(ended or now, began + LEAST_SPAN_S), began + MAX_CHART_S)
    found = store.chart(tenant, named.board, wanted(), began, until, BUCKETS)
    rows, cut = _decisions(store, tenant, named.board, began, until)
    modelled = [told for row in rows if isinstance(told := row.values.get("power_is_modelled"), bool)]
    return Job(
        board=named.board,
        id=named.id,
        status=status,
        began=began,
        ended=ended,
        arguments=arguments,
        profile=profile,
        curves=curves(found, began),
        power_is_modelled=any(modelled) if modelled else None,
        decisions_cut=cut,
        rules=held([(max(row.ts, began), text_of(row.values.get("rule"))) for row in rows], until),
        actions=held([(max(row.ts, began), text_of(row.values.get("action"))) for row in rows], until),
    )


def _decisions(store: Store, tenant: str, board: str, since: float, until: float) -> tuple[list[Change], bool]:
    """What the governor decided, oldest first, and whether the oldest are missing."""
    found: list[Change] = []
    for _ in range(MAX_LOOKS):
        changes = store.changes(tenant, board, "board", DECIDED, since, until)
        found = [*changes.rows, *found]
        if not changes.cut or not changes.rows or changes.rows[0].ts <= since:
            return found, False
        until = changes.rows[0].ts
    return found, True


def text_of(value: object) -> str:
    """A text that a board said, cut; `?` for what is none."""
    return short(value) or "?"


def span_of(job: str, status: Mapping[str, object], history: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """When a job began and ended, seconds since 1970 by the board's clock; `None`: it did not.

    Where its history was forgotten it began as long before its end as its result says, or else when it was sent.
    """
    ended = time_of(status) if is_final(status) else None
    first = next((body for body in history if body.get("status") == "running"), None)
    began = time_of(first) if first else None
    if began is None:
        result = table(status.get("result"))
        took = number(result.get("wall_s"))
        if ended is not None and took is not None and 0.0 < took <= MAX_CHART_S:
            began = ended - took
        elif result or status.get("status") in ("running", "paused"):
            began = id_time_s(job)
    return began, ended if ended is None or began is None or ended > began else None


def time_of(body: Mapping[str, object]) -> float | None:
    """When a status was said; `None`: that is no time."""
    ts = number(body.get("ts"))
    return ts if ts is not None and 0.0 < ts <= MAX_TIME_S else None


async def choices(room: Room, search: str) -> tuple[list[Choice], bool]:
    """Recent jobs of the first boards whose names begin so, and whether there are more such boards."""
    tenant, now = room.settings.tenant, room.now()

    def ask(store: Store) -> tuple[list[Choice], bool]:
        boards = store.devices(Filter(tenant=tenant, prefix=search[:MAX_SEARCH], limit=MAX_BOARDS + 1), now)
        found = [choice for board in boards[:MAX_BOARDS] for choice in _jobs(store, tenant, board.name)]
        return found, len(boards) > MAX_BOARDS

    return await room.reads(ask)


def _jobs(store: Store, tenant: str, board: str) -> list[Choice]:
    found: list[Choice] = []
    for body in fine_tunes(store, tenant, board, MAX_JOBS):
        job = str(body["id"])
        result = table(body.get("result"))
        metric = short(result.get("metric"))
        score = number(result.get(f"{metric}_after"))
        found.append(Choice(Named(board, job), short(body.get("status")), id_time_s(job), metric, score))
    return found


def fine_tunes(store: Store, tenant: str, board: str, most: int) -> list[dict[str, Any]]:
    """The newest statuses of a board's jobs, newest first."""
    types, found = store.types(tenant, board), []
    for text in store.statuses(tenant, board):
        body = parsed(text)
        job = body.get("id")
        if isinstance(job, str) and COMMAND_ID.fullmatch(job) and types.get(job) == FINE_TUNE:
            found.append(body)
            if len(found) == most:
                break
    return found


async def asked(room: Room, named: Named) -> Mapping[str, object] | None:
    """Arguments of a job that was sent from here, out of the audit trail; `None`: it was not, or that is forgotten.

    Raises:
        BoardError: the audit trail or the file of roll-outs cannot be read.
    """
    return await asyncio.to_thread(_asked, room.audit, room.settings, named)


def _asked(audit: Audit, settings: Settings, named: Named) -> Mapping[str, object] | None:
    made = id_time_s(named.id)
    for record in audit.page(Wanted(board=named.board, since=made - AROUND_S, until=made + AROUND_S)):
        if named.id in record.commands and record.action != "outcome":
            return _arguments_in(record)
    begun = Wanted(action=BEGUN, board=named.board, until=made + AROUND_S, rows=MAX_BEGUN)
    return next((_arguments_in(record) for record in audit.page(begun) if _is_of(settings, record, named)), None)


def _is_of(settings: Settings, record: Record, named: Named) -> bool:
    """Whether a job is the command of a roll-out for its board."""
    roll_out = record.details.get("roll_out")
    if not isinstance(roll_out, str) or not settings.fleet_state.exists():
        return False
    with FleetState(settings.fleet_state) as state:
        sent, _ = state.stood(roll_out, search=named.board, limit=MAX_ALIKE)
    return any(one.board == named.board and one.id == named.id for one in sent)


def _arguments_in(record: Record) -> Mapping[str, object] | None:
    given = record.details.get("args")
    return given if isinstance(given, dict) else None
