"""The daemon: owns the clock and the task group, and wires the rooms together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from agent import __version__
from agent.board.edac import memory_errors
from agent.board.profile import named_profile, pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from agent.durable import make_folder
from agent.errors import BoardError
from agent.keys_consoles import load_trusted_consoles
from agent.messages import Failed, Message, Order, Progress, ScrubOrder
from agent.slots import checkpoint_path
from agent.spec import FineTuneSpec
from service.commands import SUPPORTED, new_id
from service.config import Config
from service.desk import Desk
from service.device_link import Address, Connected, Disconnected, Incoming, Link, LinkEvent
from service.emulation import EmulatedBoardProcess
from service.footprint import give_back
from service.journal import JobRecord, Journal
from service.learnt import Learnt
from service.live import remove_live, runtime_folder, write_live
from service.logs import logger
from service.policy_file import PolicyFile
from service.policy_watch import PolicyWatch
from service.qualify_command import QualifyShop
from service.qualify_plan import Place
from service.runner import Workshop
from service.scrub import ScrubShop
from service.state_lock import state_lock
from service.statuses import Clock
from service.steering import Steering
from service.systemd import Notifier
from service.views import Views, training_metrics

TICK_S = 1.0
IDLE_METRICS_EVERY = 60  # ticks: an idle board says how it is once a minute
EARLIEST_TIME = 1_790_000_000  # 2026-09-21, before the first release: an earlier clock was never set

log = logger("daemon")

T = TypeVar("T")
Run: TypeAlias = Callable[[Desk], Awaitable[None]]


class Daemon:
    """One board's supervisor.

    Args:
        config: see `service.config`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._state = Path(config.device.state_dir)
        self._notifier = Notifier()
        self._stopping = asyncio.Event()
        self._floor = float(EARLIEST_TIME)

    async def serve(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            ConfigError: a file or name in the configuration cannot be used.
            BoardError: another daemon uses the state folder, or the disk fails.
        """
        await self._with_desk(self._serve)

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
        make_folder(runtime_folder(self._state))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        with state_lock(self._state, "Send the job to it with `temperd fleet send`, or stop it first"):
            emulated = await self._start_board()
            keeper = asyncio.ensure_future(emulated.keep()) if emulated else None
            try:
                await self._wired(run, emulated)
            finally:
                remove_live(runtime_folder(self._state))
                if emulated and keeper:
                    keeper.cancel()
                    await emulated.stop()

    async def _start_board(self) -> EmulatedBoardProcess | None:
        board = self._config.board
        if not board.emulated:
            return None
        named_profile(board.emulated)
        return await EmulatedBoardProcess.start(
            runtime_folder(self._state) / "board", board.emulated, board.emulated_speed
        )

    async def _wired(self, run: Run, emulated: EmulatedBoardProcess | None) -> None:
        board_config = self._config.board
        roots = emulated.roots if emulated else BoardRoots(Path(board_config.sys_root), Path(board_config.proc_root))
        model = read_model(roots)
        profile = pick_profile(model) if board_config.profile == "auto" else named_profile(board_config.profile)
        if profile.name == "generic":
            log.warning("unknown board, the safe generic profile serves", model=model)
        wanted = self._config.policy
        policies = self._policies = PolicyFile(
            self._state, wanted.file, profile.policy_name, by_command=wanted.by_command
        )
        opened = Journal.open(self._state / "journal.sqlite", self._now())
        if opened.quarantined:
            log.error("journal was broken: put aside, a new one made", aside=str(opened.quarantined))
        self._journal = opened.journal
        self._floor = max([self._floor, *(job.updated for job in self._journal.jobs(1))])
        self._board_name = profile.name
        board = SysfsBoard(roots, profile, self._state / "undo.json", board_config.powerd)
        steering = self._steering = Steering(board, policies.policy, time.thread_time)
        steering.restore()
        self._learnt = Learnt(self._state, model, profile.name, steering)
        self._learnt.load()
        clock = Clock(self._now, self._mono, self._clock_synchronised)
        self._views = Views(self._config, model, profile.name, steering, clock)
        self._link = self._make_link()
        device, uplink = self._config.device.name, _Statuses(self._link)
        shop = Workshop(self._order, self._config.worker.nice, self._watch, self._ended)
        scrub_shop = ScrubShop(self._scrub_order, lambda: memory_errors(roots), self._scrubbed)
        desk = self._desk = Desk(
            *(self._journal, steering, policies, uplink, self._trusted, device, clock, shop),
            scrub_shop=scrub_shop,
            qualify_shop=QualifyShop(Place(self._state, model, profile.name, profile.emulated), os.cpu_count() or 1),
            policy_by_command=wanted.by_command,
        )
        self._policy_watch = PolicyWatch(policies, profile.points, desk.policy_changed, self._announce)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._policy_watch.ask)
        try:
            await run(desk)
        finally:
            steering.restore()
            self._learnt.save()
            self._journal.close()

    def _trusted(self) -> Mapping[str, bytes]:
        """Consoles obeyed, read at each command: a key that was removed counts no more."""
        return load_trusted_consoles(Path(self._config.commands.trusted_consoles))

    def _make_link(self) -> Link:
        device = self._config.device
        return Link(
            self._config.mqtt,
            Address(device.tenant, device.name),
            session=self._journal.next_session(),
            boot_id=_boot_id(),
            capabilities={kind: {"type": kind, "schema": f"temperd-{kind}-1"} for kind in SUPPORTED},
            birth=self._birth(),
            now=self._now,
            monotonic=self._mono,
        )

    def _birth(self) -> dict[str, object]:
        return self._views.birth(self._policies.shown())

    def _order(self, record: JobRecord) -> Order:
        threads = self._config.worker.threads or os.cpu_count() or 1
        return Order(
            job_id=record.id,
            spec=record.spec,
            state_dir=str(self._state),
            repository_url=self._config.repository.url,
            repository_root=self._config.repository.root,
            metered=self._config.repository.metered == "wait",
            policy=str(self._policies.copy),
            threads=threads,
            board=self._board_name,
            attempt=record.standing.attempt,
            resume_plan=record.plan,
            last_end=record.standing.reason_code,
            boot_id=_boot_id(),
            clock_share=self._steering.cap_share,
        )

    def _scrub_order(self) -> ScrubOrder:
        repository = self._config.repository
        return ScrubOrder(str(self._state), repository.url, repository.root, metered=repository.metered == "wait")

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def _serve(self, desk: Desk) -> None:
        link = self._link
        link.start()
        desk.recover()
        give_back()
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(self._govern(desk, link)),
                    tasks.create_task(self._listen(desk, link)),
                    tasks.create_task(desk.work()),
                ]
                self._notifier.ready()
                log.info("ready", device=self._config.device.name, board=self._board_name, version=__version__)
                await self._stop_when_told(desk)
                for task in running:
                    task.cancel()
        finally:
            await link.stop()

    async def _stop_when_told(self, desk: Desk) -> None:
        """Wait for SIGTERM or SIGINT, then let the worker write its checkpoint and leave."""
        await self._stopping.wait()
        self._notifier.stopping()
        log.info("stopping")
        await desk.scrubs.stop()
        await desk.runner.stop()

    async def _listen(self, desk: Desk, link: Link) -> None:
        while True:
            event = await link.receive()
            try:
                self._react(event, desk, link)
            except BoardError as error:  # what is not journaled stays with the broker, or is published later
                log.error("the journal cannot be written", why=str(error))  # noqa: TRY400 - said whole

    def _react(self, event: LinkEvent, desk: Desk, link: Link) -> None:
        match event:
            case Incoming() as command:
                desk.take(command)
            case Connected(session_present=present):
                link.announce(self._birth())
                self._publish_store(desk)
                if not present:
                    self._journal.forget_published()
            case Disconnected():
                pass

    async def _govern(self, desk: Desk, link: Link | None) -> None:
        """Once a second: read, decide, act, tell. The watchdog is fed here, by progress and not by a timer."""
        ticks = 0
        while True:
            runner = desk.runner
            self._policy_watch.tick(self._steering.reading.operating_points)
            working = runner.current is not None or desk.scrubs.running or desk.qualifications.running
            self._steering.tick(self._mono(), working=working, phase=runner.phase, outlook=runner.outlook)
            self._learnt.tick(self._mono(), working=runner.current is not None)
            runner.tick()
            desk.scrubs.steer()
            desk.wake()
            if link and link.connected:
                with contextlib.suppress(BoardError):  # a disk that refuses now is asked again in a second
                    desk.publish_pending()
            if link and (working or ticks % IDLE_METRICS_EVERY == 0):
                link.publish_metrics("board", self._steering.board_metrics())
            if link and runner.training:
                link.publish_metrics("energy", runner.energy_metrics())
            self._show(desk, link)
            self._notifier.watchdog()
            ticks += 1
            await asyncio.sleep(TICK_S)

    def _show(self, desk: Desk, link: Link | None) -> None:
        view = self._views.live(desk, self._policies.shown(), connected=bool(link and link.connected))
        with contextlib.suppress(OSError):  # a full disk must not stop the governor
            write_live(runtime_folder(self._state), view)

    def _announce(self) -> None:
        if self._link.connected:
            self._link.announce(self._birth())

    def _scrubbed(self) -> None:
        """A scrub has ended; it may have left another active model."""
        self._announce()
        self._publish_store(self._desk)

    def _publish_store(self, desk: Desk) -> None:
        if values := desk.scrubs.metrics():
            self._link.publish_metrics("store", values)

    def _ended(self, job_id: str) -> None:
        """An ended job needs its checkpoint no more, and may have left another active model."""
        self._announce()
        with contextlib.suppress(OSError):
            checkpoint_path(self._state / "store", job_id).unlink(missing_ok=True)
        give_back()

    def _watch(self, message: Message, _record: JobRecord) -> None:
        if isinstance(message, Progress):
            self._link.publish_metrics("training", training_metrics(message))

    # --- the clock ---------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return time.time()

    def _mono(self) -> float:
        return time.monotonic()

    def _clock_synchronised(self) -> bool:
        """Whether the wall clock can be right: after this release, and not before what the journal last wrote."""
        return self._now() >= self._floor


class _Statuses:
    """The link as an `Uplink`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object]
    ) -> asyncio.Future[bool] | None:
        return self._link.publish_status(command_type, command_id, status) if self._link.connected else None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
