"""The fleet: a table with search, filter and sort, a summary, small charts."""

from __future__ import annotations

from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.errors import BoardError
from agent.keys_consoles import Role
from service.console.fleet_charts import HEIGHT, SHARES_WIDTH, WIDTH, histogram, shares
from service.console.page import render, room_of, viewer_of
from service.console.rows import PAGE_ROWS, FleetQuery, State, Summary
from service.console.rows_query import SORTS, read_query, write_query

PATH = "/fleet"
ROWS_CHOICE = (25, PAGE_ROWS, 100, 200)
MAX_CHOSEN = 500  # boards in the address of a new roll-out; those of a filter are not counted
COLUMNS = (
    ("board", ("name", "state")),
    ("model", ("model", "agent")),
    ("heat", ("temperature", "delta_t")),
    ("power", ("charge", "power")),
    ("job", ("job",)),
    ("rule", ()),
    ("alarms", ("alarms",)),
    ("seen", ("last_seen",)),
)
"""Columns of the table, and what each can be sorted by."""
FALLING = frozenset(("temperature", "delta_t", "power", "alarms", "job", "last_seen"))
"""What is sorted the other way first: one looks for the hottest and the latest."""


class Tile(NamedTuple):
    """One card of the summary: a link that shows these boards, or all again."""

    kind: str
    boards: int
    on: bool
    href: str


async def fleet(request: Request) -> Response:
    """The page; what its address asks for is in `rows_query.read_query`.

    Raises:
        SpecError: the address asks for what there is not.
    """
    query = read_query(request.query_params.multi_items())
    hub = room_of(request).hub
    groups, groups_fault = _groups(request)
    page, summary = hub.query(query), hub.summary()
    usual = FleetQuery()
    wanted = write_query(query, page=usual.page, sort=usual.sort, descending=usual.descending, rows=usual.rows)
    return render(
        request,
        "fleet/fleet.html",
        query=query,
        found=page,
        summary=summary,
        filtered=bool(wanted),
        groups=groups,
        groups_fault=groups_fault,
        tiles=tiles(query, summary),
        columns=COLUMNS,
        sorts=tuple(SORTS),
        sort_links={name: sort_link(query, name) for _, names in COLUMNS for name in names},
        pages_href=link(query, page=0).replace("page=0", "page=PAGE"),
        clear_href=link(FleetQuery(sort=query.sort, descending=query.descending, rows=query.rows)),
        filter_text=wanted,
        rows_choice=ROWS_CHOICE,
        bars=histogram(summary.temperatures),
        parts=shares(summary.states),
        sizes={"width": WIDTH, "height": HEIGHT, "shares": SHARES_WIDTH},
        may_choose=viewer_of(request).may(Role.OPERATOR),
        most_chosen=MAX_CHOSEN,
        falling=sorted(FALLING),
    )


def tiles(query: FleetQuery, summary: Summary) -> list[Tile]:
    """The cards: all boards, each state, and those with alarms. One that is on takes its filter away."""
    nothing_chosen = not query.states and query.alarmed is None
    made = [Tile("all", summary.total, nothing_chosen, link(query, states=(), alarmed=None, page=1))]
    for state in (State.HOT, State.TRAINING, State.PAUSED, State.DEFERRED, State.IDLE, State.OFFLINE):
        on = state in query.states
        chosen = tuple(one for one in State if (one in query.states) is not (one is state))
        made.append(Tile(str(state), summary.states.get(state, 0), on, link(query, states=chosen, page=1)))
    alarmed = None if query.alarmed else True
    return [*made, Tile("alarmed", summary.alarmed, query.alarmed is True, link(query, alarmed=alarmed, page=1))]


def sort_link(query: FleetQuery, column: str) -> str:
    """The same boards by a column; by the one that sorts now, the other way round."""
    falling = not query.descending if query.sort == column else column in FALLING
    return link(query, sort=column, descending=falling, page=1)


def link(query: FleetQuery, **changes: Any) -> str:  # noqa: ANN401 - the fields of a query
    """The address of the page with a query, changed."""
    wanted = write_query(query, **changes)
    return f"{PATH}?{wanted}" if wanted else PATH


def _groups(request: Request) -> tuple[list[str], str]:
    """Names of groups, and why there are none: the list of boards does without."""
    try:
        return sorted(room_of(request).hub.groups()), ""
    except BoardError as error:
        return [], str(error)


ROUTES: list[BaseRoute] = [Route(PATH, fleet)]
