"""The rooms of one daemon, built from its configuration and connected with each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.board.edac import memory_errors
from agent.board.profile import BoardProfile, named_profile, pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from agent.energy import TRAINING
from agent.errors import BoardError
from agent.keys_consoles import TrustedConsole, load_trusted_consoles
from agent.messages import EvaluateOrder, Message, Order, Progress, ScrubOrder, SelfTestOrder, SystemOrder
from agent.slots import checkpoint_path
from policies.trial_standing import Moment
from service.agent_trial import CRITICAL, AgentTrial, TrialShop
from service.agent_update import UpdateShop
from service.alarms_room import Alarms, Sources
from service.backfill import Backfill
from service.capabilities import Capabilities
from service.config import Config
from service.desk import Desk
from service.device_link import Address, Link
from service.footprint import give_back
from service.home_assistant import Announcement
from service.journal import JobRecord, Journal
from service.kernel_clock import believable, boot_id, kernel_synchronised, since_boot_s
from service.launched import Launched
from service.learnt import Learnt
from service.logs import logger
from service.model_commands import ModelShop
from service.outbox import DAY_S, Outbox
from service.policy_file import PolicyFile
from service.policy_watch import PolicyWatch
from service.prometheus_export import Exporter
from service.qualify_command import QualifyShop
from service.qualify_plan import Place
from service.rauc import Rauc, is_there
from service.report import Reports
from service.report import Views as ReportViews
from service.report_log import RECENT
from service.scrub import ScrubShop
from service.self_test import self_test
from service.state_version import state_reader
from service.statuses import Clock, Uplink
from service.steering import Steering
from service.system_shop import SystemShop
from service.system_trial import Sight
from service.telemetry import Telemetry
from service.views import Views, training_metrics
from service.workshop import Workshop

BIRTH_EVERY_S = 60.0  # a sensor that comes and goes must not be told each second: telemetry has it too

log = logger("daemon")


class Wiring:
    """See the module. What the rooms tell each other, the callbacks below carry; `close` puts back and closes.

    Args:
        config: see `service.config`.
        roots: where the board is read.
        now: wall clock, seconds since 1970.
        mono: monotonic clock, seconds.

    Attributes:
        clock: as the rooms see it: synchronised if it is after this release and not before what the journal last wrote.

    Raises:
        ConfigError: a file or name in the configuration cannot be used.
        BoardError: the disk fails.
    """

    def __init__(self, config: Config, roots: BoardRoots, now: Callable[[], float], mono: Callable[[], float]) -> None:
        self.config, self._now, self._mono = config, now, mono
        self.state = Path(config.device.state_dir)
        self.boot_id = boot_id()
        model = read_model(roots)
        profile = self._profile(model)
        self.board_name = profile.name
        wanted = config.policy
        self.policies = PolicyFile(self.state, wanted.file, profile.policy_name, by_command=wanted.by_command)
        self.journal = self._open_journal()
        floor = max([0.0, *(job.updated for job in self.journal.jobs(1))])
        self.clock = Clock(now, mono, lambda: believable(now(), floor, kernel_synchronised))
        board = SysfsBoard(roots, profile, self.state / "undo.json", config.board.powerd)
        self.steering = Steering(board, self.policies.policy, time.thread_time)
        self.steering.restore()
        self.learnt = Learnt(self.state, model, profile.name, self.steering)
        self.learnt.load()
        self._views = Views(config, model, profile.name, self.steering, self.clock)
        self._state = state_reader(self.journal, self.state / "store", self.policies)
        self.link = self._make_link()
        self._outbox = self._make_outbox()
        self.telemetry = Telemetry(config.telemetry, self.link, self._outbox, self.boot_id, self.clock)
        self.backfill = Backfill(self._outbox, self.link, self.boot_id, config.telemetry, self.clock)
        self.reports = Reports(
            config, self.journal, self.clock, RECENT, ReportViews(self.birth, self.live, self.link_figures)
        )
        self.trial = self._make_trial()
        self.desk = Desk(
            *(self.journal, self.steering, self.policies, self.uplink(), self._trusted, config.device.name),
            *(self.clock, Workshop(self._order, config.worker.nice, self._watch, self._ended)),
            scrub_shop=ScrubShop(self._scrub_order, lambda: memory_errors(roots), self._scrubbed),
            qualify_shop=QualifyShop(Place(self.state, model, profile.name, profile.emulated), os.cpu_count() or 1),
            model_shop=ModelShop(self.state, self._threads(), config.worker.nice, self._evaluate_order, self.announce),
            update_shop=self._update_shop(),
            system_shop=self._system_shop(),
            sight=self._sight(),
            state=self._state,
            policy_by_command=wanted.by_command,
            report=self.reports.marks,
            trial=self.trial,
        )
        self._greets = self._birth_due = False
        self._born, self._born_s = ("", self.steering.reading.health), self._mono() - BIRTH_EVERY_S
        self.alarms = self._make_alarms()
        self.home_assistant = Announcement(
            config.home_assistant, Address(config.device.tenant, config.device.name), model, self.journal, self.link
        )
        self.exporter = Exporter(config.prometheus, self.live)
        self.policy_watch = PolicyWatch(self.policies, profile.points, self.desk.policy_changed, self.announce)

    def close(self) -> None:
        """Put back what was changed on the board, keep what was learnt, close the journal."""
        self.exporter.close()
        self.steering.restore()
        self.learnt.save()
        self._outbox.close(self._mono())
        self.journal.close()

    def birth(self) -> dict[str, object]:
        """The birth message of this moment."""
        return self._views.birth(self.policies.shown()) | {"state_version": self._state().state_version}

    def live(self) -> dict[str, object]:
        """The live view of this moment."""
        view = self._views.live(self.desk, self.policies.shown(), connected=self.link.connected)
        link = self.link.figures() | self.link.shown()
        return {**view, "alarms": self.alarms.shown(), "telemetry": self.telemetry.shown(), "link": link}

    def link_figures(self) -> dict[str, object]:
        """The `link` group of the telemetry."""
        return self.link.figures() | self.telemetry.figures()

    def greet(self) -> None:
        """Tell the fleet soon how the board is: after a connect nobody waits for the next reading that is due."""
        self._greets = True
        self.publish_store()

    def publish_store(self) -> None:
        """Tell the fleet about the store, if a scrub has looked at it."""
        if values := self.desk.scrubs.metrics():
            self.telemetry.publish("store", values, event=True)

    def tell(self, *, working: bool) -> None:
        """Tell the fleet what is due this second; look after what waits on the disk."""
        self._tell_birth()
        telemetry, runner = self.telemetry, self.desk.runner
        greets = self._greets and self.link.connected and telemetry.drains
        if telemetry.due("board", working=working) or greets:
            self._greets = self._greets and not greets
            telemetry.publish("board", self.steering.board_metrics())
        if runner.training and telemetry.due("energy", working=True):
            telemetry.publish("energy", runner.energy_metrics())
        # Not amid all that is said right after a connect: it would come as backfill, and live a minute later.
        if self.link.connected and telemetry.drains and telemetry.due("link", working=False):
            telemetry.publish("link", self.link_figures())
        self._outbox.tick(self._mono())
        self.backfill.tick()

    # --- building ----------------------------------------------------------------------------------------------------

    def _profile(self, model: str) -> BoardProfile:
        wanted = self.config.board.profile
        profile = pick_profile(model) if wanted == "auto" else named_profile(wanted)
        if profile.name == "generic":
            log.warning("unknown board, the safe generic profile serves", model=model)
        return profile

    def _open_journal(self) -> Journal:
        opened = Journal.open(self.state / "journal.sqlite", self._now())
        if opened.quarantined:
            log.error("journal was broken: put aside, a new one made", aside=str(opened.quarantined))
        return opened.journal

    def _make_link(self) -> Link:
        device = self.config.device
        return Link(
            self.config.mqtt,
            Address(device.tenant, device.name),
            session=self.journal.next_session(),
            boot_id=self.boot_id,
            capabilities=Capabilities(),
            birth=self.birth(),
            now=self._now,
        )

    def _make_trial(self) -> AgentTrial:
        shop = TrialShop(
            *(self.state, Launched.of(), self._threads(), self.config.worker.nice),
            moment=lambda: Moment(self.boot_id, since_boot_s()),
            connected=lambda: self.link.connected,
            busy=self._restart_spoils,
        )
        return AgentTrial(shop, self.steering, self.clock)

    def _restart_spoils(self) -> bool:
        """Whether something is at work that a restart of temperd would spoil."""
        return self.desk.qualifications.running or self.desk.system.under_way

    def _update_shop(self) -> UpdateShop:
        repository = self.config.repository
        return UpdateShop(
            *(self.state, Launched.of(), self.config.worker.nice, (repository.url, repository.root)),
            metered=repository.metered == "wait",
            busy=self._restart_spoils,
            told=self.announce,
        )

    def _system_shop(self) -> SystemShop:
        return SystemShop(
            *(self.state, self.boot_id, self.config.worker.nice, self._system_order, Rauc()),
            baseline=self.trial.baseline,
            is_there=is_there,
            busy=lambda: self.trial.on_trial or self.trial.leaves,
        )

    def _sight(self) -> Sight:
        return Sight(
            reading=lambda: self.steering.reading,
            training=lambda: self.desk.runner.phase == TRAINING,
            working=lambda: self.desk.at_work,
            connected=lambda: self.link.connected,
            critical=lambda: CRITICAL in (self.steering.decision.rule, *self.steering.decision.notes),
            gate=lambda: self_test(SelfTestOrder(str(self.state), self._threads()), self.config.worker.nice),
        )

    def _make_alarms(self) -> Alarms:
        sources = Sources(
            self.state,
            self.steering,
            store=self.desk.scrubs.metrics,
            takeovers=lambda: self.link.takeovers,
            policy_complaint=lambda: self.policies.complaint,
            outbox_fault=lambda: self._outbox.fault,
            unusable=lambda: self.desk.models.unusable,
            rolled_back=self.trial.rolled_back,
            safe_mode=self.trial.in_safe_mode,
            told=lambda: self.telemetry.publish("board", self.steering.board_metrics(), event=True),
        )
        return Alarms(self.journal, self.link, self.clock, sources)

    def _make_outbox(self) -> Outbox:
        wanted = self.config.telemetry
        return Outbox(self.state / "outbox", wanted.outbox_mib << 20, wanted.outbox_days * DAY_S, self._mono())

    # --- what the rooms ask ------------------------------------------------------------------------------------------

    def _trusted(self) -> Mapping[str, TrustedConsole]:
        """Consoles obeyed, read at each command: a key that was removed counts no more."""
        return load_trusted_consoles(Path(self.config.commands.trusted_consoles))

    def _order(self, record: JobRecord) -> Order:
        repository = self.config.repository
        return Order(
            job_id=record.id,
            spec=record.spec,
            state_dir=str(self.state),
            repository_url=repository.url,
            repository_root=repository.root,
            metered=repository.metered == "wait",
            policy=str(self.policies.copy),
            threads=self._threads(),
            board=self.board_name,
            attempt=record.standing.attempt,
            resume_plan=record.plan,
            last_end=record.standing.reason_code,
            boot_id=self.boot_id,
            clock_share=self.steering.cap_share,
        )

    def _system_order(
        self,
        name: str,
        version: str,
        compatible: str,
        installed: str,
        allow_downgrade: bool,  # noqa: FBT001 - of a command
    ) -> SystemOrder:
        repository = self.config.repository
        return SystemOrder(
            *(str(self.state), repository.url, repository.root, name, version, compatible, installed, allow_downgrade),
            metered=repository.metered == "wait",
        )

    def _evaluate_order(self, spec: Mapping[str, object]) -> EvaluateOrder:
        repository = self.config.repository
        return EvaluateOrder(
            *(str(self.state), repository.url, repository.root, dict(spec), self._threads(), self.board_name),
            metered=repository.metered == "wait",
        )

    def _threads(self) -> int:
        """Of a worker."""
        return self.config.worker.threads or os.cpu_count() or 1

    def _scrub_order(self) -> ScrubOrder:
        repository = self.config.repository
        return ScrubOrder(str(self.state), repository.url, repository.root, metered=repository.metered == "wait")

    # --- what the rooms tell -----------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell the fleet what this board is; what the disk does not allow now, `tell` does."""
        self._birth_due = True
        self._tell_birth()

    def _tell_birth(self) -> None:
        clock, health = self.clock.word(), self.steering.reading.health
        ill = health != self._born[1] and self._mono() - self._born_s >= BIRTH_EVERY_S
        if not self.link.connected or not (self._birth_due or clock != self._born[0] or ill):
            return
        with contextlib.suppress(BoardError):  # on a full disk it is told later
            self.link.announce(self.birth())
            self._born, self._born_s, self._birth_due = (clock, health), self._mono(), False

    def _scrubbed(self) -> None:
        """A scrub has ended; it may have left another active model."""
        self.announce()
        self.publish_store()

    def _ended(self, job_id: str) -> None:
        """An ended job needs its checkpoint no more, and may have left another active model."""
        self.announce()
        self.alarms.jobs_changed()
        with contextlib.suppress(OSError):
            checkpoint_path(self.state / "store", job_id).unlink(missing_ok=True)
        give_back()

    def uplink(self) -> Uplink:
        """Where statuses go."""
        return _Statuses(self.link)

    def _watch(self, message: Message, _record: JobRecord) -> None:
        if isinstance(message, Progress) and (message.event or self.telemetry.due("training", working=True)):
            self.telemetry.publish("training", training_metrics(message), event=bool(message.event))


class _Statuses:
    """The link as an `Uplink`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        if not self._link.connected:
            return None
        return self._link.publish_status(command_type, command_id, status, retained=retained)
