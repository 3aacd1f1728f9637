"""The console, attacked by its own users and by strangers: each route with each role, floods of forms and log-ins."""

from __future__ import annotations

import asyncio
import json
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from starlette.routing import Route

from agent.errors import BoardError, SpecError
from service.capabilities import arguments
from service.commands import KNOWN
from service.console import live, reads
from service.console.account_page import EVERYBODY
from service.console.app import build_app
from service.console.audit import Wanted
from service.console.forms import MAX_FORM_BYTES
from service.console.guard_limits import FORM_BYTES, OF_FORMS, Doors
from service.console.guard_rules import OPEN, OWN
from service.console.hub import Hub
from service.console.passwords import MOST_PASSWORD, check_password
from service.console.roll_out_boards import for_many
from service.console.room import Room
from service.console.schema_form import own_form
from tests.console.conftest import PASSWORD, Client, Clock, log_in, visit

JOB = "0192f0c1-0000-7000-8000-000000000001"
FILLED = {"{name}": "pi-1", "{kind}": "pause", "{id}": JOB, "{draft}": "x" * 22, "{action}": "stop"}
FOR_OWNERS = {"/users", "/users/change", "/device/{name}/policy", "/device/{name}/policy/check"}
FOR_OPERATORS = {
    *("/device/{name}/act/{kind}", "/device/{name}/report", "/groups", "/groups/{name}", "/key/unlock", "/key/lock"),
    *("/roll-outs/new", "/roll-outs/new/{draft}/command", "/roll-outs/new/{draft}/waves"),
    *("/roll-outs/new/{draft}/review", "/roll-outs/{id}/{action}", "/compare/policies"),
}
NOT_FOR_OPERATORS_KEYS = ("set-policy", "promote", "rollback", "update-agent", "update-system")
"""Command types that only owners send."""


def routes(room: Room, method: str) -> Iterator[tuple[str, str]]:
    """Each route of a method, and a path that it answers."""
    for route in build_app(room).routes:
        if isinstance(route, Route) and method in (route.methods or ()):
            path = route.path
            for part, value in FILLED.items():
                path = path.replace(part, value)
            assert "{" not in path, path
            yield route.path, path


def trail(room: Room) -> list[str]:
    return [record.action for record in room.audit.page(Wanted())]


def test_each_form_is_for_the_roles_that_are_named_here(room: Room) -> None:
    """A route that is new has to be put into the lists above."""
    forms = dict(routes(room, "POST"))
    assert set(forms) == FOR_OWNERS | FOR_OPERATORS | OWN | OPEN
    refused: dict[str, set[str]] = {}
    for role in ("viewer", "operator", "owner"):
        for route, path in forms.items():
            client = log_in(visit(room), role)
            if client.submit(path).status_code == 403:
                refused.setdefault(role, set()).add(route)
    assert refused == {"viewer": FOR_OWNERS | FOR_OPERATORS, "operator": FOR_OWNERS}


def test_no_form_works_without_a_session(room: Room) -> None:
    for route, path in routes(room, "POST"):
        stranger = visit(room)
        stranger.show("/login")
        answer = stranger.submit(path)
        if route not in OPEN:
            assert (answer.status_code, answer.headers["location"]) == (303, "/login?expired=1"), route
    assert set(trail(room)) <= {"login-refused"}


@pytest.mark.parametrize("kind", NOT_FOR_OPERATORS_KEYS)
def test_operators_send_nothing_that_is_for_owners(operator: Client, room: Room, kind: str) -> None:
    assert operator.submit(f"/device/pi-1/act/{kind}", step="send", why="because").status_code == 403
    assert trail(room)[0] == "command-refused"


def test_no_page_that_is_only_looked_at_changes_anything(owner: Client, room: Room) -> None:
    before, key = room.audit.head(), room.signer.ready
    for route, path in routes(room, "GET"):
        if route != "/live":  # it has no end
            assert owner.get(path).status_code in (200, 303, 404, 422), route
    assert (room.audit.head(), room.signer.ready) == (before, key)
    assert owner.get("/account").status_code == 200


# --- boards ----------------------------------------------------------------------------------------------------------


def test_one_board_keeps_no_value_from_the_others_of_a_roll_out(
    operator: Client, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that what was chosen for all is its default, so that it would not be sent, and others took theirs."""
    told = json.loads(json.dumps(arguments("fine-tune")))
    told["properties"]["epochs"] = {"type": "integer", "default": 3}

    async def lie(_hub: Hub, _name: str, _kind: str) -> object:
        return {"supported": True, "args": told}

    monkeypatch.setattr(Hub, "capability", lie)
    room.hub._take("temper/v1/default/aaa/conn", {"online": True}, retained=False)
    step = operator.submit("/roll-outs/new", names="aaa pi-1 pi-2").headers["location"]
    assert "aaa" in operator.show(step)
    answer = operator.submit(step, **{"type": "fine-tune", "arg.model": "m", "arg.data": "sensors", "arg.epochs": "3"})
    assert answer.status_code == 303, answer.text
    draft = room.roll_outs.drafts.find(step.split("/")[3], "operator")
    assert draft is not None
    assert draft.args is not None
    assert draft.args["epochs"] == 3


def test_what_a_board_says_of_an_outcome_is_kept_short_and_on_one_line(room: Room) -> None:
    room.audit.write("owner", "pause", boards=("pi-1",), commands=(JOB,))
    (command,) = room.audit.open_commands()
    said = {
        "status": "succeeded",
        "reason": "\u202eno\n" + "x" * 200_000,
        "reason_code": {"a": ["b"] * 20_000},
        "ts": 7.5,
    }
    assert room.audit.outcome(command, said)
    (record,) = room.audit.page(Wanted(action="outcome"))
    assert record.details["reason"].startswith("?no?xxx")
    assert (record.details["status"], record.details["ts"]) == ("succeeded", 7.5)
    assert len(str(record.details)) < 2000


def test_a_form_for_many_keeps_the_defaults_that_are_ours() -> None:
    for kind in KNOWN:
        assert for_many(kind, own_form(kind)) == own_form(kind)


# --- floods ----------------------------------------------------------------------------------------------------------


def test_no_user_pushes_the_records_of_others_out_of_the_trail(
    room: Room, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = Doors(clock)
    monkeypatch.setattr("service.console.guard.Doors", lambda _monotonic: doors)
    operator = log_in(visit(room), "operator")
    codes = [operator.submit("/device/pi-1/act/update-agent").status_code for _ in range(int(OF_FORMS.burst) + 10)]
    assert codes.count(429) >= 10
    assert operator.get("/account").status_code == 200, "pages are still there"
    second = log_in(visit(room), "operator")
    assert second.submit("/key/lock").status_code == 429, "another session is no other user"
    assert log_in(visit(room), "owner").submit("/key/lock").status_code == 303
    clock.pass_(10)
    assert operator.submit("/key/lock").status_code == 303


def test_long_forms_cost_more_and_those_that_keep_nothing_cost_nothing(owner: Client) -> None:
    text = "x" * (MAX_FORM_BYTES - 100)
    cost = 1 + MAX_FORM_BYTES / FORM_BYTES
    codes = [owner.submit("/groups", name="g", boards=text).status_code for _ in range(int(OF_FORMS.burst / cost) + 2)]
    assert codes[0] == 422
    assert codes[-1] == 429
    assert owner.submit("/device/pi-1/policy/check", text="[gate]").status_code == 200


def test_strangers_do_not_push_records_out_of_the_trail(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = Doors(room.monotonic)
    monkeypatch.setattr("service.console.guard.Doors", lambda _monotonic: doors)
    client = visit(room)
    client.show("/login")
    while not doors.strangers.take(EVERYBODY):
        pass
    assert client.submit("/login", name="owner", password="a wrong guess").status_code == 422
    assert "login-refused" not in trail(room)
    assert client.submit("/login", name="owner", password=PASSWORD).status_code == 303
    assert trail(room) == ["login"], "who gets in is always on record"


def test_the_streams_of_all_sessions_of_a_user_count(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_OF_USER", 2)
    client, other = log_in(visit(room), "viewer"), log_in(visit(room), "owner")
    for session in room.accounts.sessions.of("viewer"):
        room.hub.streams[session.id] = 1
    log_in(visit(room), "viewer")
    for session in room.accounts.sessions.of("viewer"):
        room.hub.streams[session.id] = 1
    assert client.get("/live").status_code == 429
    assert other.head("/live").status_code == 200


def test_questions_to_the_store_wait_in_a_line_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that asks for charts and leaves does not take its questions along."""
    monkeypatch.setattr(reads, "MAX_WAITING", 3)
    release = threading.Event()

    async def flood() -> tuple[list[bool | BaseException], int]:
        asked = reads.Reads(str(tmp_path / "store.sqlite"))
        line = [asyncio.create_task(asked(lambda _store: release.wait(30))) for _ in range(reads.READERS + 3)]
        await asyncio.sleep(0)
        with pytest.raises(BoardError) as refused:
            await asked(lambda _store: None)
        assert refused.value.code == "busy"
        line[-1].cancel()
        release.set()
        told = await asyncio.gather(*line, return_exceptions=True)
        later = await asked(lambda _store: 7)
        asked.close()
        return told, later

    told, later = asyncio.run(flood())
    assert told[:-1] == [True] * (reads.READERS + 2)
    assert isinstance(told[-1], asyncio.CancelledError)
    assert later == 7


# --- passwords -------------------------------------------------------------------------------------------------------


def test_a_password_of_many_accents_is_refused_before_it_is_put_into_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """To sort 100,000 of them takes a processor 20 s, in which no page is answered."""
    asked: list[int] = []

    class Counted:
        @staticmethod
        def normalize(form: Literal["NFC"], text: str) -> str:
            asked.append(len(text))
            return unicodedata.normalize(form, text)

    monkeypatch.setattr("service.console.passwords.unicodedata", Counted)
    with pytest.raises(SpecError) as refused:
        check_password("a" + "\u0301" * 1000 + "\u0323" * 1000, "alice")
    assert refused.value.code == "password-long"
    check_password(PASSWORD, "alice")
    assert asked
    assert max(asked) <= MOST_PASSWORD
