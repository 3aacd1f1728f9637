"""What is known of one board, gathered from the hub and the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from starlette.exceptions import HTTPException

from agent.errors import BoardError, NetworkError
from service.command_types import COMMAND_ID
from service.console.device_chart import (
    DECISIONS,
    ChartNumbers,
    ChartQuery,
    Mark,
    alarm_marks,
    gap_of,
    marks_of,
    merged,
    raised_marks,
    work_gap_of,
)
from service.console.device_facts import Told, is_name
from service.fleet.boards import is_newer, table

if TYPE_CHECKING:
    from service.console.room import Room
    from service.fleet.store import Store
    from service.fleet.store_chart import Changes, Chart

T = TypeVar("T")
MAX_COMMANDS = 200  # of one page: a board tells some hundred of its own after a broker lost them
ALARM_SPAN_S = 9000.0  # lists of alarms are read for marks in spans as long as one question to the store gives back
NOT_FOUND = 404


class _Stored(NamedTuple):
    """What the store has of a board: the latest values by group, statuses newest first, types, raised alarms."""

    latest: dict[str, tuple[float, dict[str, Any]]]
    statuses: list[dict[str, Any]]
    types: dict[str, str]
    alarms: list[dict[str, Any]]


def parsed(text: str) -> dict[str, Any]:
    """The table that a text of the store holds; of what is none an empty one."""
    try:
        return table(json.loads(text, parse_constant=lambda _: None)) if text else {}
    except (ValueError, RecursionError):
        return {}


def checked(name: str, job: str | None = None) -> None:
    """Refuse what no board and no command is called.

    Raises:
        HTTPException: 404.
    """
    if not is_name(name) or (job is not None and not COMMAND_ID.fullmatch(job)):
        raise HTTPException(NOT_FOUND)


def known(room: Room, name: str) -> bool:
    """Whether the fleet has this board, as far as the console knows."""
    return room.hub.row(name) is not None or room.hub.board(name) is not None


async def asked(room: Room, ask: Callable[[Store], T]) -> tuple[T | None, str]:
    """What the store answers; or nothing, and why not."""
    try:
        return await room.reads(ask), ""
    except (BoardError, NetworkError) as error:
        return None, str(error)


async def read_board(room: Room, name: str) -> tuple[Told, str]:
    """Everything that is known of a board, and why the store did not answer (empty: it did).

    Raises:
        HTTPException: 404, no board has such a name.
    """
    checked(name)
    tenant, now, board = room.settings.tenant, room.now(), room.hub.board(name)

    def ask(store: Store) -> _Stored:  # texts are read here, too: a board's statuses may have megabytes
        return _Stored(
            {group: (ts, parsed(values)) for group, (ts, values) in sorted(store.latest(tenant, name, now).items())},
            [parsed(text) for text in store.statuses(tenant, name)[:MAX_COMMANDS]],
            store.types(tenant, name),
            [parsed(text) for text in store.alarms(tenant, name)],
        )

    found, trouble = await asked(room, ask)
    newest, statuses, types, alarms = found or _Stored({}, [], {}, [])
    if not known(room, name) and not (newest or statuses or alarms):
        raise HTTPException(NOT_FOUND)
    if board is not None:
        for group, heard in board.heard.items():
            if group not in newest or heard > newest[group][0]:
                stored = newest.get(group, (0.0, {}))[1]
                newest[group] = (heard, {**stored, **board.metrics.get(group, {})})
    raised = {str(body.get("type", ""))[:64]: body for body in alarms}
    if board is not None:
        raised = {kind: {**raised.get(kind, {}), **body, "type": kind} for kind, body in board.alarms.items()} or raised
    told = Told(
        name=name,
        row=room.hub.row(name),
        board=board,
        birth=await room.hub.birth(name),
        latest=newest,
        commands=_commands(statuses, types, board.statuses if board is not None else {}),
        alarms=list(raised.values()),
        now=now,
    )
    return told, trouble


def _commands(
    stored: Iterable[Mapping[str, Any]], types: Mapping[str, str], heard: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Commands newest first: the store has results, what was heard may be newer."""
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for body in stored:
        command_id = body.get("id")
        if isinstance(command_id, str) and COMMAND_ID.fullmatch(command_id):
            found[command_id] = (types.get(command_id, ""), body)
    for command_id, (kind, told) in heard.items():
        found[command_id] = (kind, _newest(found.get(command_id, ("", {}))[1], told))
    return [(key, *found[key]) for key in sorted(found, reverse=True)][:MAX_COMMANDS]


def _newest(stored: Mapping[str, Any], heard: Mapping[str, Any]) -> Mapping[str, Any]:
    """The later of two statuses of a command; of one that both have, what either kept."""
    if not is_newer(heard, stored):
        return stored
    # What a later one does not say is over: a job that runs waits for nothing any more.
    return {**stored, **heard} if heard.get("version") == stored.get("version") else heard


async def read_chart(
    room: Room, name: str, query: ChartQuery, alarms: Iterable[Mapping[str, Any]] = ()
) -> ChartNumbers:
    """The numbers of a board's charts over a span, with its marks.

    Raises:
        SpecError: names that no metric has.
        BoardError, NetworkError: the store cannot be read.
    """
    tenant = room.settings.tenant
    wanted = query.wanted()
    listed = query.until - query.since <= ALARM_SPAN_S

    def ask(store: Store) -> tuple[Chart, Changes, list[tuple[float, object]], str]:
        drawn = store.chart(tenant, name, wanted, query.since, query.until, query.buckets)
        changes = store.changes(tenant, name, "board", DECISIONS, query.since, query.until)
        lists = store.series(tenant, name, "board", "alarms", query.since, query.until) if listed else []
        return drawn, changes, lists, store.birth(tenant, name)

    drawn, changes, lists, birth = await room.reads(ask)
    told = parsed(birth)
    marks: list[Mark] = [*marks_of(changes.rows), *alarm_marks(lists), *raised_marks(alarms, query)]
    return ChartNumbers(
        starts=drawn.starts,
        columns={
            metric: (column.lows, column.highs, column.lasts)
            for metric, column in drawn.columns.items()
            if metric in query.metrics
        },
        bucket_s=drawn.width_s,
        gap_s=gap_of(told, drawn.width_s),
        work_gap_s=work_gap_of(told, drawn.width_s),
        marks=merged(marks),
        marks_cut=changes.cut or drawn.cut,
    )
