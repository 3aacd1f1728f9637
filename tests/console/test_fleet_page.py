"""The fleet page as the server writes it: filters, links, hostile boards, and words for every state."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BoardError
from service.console.fleet_charts import HEIGHT, SHARES_WIDTH, WIDTH, band_name, histogram, shares
from service.console.fleet_page import FALLING, MAX_CHOSEN, ROWS_CHOICE, link, sort_link, tiles
from service.console.formats import UNKNOWN, figure, iso, short, span, utc
from service.console.room import Room
from service.console.rows import BANDS, MAX_PAGE_ROWS, FleetQuery, State, Summary, band_of
from service.console.rows_query import SORTS, read_query
from service.fleet.state import FleetState
from tests.console.conftest import Client

JOB = "0192f0c1-0000-7000-8000-000000000001"
NOW = 1_790_000_000.0
HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J&\"'"
ROW = re.compile(r'<tr data-board="([^"]*)">(.*?)</tr>', re.DOTALL)


def fold(room: Room, board: str, topic: str, body: Mapping[str, Any]) -> None:
    """A board says something, as the broker would hand it to the hub."""
    room.hub._take(f"temper/v1/default/{board}/{topic}", body, False)


def board(room: Room, name: str, *, online: bool = True, **readings: Any) -> None:
    fold(room, name, "conn", {"online": online, "session": 1, "connection": 1, "ts": NOW})
    birth = {
        "schema": 1,
        "agent": "0.2.0",
        "board": {"model": "Raspberry Pi 4 Model B", "profile": "raspberry-pi-4"},
        "active_model": {"name": "colours", "version": "1.1", "model_sha256": "ab" * 32},
        "policy": {"name": "raspberry-pi-4"},
    }
    fold(room, name, "birth", birth)
    if readings:
        fold(room, name, "m/board", {"seq": 1, "ts": NOW, "values": readings})


def status(room: Room, name: str, **body: Any) -> None:
    usual = {
        "id": JOB,
        "status": "running",
        "step": "training",
        "version": 3,
        "ts": NOW,
        "progress": 0.5,
        "eta_s": 125.0,
    }
    fold(room, name, f"cmd/fine-tune/{JOB}/sts", usual | body)


def shown(page: str) -> dict[str, str]:
    """By board: what its row says, as one line."""
    texts = {name: re.sub(r"<[^>]*>", " ", cells) for name, cells in ROW.findall(page)}
    return {name: " ".join(html.unescape(text).split()) for name, text in texts.items()}


def test_a_row_says_what_a_board_is_and_does(room: Room, viewer: Client) -> None:
    board(room, "pi-1", temperature_celsius=71.26, delta_t_celsius=46.1, charge=0.82, power_watts=4.2, rule="run")
    status(room, "pi-1")
    row = shown(viewer.show("/fleet"))["pi-1"]
    for words in ("training", "colours 1.1", "raspberry-pi-4", "0.2.0", "71.3 °C", "ΔT 46.1 K", "82 %", "4.2 W"):
        assert words in row
    assert "fine-tune running" in row
    assert "50 %" in row
    assert "2 min 5 s" in row
    assert "modelled" not in row


def test_modelled_power_says_so(room: Room, viewer: Client) -> None:
    board(room, "pi-1", power_watts=4.2, power_is_modelled=True)
    assert "4.2 W modelled" in shown(viewer.show("/fleet"))["pi-1"]


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ({"what": "temperature_celsius", "below": 68.0, "above": None, "ts": None}, "Waits for die below 68.0 °C"),
        ({"what": "delta_t_celsius", "below": 30.0, "above": None, "ts": None}, "Waits for ΔT below 30.0 K"),
        ({"what": "charge", "below": None, "above": 0.35, "ts": None}, "Waits for charge above 35 %"),
        ({"what": "time", "below": None, "above": None, "ts": NOW}, "Waits for its time, 2026-09-21"),
        ({"what": "operator", "below": None, "above": None, "ts": None}, "Waits for somebody to act"),
        ({"what": "charge", "below": 3.0, "above": None, "ts": None}, "Waits for a fuller battery"),
        ({"what": "{value} <b>", "below": 3.0, "above": None, "ts": None}, "Waits for {value} <b>"),
    ],
)
def test_what_work_waits_for_is_said_with_its_number(
    room: Room, viewer: Client, until: dict[str, object], words: str
) -> None:
    board(room, "pi-1")
    status(room, "pi-1", status="deferred", step="", reason_code="held", until=until)
    assert words in shown(viewer.show("/fleet"))["pi-1"]


def test_the_rule_that_acts_is_in_words_and_by_name(room: Room, viewer: Client) -> None:
    board(room, "pi-1", temperature_celsius=80.0, action="PAUSE", rule="thermal.delta-t-pause")
    page = viewer.show("/fleet")
    assert "ΔT above the pause trip" in shown(page)["pi-1"]
    assert 'title="thermal.delta-t-pause"' in page
    assert "hot" in shown(page)["pi-1"]


def test_alarms_beyond_three_are_counted(room: Room, viewer: Client) -> None:
    board(room, "pi-1")
    for kind in ("overheated", "disk-full", "throttled", "undervoltage", "battery-low"):
        fold(room, "pi-1", f"a/{kind}", {"type": kind, "severity": "warning", "since": NOW})
    assert "+2" in shown(viewer.show("/fleet"))["pi-1"]


def test_a_hostile_board_is_text(room: Room, viewer: Client) -> None:
    board(room, "pi-1", rule=HOSTILE, action=HOSTILE, temperature_celsius=float("nan"), charge=1e308)
    fold(
        room,
        "pi-1",
        "birth",
        {"schema": 1, "agent": HOSTILE, "board": {"profile": HOSTILE}, "active_model": {"name": HOSTILE}},
    )
    status(room, "pi-1", status=HOSTILE, step=HOSTILE, reason_code=HOSTILE, reason=HOSTILE, progress=float("inf"))
    fold(room, "pi-1", f"a/{HOSTILE[:20]}", {"type": HOSTILE, "severity": HOSTILE})
    fold(room, "pi-2", "birth", {"schema": 10**30, "agent": HOSTILE})
    page = viewer.show("/fleet")
    assert "<script>alert" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "<script>alert(1)</script>" in shown(page)["pi-1"]
    assert set(shown(page)) == {"pi-1", "pi-2"}


def test_filters_are_links_that_come_and_go(room: Room, viewer: Client) -> None:
    board(room, "pi-1")
    board(room, "pi-2", online=False)
    assert set(shown(viewer.show("/fleet?state=offline"))) == {"pi-2"}
    page = viewer.show("/fleet?state=offline&q=PI")
    assert 'href="/fleet?q=PI" data-tile="offline" aria-current="true"' in page
    assert 'href="/fleet?q=PI&amp;state=offline&amp;state=idle" data-tile="idle"' in page
    assert "1 of 2 boards" in page


def test_a_group_is_a_filter(room: Room, viewer: Client) -> None:
    for name in ("pi-1", "pi-2"):
        board(room, name)
    with FleetState(room.settings.fleet_state) as state:
        state.add_members("default", "plant", ["pi-2"])
    assert set(shown(viewer.show("/fleet?group=plant"))) == {"pi-2"}
    assert "<option selected>plant</option>" in viewer.show("/fleet?group=plant")


def test_groups_that_cannot_be_read_are_said_and_the_list_is_there(
    room: Room, viewer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    board(room, "pi-1")

    def fail() -> Mapping[str, frozenset[str]]:
        raise BoardError("the file is damaged")

    monkeypatch.setattr(room.hub, "groups", fail)
    page = viewer.show("/fleet")
    assert "the file is damaged" in page
    assert "pi-1" in shown(page)


@pytest.mark.parametrize(
    "asked", ["sort=nothing", "state=nothing", "page=0", "rows=100000", "q=" + "x" * 101, "group=<b>"]
)
def test_an_address_that_asks_for_what_there_is_not_is_refused_in_words(viewer: Client, asked: str) -> None:
    answer = viewer.get(f"/fleet?{asked}")
    assert answer.status_code == 422
    assert "<b>" not in answer.text.replace("<body", "")


def test_pages_are_links(room: Room, viewer: Client) -> None:
    for number in range(60):
        board(room, f"pi-{number:03}")
    page = viewer.show("/fleet?rows=25&page=2&q=page%3D0")
    assert not ROW.search(page)
    page = viewer.show("/fleet?rows=25&page=2")
    assert len(shown(page)) == 25
    assert 'rel="prev" href="/fleet?page=1&amp;rows=25"' in page
    assert 'rel="next" href="/fleet?page=3&amp;rows=25"' in page
    assert "Page 2 of 3" in page


def test_the_column_that_sorts_says_so(room: Room, viewer: Client) -> None:
    for number in range(3):
        board(room, f"pi-{number}", temperature_celsius=40.0 + number)
    page = viewer.show("/fleet?sort=temperature&order=desc")
    assert list(shown(page)) == ["pi-2", "pi-1", "pi-0"]
    assert 'class="c-heat" aria-sort="descending"' in page
    assert page.count("aria-sort") == 1


def test_who_may_not_send_does_not_choose(room: Room, viewer: Client, operator: Client) -> None:
    board(room, "pi-1")
    assert 'name="boards"' not in viewer.show("/fleet")
    assert "/roll-outs/new" not in viewer.show("/fleet")
    page = operator.show("/fleet?q=pi&state=idle&sort=state")
    assert 'name="boards" value="pi-1"' in page
    assert 'href="/roll-outs/new?filter=q%3Dpi%26state%3Didle"' in page


def test_without_boards_the_page_says_how_to_connect_one(viewer: Client) -> None:
    page = viewer.show("/fleet")
    assert "No boards yet" in page
    assert "tenant = &#34;default&#34;" in page or 'tenant = "default"' in page
    assert '<div id="no-boards" class="card">' in page


def test_a_broker_that_is_away_is_named(viewer: Client) -> None:
    page = viewer.show("/fleet")
    assert '<div id="no-broker">' in page
    assert "The broker 127.0.0.1:1 does not answer" in page
    assert 'data-state="no-broker"' in page


def test_a_filter_that_nothing_fits_says_so(room: Room, viewer: Client) -> None:
    board(room, "pi-1")
    page = viewer.show("/fleet?q=nothing-like-it")
    assert '<div id="none-fit" class="card">' in page
    assert '<div id="no-boards" hidden' in page


def test_the_page_speaks_vietnamese(room: Room, viewer: Client) -> None:
    board(room, "pi-1", temperature_celsius=71.26)
    answer = viewer.get("/fleet", headers={"Accept-Language": "vi-VN,vi;q=0.9,en;q=0.5"})
    assert '<html lang="vi"' in answer.text
    assert "71,3 °C" in shown(answer.text)["pi-1"]
    assert "rảnh" in shown(answer.text)["pi-1"]


@pytest.mark.parametrize(
    ("kept", "said"), [("dark", ' data-theme="dark"'), ("light", ' data-theme="light"'), ("<b>", "")]
)
def test_the_choice_of_colours_is_there_before_any_script(viewer: Client, kept: str, said: str) -> None:
    viewer.cookies.set("theme", kept)
    assert f'<html lang="en"{said}>' in viewer.show("/fleet")


def test_data_for_scripts_can_be_read(room: Room, viewer: Client) -> None:
    board(room, "pi-1")
    blocks = re.findall(
        r'<script type="application/json" id="([\w-]+)">(.*?)</script>', viewer.show("/fleet"), re.DOTALL
    )
    read = {name: json.loads(text) for name, text in blocks}
    assert set(read) >= {"base-texts", "live-texts", "fleet-texts", "fleet-facts"}
    assert read["fleet-facts"]["most"] == MAX_CHOSEN


def test_choices_of_rows_are_taken() -> None:
    assert max(ROWS_CHOICE) <= MAX_PAGE_ROWS
    assert set(SORTS) >= FALLING


@given(
    states=st.sets(st.sampled_from(list(State))),
    alarmed=st.sampled_from((None, True, False)),
    search=st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20).map(str.strip),
    sort=st.sampled_from(sorted(SORTS)),
    descending=st.booleans(),
)
def test_every_link_of_the_page_is_an_address_that_it_reads(
    states: set[State], alarmed: bool | None, search: str, sort: str, descending: bool
) -> None:
    chosen = tuple(one for one in State if one in states)
    query = FleetQuery(search=search, states=chosen, alarmed=alarmed, sort=sort, descending=descending, page=3)
    none = Summary(0, dict.fromkeys(State, 0), 0, (0,) * BANDS)
    for tile in tiles(query, none):
        found = read(tile.href)
        assert (found.search, found.sort, found.descending, found.page) == (search, sort, descending, 1)
        if tile.kind in set(map(str, State)):
            assert set(found.states) == states ^ {State(tile.kind)}
    assert read(sort_link(query, sort)).descending is not descending
    assert read(link(query)) == query


def read(href: str) -> FleetQuery:
    return read_query(parse_qsl(urlsplit(href).query, keep_blank_values=True))


@given(st.lists(st.integers(0, 20_000), min_size=BANDS, max_size=BANDS))
def test_bars_lie_in_their_picture(counts: list[int]) -> None:
    bars = histogram(counts)
    assert [bar.boards for bar in bars] == counts
    for bar in bars:
        assert bar.x >= 0
        assert bar.x + bar.width <= WIDTH
        assert (bar.height > 0) is (bar.boards > 0)
        assert bar.y + bar.height == pytest.approx(HEIGHT, abs=0.02)
    assert max(bar.height for bar in bars) == (HEIGHT if any(counts) else 0)


def test_names_of_bands_are_where_they_begin() -> None:
    for band in range(1, BANDS):
        low = float(band_name(band))
        assert (band_of(low), band_of(low - 0.01)) == (band, band - 1)
    assert band_name(0) == ""


@given(st.dictionaries(st.sampled_from([str(state) for state in State]), st.integers(0, 20_000)))
def test_shares_fill_their_picture(states: dict[str, int]) -> None:
    parts = shares(states)
    assert [part.name for part in parts] == [str(state) for state in State]
    whole = sum(part.width for part in parts)
    assert whole == pytest.approx(SHARES_WIDTH if sum(states.values()) else 0, abs=0.1)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(), max_size=2)
)


@given(ANYTHING, st.integers(-3, 30), st.sampled_from(("en", "vi")))
def test_any_value_becomes_a_short_text(value: object, digits: int, language: str) -> None:
    assert 0 < len(figure(value, digits, language)) <= 32
    assert len(utc(value)) <= len("9999-12-31 23:59 UTC")
    assert iso(value) == "" or iso(value).endswith("Z")
    assert len(span(value)) <= 2
    assert len(short(value)) <= 10


@pytest.mark.parametrize(
    ("value", "digits", "language", "text"),
    [
        (71.26, 1, "en", "71.3"),
        (1234567.0, 0, "en", "1,234,567"),
        (1234.5, 1, "vi", "1.234,5"),
        (-0.04, 1, "en", "0.0"),
        (float("inf"), 1, "en", UNKNOWN),
        (True, 1, "en", UNKNOWN),
        (10**400, 1, "en", UNKNOWN),
    ],
)
def test_numbers_are_written_as_the_language_does(value: object, digits: int, language: str, text: str) -> None:
    assert figure(value, digits, language) == text


@pytest.mark.parametrize(
    ("seconds", "parts"),
    [
        (0, [(0, "s")]),
        (59.9, [(59, "s")]),
        (60, [(1, "min")]),
        (3725, [(1, "h"), (2, "min")]),
        (90000, [(1, "d"), (1, "h")]),
        (86405, [(1, "d")]),
        (-1, []),
        (float("nan"), []),
    ],
)
def test_time_spans_have_their_two_largest_units(seconds: float, parts: list[tuple[int, str]]) -> None:
    assert span(seconds) == parts
