"""Lets the events of a day happen to a board, and looks at the daemon meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.agent_archive import write_archive
from agent.build_release import Recipe, build_release, pins_here
from agent.errors import TemperdError
from agent.publish_release import publish_release
from agent.repository import Publisher, utc_now
from service.commands import sign_command
from service.live import read_live
from tests.simulators.fleet import World
from tests.simulators.wheels import own_wheel
from tests.soak.judge import ENDED
from tests.soak.keeper import Keeper
from tests.soak.plan import COMMANDS, Event, Kind
from tests.soak.watch import Look, look

LOOK_S = 2.0
SEND_S = 120.0
VALID_S = 900
UPDATE_WINDOW_S = 30.0
"""Of a trial: by our clock, as the daemon's."""
BALLAST_LEFT = 24 << 10
"""Bytes that a full disk still has: a file of one block, and no more."""


class Driver:
    """See the module.

    Args:
        world: broker, repository, keys.
        keeper: of the daemon.
        speed: seconds of the emulated day in one of ours.
        full_disk: the state lies on a disk of its own that may be filled.
    """

    def __init__(self, world: World, keeper: Keeper, speed: float, *, full_disk: bool) -> None:
        self.world, self.keeper = world, keeper
        self._speed, self._full_disk = speed, full_disk
        self.sent: dict[str, str] = {}
        """Type of each command by its id."""
        self.unsent: list[str] = []
        self.happened: list[tuple[float, str]] = []
        self.looks: list[Look] = []
        self.hot_s, self.hottest_k = 0.0, 0.0
        self._injected: dict[str, object] = {}
        self._began = time.monotonic()
        self._images = str(world.images())
        self._draw, self._releases = random.Random(0), 0

    async def play(self, events: list[Event], seconds: float) -> None:
        """Let everything happen; `seconds` are those of the emulated day."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            running = [tasks.create_task(self._happen(event)) for event in events]
            await asyncio.sleep(seconds / self._speed)
            await asyncio.wait(running) if running else None
            watching.cancel()

    async def settle(self, seconds: float) -> None:
        """Take all troubles away and wait until every command has ended; then scrub once more."""
        self._inject(heat_watts=0.0, unplug=False)
        await self._until(lambda: not self.open(), seconds)
        await self._command("scrub", {})
        await self._until(lambda: not self.open(), seconds)

    def open(self) -> set[str]:
        """Ids of commands that have no end yet."""
        ended = set()
        for heard in list(self.world.tap.heard):
            if heard.topic.endswith("/sts") and heard.payload:
                told = json.loads(heard.payload)
                if told["status"] in ENDED:
                    ended.add(told["id"])
        return set(self.sent) - ended

    # --- looking -----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            process = self.keeper.process
            if process is not None and self.keeper.ready:
                seen = look(time.monotonic() - self._began, process.pid, self.world.state)
                if seen is not None:
                    self.looks.append(seen)
                with contextlib.suppress(TemperdError, OSError, KeyError, TypeError):
                    live = read_live(self.world.folder / "runtime", time.monotonic())
                    self._heat(live)
            await asyncio.sleep(LOOK_S)

    def _heat(self, live: dict[str, Any]) -> None:
        board = live.get("board", live)
        rise = float(board["delta_t_celsius"])
        self.hottest_k = max(self.hottest_k, rise)
        self.hot_s += LOOK_S if rise > 30.0 else 0.0

    # --- what happens ------------------------------------------------------------------------------------------------

    async def _happen(self, event: Event) -> None:
        await asyncio.sleep(max(0.0, event.at_s / self._speed - (time.monotonic() - self._began)))
        doing = self._doing()[event.kind]
        self.happened.append((round(time.monotonic() - self._began, 1), f"{event.kind} {event.value or ''}".strip()))
        await doing(event)

    def _doing(self) -> dict[Kind, Callable[[Event], Coroutine[Any, Any, None]]]:
        commands = dict.fromkeys(COMMANDS, self._send)
        kills = dict.fromkeys((Kind.KILL_DAEMON, Kind.KILL_WORKER, Kind.KILL_BOARD), self._kill)
        return {
            **commands,
            **kills,
            Kind.HEAT: self._heat_wave,
            Kind.SUPPLY: self._supply,
            Kind.BROKER: self._broker,
            Kind.REPOSITORY: self._repository,
            Kind.DISK: self._disk,
        }

    async def _send(self, event: Event) -> None:
        job = self.world.job(self._images, epochs=int(event.value or 1), least_gain=-1.0)
        if event.kind is Kind.JOB:
            await self._command("fine-tune", {**job, "priority": self._draw.randint(-5, 5)})
        elif event.kind is Kind.EVALUATE:
            await self._command("evaluate", {"data": self._images})
        elif event.kind is Kind.UPDATE:
            self._releases += 1
            version = f"99.{self._releases}.0"
            await asyncio.to_thread(publish, self.world, version)
            await self._command("update-agent", {"version": version, "window_s": UPDATE_WINDOW_S})
        else:
            await self._command(str(event.kind), {})

    async def _command(self, kind: str, args: dict[str, object]) -> None:
        """Sign and send; where the broker is away it is tried again until `SEND_S` are over."""
        end = time.monotonic() + SEND_S
        request = self.world.request(kind, args)
        envelope = sign_command(request, self.world.console_key)
        while time.monotonic() < end:
            with contextlib.suppress(TemperdError, TimeoutError, OSError):
                async with self.world.console() as link:
                    await link.wait_connected(10)
                    await link.send(kind, request.id, envelope, expires_s=VALID_S)
                    self.sent[request.id] = kind
                    return
            await asyncio.sleep(1)
        self.unsent.append(kind)

    async def _heat_wave(self, event: Event) -> None:
        self._inject(heat_watts=event.value)
        await asyncio.sleep(event.lasts_s / self._speed)
        self._inject(heat_watts=0.0)

    async def _supply(self, event: Event) -> None:
        self._inject(unplug=True, charge=event.value)
        await asyncio.sleep(event.lasts_s / self._speed)
        self._inject(unplug=False)

    async def _broker(self, event: Event) -> None:
        """A broker that is stopped and started again; it keeps sessions and retained messages."""
        self.world.broker.stop()
        await asyncio.sleep(event.lasts_s / self._speed)
        self.world.broker.start()

    async def _repository(self, event: Event) -> None:
        folder = self.world.folder / "repository"
        away = folder.with_name("repository.away")
        folder.rename(away)
        await asyncio.sleep(event.lasts_s / self._speed)
        away.rename(folder)

    async def _disk(self, event: Event) -> None:
        if not self._full_disk:
            return
        ballast = self.world.state / "ballast"
        free = os.statvfs(self.world.state)
        with contextlib.suppress(OSError):
            ballast.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - BALLAST_LEFT))
        await asyncio.sleep(event.lasts_s / self._speed)
        ballast.unlink(missing_ok=True)

    async def _kill(self, event: Event) -> None:
        if event.kind is Kind.KILL_DAEMON:
            self.keeper.kill(str(event.kind))
        else:
            word = b"agent.worker" if event.kind is Kind.KILL_WORKER else b"agent.board.emulated"
            for pid in self._children(word):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _children(self, word: bytes) -> list[int]:
        parent = self.keeper.process.pid if self.keeper.process else -1
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                above = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if above == parent and word in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def _inject(self, **changes: object) -> None:
        """Merge with what is asked for already; a state of charge is set once."""
        self._injected = {key: value for key, value in {**self._injected, **changes}.items() if value}
        tree = self.world.folder / "runtime" / "board"
        with contextlib.suppress(OSError):
            fresh = tree / ".inject"
            fresh.write_text(json.dumps(self._injected))
            fresh.rename(tree / "inject.json")
        self._injected.pop("charge", None)

    async def _until(self, true: Callable[[], bool], seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not true():  # noqa: ASYNC110 - other processes are waited for: they set no event
                    await asyncio.sleep(1)


def publish(world: World, version: str) -> None:
    """temperd from this tree as another version, in the repository."""
    with tempfile.TemporaryDirectory() as place:
        wheels = (own_wheel(Path(place), version),)
        made = build_release(Recipe(wheels, f"{sys.version_info.major}.{sys.version_info.minor}", pins_here()))
        path = Path(place) / made.name
        with path.open("wb") as stream:
            write_archive(stream, made.contents)
        publisher = Publisher.open(world.folder / "repository", world.folder / "publisher-keys", utc_now)
        publish_release(publisher, path)
