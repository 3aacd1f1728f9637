"""Streams and the list as JSON: a console as a process, a real broker; and single streams with readers of our own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.config import Mqtt
from service.console.hub_watch import MAX_VALUES
from service.console.live import MAX_OF_SESSION, SESSION_S, Stream, written
from service.console.room import Room
from service.link import Connection
from tests.simulators.console import PASSWORD, ConsoleProcess
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
WAIT_S = 30.0
ROOT = "temper/v1/default/"


class Publisher:
    """Says anything under any topic."""

    def __init__(self, port: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._up = threading.Event()
        self._link = self._call(self._connect(port))
        assert self._up.wait(WAIT_S)

    def say(self, topic: str, body: object, *, retain: bool = False) -> None:
        """Confirmed by the broker when this returns."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert self._call(self._say(ROOT + topic, payload, retain))

    def close(self) -> None:
        self._call(self._link.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    async def _connect(self, port: int) -> Connection:
        link = Connection(
            Mqtt(host="127.0.0.1", port=port),
            "somebody",
            keep_session=False,
            on_up=lambda _present: self._up.set(),
            on_down=lambda _why: None,
            on_message=lambda _message: None,
        )
        link.start()
        return link

    async def _say(self, topic: str, payload: bytes, retain: bool) -> bool:
        return await self._link.publish(topic, payload, retain=retain)


class World:
    def __init__(self, folder: Path) -> None:
        self.broker = Mosquitto(folder, "set_tcp_nodelay true")
        self.broker.start()
        self.console = ConsoleProcess(folder / "console", self.broker.port)
        self.console.add_users()
        self.console.start()
        self.publisher = Publisher(self.broker.port)
        with self.visitor() as client:  # the console listens once its own connection stands
            wait_for(lambda: say(self, "first", charge=1.0) or row_of(client, "first").get("charge"))

    def close(self) -> None:
        self.publisher.close()
        self.console.stop()
        self.broker.kill()

    @contextmanager
    def visitor(self, name: str = "viewer") -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.console.url, timeout=WAIT_S) as client:
            text = client.get("/login").text
            csrf = text.partition('name="csrf" value="')[2].partition('"')[0]
            answer = client.post("/login", data={"csrf": csrf, "name": name, "password": PASSWORD})
            assert answer.status_code == 303
            yield client


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("live"))
    yield made
    made.close()


@pytest.fixture
def client(world: World) -> Iterator[httpx.Client]:
    with world.visitor() as made:
        yield made


def appear(world: World, name: str, **values: object) -> None:
    world.publisher.say(f"{name}/conn", {"online": True, "session": 1, "connection": 1, "ts": time.time()}, retain=True)
    birth = {"schema": 1, "agent": "0.1.0", "board": {"profile": "raspberry-pi-4"}, "state_version": 1}
    world.publisher.say(f"{name}/birth", birth, retain=True)
    say(world, name, **{"temperature_celsius": 41.5, **values})


def say(world: World, name: str, **values: object) -> None:
    """Telemetry; gives nothing, so that it fits before an `or`."""
    body = {"seq": 1, "boot_id": "b", "ts": time.time(), "mono_ms": 1, "values": values}
    world.publisher.say(f"{name}/m/board", body)


def events(answer: httpx.Response) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, data and id of each event."""
    found: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            found[name] = value
        else:
            yield found["event"], json.loads(found["data"]), found.get("id", "")
            found = {}


def until(told: Iterator[tuple[str, dict[str, Any], str]], wanted: Callable[[str, dict[str, Any]], bool]) -> Any:
    """The first event that is wanted."""
    end = time.monotonic() + WAIT_S
    for name, data, number in told:
        if wanted(name, data):
            return data, number
        assert time.monotonic() < end, name
    raise AssertionError("the stream ended")


def row_of(client: httpx.Client, name: str) -> dict[str, Any]:
    rows = client.get("/api/fleet", params={"q": name}).json()["rows"]
    return next((row for row in rows if row["name"] == name), {})


def wait_for(found: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_a_board_appears_in_the_list_and_its_telemetry_follows(world: World, client: httpx.Client) -> None:
    appear(world, "list-1", action="PAUSE", rule="thermal.delta-t-pause", power_watts=5.5, power_is_modelled=True)
    row = wait_for(lambda: (found := row_of(client, "list-1")).get("profile") and found)
    assert (row["state"], row["profile"], row["power_is_modelled"]) == ("hot", "raspberry-pi-4", True)
    whole = client.get("/api/fleet?state=hot&sort=temperature&order=desc").json()
    assert "list-1" in [row["name"] for row in whole["rows"]]
    assert whole["summary"]["states"]["hot"] >= 1
    assert whole["total"] <= whole["summary"]["total"]


def test_what_there_is_not_is_422_and_says_why(client: httpx.Client) -> None:
    answer = client.get("/api/fleet?sort=shoe-size", headers={"Accept": "application/json"})
    assert answer.status_code == 422
    assert "shoe-size" in answer.text


@pytest.mark.parametrize("path", ["/api/fleet", "/live?boards=list-1"])
def test_strangers_are_told_nothing(world: World, path: str) -> None:
    answer = httpx.get(f"{world.console.url}{path}", headers={"Accept": "application/json"})
    assert answer.status_code == 401


@pytest.mark.parametrize("query", ["board=../x", "boards=a,B", "boards=" + ",".join(["a"] * 201), "board=%0Adata"])
def test_streams_of_what_is_no_board_are_404(client: httpx.Client, query: str) -> None:
    assert client.get(f"/live?{query}").status_code == 404


def test_rows_that_are_shown_are_told_when_they_change_and_only_those(world: World, client: httpx.Client) -> None:
    appear(world, "row-1")
    appear(world, "row-2")
    wait_for(lambda: row_of(client, "row-2").get("temperature_celsius"))
    with client.stream("GET", "/live?boards=row-1") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        told = events(answer)
        name, data, number = next(told)
        assert (name, data["connected"], number) == ("hello", True, "")
        first, _ = until(told, lambda name, _data: name == "rows")
        assert [row["name"] for row in first["rows"]] == ["row-1"]
        say(world, "row-2", temperature_celsius=50.5)
        say(world, "row-1", temperature_celsius=77.25)
        warm, number = until(told, lambda name, data: name == "rows" and data["rows"])
        assert [(row["name"], row["temperature_celsius"]) for row in warm["rows"]] == [("row-1", 77.25)]
        assert sum(warm["summary"]["temperatures"]) >= 2
    headers = {"Last-Event-ID": number}
    with client.stream("GET", "/live?boards=row-1,row-2", headers=headers) as answer:
        told = events(answer)
        assert next(told)[0] == "hello"
        say(world, "row-2", temperature_celsius=12.5)
        later, _ = until(told, lambda name, data: name == "rows" and data["rows"])
        assert [row["name"] for row in later["rows"]] == ["row-2"]  # the other had been told of


def test_who_looks_at_a_board_is_told_how_it_is_and_then_everything(world: World, client: httpx.Client) -> None:
    appear(world, "look-1")
    world.publisher.say("look-1/a/overheated", {"type": "overheated", "severity": "warning", "since": 1.0}, retain=True)
    wait_for(lambda: row_of(client, "look-1").get("alarms"))
    job = "0192f0c1-0000-7000-8000-000000000001"
    with client.stream("GET", "/live?board=look-1") as answer:
        told = events(answer)
        first = [next(told)[0] for _ in range(4)]
        assert first == ["hello", "conn", "birth", "alarm"]
        world.publisher.say("look-1/a/overheated", b"", retain=True)
        assert until(told, lambda name, _data: name == "alarm")[0]["body"] is None
        status = {"id": job, "status": "running", "version": 2, "progress": 0.25}
        world.publisher.say(f"look-1/cmd/fine-tune/{job}/sts", status, retain=True)
        data, _ = until(told, lambda name, _data: name == "status")
        assert (data["type"], data["id"], data["body"]["progress"]) == ("fine-tune", job, 0.25)
        body = {"seq": 9, "boot_id": "b", "ts": 1_796_000_000.5, "mono_ms": 1, "values": {"loss": 1.5, "step": 3}}
        world.publisher.say("look-1/m/training", body)
        data, _ = until(told, lambda name, _data: name == "metrics")
        assert data == {
            "board": "look-1",
            "group": "training",
            "values": {"loss": 1.5, "step": 3.0},
            "ts": 1796000000.5,
        }


def test_a_board_that_names_metrics_for_ever_fills_nothing_and_its_page_goes_on(world: World) -> None:
    with world.visitor() as client, client.stream("GET", "/live?board=liar-1") as answer:
        told = events(answer)
        assert next(told)[0] == "hello"
        for turn in range(60):
            values = {f"made-up-{turn}-{place}": place for place in range(2000)}
            say(world, "liar-1", temperature_celsius=40 + turn, **values)
        data, _ = until(told, lambda name, data: name == "metrics" and data["values"]["temperature_celsius"] == 99)
        assert len(data["values"]) == MAX_VALUES
    with world.visitor() as client:
        assert row_of(client, "liar-1")["temperature_celsius"] == 99


def test_hostile_names_and_payloads_are_texts_on_one_line(world: World, client: httpx.Client) -> None:
    evil = "<script>alert(1)</script>\u2028\u202e\r\n\r\nevent: rows\ndata: {}"
    appear(world, "evil-1", action=evil, rule=evil)
    world.publisher.say("evil-1/birth", {"schema": 1, "agent": evil, "board": {"profile": evil}}, retain=True)
    world.publisher.say(f"{'<b>'}/conn", {"online": True}, retain=False)
    world.publisher.say("evil-1/m/board", b"{" * 60_000)
    world.publisher.say("evil-1/conn", b"\xff\xfe", retain=False)
    wait_for(lambda: evil[:20] in row_of(client, "evil-1").get("profile", ""))
    with client.stream("GET", "/live?board=evil-1&boards=evil-1") as answer:
        told = events(answer)
        assert [next(told)[0] for _ in range(3)] == ["hello", "rows", "conn"]
    assert not row_of(client, "<b>")


def test_one_session_has_so_many_streams_and_gets_its_places_back(world: World) -> None:
    with world.visitor("operator") as client:
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(base_url=world.console.url, cookies=client.cookies, limits=limits, timeout=WAIT_S) as many:
            opened = [many.stream("GET", "/live?roll_outs=1") for _ in range(MAX_OF_SESSION)]
            for one in opened:
                assert one.__enter__().status_code == 200
            refused = many.get("/live?roll_outs=1")
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            for one in opened:
                one.__exit__(None, None, None)

        def again() -> bool:
            with client.stream("GET", "/live?roll_outs=1") as answer:
                return answer.status_code == 200

        wait_for(again)


def test_a_console_that_starts_again_shows_the_fleet_without_a_broker(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        appear(world, "kept-1", charge=0.5)
        with world.visitor() as client:
            wait_for(lambda: row_of(client, "kept-1").get("charge"))
            told_before = client.get("/api/fleet").json()["revision"]
        time.sleep(1.0)  # a batch is on the disk
        world.console.stop()
        world.publisher.close()
        world.broker.kill()
        world.console.start()
        with world.visitor() as client:
            row = row_of(client, "kept-1")
            assert (row["temperature_celsius"], row["charge"], row["agent"]) == (41.5, 0.5, "0.1.0")
            assert client.get("/api/fleet").json()["revision"] > told_before
            with client.stream("GET", f"/live?boards=kept-1&after={told_before}") as answer:
                told = events(answer)
                assert next(told)[1]["connected"] is False
                assert until(told, lambda name, _data: name == "rows")[0]["rows"][0]["name"] == "kept-1"
                world.broker.start()
                assert until(told, lambda name, _data: name == "link")[0] == {"connected": True}
                # this broker kept nothing: it does not know the board
                gone = until(told, lambda name, data: name == "rows" and data["rows"])[0]["rows"][0]
                assert gone["state"] == "offline"
        world.publisher = Publisher(world.broker.port)
    finally:
        world.close()


def test_events_have_no_line_of_their_own_making() -> None:
    text = written("rows", {"x": "a\nb\r\n\u2028"}, 7)
    assert text == b'id: 7\nevent: rows\ndata: {"x":"a\\nb\\r\\n\\u2028"}\n\n'


class Reader:
    """One reader's side of a stream."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.open = asyncio.Event()
        self.open.set()
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.open.wait()
        if message["type"] == "http.response.body":
            self.chunks.append(message["body"])

    def names(self) -> list[str]:
        return [chunk.split(b"event: ")[1].split(b"\n")[0].decode() for chunk in self.chunks if chunk]


async def seen(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not found():  # noqa: ASYNC110 - what is looked at is no event
            await asyncio.sleep(0.01)


def tell(room: Room, name: str, **values: object) -> None:
    room.hub._take(f"{ROOT}{name}/m/board", {"values": values, "ts": 1.0}, retained=False)


def test_a_stream_ends_when_its_session_has_ended(room: Room, clock: Any) -> None:
    async def play() -> list[str]:
        session = room.accounts.sessions.find(room.accounts.sessions.begin("viewer"))
        assert session is not None
        reader = Reader()
        stream = Stream(room, session.id, {"board": "pi-1"})
        gathering = asyncio.create_task(room.hub._gather())
        task = asyncio.create_task(stream({"type": "http", "method": "GET"}, reader.receive, reader.send))
        await seen(lambda: "hello" in reader.names())
        clock.pass_(SESSION_S + 1)
        tell(room, "pi-1", temperature_celsius=40.0)
        await seen(lambda: "metrics" in reader.names())  # the session holds: it goes on
        room.accounts.sessions.end(session.id, "viewer")
        clock.pass_(SESSION_S + 1)
        tell(room, "pi-1", temperature_celsius=41.0)
        await asyncio.wait_for(task, WAIT_S)
        gathering.cancel()
        assert not room.hub.streams
        return reader.names()

    assert asyncio.run(play())[-1] == "ended"


def test_a_stream_with_nothing_to_tell_says_that_it_is_there(room: Room, clock: Any) -> None:
    async def play() -> list[str]:
        session = room.accounts.sessions.find(room.accounts.sessions.begin("viewer"))
        assert session is not None
        reader = Reader()
        stream = Stream(room, session.id, {"roll_outs": True}, beat_s=0.01)
        task = asyncio.create_task(stream({"type": "http", "method": "GET"}, reader.receive, reader.send))
        await seen(lambda: reader.names().count("beat") >= 3)
        room.accounts.sessions.end(session.id, "viewer")
        clock.pass_(SESSION_S + 1)
        await asyncio.wait_for(task, WAIT_S)  # nothing changed, and it ends all the same
        return reader.names()

    names = asyncio.run(play())
    assert (names[0], names[1], names[-1]) == ("hello", "beat", "ended")


def test_a_slow_reader_loses_what_was_in_between_and_no_memory_is_lost_to_it(room: Room) -> None:
    async def play() -> None:
        reader = Reader()
        stream = Stream(room, "", {"board": "pi-1", "boards": ["pi-1"]})
        gathering = asyncio.create_task(room.hub._gather())
        task = asyncio.create_task(stream({"type": "http", "method": "GET"}, reader.receive, reader.send))
        await seen(lambda: "hello" in reader.names())
        reader.open.clear()
        for place in range(20_000):
            tell(room, "pi-1", temperature_celsius=place / 1000)
            room.hub._take(f"{ROOT}pi-1/a/made-up-{place}", {"severity": "warning"}, retained=False)
            if place % 4000 == 0:
                await asyncio.sleep(0.6)  # several rounds of news
        (watcher,) = room.hub._watchers
        assert len(watcher.news) < 100
        reader.open.set()
        await seen(lambda: any(b"19.999" in chunk for chunk in reader.chunks))
        assert len(reader.chunks) < 250
        reader.left.set()
        await asyncio.wait_for(task, WAIT_S)
        gathering.cancel()
        assert not room.hub._watchers
        assert not room.hub._looks

    asyncio.run(play())


def test_a_search_of_the_api_has_the_bounds_of_a_query(owner: Any) -> None:
    assert owner.get(f"/api/fleet?q={'x' * 101}").status_code == 422
