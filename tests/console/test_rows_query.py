from __future__ import annotations

import dataclasses
import itertools
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import SpecError
from service.console.rows import MAX_PAGE_ROWS, FleetQuery, Row, State, make_row
from service.console.rows_query import MAX_SEARCH, SORTS, read_query, select, sort_rows, write_query
from service.fleet.boards import Board

EMPTY = make_row(Board("pi-1"), None)
WORDS = st.sampled_from(["", "alpha", "Beta", "gamma-2", "ÄPFEL"])
NUMBERS = st.none() | st.floats(-50, 150)
JOBS = st.none() | st.fixed_dictionaries(
    {"type": WORDS, "reason": WORDS, "ended": st.booleans(), "progress": st.none() | st.floats(0, 1)}
)


@st.composite
def fleets(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(st.from_regex(r"[a-z0-9-]{1,4}", fullmatch=True), max_size=25, unique=True))
    made = []
    for name in names:
        changed: dict[str, Any] = {
            field: draw(WORDS) for field in ("model", "model_version", "agent", "profile", "policy")
        }
        numbers = ("temperature_celsius", "delta_t_celsius", "charge", "power_watts", "last_seen")
        changed |= {field: draw(NUMBERS) for field in numbers}
        changed |= {"state": draw(st.sampled_from(State)), "job": draw(JOBS)}
        changed["alarms"] = tuple(draw(st.lists(WORDS, max_size=2)))
        made.append(dataclasses.replace(EMPTY, name=name, **changed))
    return made


QUERIES = st.builds(
    FleetQuery,
    search=st.sampled_from(["", "alpha", "BETA", "a", "äpfel", "zz"]),
    states=st.lists(st.sampled_from(State), unique=True, max_size=3).map(
        lambda found: tuple(sorted(found, key=tuple(State).index))
    ),
    alarmed=st.none() | st.booleans(),
    group=st.sampled_from(["", "plant"]),
    sort=st.sampled_from(tuple(SORTS)),
    descending=st.booleans(),
    page=st.integers(1, 30),
    rows=st.integers(1, MAX_PAGE_ROWS),
)


@given(fleets(), QUERIES, st.integers(1, 7))
def test_pages_are_the_list_cut_in_pieces(rows: list[Row], query: FleetQuery, size: int) -> None:
    members = {row.name for row in rows[::2]}
    query = dataclasses.replace(query, rows=size, page=1)
    first = select(rows, query, members, 7)
    pages = [select(rows, dataclasses.replace(query, page=page), members) for page in range(1, first.pages + 1)]
    found = [row for page in pages for row in page.rows]
    assert len(found) == len({row.name for row in found}) == first.total
    assert all(len(page.rows) == size for page in pages[:-1])
    assert found == list(select(rows, dataclasses.replace(query, rows=MAX_PAGE_ROWS), members).rows)
    beyond = select(rows, dataclasses.replace(query, page=first.pages + 5), members)
    assert (beyond.page, beyond.rows) == (first.pages, pages[-1].rows)
    assert first.revision == 7


@given(fleets(), QUERIES)
def test_what_is_found_fits_and_what_fits_is_found(rows: list[Row], query: FleetQuery) -> None:
    members = {row.name for row in rows[::2]}
    query = dataclasses.replace(query, page=1, rows=MAX_PAGE_ROWS)
    found = {row.name for row in select(rows, query, members).rows}
    for row in rows:
        told = (row.name, row.model, row.profile, row.agent, row.job["reason"] if row.job else "")
        fits = (
            (not query.states or row.state in query.states)
            and (query.alarmed is None or query.alarmed == (len(row.alarms) > 0))
            and (not query.group or row.name in members)
            and any(query.search.casefold() in part.casefold() for part in told)
        )
        assert (row.name in found) is fits


@given(fleets(), st.sampled_from(tuple(SORTS)), st.booleans(), st.randoms())
def test_the_order_is_total_and_what_is_unknown_comes_last(
    rows: list[Row],
    column: str,
    descending: bool,
    chance: Any,
) -> None:
    ordered = sort_rows(rows, column, descending=descending)
    shuffled = list(rows)
    chance.shuffle(shuffled)
    assert sort_rows(shuffled, column, descending=descending) == ordered
    keys = [SORTS[column](row) for row in ordered]
    known = [key for key in keys if key is not None]
    assert keys[: len(known)] == known
    assert known == sorted(known, reverse=descending)
    for one, other in itertools.pairwise(ordered):
        if column != "name" and SORTS[column](one) == SORTS[column](other):
            assert one.name < other.name


@given(QUERIES)
def test_a_query_reads_back_as_it_was_written(query: FleetQuery) -> None:
    assert read_query(parse_qsl(write_query(query), keep_blank_values=True)) == query


def test_a_query_that_is_as_usual_is_an_empty_one() -> None:
    assert write_query(FleetQuery()) == ""
    assert write_query(FleetQuery(page=3), page=1, search="a b") == "q=a+b"


def test_states_come_several_times_or_with_commas() -> None:
    wanted = (State.HOT, State.DEFERRED)
    assert read_query([("state", "deferred"), ("state", "hot")]).states == wanted
    assert read_query([("state", "deferred,hot,,hot")]).states == wanted


def test_what_a_form_leaves_empty_counts_as_left_out_and_other_names_are_not_ours() -> None:
    names = ("q", "state", "alarmed", "group", "sort", "order", "page", "rows")
    assert read_query([*((name, "") for name in names), ("lang", "vi")]) == FleetQuery()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sort", "revision"),
        ("sort", "__class__"),
        ("state", "warm"),
        ("alarmed", "yes"),
        ("order", "up"),
        ("page", "0"),
        ("page", "-1"),
        ("page", "1.0"),
        ("page", "٣"),
        ("page", "9" * 400),
        ("rows", "201"),
        ("group", "../etc"),
        ("q", "x" * (MAX_SEARCH + 1)),
    ],
)
def test_what_there_is_not_is_refused(name: str, value: str) -> None:
    with pytest.raises(SpecError) as refused:
        read_query([(name, value)])
    assert refused.value.where == name


def test_a_search_knows_no_case_in_any_language() -> None:
    row = dataclasses.replace(EMPTY, model="Straße ĐÀ NẴNG")
    assert select([row], FleetQuery(search="STRASSE đà nẵng")).total == 1
