"""Roll-outs in the console: real broker, boards with the production link, the file of `temperd fleet`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BoardError, SpecError, TemperdError
from agent.keys import create_console_key, load_console_key
from service.cli import main
from service.commands import Request, sign_command
from service.config import Mqtt
from service.console.roll_out_records import Record, Records
from service.console.roll_out_thread import Stage
from service.console.roll_outs import MAX_AT_WORK, RollOuts
from service.console.room import Settings
from service.fleet.fleet_link import FleetLink
from service.fleet.roll_out import AT_ONCE, Inbox, Terms
from service.fleet.roll_out_lock import held
from service.fleet.roll_out_plan import Rules
from service.fleet.state import FleetState, RollOut, Sent
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto, find_mosquitto, free_port

WAIT_S = 60.0
GOOD = tuple(f"good-{number}" for number in range(1, 7))
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")


class Key:
    """Signs as `Signer` does; locked until it is opened."""

    def __init__(self, path: Path, *, ready: bool = True) -> None:
        self._key, self.open, self.missing = load_console_key(path), ready, False

    @property
    def ready(self) -> bool:
        return self.open

    @property
    def locked(self) -> bool:
        return not self.open and not self.missing

    def sign(self, request: Request) -> bytes:
        if not self.open:
            raise SpecError("locked")
        return sign_command(request, self._key)


class Ears:
    """What a hub would tell open pages."""

    def __init__(self) -> None:
        self.heard: list[Mapping[str, Any]] = []

    def publish(self, event: str, data: Mapping[str, object]) -> None:
        assert event == "roll-out"
        json.dumps(data)
        self.heard.append(data)


class Place:
    """A broker, a key that boards trust, and a console's files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broker = folder, Mosquitto(folder)
        public = create_console_key(folder / "console", "alice")
        self.trusted, self.log = folder / "trusted", folder / "done.log"
        self.trusted.mkdir()
        (self.trusted / public.name).write_bytes(public.read_bytes())
        self.key = folder / "console" / "alice.key"
        self.state = folder / "laptop" / "fleet.sqlite"
        self.ears = Ears()

    @property
    def settings(self) -> Settings:
        mqtt = Mqtt(host="127.0.0.1", port=self.broker.port)
        return Settings(mqtt, "default", "", self.folder / "console-state", self.state)

    def made(self, *, ready: bool = True) -> tuple[RollOuts, Key]:
        key = Key(self.key, ready=ready)
        return RollOuts(self.settings, self.ears, key, now=time.time), key

    def look(self, roll_out: str) -> tuple[RollOut, list[Sent]]:
        with FleetState(self.state) as state:
            return state.roll_out(roll_out), state.commands(roll_out)

    def outcomes(self, roll_out: str) -> dict[str, str]:
        return {command.board: command.outcome for command in self.look(roll_out)[1]}

    def done(self) -> list[str]:
        return self.log.read_text().splitlines()

    def each_once(self, roll_out: str) -> set[str]:
        """Boards that carried out their command; none did twice, or carried out another one."""
        ran = Counter(self.done())
        assert set(ran.values()) <= {1}
        known = {f"{command.board} {command.id}" for command in self.look(roll_out)[1]}
        assert set(ran) <= known
        return {line.partition(" ")[0] for line in ran}

    @contextmanager
    def boards(self, *names: str, come_later: bool = False) -> Iterator[None]:
        """Boards, once they are online: one that is away holds no place, and the order of things would be another."""
        with answering_boards(self.broker.port, self.trusted, self.log, *names):
            if not come_later:
                asyncio.run(all_online(self.broker.port, {name.partition("=")[0] for name in names}))
            yield


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.broker.start()
    try:
        yield made
    finally:
        made.broker.stop()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - files and other processes set no event
            await asyncio.sleep(0.02)


async def all_online(port: int, boards: set[str]) -> None:
    inbox = Inbox()
    async with FleetLink(Mqtt(host="127.0.0.1", port=port), "default", "looks-on", inbox.take, topics=("conn",)):
        await until(lambda: boards <= {board for board, online in inbox.online.items() if online})


def run(play: Coroutine[Any, Any, None]) -> None:
    asyncio.run(play)


@asynccontextmanager
async def begun(
    place: Place, kind: str, rules: Rules, boards: tuple[str, ...], *, ready: bool = True, valid_s: int = 600
) -> AsyncIterator[tuple[RollOuts, str, Key]]:
    roll_outs, key = place.made(ready=ready)
    async with roll_outs:
        made = roll_outs.make(kind, Terms(rules, {}, valid_s=valid_s))
        roll_outs.check_length(made, boards)
        await roll_outs.begin(made, boards, by="alice", why="a test")
        yield roll_outs, made.id, key


def test_canaries_go_first_and_the_rest_follows(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "scrub", Rules(canary=2, parallel=2), GOOD) as (roll_outs, chosen, _):
            await until(lambda: place.look(chosen)[0].state == "done")
            await until(lambda: not roll_outs.record(chosen).at_work)
            assert not roll_outs.is_at_work(chosen)
            assert roll_outs.record(chosen) == Record("alice", "a test", at_work=False)

        assert place.each_once(chosen) == set(GOOD)
        first = {line.partition(" ")[0] for line in place.done()[:2]}
        assert first == set(GOOD[:2])
        assert set(place.outcomes(chosen).values()) == {"succeeded"}
        last = [told for told in place.ears.heard if "counts" in told][-1]
        assert (last["state"], last["counts"]) == ("done", {"succeeded": 6})
        assert not list(place.state.parent.glob("*.lock"))

    with place.boards(*GOOD):
        run(play())


def test_bad_canaries_stop_it_and_it_goes_on_with_another_limit(place: Place) -> None:
    boards = ("bad-1", *GOOD)

    async def play() -> None:
        async with begun(place, "scrub", Rules(canary=1), boards) as (roll_outs, chosen, _):
            await until(lambda: place.look(chosen)[0].state == "stopped")
            assert "canaries" in place.look(chosen)[0].why
            assert [line.partition(" ")[0] for line in place.done()] == ["bad-1"]
            with pytest.raises(SpecError, match="parallel"):
                await roll_outs.resume(chosen, {"parallel": 0}, by="bob", why="")
            await roll_outs.resume(chosen, {"stop_at": 0.5}, by="bob", why="one is broken")
            await until(lambda: place.look(chosen)[0].state == "done")
            assert roll_outs.record(chosen).by == "alice"
            with pytest.raises(SpecError, match="over"):
                await roll_outs.resume(chosen, {}, by="bob", why="")
            with pytest.raises(SpecError, match="nothing is left"):
                await roll_outs.abort(chosen, by="bob", why="")
        assert place.each_once(chosen) == set(boards)

    with place.boards("bad-1=failed", *GOOD):
        run(play())


def test_a_stop_sends_nothing_more_and_what_runs_goes_on(place: Place) -> None:
    boards = ("slow-1", "slow-2", *GOOD)

    async def play() -> None:
        async with begun(place, "qualify", Rules(canary=2, parallel=2), boards) as (roll_outs, chosen, _):
            await until(lambda: len(place.done()) == 2)
            await roll_outs.stop(chosen, "stopped by alice")
            stood = place.look(chosen)[0]
            assert (stood.state, stood.why) == ("stopped", "stopped by alice")
            assert roll_outs.is_at_work(chosen)  # it listens
            with (
                pytest.raises(BoardError, match="another temperd") as caught,
                FleetState(place.state) as state,
                held(state, chosen),
            ):
                pass
            assert caught.value.code == "busy"
        outcomes = place.outcomes(chosen)
        assert {outcomes[board] for board in boards[:2]} == {"open"}
        assert {outcomes[board] for board in GOOD} == {"waiting"}
        assert place.each_once(chosen) == set(boards[:2])

    with place.boards("slow-1=slow", "slow-2=slow", *GOOD):
        run(play())


def test_a_stop_in_the_middle_of_a_wave_unmakes_what_was_never_sent(place: Place) -> None:
    boards = tuple(f"away-{number}" for number in range(1500))

    async def play() -> None:
        async with begun(place, "scrub", Rules(parallel=len(boards)), boards) as (roll_outs, chosen, _):
            await until(lambda: any(command.sent for command in place.look(chosen)[1]))
            await roll_outs.stop(chosen, "stopped by alice")
            _, stood = place.look(chosen)
            sent, unsure = {c.id for c in stood if c.sent}, [c for c in stood if c.outcome == "open" and not c.sent]
            assert 0 < len(sent) < len(boards) - AT_ONCE
            assert len(unsure) <= AT_ONCE
            left = [command for command in stood if command.outcome == "waiting"]
            assert len(left) == len(boards) - len(sent) - len(unsure)
            assert not any(command.id or command.envelope for command in left)
            await roll_outs.resume(chosen, {}, by="alice", why="")
            await until(lambda: all(command.sent for command in place.look(chosen)[1]))
            again = place.look(chosen)[1]
            assert all(again[command.place].id == command.id for command in stood if command.id)

    run(play())


def test_a_stop_works_without_a_broker(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "scrub", Rules(), GOOD) as (roll_outs, chosen, _):
            await until(lambda: roll_outs.told(chosen) is not None)
            told = roll_outs.told(chosen)
            assert told is not None
            assert told.stage == Stage.CONNECTING
            await roll_outs.stop(chosen, "never mind")
            assert place.look(chosen)[0].state == "stopped"
            await until(lambda: not roll_outs.is_at_work(chosen))
            with pytest.raises(SpecError, match="not at work"):
                await roll_outs.stop(chosen, "again")
        assert set(place.outcomes(chosen).values()) == {"waiting"}

    place.broker.stop()
    run(play())


def test_a_stop_while_the_broker_is_gone_in_the_middle(place: Place) -> None:
    boards = ("slow-1", *GOOD)

    async def play() -> None:
        async with begun(place, "qualify", Rules(parallel=1), boards) as (roll_outs, chosen, _):
            await until(lambda: len(place.done()) == 1)
            place.broker.stop()
            await roll_outs.stop(chosen, "the broker is gone")
            assert place.look(chosen)[0].state == "stopped"

    with place.boards("slow-1=slow", *GOOD):
        run(play())


def test_an_abort_takes_back_and_cancels(place: Place) -> None:
    boards = ("slow-1", "away-1", "good-1")

    async def play() -> None:
        async with begun(place, "qualify", Rules(canary=2), boards) as (roll_outs, chosen, _):
            await until(lambda: len(place.done()) == 1)
            await until(lambda: all(command.sent for command in place.look(chosen)[1][:2]))
            await roll_outs.abort(chosen, by="alice", why="wrong model")
            assert place.look(chosen)[0].state == "aborted"
            await until(lambda: place.outcomes(chosen)["slow-1"] == "canceled")
            with place.boards(
                "away-1", come_later=True
            ):  # it comes, finds nothing of the roll-out, and is not asked any more
                await until(lambda: place.outcomes(chosen)["away-1"] == "taken-back")
            await until(lambda: not roll_outs.is_at_work(chosen))
            with pytest.raises(SpecError, match="begin a new one"):
                await roll_outs.resume(chosen, {}, by="bob", why="")
        assert place.outcomes(chosen)["good-1"] == "waiting"

    with place.boards("slow-1=slow", "good-1"):
        run(play())


def test_a_locked_key_is_waited_for(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "scrub", Rules(), GOOD, ready=False) as (roll_outs, chosen, key):
            await until(lambda: (told := roll_outs.told(chosen)) is not None and told.stage == Stage.NEEDS_KEY)
            assert any(told.get("stage") == "needs-key" for told in place.ears.heard)
            assert set(place.outcomes(chosen).values()) == {"waiting"}
            key.open = True
            await until(lambda: place.look(chosen)[0].state == "done")
        assert place.each_once(chosen) == set(GOOD)

    with place.boards(*GOOD):
        run(play())


def test_a_locked_key_does_not_hold_up_what_an_abort_takes_back(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "qualify", Rules(), ("away-1",)) as (roll_outs, chosen, key):
            await until(lambda: place.look(chosen)[1][0].sent)
            key.open = False
            await roll_outs.abort(chosen, by="alice", why="")
            await until(lambda: (told := roll_outs.told(chosen)) is not None and told.stage == Stage.NEEDS_KEY)
            with place.boards("away-1", come_later=True):
                await asyncio.sleep(0.5)
                key.open = True
                await until(lambda: place.outcomes(chosen)["away-1"] == "taken-back")
        assert [line for line in place.done() if line.endswith(place.look(chosen)[1][0].id)] == []

    run(play())


def test_without_a_key_it_breaks_off_and_says_so(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "scrub", Rules(), GOOD, ready=False) as (roll_outs, chosen, key):
            key.missing = True
            await until(lambda: roll_outs.failure(chosen) is not None)
            assert "no key" in str(roll_outs.failure(chosen))
            assert not roll_outs.is_at_work(chosen)
            assert place.look(chosen)[0].state == "running"
            assert not await roll_outs.runs_elsewhere(chosen)

    with place.boards(*GOOD):
        run(play())


def test_a_stop_ends_the_wait_for_a_key(place: Place) -> None:
    async def play() -> None:
        async with begun(place, "scrub", Rules(), GOOD, ready=False) as (roll_outs, chosen, _):
            await until(lambda: (told := roll_outs.told(chosen)) is not None and told.stage == Stage.NEEDS_KEY)
            await roll_outs.stop(chosen, "no key")
            assert place.look(chosen)[0].state == "stopped"

    with place.boards(*GOOD):
        run(play())


def test_what_the_command_line_runs_is_read_and_not_touched(place: Place) -> None:
    async def play() -> None:
        async with place.made()[0] as roll_outs:
            made = roll_outs.make("scrub", Terms(Rules(), {}))
            with FleetState(place.state) as state:
                state.begin(made, GOOD)
                with held(state, made.id):
                    assert await roll_outs.runs_elsewhere(made.id)
                    for order in (
                        roll_outs.resume(made.id, {}, by="", why=""),
                        roll_outs.abort(made.id, by="", why=""),
                    ):
                        with pytest.raises(BoardError, match="another temperd"):
                            await order
                    with pytest.raises(SpecError, match="not at work in this console"):
                        await roll_outs.stop(made.id, "")
                    command = state.commands(made.id)[0]
                    await asyncio.sleep(0)
                    await until(lambda: made.id in roll_outs._others)
                    state.write(made.id, [Sent(0, command.board, outcome="succeeded")])
                    await until(lambda: any(told["id"] == made.id for told in place.ears.heard))
                assert not await roll_outs.runs_elsewhere(made.id)
            assert not roll_outs.record(made.id).at_work
            with pytest.raises(SpecError, match="no roll-out"):
                await roll_outs.find("0192f0c1-0000-7000-8000-000000000001")

    run(play())


def test_only_so_many_are_at_work_and_those_that_listen_make_room(place: Place) -> None:
    async def play() -> None:
        async with place.made()[0] as roll_outs:
            first = roll_outs.make("scrub", Terms(Rules(), {}))
            for number in range(MAX_AT_WORK):
                made = first if not number else roll_outs.make("scrub", Terms(Rules(), {}))
                await roll_outs.begin(made, ["away"], by="alice", why="")
            with pytest.raises(SpecError, match="8 roll-outs are at work"):
                await roll_outs.begin(roll_outs.make("scrub", Terms(Rules(), {})), ["away"], by="alice", why="")
            await until(lambda: place.look(first.id)[1][0].sent)
            await roll_outs.stop(first.id, "enough")

    run(play())


CHILD = """
import asyncio, sys, time
from pathlib import Path
from service.fleet.fleet_link import FleetLink
from service.fleet.roll_out import AT_ONCE, Inbox, Terms
from service.fleet.roll_out_plan import Rules
from tests.console.test_roll_outs import Place, until

async def play(folder, port, boards, kind, again):
    place = Place.__new__(Place)
    place.folder, place.key, place.state = folder, folder / "console" / "alice.key", folder / "laptop" / "fleet.sqlite"
    place.broker = type("Port", (), {"port": port})
    from tests.console.test_roll_outs import Ears
    place.ears = Ears()
    roll_outs, _ = place.made()
    async with roll_outs:
        if not again:
            made = roll_outs.make(kind, Terms(Rules(canary=2, parallel=1), {}, valid_s=600))
            await roll_outs.begin(made, boards, by="alice", why="a test")
            print(made.id, flush=True)
        await asyncio.sleep(3600)

folder, port, kind, again, *boards = sys.argv[1:]
asyncio.run(play(Path(folder), int(port), boards, kind, again == "again"))
"""


@contextmanager
def a_console(place: Place, kind: str, boards: tuple[str, ...], *, again: bool) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", CHILD, str(place.folder), str(place.broker.port), kind, "again" if again else "new"]
    child = subprocess.Popen([*words, *boards], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_killed_the_console_goes_on_when_it_starts_and_no_board_gets_its_command_twice(
    place: Place, after: int
) -> None:
    boards = tuple(f"board-{number}" for number in range(40))  # one after the other: the kill comes in the middle
    with place.boards(*boards):
        with a_console(place, "scrub", boards, again=False) as child:
            assert child.stdout is not None
            chosen = child.stdout.readline().strip()
            run(until(lambda: len(place.done()) >= after))
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        before = len(place.done())
        assert place.look(chosen)[0].state == "running"
        with a_console(place, "scrub", boards, again=True):
            run(until(lambda: place.look(chosen)[0].state == "done"))
        assert before < len(boards)
        assert place.each_once(chosen) == set(boards)
        assert set(place.outcomes(chosen).values()) == {"succeeded"}


def test_killed_before_it_was_in_the_file_or_before_it_was_begun(place: Place) -> None:
    async def play() -> None:
        roll_outs, _ = place.made()
        never, early = (roll_outs.make("scrub", Terms(Rules(), {}, valid_s=600)) for _ in range(2))
        records = Records(place.settings.state)
        records.load()
        for made in (never, early):  # the record is written first, then the state file, then a thread begins
            records.write(made.id, Record("alice", "", at_work=True))
        with FleetState(place.state) as state:
            state.begin(early, GOOD)
        async with roll_outs:
            assert roll_outs.record(never.id) == Record()
            await until(lambda: place.look(early.id)[0].state == "done")
        assert place.each_once(early.id) == set(GOOD)

    with place.boards(*GOOD):
        run(play())


def test_killed_after_a_stop_it_stays_stopped_and_hears_what_went_on(place: Place) -> None:
    async def stop() -> str:
        async with begun(place, "qualify", Rules(canary=1), ("slow-1", "good-1")) as (roll_outs, chosen, _):
            await until(lambda: len(place.done()) == 1)
            await roll_outs.stop(chosen, "stopped by alice")
            return chosen

    async def again(chosen: str) -> None:
        roll_outs, _ = place.made()
        async with roll_outs:
            assert roll_outs.is_at_work(chosen)
            await roll_outs.abort(chosen, by="alice", why="")
            await until(lambda: place.outcomes(chosen)["slow-1"] == "canceled")

    with place.boards("slow-1=slow", "good-1"):
        chosen = asyncio.run(stop())
        assert place.look(chosen)[0].state == "stopped"
        run(again(chosen))
        assert place.outcomes(chosen)["good-1"] == "waiting"


def test_the_command_line_goes_on_with_what_the_console_stopped(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boards = ("bad-1", *GOOD)

    async def play() -> str:
        async with begun(place, "scrub", Rules(canary=1), boards) as (roll_outs, chosen, _):
            await until(lambda: place.look(chosen)[0].state == "stopped")
            await until(lambda: not roll_outs.is_at_work(chosen))
            return chosen

    monkeypatch.setenv("HOME", str(place.folder))
    monkeypatch.setenv("TEMPERD_BROKER", f"127.0.0.1:{place.broker.port}")
    with place.boards("bad-1=failed", *GOOD):
        chosen = asyncio.run(play())
        words = ["fleet", "roll-out", "--resume", chosen, "--stop-at", "100%", "--state", str(place.state)]
        assert main([*words, "--key", str(place.key)]) == 1
        assert place.each_once(chosen) == set(boards)
    capsys.readouterr()


def test_records_are_kept_and_forgotten_with_the_state_file(tmp_path: Path) -> None:
    records, one, two = (
        Records(tmp_path),
        "0192f0c1-0000-7000-8000-000000000001",
        "0192f0c1-0000-7000-8000-000000000002",
    )
    records.load()
    records.write(one, Record("alice", "why", at_work=True))
    records.write(two, Record("bob", "", at_work=True))
    records.rest(two)
    folder = tmp_path / "roll-outs"
    (folder / "0192f0c1-0000-7000-8000-000000000003.json").write_text("[1]")
    (folder / "0192f0c1-0000-7000-8000-000000000004.json").write_text("{")
    (folder / "not-an-id.json").write_text("{}")
    again = Records(tmp_path)
    again.load()
    assert again.known == {one: Record("alice", "why", at_work=True), two: Record("bob", "", at_work=False)}
    again.keep_only([two])
    assert {path.name for path in folder.glob(f"{one}*")} == set()
    assert again.known.keys() == {two}


def test_a_broker_that_cannot_be_used_is_told_of(place: Place) -> None:
    async def play() -> None:
        wrong = Settings(
            Mqtt(host="127.0.0.1", port=free_port(), ca_file=str(place.folder / "none.pem"), tls=True),
            *("default", "", place.folder / "console-state", place.state),
        )
        roll_outs = RollOuts(wrong, place.ears, Key(place.key), now=time.time)
        async with roll_outs:
            made = roll_outs.make("scrub", Terms(Rules(), {}))
            await roll_outs.begin(made, ["away"], by="alice", why="")
            await until(lambda: roll_outs.failure(made.id) is not None)
            assert isinstance(roll_outs.failure(made.id), TemperdError)
            assert roll_outs.record(made.id).at_work  # after the next start it is tried anew

    run(play())


def test_one_that_could_not_begin_does_not_begin_with_the_next_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(*_: object) -> None:
        raise SpecError("all threads are at work")

    async def play() -> None:
        roll_outs, _ = place.made()
        async with roll_outs:
            made = roll_outs.make("scrub", Terms(Rules(), {}, {}, 600))
            with monkeypatch.context() as patched:
                patched.setattr(roll_outs, "_work", no_room)
                with pytest.raises(SpecError):
                    await roll_outs.begin(made, ["good-1"], by="alice", why="a try")
            assert not roll_outs.record(made.id).at_work
        again, _ = place.made()
        async with again:
            assert not again.is_at_work(made.id)
        found, commands = place.look(made.id)
        assert (found.state, found.why, [command.id for command in commands]) == ("aborted", "it could not begin", [""])

    asyncio.run(play())
