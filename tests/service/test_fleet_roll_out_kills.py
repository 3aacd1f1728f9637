"""Kill -9 of a roll-out before and after each of its steps, and going on: each board runs its command exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.keys import create_console_key, load_console_key
from service.commands import new_id, sign_command
from service.config import Mqtt
from service.fleet.fleet_link import FleetLink
from service.fleet.roll_out import Inbox, RollOutRun, Terms
from service.fleet.roll_out_plan import Rules
from service.fleet.state import FleetState, RollOut, Sent
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto

BOARDS = ("pi-1", "pi-2", "pi-3")
MOST_STEPS = 200
WAIT_S = 60.0


class Steps:
    """Counts what a roll-out does; the n-th step is the last of this process."""

    def __init__(self, last: int) -> None:
        self._left = last

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingState(FleetState):
    def __init__(self, path: Path, steps: Steps) -> None:
        super().__init__(path)
        self._steps = steps

    def begin(self, roll_out: RollOut, boards: Sequence[str]) -> None:
        self._steps.step()
        super().begin(roll_out, boards)
        self._steps.step()

    def stand(self, roll_out: str, state: str, why: str = "", terms: Mapping[str, object] | None = None) -> None:
        self._steps.step()
        super().stand(roll_out, state, why, terms)
        self._steps.step()

    def write(self, roll_out: str, commands: Iterable[Sent]) -> None:
        self._steps.step()
        super().write(roll_out, commands)
        self._steps.step()


class DyingLink(FleetLink):
    steps: Steps

    async def send(
        self,
        device: str,
        command_type: str,
        command_id: str,
        envelope: bytes,
        *,
        expires_s: int,
        timeout_s: float = 60.0,
    ) -> None:
        self.steps.step()
        await super().send(device, command_type, command_id, envelope, expires_s=expires_s, timeout_s=timeout_s)
        self.steps.step()

    async def clear(self, device: str, command_type: str, command_id: str, *, timeout_s: float = 60.0) -> None:
        self.steps.step()
        await super().clear(device, command_type, command_id, timeout_s=timeout_s)
        self.steps.step()


class Laptop:
    """Runs roll-outs in children of its own process, which has no threads."""

    def __init__(self, folder: Path, port: int, key: Path) -> None:
        self.path, self._port, self._key = folder / "fleet.sqlite", port, key

    def child(self, roll_out: RollOut, boards: Sequence[str], steps: Steps, *, abort: bool = False) -> int:
        """Begin a roll-out, go on with it where the file has it, or abort it; how the child ended."""
        child = os.fork()
        if not child:
            try:
                asyncio.run(self._play(roll_out, boards, steps, abort=abort))
            except BaseException:  # noqa: BLE001 - whatever it was, this child must not go on as a test
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    async def _play(self, roll_out: RollOut, boards: Sequence[str], steps: Steps, *, abort: bool) -> None:
        inbox, key = Inbox(), load_console_key(self._key)
        settings = Mqtt(host="127.0.0.1", port=self._port)
        async with DyingLink(settings, "default", f"test-{os.getpid()}", inbox.take, topics=("conn",)) as link:
            link.steps = steps
            await link.wait_connected(WAIT_S)
            with DyingState(self.path, steps) as state:
                if roll_out.id not in [known.id for known in state.roll_outs("default")]:
                    state.begin(roll_out, boards)
                run = RollOutRun(state, roll_out, lambda ask: sign_command(ask, key), inbox, now=time.time)
                if abort:
                    await run.abort(link)
                    assert await run.follow(link, WAIT_S)
                else:
                    await run.run(link)

    def look(self, roll_out: RollOut) -> tuple[str, list[Sent]]:
        """State and commands, as the file has them."""
        with FleetState(self.path) as state:
            return state.roll_out(roll_out.id).state, state.commands(roll_out.id)


async def all_online(port: int, boards: set[str]) -> None:
    inbox = Inbox()
    settings = Mqtt(host="127.0.0.1", port=port)
    async with FleetLink(settings, "default", "looks-on", inbox.take, topics=("conn",)), asyncio.timeout(WAIT_S):
        while not boards <= {board for board, online in inbox.online.items() if online}:
            await inbox.arrived.wait()
            inbox.arrived.clear()


@contextmanager
def a_fleet(folder: Path, *boards: str) -> Iterator[tuple[Laptop, Path]]:
    """A laptop, and the file in which boards write what they carried out."""
    broker = Mosquitto(folder)
    public = create_console_key(folder / "console", "alice")
    (folder / "trusted").mkdir()
    (folder / "trusted" / public.name).write_bytes(public.read_bytes())
    log = folder / "done.log"
    broker.start()
    try:
        with answering_boards(broker.port, folder / "trusted", log, *boards):
            asyncio.run(all_online(broker.port, {board.partition("=")[0] for board in boards}))
            yield Laptop(folder, broker.port, folder / "console" / "alice.key"), log
    finally:
        broker.stop()


def a_roll_out(kind: str, rules: Rules) -> RollOut:
    now = time.time()
    terms = Terms(rules, {}, valid_s=600).to_table()
    return RollOut(new_id(int(now * 1000), os.urandom), "default", kind, terms, now, "running", "")


def test_killed_at_any_step_a_roll_out_goes_on_and_no_board_runs_its_command_twice(tmp_path: Path) -> None:
    with a_fleet(tmp_path, *BOARDS) as (laptop, log):
        for number in range(1, MOST_STEPS):
            roll_out = a_roll_out("scrub", Rules(canary=1, parallel=2))
            code = laptop.child(roll_out, BOARDS, Steps(number))
            assert code in (0, signal.SIGKILL), code
            if code:
                assert laptop.child(roll_out, BOARDS, Steps(0)) == 0
            state, commands = laptop.look(roll_out)
            assert state == "done"
            assert [command.outcome for command in commands] == ["succeeded"] * len(BOARDS)
            ran = Counter(log.read_text().splitlines())
            assert all(ran[f"{command.board} {command.id}"] == 1 for command in commands)
            assert len(ran) == ran.total() == number * len(BOARDS)  # no other command of this roll-out exists
            if not code:
                break
    assert 20 < number < MOST_STEPS - 1


def test_killed_at_any_step_an_abort_goes_on_and_no_board_is_canceled_twice(tmp_path: Path) -> None:
    boards, seen = ("pi-1", "pi-2", "pi-3"), Counter[str]()
    with a_fleet(tmp_path, "pi-1=slow", "pi-2=mute") as (laptop, log):  # pi-3 never comes
        for number in range(1, MOST_STEPS):
            roll_out = a_roll_out("qualify", Rules(canary=2, wait_canary_s=0.01))
            assert laptop.child(roll_out, boards, Steps(0)) == 0
            assert laptop.look(roll_out)[0] == "stopped"
            code = laptop.child(roll_out, boards, Steps(number), abort=True)
            assert code in (0, signal.SIGKILL), code
            if code:
                assert laptop.child(roll_out, boards, Steps(0), abort=True) == 0
            state, commands = laptop.look(roll_out)
            outcomes = [command.outcome for command in commands]
            assert (state, outcomes[2]) == ("aborted", "waiting")
            assert set(outcomes[:2]) <= {"canceled", "taken-back"}
            assert commands[2].id == ""
            ran = Counter(log.read_text().splitlines())
            for command in commands[:2]:
                assert ran[f"{command.board} {command.id}"] == (command.outcome == "canceled")
                assert ran[f"{command.board} {command.cancel_id}"] == 1
                seen[command.outcome] += 1
            assert len(ran) == ran.total() == 2 * seen["canceled"] + seen["taken-back"]  # and nothing else
            if not code:
                break
    assert 8 < number < MOST_STEPS - 1
    assert seen["canceled"] > seen["taken-back"]
