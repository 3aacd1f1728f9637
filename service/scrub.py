"""Scrubs as the daemon sees them: when one is due, the process that carries it out, who is told.

The desk runs at most one job or one scrub at a time, so the store has one writer. A scrub may end in any way, also with
the daemon: every step on the disk is whole, and the next one goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping

from agent.board.edac import MemoryErrors
from agent.errors import CommandError, TemperdError
from agent.messages import Failed, Message, Scrubbed, ScrubOrder, Steer
from policies.policy import Policy
from policies.reading import Action
from policies.scrub import ScrubClock, allowed, due, due_before_job, duty
from policies.strict import build_known
from service.asked import RUNNING, Asked
from service.asked_told import Teller
from service.commands import SCRUB, Command
from service.journal import Journal
from service.kept import recall_table
from service.logs import logger
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.worker_process import STOP_GRACE_S, StartWorker, WorkerProcess

RETRY_S = 600.0  # after a scrub that could not be finished
MAX_ASKED = 16  # commands that wait for one scrub, and ends that are remembered; a fleet has a few consoles
NICE = 19
LAST, ASKED = "scrub", "scrub-asked"  # names in the journal's memory

log = logger("scrub")


@dataclasses.dataclass(frozen=True, slots=True)
class ScrubShop:
    """What scrubs are made of.

    Attributes:
        make_order: the order of a scrub worker.
        memory_errors: reads the board's EDAC counters.
        told: called after each scrub.
        start: starts a worker.
    """

    make_order: Callable[[], ScrubOrder]
    memory_errors: Callable[[], MemoryErrors | None]
    told: Callable[[], None]
    start: StartWorker = WorkerProcess.start


class Scrubs:
    """At most one scrub at a time.

    Args:
        journal: remembers the last scrub, and the latest commands.
        statuses: publishes.
        steering: the governor's present decision.
        policy: how often and how gently.
        clock: see `Clock`.
        shop: see `ScrubShop`.
    """

    def __init__(
        self, journal: Journal, statuses: Statuses, steering: Steering, policy: Policy, clock: Clock, shop: ScrubShop
    ) -> None:
        self._journal, self._steering = journal, steering
        self._policy, self._clock, self._shop = policy.scrub, clock, shop
        self._last: dict[str, object] = recall_table(journal, LAST)
        self._asked = _recall(journal)
        self._teller = Teller(statuses)
        self._since, self._tried = clock.mono(), False
        self._retry: float | None = None
        self._after_job = self._hurried = self._stopping = False
        self._worker: WorkerProcess | None = None
        self._sent: Steer | None = None

    def set_policy(self, policy: Policy) -> None:
        """How often and how gently from now on."""
        self._policy = policy.scrub

    # --- when --------------------------------------------------------------------------------------------------------

    @property
    def last(self) -> dict[str, object]:
        """The result of the last scrub that was finished; empty before the first."""
        return self._last

    def sentences(self) -> tuple[str, ...]:
        """What the last scrub found damaged, for people."""
        found = _list(self._last.get("findings"))
        return tuple(f"{item['path']} was damaged: {item['action']}, {item['told']}" for item in found)

    @property
    def running(self) -> bool:
        """Whether a scrub is at work."""
        return self._worker is not None

    def due(self) -> bool:
        """Whether a scrub should start now that no job waits: asked for, the interval over, or files are new."""
        decision = self._steering.decision
        if self._waiting():
            return decision.action < Action.PAUSE
        again = self._retry is not None and self._clock.mono() >= self._retry
        return allowed(decision) and (self._after_job or again or due(self._policy, self._scrub_clock()))

    def due_before_job(self) -> bool:
        """Whether the next job should wait for a scrub."""
        return due_before_job(self._scrub_clock())

    def job_ended(self) -> None:
        """A job may have left files that have no parity yet."""
        self._after_job = True

    def hurry(self) -> None:
        """Somebody waits for the scrub that runs: no rests beyond the governor's."""
        self._hurried = True

    def _scrub_clock(self) -> ScrubClock:
        ended, elapsed = self._last.get("ts"), None
        if isinstance(ended, int | float) and self._clock.synchronised():
            elapsed = self._clock.now() - ended
        return ScrubClock(self._clock.mono() - self._since, self._tried, elapsed)

    def _waiting(self) -> list[str]:
        return [name for name, asked in self._asked.items() if not asked.ended]

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command to scrub: journaled first, answered when the scrub that follows has ended.

        Raises:
            CommandError: `busy`; nothing changed.
        """
        if len(self._waiting()) >= MAX_ASKED:
            raise CommandError(f"{MAX_ASKED} commands wait for a scrub already", reason="busy")
        self._keep(self._asked | {command.id: Asked(command.digest)}, [command.id])
        self._publish(command.id)
        self.hurry()

    def repeat(self, command_id: str) -> bool:
        """Publish the status of a command that is known here once more; false where it is not."""
        if command_id not in self._asked:
            return False
        self._publish(command_id)
        return True

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._teller.tell_new({name: (SCRUB, asked) for name, asked in self._asked.items()})

    def broker_lost(self) -> None:
        """The broker lost what it kept: open commands are told once more."""
        self._teller.broker_lost()

    def _publish(self, command_id: str) -> None:
        self._teller.tell(SCRUB, command_id, self._asked[command_id])

    def _keep(self, asked: dict[str, Asked], changed: list[str]) -> None:
        """Remember all but the oldest ends, and in the same commit what the ledger has of those that changed."""
        ended = [name for name, one in asked.items() if one.ended]
        asked = {name: one for name, one in asked.items() if name not in ended[:-MAX_ASKED]}
        tables = {name: dataclasses.asdict(one) for name, one in asked.items()}
        entries = [(name, asked[name].digest, asked[name].outcome) for name in changed]
        self._journal.record_all(entries, {ASKED: json.dumps(tables, allow_nan=False)})
        self._asked = asked

    def _change(self, names: list[str], after: Asked) -> None:
        """Give commands the standing of `after` at once, one version up, and tell."""
        if not names:
            return
        before = self._asked
        moved = {
            name: dataclasses.replace(after, digest=before[name].digest, version=before[name].version + 1)
            for name in names
        }
        self._keep(before | moved, names)
        for name in names:
            self._publish(name)

    # --- a scrub -----------------------------------------------------------------------------------------------------

    async def run(self, *, awaited: bool) -> Scrubbed | Failed:
        """Scrub once; whatever happens is told, logged and counted.

        Args:
            awaited: somebody waits, a job or a person.

        Raises:
            BoardError: the journal cannot be written.
        """
        names = self._waiting()
        self._hurried = awaited or bool(names)
        self._change(names, Asked("", RUNNING))
        began = self._clock.mono()
        log.info("scrub begins", awaited=self._hurried)
        last: Message | None = None
        try:
            self._worker = await self._shop.start(
                self._shop.make_order(), NICE, lambda line: log.info("scrub worker", line=line), "agent.scrub_worker"
            )
            self._sent = None
            self.steer()
            if self._stopping:
                await self._worker.end(0.0)
            async for message in self._worker.messages():
                last = message
        except TemperdError as error:
            last = Failed(error.code, str(error))
        finally:
            worker, self._worker = self._worker, None
            code = 0 if worker is None else await worker.end(0.0 if last is None else STOP_GRACE_S)
            self._tried, self._since, self._after_job = True, self._clock.mono(), False
        if not isinstance(last, Scrubbed | Failed):
            last = Failed("worker-crashed", f"the scrub worker ended with code {code}")
        if not self._stopping:  # else it is asked for again at the next start
            self._conclude(names, last, self._clock.mono() - began)
        return last

    def _conclude(self, names: list[str], last: Scrubbed | Failed, seconds: float) -> None:
        if isinstance(last, Failed):
            self._retry = self._clock.mono() + RETRY_S
            log.error("scrub failed", reason=last.code, why=last.message)
            self._change(names, Asked("", "failed", code=last.code, reason=last.message))
            return
        self._retry = None
        result = self._result(last.report, seconds)
        self._journal.remember(LAST, json.dumps(result, allow_nan=False))
        self._last = result
        lost = int(str(result["unrepairable"]))
        said = log.info if not result["damaged"] else log.warning
        said("scrub ended", **{name: result[name] for name in ("files", "damaged", "repaired", "unrepairable")})
        for finding in _list(result.get("findings")):
            log.warning("stored file was damaged", **finding)
        told = f"{lost} damaged files could not be mended" if lost else ""
        ended = ("failed", "damage-left") if lost else ("succeeded", "")
        self._change(names, Asked("", ended[0], code=ended[1], reason=told, result=result))
        self._shop.told()

    def _result(self, report: Mapping[str, object], seconds: float) -> dict[str, object]:
        errors = self._shop.memory_errors()
        return {
            **report,
            "edac_corrected": errors.corrected if errors else None,
            "edac_uncorrected": errors.uncorrected if errors else None,
            "duration_s": seconds,
            "ts": self._clock.now(),
        }

    def steer(self) -> None:
        """Pass the present decision on, unless the worker has it already."""
        if self._worker is None:
            return
        order = self._steering.steer()
        share = duty(self._policy, self._steering.decision, awaited=self._hurried)
        order = dataclasses.replace(order, duty=share, reverify=False)
        if order != self._sent:
            self._sent = order if self._worker.offer(order) else None

    async def stop(self) -> None:
        """The daemon goes: the scrub ends where it is."""
        self._stopping = True
        if self._worker is not None:
            await self._worker.end(0.0)

    def metrics(self) -> dict[str, object]:
        """The `store` group of the telemetry: counts of the last scrub; empty before the first."""
        return {name: value for name, value in self._last.items() if isinstance(value, int | float | None)}


def _recall(journal: Journal) -> dict[str, Asked]:
    """Commands that wait, and those that ended last. What another version wrote must not stop the daemon."""
    try:
        tables = json.loads(journal.recall(ASKED) or "{}")
        return {name: build_known(Asked, table) for name, table in tables.items()}
    except (ValueError, AttributeError, TypeError) as error:  # a TableError is a ValueError
        log.warning("scrubs asked for before are forgotten, the journal has them in another form", why=str(error))
        return {}


def _list(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []
