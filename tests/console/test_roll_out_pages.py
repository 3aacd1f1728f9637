"""The pages of roll-outs and groups: who may, what is refused, and a whole roll-out by forms alone."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from agent.keys import create_console_key
from agent.keys_consoles import Role
from service.config import Mqtt
from service.console.app import build_app
from service.console.audit import Wanted
from service.console.room import Room, Settings
from service.console.serve import open_room
from service.fleet.roll_out import Terms
from service.fleet.roll_out_plan import Rules
from service.fleet.state import FleetState, RollOut, Sent
from tests.console.conftest import PASSWORD, Client, log_in, visit
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

ID = "0192f0c1-0000-7000-8000-000000000001"
OTHER = "0192f0c1-0000-7000-8000-000000000002"
COMMAND = "0192f0c1-0000-7000-8000-000000000009"
EVIL = "<script>alert(1)</script>\u202e=HYPERLINK"
WAIT_S = 60.0
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


def put(room: Room, roll_out: RollOut, *sent: Sent) -> None:
    with FleetState(room.settings.fleet_state) as state:
        state.begin(roll_out, [command.board for command in sent])
        state.write(roll_out.id, sent)


def a_roll_out(state: str = "stopped", **changed: object) -> RollOut:
    terms = Terms(Rules(canary=1), {}).to_table()
    made = RollOut(ID, "default", "scrub", terms, 1.7e9, state, "canaries did not end within 5 s")
    return replace(made, **changed)  # type: ignore[arg-type]


BAD = {"status": "failed", "reason_code": "no-such-code", "reason": EVIL, "ts": 1e300, "step": EVIL}
STOOD = (
    Sent(0, "pi-1", COMMAND, b"x", 5, sent=True, outcome="failed", status=BAD),
    Sent(1, "pi-2", COMMAND, b"x", 5, sent=False, outcome="open"),
    Sent(2, "pi-3"),
)


def test_pages_need_a_user_and_the_wizard_needs_an_operator(stranger: Client, viewer: Client) -> None:
    assert stranger.get("/roll-outs").status_code == 303
    for path in ("/roll-outs", "/groups"):
        viewer.show(path)
    for path in ("/roll-outs/new", "/roll-outs/new/aaaaaaaaaaaaaaaaaaaa/review", f"/roll-outs/{ID}/stop"):
        assert viewer.get(path).status_code == 403
    for path in ("/roll-outs/new", "/groups", "/groups/plant", f"/roll-outs/{ID}/abort"):
        assert viewer.submit(path, why="x", name="plant", boards="pi-1").status_code == 403


def test_what_is_not_there_is_not_found(owner: Client) -> None:
    for path in ("/roll-outs/x", f"/roll-outs/{ID}", f"/api/roll-outs/{ID}", f"/roll-outs/{ID}/outcomes.csv"):
        assert owner.get(path).status_code == 404
    for path in (f"/roll-outs/{ID}/explode", "/roll-outs/new/short/command", "/groups/none", "/groups/%2e%2e"):
        assert owner.get(path).status_code in (404, 303)


def test_another_tenants_roll_out_is_not_found(room: Room, owner: Client) -> None:
    put(room, a_roll_out(tenant="others"), *STOOD)
    assert owner.get(f"/roll-outs/{ID}").status_code == 404
    assert "scrub" not in owner.show("/roll-outs").partition('id="fresh"')[2]


def test_a_roll_out_is_told_with_all_that_boards_said_made_harmless(room: Room, viewer: Client, owner: Client) -> None:
    put(room, a_roll_out(), *STOOD)
    text = viewer.show(f"/roll-outs/{ID}")
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "Boards: 3. Sent to: 2. Ended: 1, of which did not succeed: 1." in text
    assert "Canaries did not end within 5 s." in text
    assert f"/device/pi-1/jobs/{COMMAND}" in text
    assert "/stop" not in text
    assert f"/roll-outs/{ID}/resume" not in text
    assert f"/roll-outs/{ID}/resume" in owner.show(f"/roll-outs/{ID}")
    assert ">pi-3<" not in viewer.show(f"/roll-outs/{ID}?outcome=bad")
    assert ">pi-1<" not in viewer.show(f"/roll-outs/{ID}?q=PI-3&page=1")
    assert ">pi-1<" in viewer.show(f"/roll-outs/{ID}?outcome=nonsense&page=-3&q=")
    table = viewer.get(f"/roll-outs/{ID}/outcomes.csv?outcome=bad")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text.count("\n") == 2
    told = viewer.get(f"/api/roll-outs/{ID}").json()
    assert told["counts"] == {"failed": 1, "open": 1, "waiting": 1}
    assert told["canaries"] == {"failed": 1}


def test_many_boards_are_shown_by_pages(room: Room, viewer: Client) -> None:
    put(room, a_roll_out(), *(Sent(place, f"pi-{place}") for place in range(120)))
    text = viewer.show(f"/roll-outs/{ID}?page=3")
    assert ">pi-100<" in text
    assert ">pi-99<" not in text
    assert "?page=2#boards" in text
    assert viewer.get(f"/roll-outs/{ID}/outcomes.csv").text.count("\n") == 121


def test_the_list_tells_state_and_counts(room: Room, viewer: Client) -> None:
    put(room, a_roll_out(), *STOOD)
    put(room, a_roll_out("done", id=OTHER, why=""), Sent(0, "pi-1", outcome="succeeded"))
    text = viewer.show("/roll-outs")
    assert text.index(OTHER[-12:]) < text.index(ID[-12:])
    assert "from the command line" in text
    assert 'aria-label="Boards: 1 did not succeed, 1 under way, 1 not sent yet"' in text


def test_orders_need_a_reason_and_a_roll_out_that_is_at_work(room: Room, operator: Client) -> None:
    put(room, a_roll_out(), *STOOD)
    operator.show(f"/roll-outs/{ID}/abort")
    assert operator.submit(f"/roll-outs/{ID}/abort").status_code == 422
    assert operator.post(f"/roll-outs/{ID}/abort", data={"why": "x"}).status_code == 403  # no token
    refused = operator.submit(f"/roll-outs/{ID}/stop", why="x")
    assert refused.status_code == 422
    assert "not at work in this console" in refused.text
    wrong = operator.submit(f"/roll-outs/{ID}/resume", why="x", stop_at="200", parallel="no")
    assert wrong.status_code == 422
    assert wrong.text.count("field-wrong") == 2
    with FleetState(room.settings.fleet_state) as state:
        assert state.roll_out(ID).state == "stopped"


def test_an_operator_does_not_go_on_with_an_owners_command(room: Room, operator: Client) -> None:
    put(room, a_roll_out(type="rollback"), *STOOD)
    assert f"/roll-outs/{ID}/resume" not in operator.show(f"/roll-outs/{ID}")
    assert operator.submit(f"/roll-outs/{ID}/resume", why="x").status_code == 403


def first_step(client: Client, **fields: str) -> str:
    client.show("/roll-outs/new")
    answer = client.submit("/roll-outs/new", **fields)
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


def test_boards_are_read_and_refused_in_words(operator: Client) -> None:
    text = operator.show("/roll-outs/new?boards=pi-1,pi-2&boards=pi-3&filter=state%3Dhot")
    assert ">pi-1\npi-2\npi-3</textarea>" in text
    for fields, said in (
        ({}, "Choose at least one board."),
        ({"names": f"pi-1 {EVIL}"}, "is no name of a board"),
        ({"group": "none"}, "There is no such group."),
        ({"filter": "sort=nonsense"}, "nothing is sorted by"),
        ({"filter": "q=" + "x" * 700}, "This filter is too long."),
        ({"names": " ".join(f"b{number}" for number in range(20_001))}, "more boards than one roll-out takes"),
    ):
        answer = operator.submit("/roll-outs/new", **fields)
        assert answer.status_code == 422
        assert said in html.unescape(answer.text)
        assert "<script>alert" not in answer.text
    assert operator.get("/roll-outs/new?filter=sort%3D{x}").status_code == 422


def test_a_draft_is_its_users_own(operator: Client, owner: Client) -> None:
    path = first_step(operator, names="pi-1, pi-2;pi-1\npi-3")
    text = operator.show(path)
    assert '<strong class="number">3</strong>' in text
    assert owner.get(path).status_code == 404
    assert operator.get(path.replace("command", "review")).headers["location"] == path
    assert operator.get(path.replace("command", "waves")).headers["location"] == path
    again = operator.show("/roll-outs/new?draft=" + path.split("/")[3])
    assert "pi-1, pi-2;pi-1\npi-3" in again


def test_an_operator_is_offered_and_may_post_what_operators_send(room: Room, operator: Client, owner: Client) -> None:
    path = first_step(operator, names="pi-1")
    kinds = set(re.findall(r'<option value="([a-z-]+)"', operator.show(path)))
    assert {"fine-tune", "scrub", "qualify", "evaluate", "collect-report"} <= kinds
    assert not kinds & {"set-policy", "rollback", "update-agent", "cancel", "pause", "resume", "promote"}
    assert operator.get(f"{path}?type=rollback").status_code == 404
    assert operator.submit(path, type="rollback").status_code == 403
    assert [record.who for record in room.audit.page(Wanted(action="command-refused"))] == ["operator"]
    assert "set-policy" in owner.show(first_step(owner, names="pi-1"))


def test_arguments_are_checked_as_a_board_would(operator: Client, owner: Client) -> None:
    path = first_step(operator, names="pi-1")
    assert operator.submit(path, type="fine-tune", **{"arg.epochs": "-1"}).status_code == 422
    answer = operator.submit(path, type="qualify", **{"arg.minutes": "99"})
    assert answer.status_code == 422
    assert 'value="99"' in answer.text
    path = first_step(owner, names="pi-1")
    answer = owner.submit(path, type="set-policy", **{"arg.text": "[thermal]\nslow = 5"})
    assert answer.status_code == 422
    assert "thermal" in answer.text
    assert owner.submit(path, type="set-policy").status_code == 422
    assert owner.submit(path, type="set-policy", **{"arg.reset": "true"}).status_code == 303


def test_without_a_key_nothing_begins(make_room: Callable[..., Room]) -> None:
    room = make_room(key="")
    operator = log_in(visit(room), "operator")
    path = first_step(operator, names="pi-1")
    assert operator.submit(path, type="scrub").status_code == 303
    assert operator.submit(path.replace("command", "waves")).status_code == 303
    review = path.replace("command", "review")
    assert "This console has no key" in operator.show(review)
    answer = operator.submit(review, why="x")
    assert answer.status_code == 422
    assert "nothing can be sent" in answer.text
    with FleetState(room.settings.fleet_state) as state:
        assert state.roll_outs("default") == []


def test_waves_are_checked_and_kept_as_typed(operator: Client) -> None:
    path = first_step(operator, names="pi-1 pi-2 pi-3 pi-4")
    assert operator.submit(path, type="scrub").status_code == 303
    path = path.replace("command", "waves")
    operator.show(path)
    wrong = operator.submit(path, canary="count", canary_count="5", stop_at="0", parallel="x", valid_s="7")
    assert wrong.status_code == 422
    assert wrong.text.count('class="error"') == 4
    fine = {"canary": "count", "canary_count": "2", "stop_at": "12.5", "parallel": "3", "valid_s": "600"}
    digest = "ab" * 32
    more = {"expect_on.active_model": "1", "expect.active_model": digest, "expect.policy": "not ticked"}
    assert operator.submit(path, **fine, **more).status_code == 303
    text = operator.show(path.replace("waves", "review"))
    for said in ("First the canaries, 2", "12.5", "at most 3 at a time", digest, "never heard of"):
        assert said in text
    assert 'value="12.5"' in operator.show(path)
    answer = operator.submit(path.replace("waves", "review"))
    assert answer.status_code == 422  # says no reason


def test_groups_are_those_of_the_state_file(room: Room, operator: Client, viewer: Client) -> None:
    operator.show("/groups")
    for fields in ({"name": "Plant", "boards": "pi-1"}, {"name": "plant", "boards": EVIL}, {"name": "plant"}):
        answer = operator.submit("/groups", **fields)
        assert answer.status_code == 422
        assert "<script>alert" not in answer.text
    assert operator.submit("/groups", name="plant", boards="pi-1 pi-2,pi-3").headers["location"] == "/groups/plant"
    assert ">pi-2<" in viewer.show("/groups/plant")
    assert "take" not in viewer.show("/groups/plant").partition("<tbody>")[2].lower()
    operator.show("/groups/plant")
    assert operator.submit("/groups/plant", board="pi-2").headers["location"] == "/groups/plant"
    with FleetState(room.settings.fleet_state) as state:
        assert state.groups("default") == {"plant": ("pi-1", "pi-3")}
    assert operator.submit("/groups/plant", board="pi-9").status_code == 404
    assert operator.submit("/groups/plant", board="../x").status_code == 404
    assert operator.submit("/groups/plant", all="1").headers["location"] == "/groups"
    assert [record.action for record in room.audit.page(Wanted(who="operator"))].count("group-changed") == 3
    assert len(operator.show("/groups")) > 0


# --- by forms alone, with a broker and boards ------------------------------------------------------------------------


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.broker = folder, Mosquitto(folder)
        public = create_console_key(folder / "console", "alice")
        self.trusted, self.log = folder / "trusted", folder / "done.log"
        self.trusted.mkdir()
        (self.trusted / public.name).write_bytes(public.read_bytes())
        self.settings = Settings(
            mqtt=Mqtt(host="127.0.0.1", port=self.broker.port),
            tenant="default",
            store=str(folder / "store.sqlite"),
            state=folder / "state",
            fleet_state=folder / "fleet.sqlite",
            key=str(folder / "console" / "alice.key"),
            consume=False,
        )

    @asynccontextmanager
    async def console(self) -> AsyncIterator[tuple[Room, Forms]]:
        async with open_room(self.settings, now=time.time, monotonic=time.monotonic) as room:
            if not self.settings.state.joinpath("users-added").exists():
                await room.accounts.add("owner", Role.OWNER, PASSWORD)
                self.settings.state.joinpath("users-added").touch()
            transport = httpx.ASGITransport(app=build_app(room))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=WAIT_S) as client:
                forms = Forms(client)
                await forms.show("/login")
                await forms.post("/login", name="owner", password=PASSWORD)
                await forms.show("/account")
                yield room, forms


class Forms:
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._csrf = client, ""

    async def show(self, path: str) -> str:
        answer = await self._client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:500])
        found = _CSRF.search(answer.text)
        self._csrf = found[1] if found else self._csrf
        return answer.text

    async def post(self, path: str, **fields: str) -> str:
        """Where the answer leads to."""
        answer = await self._client.post(path, data={"csrf": self._csrf, **fields})
        assert answer.status_code == 303, (path, answer.status_code, answer.text[:3000])
        return str(answer.headers["location"])

    async def twice(self, path: str, **fields: str) -> set[str]:
        return set(await asyncio.gather(*(self.post(path, **fields) for _ in range(2))))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto")
    made = Stage(tmp_path)
    made.broker.start()
    try:
        yield made
    finally:
        made.broker.stop()


async def by_forms(forms: Forms, names: str, kind: str, **waves: str) -> str:
    """A roll-out, begun by posting its last form twice; its path."""
    path = await forms.post("/roll-outs/new", names=names)
    assert await forms.post(path, type=kind) == path.replace("command", "waves")
    review = await forms.post(path.replace("command", "waves"), valid_s="600", **waves)
    begun = await forms.twice(review, why="a test of forms")
    assert len(begun) == 1
    return begun.pop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - files and other processes set no event
            await asyncio.sleep(0.05)


async def until_shown(forms: Forms, path: str, said: str) -> str:
    async with asyncio.timeout(WAIT_S):
        while said not in (text := await forms.show(path)):  # noqa: ASYNC110 - pages set no event
            await asyncio.sleep(0.1)
    return text


def test_a_roll_out_by_forms_alone_goes_from_canaries_to_the_end(stage: Stage) -> None:
    async def play() -> None:
        async with stage.console() as (room, forms):
            await until(lambda: all(row is not None and row.online for row in map(room.hub.row, names)))
            path = await by_forms(forms, f"away-1 {' '.join(names)}", "scrub", canary="count", canary_count="1")
            assert "/roll-outs/0" in path
            await until_shown(forms, path, "Ended: 4")
            await until_shown(forms, path, "1 of those under way are offline.")
            chosen = path.rpartition("/")[2]
            with FleetState(stage.settings.fleet_state) as state:
                order = [command.board for command in state.commands(chosen)]
                assert len(state.roll_outs("default")) == 1  # though the form was posted twice
            assert order == [*names, "away-1"]
            records = room.audit.page(Wanted(action="roll-out-begun"))
            assert [(record.who, record.why, set(record.boards)) for record in records] == [
                ("owner", "a test of forms", {*names, "away-1"})
            ]
            assert records[0].details["roll_out"] == chosen
            listed = await forms.show("/roll-outs")
            assert "a test of forms" in listed

    names = ("good-1", "good-2", "good-3", "good-4")
    with answering_boards(stage.broker.port, stage.trusted, stage.log, *names):
        asyncio.run(play())
    assert len(stage.log.read_text().splitlines()) == 4


def test_stop_go_on_and_abort_by_forms(stage: Stage) -> None:
    async def play() -> None:
        async with stage.console() as (room, forms):
            await until(lambda: (row := room.hub.row("slow-1")) is not None and row.online)
            path = await by_forms(forms, "slow-1 slow-2 good-1", "qualify", canary="none", parallel="1")
            await until_shown(forms, path, f"{path}/stop")
            await until(stage.log.read_text)
            await forms.show(f"{path}/stop")
            assert await forms.post(f"{path}/stop", why="too hot in the hall") == path
            text = await forms.show(path)
            assert "Stopped by owner: too hot in the hall" in text
            assert f"{path}/resume" in text
            assert await forms.post(f"{path}/resume", why="cooler now", stop_at="50%", parallel="2") == path
            await until(lambda: len(stage.log.read_text().splitlines()) == 2)
            text = await forms.show(path)
            assert re.search(r'<dd><span class="number">50&nbsp;', text)
            assert await forms.post(f"{path}/abort", why="wrong command") == path
            text = await until_shown(forms, path, "canceled")
            assert "Aborted: nothing more is sent, ever." in text
            await until(lambda: room.audit.page(Wanted(action="roll-out-ended")))
            ended = room.audit.page(Wanted(action="roll-out-ended"))[0].details
            assert (ended["state"], ended["boards"]) == ("aborted", {"canceled": 2, "waiting": 1})
            actions = [record.action for record in room.audit.page(Wanted(who="owner"))]
            assert actions[:4] == ["roll-out-aborted", "roll-out-resumed", "roll-out-stopped", "roll-out-begun"]

    with answering_boards(stage.broker.port, stage.trusted, stage.log, "slow-1=slow", "slow-2=slow", "good-1"):
        asyncio.run(play())
