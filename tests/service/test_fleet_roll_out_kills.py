"""Kill -9 of a roll-out before and after each of its steps, and going on: each board runs its command exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


class Laptop:
    """Runs roll-outs in children of its own process, which has no threads."""

    def __init__(self, folder: Path, port: int, key: Path) -> None:
        self.path, self._port, self._key = folder / "fleet.sqlite", port, key

    def child(self, roll_out: RollOut, steps: Steps) -> int:
        """Begin a roll-out, or go on with it where the file has it; how the child ended."""
        child = os.fork()
        if not child:
            try:
                asyncio.run(self._play(roll_out, steps))
            except BaseException:  # noqa: BLE001 - whatever it was, this child must not go on as a test
                os._exit(1)
            os._exit(0)
        return os.waitpid(child, 0)[1]

    async def _play(self, roll_out: RollOut, steps: Steps) -> None:
        inbox, key = Inbox(), load_console_key(self._key)
        settings = Mqtt(host="127.0.0.1", port=self._port)
        async with DyingLink(settings, "default", f"test-{os.getpid()}", inbox.take, topics=("conn",)) as link:
            link.steps = steps
            await link.wait_connected(WAIT_S)
            with DyingState(self.path, steps) as state:
                if roll_out.id not in [known.id for known in state.roll_outs("default")]:
                    state.begin(roll_out, BOARDS)
                run = RollOutRun(state, roll_out, lambda ask: sign_command(ask, key), inbox, now=time.time)
                await run.run(link)


def test_killed_at_any_step_a_roll_out_goes_on_and_no_board_runs_its_command_twice(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    public = create_console_key(tmp_path / "console", "alice")
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / public.name).write_bytes(public.read_bytes())
    log = tmp_path / "done.log"
    laptop = Laptop(tmp_path, broker.port, tmp_path / "console" / "alice.key")
    broker.start()
    try:
        with answering_boards(broker.port, tmp_path / "trusted", log, *BOARDS):
            for number in range(1, MOST_STEPS):
                if not _one(laptop, log, number):
                    break
    finally:
        broker.stop()
    assert 20 < number < MOST_STEPS - 1


def _one(laptop: Laptop, log: Path, number: int) -> bool:
    """Kill one roll-out before its step `number`, go on to its end; whether it came that far."""
    terms = Terms(Rules(canary=1, parallel=2), {}, valid_s=600)
    now = time.time()
    roll_out = RollOut(new_id(int(now * 1000), os.urandom), "default", "scrub", terms.to_table(), now, "running", "")
    code = laptop.child(roll_out, Steps(number))
    assert code in (0, signal.SIGKILL), code
    if code:
        assert laptop.child(roll_out, Steps(0)) == 0
    with FleetState(laptop.path) as state:
        ended, commands = state.roll_out(roll_out.id), state.commands(roll_out.id)
    assert ended.state == "done"
    assert [command.outcome for command in commands] == ["succeeded"] * len(BOARDS)
    ran = Counter(log.read_text().splitlines())
    assert all(ran[f"{command.board} {command.id}"] == 1 for command in commands)
    assert len(ran) == ran.total() == number * len(BOARDS)  # no other command of this roll-out exists
    return bool(code)
