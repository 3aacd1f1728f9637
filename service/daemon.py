"""The daemon: owns the clock and the task group, and wires the rooms together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

from agent import __version__
from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots
from agent.durable import make_folder
from agent.errors import BoardError
from agent.messages import Failed
from agent.spec import FineTuneSpec
from policies.trial import TrialError
from service.commands import new_id
from service.config import Config
from service.desk import Desk
from service.device_link import Connected, Disconnected, Incoming, Link, LinkEvent, Wiped
from service.emulation import EmulatedBoardProcess
from service.footprint import give_back
from service.journal import JobRecord
from service.live import remove_live, runtime_folder, write_live
from service.log_level import LogLevel
from service.logs import logger
from service.state_lock import state_lock
from service.systemd import Notifier
from service.wiring import Wiring

TICK_S = 1.0

log = logger("daemon")

T = TypeVar("T")
Run: TypeAlias = Callable[[Desk], Awaitable[None]]


class Daemon:
    """One board's supervisor.

    Args:
        config: see `service.config`.
        wire: builds the rooms.
    """

    def __init__(self, config: Config, wire: type[Wiring] = Wiring) -> None:
        self._config, self._wire = config, wire
        self._state = Path(config.device.state_dir)
        self._folder = runtime_folder(self._state)
        self._notifier = Notifier()
        self._log_level = LogLevel(self._folder, config.log.level, config.log.format)
        self._stopping, self._told = asyncio.Event(), False

    async def serve(self) -> bool:
        """Run until SIGTERM or SIGINT, or until another release of temperd is to run.

        Returns:
            Whether the launcher is to decide anew what runs.

        Raises:
            ConfigError: a file or name in the configuration cannot be used.
            BoardError: another daemon uses the state folder, or the disk fails.
        """
        await self._with_desk(self._serve)
        return self._parts.trial.leaves and not self._told

    async def one_job(self, spec: FineTuneSpec) -> JobRecord:
        """Run one job without a broker and return its record."""

        async def act(desk: Desk) -> JobRecord:
            await desk.scrub_first()
            job_id = new_id(int(self._now() * 1000), os.urandom)
            return await desk.run(desk.accept(job_id, "local", spec))

        return await self._once(act)

    async def one_scrub(self) -> dict[str, object]:
        """Scrub once without a broker and return what docs/scrub.md calls the result.

        Raises:
            BoardError: the scrub could not be finished.
        """

        async def act(desk: Desk) -> dict[str, object]:
            last = await desk.scrubs.run(awaited=True)
            if isinstance(last, Failed):
                raise BoardError(last.message, reason=last.code)
            return desk.scrubs.last

        return await self._once(act)

    async def one_rollback(self, to: str) -> dict[str, object]:
        """Go back to another model without a broker and return what docs/mqtt.md calls the result.

        Args:
            to: its hash, `base`, or empty for the one before.

        Raises:
            CommandError: there is nothing to go back to.
            BoardError: it failed, and the model that was active still is.
        """
        return await self._once(lambda desk: desk.models.go_back(to))

    async def _once(self, act: Callable[[Desk], Awaitable[T]]) -> T:
        """What `act` gives, under a governor and until it is told to stop."""
        results: list[T] = []

        async def run(desk: Desk) -> None:
            async with asyncio.TaskGroup() as tasks:
                governor = tasks.create_task(self._govern(desk, None))
                stopper = tasks.create_task(self._stop_when_told(desk))
                try:
                    results.append(await act(desk))
                finally:
                    governor.cancel()
                    stopper.cancel()

        await self._with_desk(run)
        return results[0]

    # --- setting up --------------------------------------------------------------------------------------------------

    async def _with_desk(self, run: Run) -> None:
        make_folder(self._state)
        make_folder(self._folder)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell_to_stop)
        with state_lock(self._state, "Send the job to it with `temperd fleet send`, or stop it first"):
            if (self._state / "restoring").exists():
                self._finish_restore()
            emulated = await self._start_board()
            keeper = asyncio.ensure_future(emulated.keep()) if emulated else None
            try:
                await self._wired(run, emulated)
            finally:
                remove_live(self._folder)
                if emulated and keeper:
                    keeper.cancel()
                    await emulated.stop()

    def _tell_to_stop(self) -> None:
        self._told = True
        self._stopping.set()

    def _finish_restore(self) -> None:
        from service.restore_finish import finish  # noqa: PLC0415 - once in the life of a board

        log.warning("a restore was cut short", done=finish(self._state))

    async def _start_board(self) -> EmulatedBoardProcess | None:
        board = self._config.board
        if not board.emulated:
            return None
        named_profile(board.emulated)
        return await EmulatedBoardProcess.start(self._folder / "board", board.emulated, board.emulated_speed)

    async def _wired(self, run: Run, emulated: EmulatedBoardProcess | None) -> None:
        board = self._config.board
        roots = emulated.roots if emulated else BoardRoots(Path(board.sys_root), Path(board.proc_root))
        self._parts = self._wire(self._config, roots, self._now, self._mono)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._parts.policy_watch.ask)
        try:
            await run(self._parts.desk)
        finally:
            self._parts.close()

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _serve(self, desk: Desk) -> None:
        link = self._parts.link
        link.start()
        self._parts.telemetry.begin()
        desk.recover()
        give_back()
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._govern(desk, link)),
                    tasks.create_task(self._listen(desk, link)),
                    tasks.create_task(self._parts.backfill.run()),
                    tasks.create_task(desk.work()),
                    tasks.create_task(desk.updates.watch()),
                    tasks.create_task(desk.system.watch()),
                    tasks.create_task(self._parts.exporter.serve()),
                ]
                self._notifier.ready()
                self._parts.trial.begin()
                log.info("ready", device=self._config.device.name, board=self._parts.board_name, version=__version__)
                await self._stop_when_told(desk)
                for task in running:
                    task.cancel()
        finally:
            await link.stop()
            await asyncio.sleep(0)  # telemetry that was not confirmed goes into the outbox
        with contextlib.suppress(BoardError, TrialError):  # then the next start is counted, and the trial begins later
            self._parts.trial.close(told=self._told)

    async def _stop_when_told(self, desk: Desk) -> None:
        """Wait for SIGTERM or SIGINT, then let the worker write its checkpoint and leave."""
        await self._stopping.wait()
        if self._told:  # else the launcher follows in this very process: for systemd the service goes on
            self._notifier.stopping()
        log.info("stopping")
        self._parts.trial.stop()
        await desk.updates.stop()
        await desk.system.stop()
        await desk.scrubs.stop()
        await desk.models.stop()
        await desk.runner.stop()

    async def _listen(self, desk: Desk, link: Link) -> None:
        while True:
            event = await link.receive()
            try:
                self._react(event, desk)
            except BoardError as error:  # what is not journaled stays with the broker, or is published later
                log.error("the journal cannot be written", why=str(error))  # noqa: TRY400 - said whole

    def _react(self, event: LinkEvent, desk: Desk) -> None:
        match event:
            case Incoming() as command:
                desk.commands.take(command)
            case Connected(session_present=present):
                self._parts.announce()
                self._parts.greet()
                self._parts.alarms.connected()
                self._parts.home_assistant.connected()
                if present:
                    desk.broker_was_away()
                else:
                    desk.broker_lost()
            case Wiped():
                self._parts.alarms.connected()
                self._parts.home_assistant.connected()
                desk.broker_lost()
            case Disconnected():
                pass

    async def _govern(self, desk: Desk, link: Link | None) -> None:
        """Once a second: read, decide, act, tell. The watchdog is fed here, by progress and not by a timer."""
        parts = self._parts
        steering, runner = parts.steering, desk.runner
        while True:
            parts.policy_watch.tick(steering.reading.operating_points)
            working = runner.current is not None or desk.scrubs.running or desk.qualifications.running
            working = working or desk.models.running
            steering.tick(self._mono(), working=working, phase=runner.phase, outlook=runner.outlook)
            self._try(desk)
            parts.learnt.tick(self._mono(), working=runner.current is not None)
            runner.tick()
            desk.scrubs.steer()
            desk.models.steer()
            parts.alarms.tick()
            desk.wake()
            if link and link.connected:
                with contextlib.suppress(BoardError):  # a disk that refuses now is asked again in a second
                    desk.catch_up()
            parts.tell(working=working)
            parts.home_assistant.tick()
            parts.exporter.tick(self._mono())
            self._show()
            self._notifier.watchdog()
            await asyncio.sleep(TICK_S)

    def _try(self, desk: Desk) -> None:
        """What the trial of a release says; it may end this daemon."""
        trial = self._parts.trial
        trial.tick(working=desk.at_work, phase=desk.runner.phase)
        if trial.leaves:
            self._stopping.set()

    def _show(self) -> None:
        view = self._parts.live()
        with contextlib.suppress(OSError):  # a full disk must not stop the governor
            write_live(self._folder, view)
        self._log_level.tick(self._mono(), view)

    # --- the clock ---------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.time()

    def _mono(self) -> float:
        return time.monotonic()
