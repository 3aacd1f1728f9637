"""What a roll-out is put together from: boards that were chosen, and the form of a command for many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from agent.errors import CallerError, SpecError
from policies.strict import TableError
from service.command_types import ARGUMENTS
from service.commands import CANCEL, PAUSE, PROMOTE, RESUME, SET_POLICY, SUPPORTED, Command
from service.console.act_send import may_send
from service.console.page import Viewer
from service.console.roll_out_draft import MAX_FILTER, Draft, ordered, read_names
from service.console.rows_query import read_query
from service.console.schema_form import Form, own_form, read_schema
from service.fleet.roll_out_plan import MAX_BOARDS
from service.policy_file import parsed_policy

if TYPE_CHECKING:
    from service.console.room import Room

MAX_NAMED = 12  # boards that a page names; of others it says how many
OF_ONE_BOARD = frozenset({CANCEL, PAUSE, RESUME, PROMOTE})
"""These name a job, and a job is one board's."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The boards of a draft as the console knows them.

    Attributes:
        total: how many.
        offline: of those known.
        unknown: never heard of.
        first: names of the first ones, in the order of the roll-out.
        strange: names of those never heard of, the first ones.
        models: hashes of active models and how many boards have them, the most frequent first.
    """

    total: int
    offline: int
    unknown: int
    first: tuple[str, ...]
    strange: tuple[str, ...]
    models: tuple[tuple[str, str, int], ...]


def kinds_for(viewer: Viewer) -> tuple[str, ...]:
    """Types of command that this viewer may send to many boards."""
    return tuple(kind for kind in SUPPORTED if kind not in OF_ONE_BOARD and may_send(viewer, kind))


def boards_of(room: Room, names: str, query: str, group: str) -> tuple[str, ...]:
    """Boards that were named, that fit a filter of the fleet page, and of a group; each once.

    Raises:
        SpecError: a wrong name, filter or group, none, or too many.
        BoardError: groups cannot be read.
    """
    found = dict.fromkeys(read_names(names))
    if query:
        if len(query) > MAX_FILTER:
            raise SpecError(f"a filter has at most {MAX_FILTER} characters", where="filter", reason="filter")
        wanted = read_query(parse_qsl(query.removeprefix("?"), keep_blank_values=True, max_num_fields=20))
        everything = replace(wanted, page=1, rows=MAX_BOARDS)
        found |= dict.fromkeys(row.name for row in room.hub.query(everything).rows)
    if group:
        members = room.hub.groups().get(group)
        if not members:
            raise SpecError(f"no group is called {group[:80]!r}", where="group", reason="group")
        found |= dict.fromkeys(sorted(members))
    if not found:
        raise SpecError("no board was chosen", where="names", reason="none")
    if len(found) > MAX_BOARDS:
        raise SpecError(f"{len(found)} boards, at most {MAX_BOARDS}", where="names", reason="too-many")
    return tuple(found)


def order_of(room: Room, boards: tuple[str, ...]) -> list[str]:
    """The order of a roll-out as the fleet is now."""
    rows = ((board, room.hub.row(board)) for board in boards)
    return ordered(boards, {board: row is not None and row.online for board, row in rows})


def look_at(room: Room, boards: tuple[str, ...]) -> Chosen:
    """See `Chosen`."""
    rows = {board: room.hub.row(board) for board in boards}
    strange = [board for board, row in rows.items() if row is None]
    models = Counter((row.model_sha256, row.model) for row in rows.values() if row is not None and row.model_sha256)
    return Chosen(
        total=len(boards),
        offline=sum(row is not None and not row.online for row in rows.values()),
        unknown=len(strange),
        first=tuple(order_of(room, boards)[:MAX_NAMED]),
        strange=tuple(strange[:MAX_NAMED]),
        models=tuple((digest, name, count) for (digest, name), count in models.most_common(3)),
    )


async def form_of(room: Room, draft: Draft, kind: str) -> tuple[Form, str]:
    """The form of a command, as one of the boards has it that is there, and which; else ours, and an empty name."""
    online = next((board for board in draft.boards if (row := room.hub.row(board)) and row.online), "")
    told = await room.hub.capability(online, kind) if online else None
    if told and told.get("supported") is not False:
        try:
            return for_many(kind, read_schema(told.get("args"))), online
        except SpecError:
            return own_form(kind), ""
    return own_form(kind), ""


def for_many(kind: str, form: Form) -> Form:
    """One board's form for all: a default of its own is nobody else's, so what is typed is sent even where it is that.

    Else a board that lies, or is newer, would keep a value from the others that somebody chose for all.
    """
    ours = {field.name: field.default for field in own_form(kind).fields}
    fields = (field if field.default == ours.get(field.name) else replace(field, default=None) for field in form.fields)
    return replace(form, fields=tuple(fields))


def check_arguments(kind: str, args: dict[str, object]) -> None:
    """Refuse what a board of this version would refuse.

    Raises:
        SpecError: an argument that is wrong.
    """
    try:
        ARGUMENTS[kind](Command("", "", kind, 0, 0, args))
        if kind == SET_POLICY and args.get("text"):
            parsed_policy(str(args["text"]), "text")
    except TableError as error:
        raise SpecError(error.what, where=error.key) from error
    except CallerError as error:
        raise SpecError(error.what, where=error.where) from error
