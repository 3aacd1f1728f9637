"""What is known of one command: the store's statuses, and what the audit trail says of who sent it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from agent.errors import BoardError
from service.command_types import id_time_s
from service.console.audit import Wanted
from service.console.device_facts import Command, Told, command
from service.console.device_reads import NOT_FOUND, asked, checked, parsed, read_board
from service.console.job_facts import Moment, Stage, end_of, moments, span_of, stages
from service.console.job_files import WINDOW_S, WINDOWS_MOST, JobRows, Window

if TYPE_CHECKING:
    from service.console.audit import Record
    from service.console.room import Room
    from service.fleet.store import Store

AROUND_S = 30.0  # between a command's id and the record that tells of it


@dataclass(frozen=True, slots=True)
class JobTold:
    """Everything that is known of a command.

    Attributes:
        told: of its board.
        one: its newest status.
        way: its statuses, oldest first.
        stages: the same as spans.
        since: when it began, seconds since 1970.
        until: when its charts end: a little later than a command that took no time.
        over: when it ended; now, while it has not.
        record: what the audit trail of this console says; `None`: it was not sent from here, or that is forgotten.
        trouble: why something could not be read; empty: all was.
    """

    told: Told
    one: Command
    way: list[Moment]
    stages: list[Stage]
    since: float
    until: float
    over: float
    record: Record | None
    trouble: str


async def read_job(room: Room, name: str, job: str) -> JobTold:
    """See `JobTold`.

    Raises:
        HTTPException: 404, no such board or no such command.
    """
    checked(name, job)
    told, trouble = await read_board(room, name)
    record, missed = await _record(room, name, job)
    found = next(((kind, body) for command_id, kind, body in told.commands if command_id == job), None)
    if found is None:
        found = await _older(room, name, job)
    if found is None and record is None:
        raise HTTPException(NOT_FOUND)
    kind, body = found or (record.action if record else "", {})
    tenant = room.settings.tenant
    history, missing = await asked(room, lambda store: [parsed(text) for text in store.history(tenant, name, job)])
    one = command(job, kind, body)
    way = moments(history or (), body)
    since, until = span_of(way, one, told.now)
    over = max(since, end_of(way, one, told.now))
    return JobTold(told, one, way, stages(way, until), since, until, over, record, trouble or missing or missed)


async def _older(room: Room, name: str, job: str) -> tuple[str, Mapping[str, Any]] | None:
    """A command beyond those that a board's page lists."""
    tenant = room.settings.tenant

    def ask(store: Store) -> tuple[list[str], str]:
        texts = [text for text in store.statuses(tenant, name) if job in text]
        return texts, store.types(tenant, name).get(job, "")

    texts, kind = (await asked(room, ask))[0] or ([], "")
    body = next((body for body in map(parsed, texts) if body.get("id") == job), None)
    return None if body is None else (kind, body)


async def _record(room: Room, name: str, job: str) -> tuple[Record | None, str]:
    made = id_time_s(job)
    wanted = Wanted(board=name, since=made - AROUND_S, until=made + AROUND_S)
    try:
        records = await asyncio.to_thread(room.audit.page, wanted)
    except BoardError as error:
        return None, str(error)
    return next((record for record in records if job in record.commands and record.action != "outcome"), None), ""


def windows(job: JobTold) -> Iterator[tuple[float, float]]:
    """The span of a job in pieces that the store gives back message by message."""
    since = job.since
    for _ in range(WINDOWS_MOST):
        if since >= job.until:
            return
        yield since, min(since + WINDOW_S, job.until)
        since += WINDOW_S


async def read_window(room: Room, name: str, rows: JobRows, since: float, until: float) -> Window:
    """One piece of the telemetry of a job.

    Raises:
        BoardError, NetworkError: the store cannot be read.
    """
    tenant = room.settings.tenant

    def ask(store: Store) -> Window:
        drawn = store.chart(tenant, name, rows.wanted(), since, until, rows.buckets)
        return Window(drawn, store.changes(tenant, name, "board", rows.texts, since, until))

    return await room.reads(ask)
