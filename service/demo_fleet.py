"""`temperd console --demo`: three emulated boards at work and the console on them, all in one folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

from agent.durable import write_atomic
from agent.errors import NetworkError, SpecError, TemperdError
from agent.keys import load_console_key
from agent.publish import EFFICIENTNET_LITE0
from agent.spec import parse_spec, spec_table
from service.broker import LOOPBACK, cache_folder, find_mosquitto, start_broker
from service.cli_console import need_extra
from service.cli_fleet import make_request
from service.commands import FINE_TUNE, sign_command
from service.config import Mqtt
from service.demo import COMMAND_VALID_S, CONNECT_S, end_as_ctrl_c, running_daemon
from service.demo_console import TENANT, record, serve_console, settings_of
from service.demo_fleet_setup import GATE, GREENHOUSE, MADE, WORKSHOP_BOARD, Fleet, prepare_fleet
from service.demo_setup import fresh_folder, serve_folder
from service.fleet.boards import is_final
from service.fleet.fleet_link import STATUSES, FleetLink
from service.live import runtime_folder
from service.logs import configure

HEAT = {"heat_watts": 18.0, "seconds": 25.0}  # enough for the governor to slow training, then to pause it
HEAT_EVERY_S = 75.0  # between two heat waves of the board that learns
REST_S = 45.0  # between two jobs of it: its core is somebody's laptop
DAY_S = 86_400  # how long the deferred job may wait
POLL_S = 0.5
TOPICS = ("conn", STATUSES)
Say = Callable[[str], None]


def play(folder: Path, model: str, say: Say) -> int:
    """Run the demo until Ctrl-C or SIGTERM; nothing is left running.

    Args:
        folder: everything is kept here; what an earlier demo made in it is removed.
        model: an ONNX file, or `efficientnet-lite0`.
        say: tells the person who started it a line.

    Raises:
        TemperdError: something is missing, or the folder is somebody's.
    """
    need_extra()
    if model != EFFICIENTNET_LITE0 and not Path(model).is_file():
        raise SpecError("no such model", where=model, fix=f"Give an ONNX file, or {EFFICIENTNET_LITE0}")
    end_as_ctrl_c()
    try:
        with fresh_folder(folder, MADE), (folder / "demo.log").open("w", encoding="utf-8") as log:
            configure("warning", "text", stream=log)
            _stage(folder, model, say)
    except KeyboardInterrupt:
        pass  # before the console served, which takes Ctrl-C itself
    say("stopped; nothing is left running")
    return 0


def _stage(folder: Path, model: str, say: Say) -> None:
    """Broker, repository, boards and console, one after the other; all are ended at the end."""
    with contextlib.ExitStack() as parts:
        program = find_mosquitto(cache_folder(), say)
        broker = start_broker(program, folder)
        parts.callback(broker.stop)
        web = serve_folder(folder / "repository")
        parts.callback(web.shutdown)
        say(f"broker on {LOOPBACK}:{broker.port}, model repository on {LOOPBACK}:{web.server_port}")
        say(f"publishing {model} for three boards")
        fleet = prepare_fleet(folder, model, broker.port, web.server_port)
        daemons = {
            name: parts.enter_context(running_daemon(member.config, member.folder / "daemon.log"))
            for name, member in fleet.members.items()
        }
        for name, member in fleet.members.items():
            say(f"  {name}, an emulated {member.kind.profile}: {member.kind.told}")
        say("Ctrl-C ends all of it")
        asyncio.run(_serve(fleet, broker.port, daemons, say))


async def _serve(fleet: Fleet, broker_port: int, daemons: Mapping[str, subprocess.Popen[bytes]], say: Say) -> None:
    """The console, and beside it who sends the boards something to do."""
    stagehand = asyncio.create_task(Stagehand(fleet, broker_port, daemons, say).work())
    try:
        await serve_console(settings_of(fleet.folder, broker_port, fleet.key), say)
    finally:
        stagehand.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stagehand


class Stagehand:
    """Sends jobs, and heats the board that learns.

    One board learns again and again, one has a job that waits for its hours, one has done its job and is idle.

    Args:
        fleet: the boards.
        broker_port: of the broker on loopback.
        daemons: by board.
        say: tells when a board ends.
    """

    def __init__(
        self, fleet: Fleet, broker_port: int, daemons: Mapping[str, subprocess.Popen[bytes]], say: Say
    ) -> None:
        self._fleet, self._daemons, self._say = fleet, dict(daemons), say
        self._key = load_console_key(fleet.key)
        self._statuses: dict[str, Mapping[str, object]] = {}
        self._online: set[str] = set()
        settings = Mqtt(host=LOOPBACK, port=broker_port)
        self._link = FleetLink(settings, TENANT, "temperd-demo", self._take, topics=TOPICS)
        self._heated = self._rested = time.monotonic()

    async def work(self) -> None:
        """Until it is canceled; what fails is told, and the console stays."""
        try:
            async with self._link:
                await self._link.wait_connected(CONNECT_S)
                while not self._fleet.members.keys() <= self._online:
                    self._look_after()
                    await asyncio.sleep(POLL_S)
                await self._play()
        except TemperdError as error:
            self._say(f"the boards get nothing more to do: {error}")

    async def _play(self) -> None:
        await self._send(GATE.name, epochs=3, depth="head")
        await self._send(WORKSHOP_BOARD.name, epochs=4, window=_later())
        learning = await self._send(GREENHOUSE.name, epochs=12)
        while True:
            await asyncio.sleep(POLL_S)
            self._look_after()
            status, now = self._statuses.get(learning, {}), time.monotonic()
            if is_final(status):
                if now >= self._rested + REST_S:
                    learning = await self._send(GREENHOUSE.name, epochs=12)
                continue
            self._rested = now
            if status.get("step") == "training" and now >= self._heated + HEAT_EVERY_S:
                self._heated = now
                self._heat()

    async def _send(self, board: str, **changes: object) -> str:
        """A fine-tune; its id."""
        job = {"model": self._fleet.model, "data": str(self._fleet.members[board].data.absolute()), **changes}
        spec = spec_table(parse_spec(job))
        request = make_request(board, FINE_TUNE, spec, time.time(), DAY_S if "window" in changes else COMMAND_VALID_S)
        await asyncio.to_thread(record, self._fleet.folder, FINE_TUNE, board, request.id, spec)
        envelope = sign_command(request, self._key)
        await self._link.send(board, FINE_TUNE, request.id, envelope, expires_s=COMMAND_VALID_S)
        return request.id

    def _heat(self) -> None:
        """A heat wave, so that the governor has something to do."""
        state = self._fleet.members[GREENHOUSE.name].folder / "state"
        write_atomic(runtime_folder(state, {}) / "board" / "inject.json", json.dumps(HEAT).encode())

    def _look_after(self) -> None:
        """Say once when a board's daemon has ended.

        Raises:
            NetworkError: it was the last one.
        """
        for name, daemon in list(self._daemons.items()):
            if daemon.poll() is not None:
                del self._daemons[name]
                self._say(f"{name} ended; see {self._fleet.members[name].folder / 'daemon.log'}")
        if not self._daemons:
            raise NetworkError("no board is left")

    def _take(self, topic: str, body: Mapping[str, object] | None, _retained: bool) -> None:  # noqa: FBT001 - a callback
        if body is None:
            return
        match topic.split("/")[3:]:
            case [board, "conn"] if body.get("online") is True:
                self._online.add(board)
            case [_, "cmd", _, command, "sts"]:
                self._statuses[command] = body


def _later() -> str:
    """Two hours of this day or the next that begin in three hours, as a job's window by local time."""
    begins = datetime.now().astimezone() + timedelta(hours=3)
    return f"{begins:%H:%M}-{begins + timedelta(hours=2):%H:%M}"
