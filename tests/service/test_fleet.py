from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import NetworkError
from agent.keys import create_console_key, load_console_key
from service.cli import _parser, main
from service.cli_fleet_view import live_table
from service.commands import sign_command
from service.config import Mqtt
from service.fleet import state as state_file
from service.fleet.access import find_access
from service.fleet.boards import Boards
from service.fleet.fleet_link import FleetLink
from service.fleet.outcome import Outcome, exit_code
from service.fleet.roll_out import LATE_S, Inbox, RollOutRun, Terms
from service.fleet.roll_out_plan import Rules
from service.fleet.state import FleetState, RollOut, Sent
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto, free_port

BOARDS = ("bad=failed", "good-1", "good-2", "scrub", "slow=slow", "strict=refuse")
JOB = 'model = "colours"\ndata = "/srv/images"\nepochs = 1\n'
WAIT_S = 60.0
ID = "0192f0c1-0000-7000-8000-000000000001"
ROOT = Path(__file__).parents[2]


class Place:
    """A broker, boards and a laptop."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.broker = Mosquitto(folder)
        self.state = folder / "laptop" / "fleet.sqlite"
        self.trusted = folder / "trusted"
        self.trusted.mkdir()
        public = create_console_key(folder / "console", "alice")
        (self.trusted / public.name).write_bytes(public.read_bytes())
        self.key = folder / "console" / "alice.key"
        self.log = folder / "done.log"
        self.job = folder / "job.toml"
        self.job.write_text(JOB)
        for name in ("TEMPERD_PROFILE", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.setenv("TEMPERD_BROKER", f"127.0.0.1:{self.broker.port}")

    def fleet(self, *words: object) -> tuple[int, str, str]:
        """Exit code, output and errors of `temperd fleet ...`."""
        code = main(["fleet", *map(str, words), "--state", str(self.state)])
        said = self._capsys.readouterr()
        return code, said.out, said.err

    def json(self, *words: object) -> Any:
        return json.loads(self.fleet(*words, "--json")[1])

    def lines(self, *words: object) -> tuple[int, list[Any]]:
        code, out, _ = self.fleet(*words, "--json")
        return code, [json.loads(line) for line in out.splitlines()]

    def done(self) -> list[str]:
        """`BOARD ID` of each command that was carried out."""
        return self.log.read_text().splitlines()

    @contextmanager
    def boards(self, *names: str) -> Iterator[None]:
        wanted = {name.partition("=")[0] for name in names}
        with answering_boards(self.broker.port, self.trusted, self.log, *names):
            self.wait(lambda: wanted <= {view["board"] for view in self.json("list") if view["online"]})
            yield

    def wait(self, true: Callable[[], Any]) -> Any:
        end = time.monotonic() + WAIT_S
        while not (found := true()):
            assert time.monotonic() < end
            time.sleep(0.05)
        return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Place]:
    made = Place(tmp_path, monkeypatch, capsys)
    made.broker.start()
    yield made
    made.broker.stop()


def test_boards_are_listed_shown_watched_and_remembered(place: Place) -> None:
    with place.boards("good-1", "good-2"):
        code, out, _ = place.fleet("list")
        assert code == 0
        assert [line.split()[:4] for line in out.splitlines()] == [
            ["BOARD", "STATE", "AGENT", "PROFILE"],
            ["good-1", "online", "0.1.0", "raspberry-pi-4"],
            ["good-2", "online", "0.1.0", "raspberry-pi-4"],
        ]
        shown = place.json("show", "good-1")
        assert shown["birth"]["metrics"]["board"]["temperature_celsius"]["unit"] == "Cel"
        assert shown["capabilities"] == ["fine-tune"]
        assert "temperature_celsius" in place.fleet("show", "good-1")[1]
        code, lines = place.lines("watch", "--for", "0.8")
        assert code == 0
        assert {line["board"] for line in lines if line["online"]} == {"good-1", "good-2"}
    place.wait(lambda: not any(view["online"] for view in place.json("list")))
    place.broker.kill()
    place.broker.start()  # it forgot everything
    views = place.json("list", "--offline")
    assert [(view["board"], view["on_broker"], view["profile"]) for view in views] == [
        ("good-1", False, "raspberry-pi-4"),
        ("good-2", False, "raspberry-pi-4"),
    ]
    assert all(time.time() - view["last_seen"] < 300 for view in views)
    assert "gone" in place.fleet("list")[1]
    assert place.json("forget", "good-1") == {"forgotten": ["good-1"]}
    assert [view["board"] for view in place.json("list")] == ["good-2"]
    assert place.fleet("forget", "good-1")[0] == 1


def test_a_password_and_websockets_lead_to_the_broker_and_a_refusal_tells_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users").write_text("alice:right\n")
    subprocess.run(["mosquitto_passwd", "-U", str(tmp_path / "users")], check=True)
    port = free_port()
    extra = f"password_file {tmp_path}/users\nlistener {port} 127.0.0.1\nprotocol websockets"
    broker = Mosquitto(tmp_path, extra, anonymous=False)
    for word in ("right", "wrong"):
        (tmp_path / word).write_text(f"{word}\n")
        (tmp_path / word).chmod(0o600)
    words = ("--broker", f"127.0.0.1:{port}", "--websockets", "--user", "alice", "--state", str(tmp_path / "state"))

    async def refused() -> str:
        options = _parser().parse_args(["fleet", "list", *words, "--password-file", str(tmp_path / "wrong")])
        async with FleetLink(find_access(options, {}).mqtt, "default", "test", lambda *_: None) as link:
            with pytest.raises(NetworkError) as raised:
                await link.wait_connected(1.0)
        return str(raised.value)

    broker.start()
    try:
        assert main(["fleet", "list", *words, "--password-file", str(tmp_path / "right"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []
        assert "not authorised" in asyncio.run(refused())
    finally:
        broker.stop()


def test_one_command_goes_to_several_boards_and_the_exit_code_tells_the_worst(place: Place) -> None:
    key = ("--key", place.key)
    with place.boards(*BOARDS):
        code, out, _ = place.fleet("send", "good-1", "scrub", "scrub", *key, "--watch")  # a board may be called scrub
        assert code == 0
        assert {line.split()[0] for line in out.splitlines()[:2]} == {"good-1", "scrub"}
        assert sorted(line.split()[0] for line in place.done()) == ["good-1", "scrub"]
        assert place.fleet("send", "good-1", "strict", "fine-tune", place.job, *key, "--watch")[0] == 3
        assert place.fleet("send", "good-1", "bad", "strict", "fine-tune", place.job, *key, "--watch")[0] == 1
        code, out, _ = place.fleet("send", "strict", "fine-tune", place.job, *key, "--watch")
        assert code == 3
        assert "rejected (not-permitted): a viewer may not fine-tune?[2J" in out  # no escape sequence of a board's
        assert len({line.split()[1] for line in place.done()}) == len(place.done())


def test_what_was_sent_is_told_also_where_the_broker_does_not_take_all(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = FleetLink.send

    async def choosy(link: FleetLink, device: str, *words: Any, **options: Any) -> None:
        if device == "pi-2":
            raise NetworkError("the broker did not confirm the command")
        await send(link, device, *words, **options)

    monkeypatch.setattr(FleetLink, "send", choosy)
    code, out, told = place.fleet("send", "pi-1", "pi-2", "pi-3", "scrub", "--key", place.key)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (1, ["pi-1", "pi-3"])
    assert "did not confirm" in told


def test_waiting_ends_by_outcome_or_by_time(place: Place) -> None:
    with place.boards(*BOARDS):
        ids = {
            board: place.json("send", board, "fine-tune", place.job, "--key", place.key)["id"]
            for board in ("good-1", "bad", "strict", "slow")
        }
        assert place.fleet("wait", ids["good-1"])[0] == 0
        assert place.fleet("wait", ids["good-1"], ids["strict"])[0] == 3
        assert place.fleet("wait", ids["good-1"], ids["strict"], ids["bad"])[0] == 1
        code, _, told = place.fleet("wait", ids["good-1"], ids["slow"], "--timeout", "1")
        assert code == 1
        assert "1 of 2 commands have not ended within 1 s" in told
        assert place.fleet("send", "slow", "cancel", ids["slow"], "--key", place.key, "--watch")[0] == 0
        assert place.fleet("wait", ids["slow"])[0] == 1


def test_a_board_carries_out_what_it_expects_only(place: Place) -> None:
    with place.boards("good-1"):
        sent = ("send", "good-1", "scrub", "--key", place.key)
        for wrong, told in (("model=x", "unknown key"), ("policy=x", "hexadecimal"), ("state_version=-1", "whole")):
            code, _, said = place.fleet(*sent, "--expect", wrong)
            assert (code, told in said) == (2, True), said
        assert place.done() == []


def test_a_roll_out_goes_in_waves_and_boards_that_come_back_get_their_command(place: Place) -> None:
    names = [f"pi-{number}" for number in range(9)]
    place.fleet("group", "add", "plant", *names)
    assert place.json("group", "list") == {"plant": names}
    words = ("--group", "plant", "--canary", "20%", "--parallel", "3", "--key", place.key, "--state", place.state)
    command = [sys.executable, "-m", "service.cli", "fleet", "roll-out", place.job, *words, "--json"]
    with place.boards(*names[:8]):
        running = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert running.stdout is not None
        lines = [json.loads(running.stdout.readline())]
        assert lines[0]["offline"] == ["pi-8"]
        while lines[-1].get("counts") != {"succeeded": 8, "open": 1}:
            lines.append(json.loads(running.stdout.readline()))
        with answering_boards(place.broker.port, place.trusted, place.log, "pi-8"):
            lines += [json.loads(line) for line in running.communicate(timeout=WAIT_S)[0].splitlines()]
    end = lines[-1]
    assert (running.returncode, end["state"], end["rules"]["canary"]) == (0, "done", 2)
    assert {board["outcome"] for board in end["boards"]} == {"succeeded"}
    assert sorted(place.done()) == sorted(f"{board['board']} {board['id']}" for board in end["boards"])
    first_with_three = next(line["counts"] for line in lines[1:-1] if 9 - line["counts"].get("waiting", 0) > 2)
    assert first_with_three["succeeded"] >= 2  # canaries first


def test_a_board_that_never_comes_counts_once_its_command_expired(place: Place) -> None:
    clock = [1_790_000_000.0]

    def tell(run: RollOutRun) -> None:
        if run.counts() == {"open": 1}:
            assert run.commands[0].sent
            clock[0] += 130.0  # it was sent; then two minutes pass

    async def play(state: FleetState) -> tuple[RollOut, list[Sent]]:
        terms = Terms(Rules(), {}, valid_s=60)
        made = RollOut(ID, "default", "scrub", terms.to_table(), clock[0], "running", "")
        state.begin(made, ["pi-1"])
        inbox, key = Inbox(), load_console_key(place.key)
        settings = Mqtt(host="127.0.0.1", port=place.broker.port)
        async with FleetLink(settings, "default", "test", inbox.take, topics=("conn",)) as link:
            run = RollOutRun(state, made, lambda ask: sign_command(ask, key), inbox, now=lambda: clock[0], tell=tell)
            return await run.run(link), state.commands(ID)

    with FleetState(place.state) as state:
        ended, commands = asyncio.run(play(state))
    assert clock[0] > 1_790_000_000.0 + 60 + LATE_S
    assert (ended.state, commands[0].outcome, exit_code([Outcome(commands[0].outcome)])) == ("done", "expired", 1)


def test_a_roll_out_that_is_refused_or_fails_stops_and_goes_on_when_told(place: Place) -> None:
    key = ("--key", place.key)
    with place.boards(*BOARDS):
        code, lines = place.lines(
            "roll-out", place.job, "--board", "strict", "--board", "good-1", "--canary-count", 1, *key
        )
        stopped = lines[-1]
        assert (code, stopped["state"]) == (1, "stopped")
        assert stopped["why"].startswith("canaries: 1 of 1")
        assert [board["outcome"] for board in stopped["boards"]] == ["refused", "waiting"]
        code, out, _ = place.fleet("roll-out", "--show", stopped["id"])
        assert "not-permitted: a viewer may not fine-tune?[2J" in out
        assert code == 1
        code, lines = place.lines("roll-out", "--resume", stopped["id"], *key)  # the rule still holds
        assert (code, lines[-1]["state"]) == (1, "stopped")
        assert len(place.done()) == 1
        code, lines = place.lines("roll-out", "--resume", stopped["id"], "--stop-at", "60%", "--stop-min", 2, *key)
        assert [board["outcome"] for board in lines[-1]["boards"]] == ["refused", "succeeded"]
        assert (code, lines[-1]["state"]) == (3, "done")
        assert place.fleet("wait", "--roll-out", stopped["id"])[0] == 3
        assert place.json("roll-out", "--list")[0]["id"] == stopped["id"]
        assert place.fleet("roll-out", "--abort", stopped["id"], *key)[0] == 2
    assert list(place.state.parent.glob("*.lock")) == []


@pytest.mark.parametrize("kind", ["fine-tune", "rollback"])
def test_an_aborted_roll_out_cancels_what_is_open_and_cannot_go_on(place: Place, kind: str) -> None:
    asked = (place.job,) if kind == "fine-tune" else (kind,)
    key = ("--key", place.key)
    with place.boards("slow=slow", "good-1"):
        code, lines = place.lines(
            *("roll-out", *asked, "--board", "slow", "--board", "good-1", "--canary-count", 1, *key),
            *("--wait-canary", "1"),
        )
        stopped = lines[-1]
        assert (code, stopped["why"]) == (1, "canaries did not end within 1 s")
        assert [board["outcome"] for board in stopped["boards"]] == ["open", "waiting"]
        code, lines = place.lines("roll-out", "--abort", stopped["id"], *key)
        assert (code, lines[-1]["state"]) == (0, "aborted")
        assert [board["outcome"] for board in lines[-1]["boards"]] == ["canceled", "waiting"]
        code, _, told = place.fleet("roll-out", "--resume", stopped["id"], *key)
        assert code == 2
        assert "aborted" in told


def test_a_broker_that_forgot_everything_gets_open_commands_again(place: Place) -> None:
    words = ("--board", "pi-1", "--key", place.key, "--state", place.state, "--json")
    command = [sys.executable, "-m", "service.cli", "fleet", "roll-out", "scrub", *words]
    running = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout is not None
    while json.loads(running.stdout.readline()).get("counts") != {"open": 1}:
        pass
    place.broker.kill()
    place.broker.start()
    with answering_boards(place.broker.port, place.trusted, place.log, "pi-1"):
        lines = [json.loads(line) for line in running.communicate(timeout=WAIT_S)[0].splitlines()]
    assert (running.returncode, lines[-1]["state"]) == (0, "done")
    assert place.done() == [f"pi-1 {lines[-1]['boards'][0]['id']}"]


def test_interrupted_a_roll_out_says_how_to_go_on_and_nobody_else_runs_it_meanwhile(place: Place) -> None:
    key = ("--key", place.key)
    command = [sys.executable, "-m", "service.cli", "fleet", "roll-out", "scrub", "--board", "pi-1", "--json"]
    command += [*map(str, key), "--state", str(place.state)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert running.stdout is not None
    roll_out = json.loads(running.stdout.readline())["id"]
    while json.loads(running.stdout.readline()).get("counts") != {"open": 1}:
        pass
    code, _, told = place.fleet("roll-out", "--resume", roll_out, *key)
    assert (code, "another temperd runs this roll-out" in told) == (1, True)
    assert place.fleet("wait", "--roll-out", roll_out, "--timeout", "0.5")[0] == 1
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=WAIT_S)[1]
    assert running.returncode == 130
    assert f"temperd fleet roll-out --resume {roll_out}" in told
    with place.boards("pi-1"):
        code, lines = place.lines("roll-out", "--resume", roll_out, *key)
    assert (code, lines[-1]["state"], len(place.done())) == (0, "done", 1)


def test_what_an_absent_board_was_to_do_is_taken_back(place: Place) -> None:
    key = ("--key", place.key)
    begun = ("roll-out", place.job, "--board", "pi-1", "--canary-count", 1, "--board", "pi-2", "--wait-canary", "0.1")
    code, lines = place.lines(*begun, *key)
    roll_out = lines[0]["id"]
    assert (code, lines[-1]["state"], place.json("list")) == (1, "stopped", [])
    code, lines = place.lines("roll-out", "--abort", roll_out, *key, "--timeout", "0")
    assert (code, [board["outcome"] for board in lines[-1]["boards"]]) == (1, ["open", "waiting"])
    with place.boards("pi-1"):
        code, lines = place.lines("wait", "--roll-out", roll_out, "--timeout", WAIT_S)
    assert (code, [board["outcome"] for board in lines[-1]["boards"]]) == (1, ["taken-back", "waiting"])
    assert len(place.done()) == 1  # the cancel, not the job


def test_a_request_is_taken_back_also_when_the_connection_breaks(place: Place) -> None:
    settings, seen = Mqtt(host="127.0.0.1", port=place.broker.port), dict[str, bool]()

    async def play() -> None:
        topics = ("cmd/+/+/req",)
        async with FleetLink(settings, "default", "one", lambda *_: None) as link:
            await link.wait_connected(WAIT_S)
            await link.send("pi-1", "scrub", ID, b"{}", expires_s=600)
            link._connection._client.abort()
            await link.clear("pi-1", "scrub", ID)
        async with FleetLink(
            settings, "default", "two", lambda topic, *_: seen.update({topic: True}), topics=topics
        ) as link:
            await link.wait_connected(WAIT_S)
            await link.send("pi-2", "scrub", ID, b"{}", expires_s=600)
            while not seen:  # noqa: ASYNC110 - a callback fills it
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(play(), WAIT_S))
    assert list(seen) == [f"temper/v1/default/pi-2/cmd/scrub/{ID}/req"]


@pytest.mark.parametrize("turns", range(4))
def test_whoever_breaks_off_a_wait_for_the_broker_as_it_comes_is_heard(turns: int) -> None:
    async def play() -> tuple[bool, bool]:
        link = FleetLink(Mqtt(host="127.0.0.1", port=free_port()), "default", "one", lambda *_: None)
        waits = asyncio.create_task(link.wait_connected(WAIT_S))
        await asyncio.sleep(0.01)
        link._up.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        broken_off = waits.cancel()
        await asyncio.wait([waits])
        return broken_off, waits.cancelled()

    broken_off, heard = asyncio.run(play())
    assert heard == broken_off


def test_a_broker_that_goes_while_a_list_is_read_is_not_taken_for_one_that_has_said_all(place: Place) -> None:
    async def play() -> bool:
        settings = Mqtt(host="127.0.0.1", port=place.broker.port)
        async with FleetLink(settings, "default", "one", lambda *_: None, paced=True) as link:
            await link.wait_connected(WAIT_S)
            assert await link.wait_quiet()
            place.broker.kill()
            while link.connected:  # noqa: ASYNC110 - the broker's end
                await asyncio.sleep(0.01)
            return await link.wait_quiet(most_s=2.0)

    assert not asyncio.run(play())


def test_limits_may_change_on_the_way_and_wrong_ones_leave_a_roll_out_as_it_was(place: Place) -> None:
    begun = Rules(canary=1, least_ended=50, wait_canary_s=9.0)
    made = RollOut(ID, "default", "scrub", Terms(begun, {}).to_table(), time.time(), "stopped", "")
    resume = ("roll-out", "--resume", ID, "--key", place.key)

    def rules() -> Rules:
        with FleetState(place.state) as state:
            return Terms.of(state.roll_out(ID)).rules

    with FleetState(place.state) as state:
        state.begin(made, ["pi-1"])
    wrong = (("--stop-min", 0), ("--parallel", 0), ("--wait-canary", 1), ("--valid", 60), ("--expect", "policy="))
    for words in wrong:
        code, _, told = place.fleet(*resume, "--stop-at", "50%", *words)
        assert (code, rules()) == (2, begun), told
    with place.boards("pi-1"):
        assert place.fleet(*resume, "--stop-min", 7, "--parallel", 3)[0] == 0
    assert rules() == replace(begun, least_ended=7, parallel=3)
    assert place.fleet(*resume, "--stop-at", "50%")[0] == 0
    assert rules() == replace(begun, least_ended=7, parallel=3, stop_at=0.5, canary=0)


def test_roll_outs_that_are_over_go_when_there_are_many(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_file, "MAX_OVER", 2)
    made = [f"{ID[:-1]}{number}" for number in range(5)]
    with FleetState(place.state) as state:
        for roll_out, end in zip(made, ("done", "stopped", "aborted", "done", "done"), strict=True):
            state.begin(RollOut(roll_out, "default", "scrub", {}, 0.0, "running", ""), ["pi-1", "pi-2"])
            state.stand(roll_out, end)
        state.begin(RollOut(f"{ID[:-1]}7", "other", "scrub", {}, 0.0, "done", ""), ["pi-1"])
        state.begin(RollOut(f"{ID[:-1]}9", "default", "scrub", {}, 0.0, "running", ""), ["pi-1"])
        assert [known.id[-1] for known in state.roll_outs("default")] == ["9", "4", "3", "1"]
        assert state.commands(made[0]) == []
        assert len(state.commands(made[1])) == 2


def test_a_last_will_that_comes_late_takes_no_board_for_absent() -> None:
    inbox, topic = Inbox(), "temper/v1/default/pi-1/conn"
    for online, session, connection in ((True, 2, 1), (False, 1, 9), (False, 1, 1)):
        inbox.take(topic, {"online": online, "session": session, "connection": connection}, False)
        assert inbox.online == {"pi-1": True}
    inbox.take(topic, {"online": False, "session": 2, "connection": 1}, False)
    assert inbox.online == {"pi-1": False}


@pytest.mark.parametrize(("code", "outcome"), [("expired", "open"), ("wrong-state", "taken-back")])
def test_a_board_that_refuses_a_cancel_for_another_reason_may_have_the_job(
    tmp_path: Path, code: str, outcome: str
) -> None:
    cancel, inbox = f"{ID[:-1]}2", Inbox()
    made = RollOut(ID, "default", "fine-tune", Terms(Rules(), {}).to_table(), 0.0, "aborted", "")
    open_one = Sent(0, "pi-1", id=ID, envelope=b"x", not_after=600, outcome="open", cancel_id=cancel, cancel=b"y")
    with FleetState(tmp_path / "fleet.sqlite") as state:
        state.begin(made, ["pi-1"])
        state.write(ID, [open_one])
        run = RollOutRun(state, made, lambda _request: b"", inbox, now=lambda: 0.0)
        answer = {"id": cancel, "status": "rejected", "reason_code": code, "version": 1}
        inbox.take(f"temper/v1/default/pi-1/cmd/cancel/{cancel}/sts", answer, False)
        run._look()
        assert [command.outcome for command in state.commands(ID)] == [outcome]


def test_a_state_file_that_is_none_is_told_and_left_as_it_is(place: Place) -> None:
    place.state.parent.mkdir()
    place.state.write_bytes(b"no database" * 1000)
    code, _, told = place.fleet("group", "list")
    assert code == 1
    assert "the fleet's state cannot be used" in told
    assert place.state.read_bytes() == b"no database" * 1000
    place.state.unlink()
    with closing(sqlite3.connect(place.state)) as database:
        database.execute("PRAGMA user_version = 99")
    code, _, told = place.fleet("group", "list")
    assert (code, "newer temperd" in told, "Install that version" in told) == (1, True, True)


def test_a_screen_shows_what_is_urgent_first_and_says_what_it_leaves_out() -> None:
    boards = Boards("default")
    for name in ("a", "b", "c"):
        boards.take(f"temper/v1/default/{name}/conn", {"online": name != "a"}, now=0.0, retained=True)
    boards.take("temper/v1/default/c/a/overheated", {"severity": "warning"}, now=0.0, retained=True)
    table = live_table(boards, 0.0, 6, connected=False)
    assert [next(iter(column.cells)).plain for column in table.columns][:2] == ["c", "online"]  # type: ignore[union-attr]
    assert table.caption == "3 boards, 2 online; no broker, trying on; 2 more are not shown"


def test_wrong_words_are_told_before_anything_is_sent(place: Place) -> None:
    key = ("--key", place.key)
    wrong: tuple[tuple[object, ...], ...] = (
        ("send", "good-1", *key),
        ("send", "good-1", "scrub", "now", "please", *key),
        ("send", "Good", "scrub", *key),
        ("send", "good-1", "scrub"),
        ("send", "good-1", "scrub", *key, "--valid", "0"),
        ("send", "good-1", "scrub", *key, "--group", "nobody"),
        ("send", "scrub", *key, "--group", "nobody"),
        ("send", "good-1", "scrub", *key, "--broker", "host:port"),
        ("roll-out", *key, "--board", "good-1"),
        ("roll-out", place.job, *key),
        ("roll-out", place.job, "more", *key, "--board", "good-1"),
        ("roll-out", place.job, *key, "--board", "good-1", "--canary", "200%"),
        ("roll-out", place.job, *key, "--board", "good-1", "--canary-count", "2"),
        ("roll-out", place.job, *key, "--board", "good-1", "--stop-at", "0"),
        ("roll-out", "--resume", "nothing", *key),
        ("wait",),
        ("wait", "nothing"),
        ("wait", "--timeout", "-1", "nothing"),
        ("show", "+"),
        ("watch", "#"),
        ("list", "--group", "nobody"),
        ("list", "--tenant", "+"),
        ("list", "--wait", "nan"),
        ("group", "add", "plant/1", "good-1"),
    )
    for words in wrong:
        code, out, told = place.fleet(*words)
        assert (code, out) == (2, ""), (words, out, told)
        assert told.startswith("temperd: "), words
