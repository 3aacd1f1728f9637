"""Which rows are wanted, in a URL and on the list: filters, sorting, pages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from agent.errors import SpecError
from service.config import NAME
from service.console.rows import MAX_PAGE_ROWS, PAGE_ROWS, FleetPage, FleetQuery, Row, State

MAX_SEARCH = 100  # characters: longer than any name, as long as a sentence of a reason that somebody pastes
MAX_PAGES = 20_000  # a board a page, and as many boards as a list holds
DIGITS = 9  # of a number in a URL
_STATES = tuple(State)
_YES_NO = {"": None, "1": True, "0": False}


def _job_key(row: Row) -> Any:  # noqa: ANN401 - anything that can be compared
    return None if row.job is None else (row.job["ended"], row.job["type"], row.job["progress"] or 0.0)


SORTS: Mapping[str, Callable[[Row], Any]] = {
    "name": lambda row: row.name,
    "state": lambda row: _STATES.index(row.state),
    "model": lambda row: (row.model.casefold(), row.model_version) if row.model else None,
    "agent": lambda row: row.agent or None,
    "profile": lambda row: row.profile.casefold() or None,
    "policy": lambda row: row.policy.casefold() or None,
    "temperature": lambda row: row.temperature_celsius,
    "delta_t": lambda row: row.delta_t_celsius,
    "charge": lambda row: row.charge,
    "power": lambda row: row.power_watts,
    "last_seen": lambda row: row.last_seen,
    "job": _job_key,
    "alarms": lambda row: len(row.alarms),
}
"""By the name of a column: what it is sorted by, `None` where it is not known."""


def read_query(pairs: Iterable[tuple[str, str]]) -> FleetQuery:
    """What the query of a URL asks for.

    Args:
        pairs: names and values, in their order: `q` (a text), `state` (one, several with commas, or several times),
            `alarmed` (1 or 0), `group`, `sort` (of `SORTS`), `order` (asc, desc), `page`, `rows`. What is empty counts
            as left out, and other names are not ours.

    Raises:
        SpecError: a value that is none.
    """
    found: dict[str, str] = {}
    states: list[str] = []
    for name, value in pairs:
        if name == "state":
            states += value.split(",")[: len(_STATES) + 1]
        elif value:
            found[name] = value
    sort, group = found.get("sort", "name"), found.get("group", "")
    if sort not in SORTS:
        raise SpecError(f"nothing is sorted by {sort[:MAX_SEARCH]!r}", where="sort", fix=f"One of {', '.join(SORTS)}")
    if group and not NAME.fullmatch(group):
        raise SpecError(f"{group[:MAX_SEARCH]!r} is no name of a group", where="group")
    search = found.get("q", "").strip()
    if len(search) > MAX_SEARCH:
        raise SpecError(f"a search has at most {MAX_SEARCH} characters", where="q")
    return FleetQuery(
        search=search,
        states=tuple(sorted({_state(name) for name in states if name}, key=_STATES.index)),
        alarmed=_one_of(found, "alarmed", _YES_NO),
        group=group,
        sort=sort,
        descending=_one_of(found, "order", {"": False, "asc": False, "desc": True}),
        page=_whole(found, "page", 1, MAX_PAGES),
        rows=_whole(found, "rows", PAGE_ROWS, MAX_PAGE_ROWS),
    )


def write_query(query: FleetQuery, **changes: Any) -> str:  # noqa: ANN401 - the fields of a query
    """The query of a URL that asks for this, with changes; what is as usual is left out. `read_query` reads it."""
    wanted, usual = replace(query, **changes), FleetQuery()
    yes_no = {True: "1", False: "0", None: ""}
    pairs = [
        ("q", wanted.search),
        *(("state", str(state)) for state in wanted.states),
        ("alarmed", yes_no[wanted.alarmed]),
        ("group", wanted.group),
        ("sort", wanted.sort if wanted.sort != usual.sort else ""),
        ("order", "desc" if wanted.descending else ""),
        ("page", str(wanted.page) if wanted.page != usual.page else ""),
        ("rows", str(wanted.rows) if wanted.rows != usual.rows else ""),
    ]
    return urlencode([(name, value) for name, value in pairs if value])


def select(rows: Iterable[Row], query: FleetQuery, members: Collection[str] = (), revision: int = 0) -> FleetPage:
    """The page that is asked for; of one beyond the end the last.

    Args:
        rows: all of them.
        query: which are wanted, and how.
        members: boards of `query.group`, a set where there are many.
        revision: of the rows.
    """
    fitting = [row for row in rows if _fits(row, query, query.search.casefold(), members)]
    ordered = sort_rows(fitting, query.sort, descending=query.descending)
    pages = max(1, -(-len(ordered) // query.rows))
    page = min(query.page, pages)
    shown = tuple(ordered[(page - 1) * query.rows : page * query.rows])
    return FleetPage(shown, len(ordered), page, pages, revision)


def sort_rows(rows: Iterable[Row], column: str, *, descending: bool) -> list[Row]:
    """Rows by a column, those of which it is not known last, those that are alike by name."""
    key = SORTS[column]
    by_name = sorted(rows, key=lambda row: row.name, reverse=descending and column == "name")
    if column == "name":
        return by_name
    known = [(found, row) for row in by_name if (found := key(row)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=descending)  # stable, in reverse too
    unknown = [row for row in by_name if key(row) is None] if len(known) < len(by_name) else []
    return [row for _, row in known] + unknown


def _fits(row: Row, query: FleetQuery, needle: str, members: Collection[str]) -> bool:
    if query.states and row.state not in query.states:
        return False
    if query.alarmed is not None and bool(row.alarms) is not query.alarmed:
        return False
    if query.group and row.name not in members:
        return False
    return not needle or needle in _searched(row)


def _searched(row: Row) -> str:
    reason = "" if row.job is None else row.job["reason"]
    return f"{row.name}\n{row.model}\n{row.profile}\n{row.agent}\n{reason}".casefold()


def _state(name: str) -> State:
    try:
        return State(name)
    except ValueError:
        fix = f"One of {', '.join(State)}"
        raise SpecError(f"{name[:MAX_SEARCH]!r} is no state of a board", where="state", fix=fix) from None


def _one_of(found: Mapping[str, str], name: str, words: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what the words mean
    value = found.get(name, "")
    if value not in words:
        raise SpecError(f"{value[:MAX_SEARCH]!r} is none of {', '.join(filter(None, words))}", where=name)
    return words[value]


def _whole(found: Mapping[str, str], name: str, usual: int, most: int) -> int:
    value = found.get(name)
    if value is None:
        return usual
    if not (value.isascii() and value.isdigit() and len(value) <= DIGITS and 1 <= int(value) <= most):
        raise SpecError(f"{value[:MAX_SEARCH]!r} is no whole number of 1 to {most}", where=name)
    return int(value)
