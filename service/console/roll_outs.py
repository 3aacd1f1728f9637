"""Roll-outs at work in this process, and those of others in the state file; what pages ask and order.

The state file and its locks are those of `temperd fleet roll-out`. What this console had at work when it ended, or was
killed, it goes on with when it starts: each command is in the file before it is sent, and the same bytes go out again.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

from agent.errors import SpecError, TemperdError
from service.commands import Request, new_id
from service.console.roll_out_draft import Drafts
from service.console.roll_out_records import Record, Records
from service.console.roll_out_thread import Place, Session, Signs, Told, Work, new_rules
from service.console.room import Settings
from service.fleet.outcome import Outcome
from service.fleet.roll_out import Terms
from service.fleet.roll_out_lock import BUSY, is_held
from service.fleet.state import ABORTED, ENDED, RUNNING, STOPPED, FleetState, RollOut
from service.logs import logger

MAX_AT_WORK = 8  # each is a thread, a connection to the broker, and its commands in memory
STOP_LOOK_S = 0.1  # between two looks at whether a stop is in the file
LOOK_S = 3.0  # between two looks at roll-outs that other processes run
MAX_FAILURES = 100  # of which it is remembered why they broke off
WAIT_END_S = 10.0  # for one that was broken off to let go of its lock: a publication on its way is not waited for

log = logger("roll-out")
T = TypeVar("T")


class Tells(Protocol):
    """What is needed of `Hub`."""

    def publish(self, event: str, data: Mapping[str, object]) -> None:
        """See `Hub`."""


class Trail(Protocol):
    """What is needed of `Audit`."""

    async def record(self, who: str, action: str, *, details: Mapping[str, Any]) -> int:
        """See `Audit`."""


class RollOuts:
    """See the module. An asynchronous context manager: roll-outs run inside the block.

    Args:
        settings: see `Settings`.
        hub: is told how far roll-outs are, as `roll-out` events.
        signer: the console key.
        now: wall clock, seconds since 1970.
        audit: is told how each ended, or what it came to where it was stopped.
    """

    def __init__(
        self, settings: Settings, hub: Tells, signer: Signs, *, now: Callable[[], float], audit: Trail | None = None
    ) -> None:
        self._place = Place(settings.mqtt, settings.tenant, settings.fleet_state, signer, now)
        self._hub, self._audit, self._records = hub, audit, Records(settings.state)
        self._writing = asyncio.Lock()
        self._sessions: dict[str, Session] = {}
        self._latest: dict[str, Told] = {}
        self._failures: dict[str, TemperdError] = {}
        self._others: dict[str, object] = {}
        self.drafts = Drafts(now)
        """Those that are being put together."""
        self._turns: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def __aenter__(self) -> Self:
        """Go on with what was at work.

        Raises:
            BoardError: the state file or the console's folder cannot be used.
        """
        await asyncio.to_thread(self._records.load)
        known = {item.id: item for item in await self.read(lambda state: state.roll_outs(self._place.tenant))}
        async with self._writing:
            await asyncio.to_thread(self._records.keep_only, known.keys())
        at_work = [key for key, record in self._records.known.items() if record.at_work]
        if len(at_work) > MAX_AT_WORK:
            log.warning("more roll-outs were at work than this console runs: some wait", waiting=at_work[MAX_AT_WORK:])
        works = {RUNNING: Work.RUN, ABORTED: Work.ABORT, STOPPED: Work.FOLLOW}
        for roll_out in at_work[:MAX_AT_WORK]:
            if work := works.get(known[roll_out].state):
                self._start(Session(self._place, roll_out, work, self._tell))
            else:
                await self._rest(roll_out)
        self._keep_task(self._watch_others())
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._closing = True
        for session in self._sessions.values():
            session.cancel()
        ends = [session.ended for session in self._sessions.values()]
        if ends:
            await asyncio.wait(ends, timeout=WAIT_END_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- what pages ask ----------------------------------------------------------------------------------------------

    async def read(self, ask: Callable[[FleetState], T]) -> T:
        """What `ask` makes of the state file, on a thread.

        Raises:
            BoardError, SpecError: as the methods of `FleetState`.
        """

        def look() -> T:
            with FleetState(self._place.state) as state:
                return ask(state)

        return await asyncio.to_thread(look)

    async def find(self, roll_out: str) -> RollOut:
        """A roll-out of this tenant.

        Raises:
            SpecError: there is none.
        """
        found = await self.read(lambda state: state.roll_out(roll_out))
        if found.tenant != self._place.tenant:
            raise SpecError("this roll-out is of another tenant", where=roll_out)
        return found

    def record(self, roll_out: str) -> Record:
        """Who began it here, and why; empty for one that was begun elsewhere."""
        return self._records.known.get(roll_out, Record())

    def told(self, roll_out: str) -> Told | None:
        """How far one is that this console has at work; `None`: it has not."""
        return self._latest.get(roll_out) if roll_out in self._sessions else None

    def is_at_work(self, roll_out: str) -> bool:
        """Whether this console has it at work, listening alone included."""
        return roll_out in self._sessions

    def failure(self, roll_out: str) -> TemperdError | None:
        """Why it broke off in this console, when it did."""
        return self._failures.get(roll_out)

    async def runs_elsewhere(self, roll_out: str) -> bool:
        """Whether another process has it at work."""
        if roll_out in self._sessions:
            return False
        return await self.read(lambda state: is_held(state, roll_out))

    # --- what pages order --------------------------------------------------------------------------------------------

    def make(self, kind: str, terms: Terms) -> RollOut:
        """A roll-out that has not begun; it has an id, which the audit trail names before it begins."""
        now = self._place.now()
        roll_out_id = new_id(int(now * 1000), os.urandom)
        return RollOut(roll_out_id, self._place.tenant, kind, terms.to_table(), now, RUNNING, "")

    def check_length(self, made: RollOut, boards: Sequence[str]) -> None:
        """Refuse commands that boards would not read; without an open key it is found when a wave is signed.

        Raises:
            SpecError: a command is longer than boards read.
        """
        signer, now, terms = self._place.signer, int(made.created), Terms.of(made)
        if signer.ready:  # the longest name makes the longest command
            signer.sign(Request(made.id, max(boards, key=len), made.type, now, now, terms.args, terms.expect))

    async def begin(self, made: RollOut, boards: Sequence[str], *, by: str, why: str) -> None:
        """Journal a roll-out and begin it.

        Args:
            made: see `make`.
            boards: in their order: canaries are the first.
            by: name of the user.
            why: what the user said.

        Raises:
            SpecError: too many are at work.
            BoardError: the state file or the console's folder cannot be used.
        """
        self._make_room()
        await self._record(made.id, Record(by, why, at_work=True))
        await self.read(lambda state: state.begin(made, boards))
        try:
            await self._work(made.id, Work.RUN)
        except TemperdError:  # nothing was sent, and it must not begin by itself with the next start
            await self._rest(made.id)
            await self.read(lambda state: state.stand(made.id, ABORTED, "it could not begin"))
            raise

    async def stop(self, roll_out: str, why: str) -> None:
        """Have it send nothing more; what was sent goes on. Returns once that is in the file.

        Raises:
            SpecError: nothing of it is at work here.
            BoardError: the state file cannot be used.
        """
        session = self._sessions.get(roll_out)
        if session is None or session.work not in (Work.RUN, Work.RESUME):
            fix = "Stop it where it runs: Ctrl-C ends a `temperd fleet roll-out`"
            raise SpecError("this roll-out is not at work in this console", where=roll_out, fix=fix, reason="elsewhere")
        session.stop(why)
        for _ in range(math.ceil(WAIT_END_S / STOP_LOOK_S)):
            if session.ended.done() or (await self.find(roll_out)).state != RUNNING:
                return
            await asyncio.sleep(STOP_LOOK_S)

    async def resume(self, roll_out: str, given: Mapping[str, object], *, by: str, why: str) -> None:
        """Go on with one that was stopped, or that nobody runs any more.

        Args:
            roll_out: its id.
            given: of `stop_at`, `parallel` and `least_ended`, those that change.
            by: name of the user.
            why: what the user said.

        Raises:
            SpecError: it is over, a rule that is none, or too many are at work.
            BoardError: `busy`, another process runs it; or the disk.
        """
        chosen = await self.find(roll_out)
        if chosen.state in (ABORTED, ENDED):
            raise SpecError("this roll-out is over: begin a new one", where=roll_out, reason="over")
        new_rules(Terms.of(chosen), given)
        await self._replace(roll_out, Work.RESUME, self._mine(roll_out, by, why), given)

    async def abort(self, roll_out: str, *, by: str, why: str) -> None:
        """Send nothing more, ever; take back what no board has answered, cancel what can be canceled.

        Raises:
            SpecError: it has ended, or too many are at work.
            BoardError: `busy`, another process runs it; or the disk.
        """
        chosen = await self.find(roll_out)
        if chosen.state == ENDED:
            raise SpecError("this roll-out has ended, nothing is left to abort", where=roll_out, reason="over")
        session = self._sessions.get(roll_out)
        if session is not None and session.work in (Work.RUN, Work.RESUME):
            await self.stop(roll_out, "aborted by an operator")  # what was never sent need not be taken back
        await self._replace(roll_out, Work.ABORT, self._mine(roll_out, by, why))

    async def listen(self, roll_out: RollOut) -> None:
        """Hear again what boards say of one that sends nothing more, where something of it is open; else nothing."""
        if roll_out.state not in (STOPPED, ABORTED) or roll_out.id in self._sessions:
            return
        before, after = await self.read(lambda state: state.counts(roll_out.id))
        if Outcome.OPEN in before or Outcome.OPEN in after:
            with contextlib.suppress(TemperdError):  # another process hears them, or there is no room
                await self._work(roll_out.id, Work.FOLLOW)

    # --- sessions ----------------------------------------------------------------------------------------------------

    def _mine(self, roll_out: str, by: str, why: str) -> Record:
        """A record that says that it is at work here; whoever began it stays named."""
        before = self.record(roll_out)
        return Record(before.by or by, before.why or why, at_work=True)

    async def _replace(
        self, roll_out: str, work: Work, record: Record, given: Mapping[str, object] | None = None
    ) -> None:
        """End what this console does with a roll-out, and do something else with it. One order after the other."""
        async with self._turns.setdefault(roll_out, asyncio.Lock()):
            session = self._sessions.get(roll_out)
            if session is not None:
                await self._end(session)
            else:
                self._make_room()
            before = self.record(roll_out)
            await self._record(roll_out, record)
            try:
                await self._work(roll_out, work, given)
            except TemperdError:
                await self._record(roll_out, before)
                raise

    async def _end(self, session: Session) -> None:
        session.cancel()
        done, _ = await asyncio.wait([session.ended], timeout=WAIT_END_S)
        if not done:
            raise SpecError("this roll-out is still at work", where=session.id, fix="Try again", reason=BUSY)
        self._sessions.pop(session.id, None)

    async def _work(self, roll_out: str, work: Work, given: Mapping[str, object] | None = None) -> None:
        """Have a thread for it; returns once what is to be done is in the file."""
        self._make_room()
        session = Session(self._place, roll_out, work, self._tell, given)
        self._start(session)
        await asyncio.shield(session.begun)

    def _make_room(self) -> None:
        """Let go of one that only listens, where there is no room for another.

        Raises:
            SpecError: all are at work.
        """
        if len(self._sessions) < MAX_AT_WORK:
            return
        idle = next((session for session in self._sessions.values() if session.work is Work.FOLLOW), None)
        if idle is None:
            fix = "Wait for one to end, or stop one"
            raise SpecError(f"{MAX_AT_WORK} roll-outs are at work in this console", fix=fix, reason="too-many")
        idle.cancel()
        del self._sessions[idle.id]

    def _start(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._failures.pop(session.id, None)
        session.start()
        self._keep_task(self._see_end(session))

    async def _see_end(self, session: Session) -> None:
        failure = await asyncio.shield(session.ended)
        if session.begun.done() and not session.begun.cancelled():
            session.begun.exception()  # whoever waited has it too
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
            self._latest.pop(session.id, None)
        if self._closing or session.canceled:
            return
        if failure is None or failure.code == BUSY:
            await self._rest(session.id)
            if failure is None:
                await self._tell_trail(session)
        else:
            log.warning("a roll-out broke off", roll_out=session.id, why=str(failure))
            self._failures[session.id] = failure
            while len(self._failures) > MAX_FAILURES:
                del self._failures[next(iter(self._failures))]
        self._hub.publish("roll-out", {"id": session.id, "ended": True})

    async def _tell_trail(self, session: Session) -> None:
        """On record: what came of it, as far as it was seen."""
        if self._audit is None or session.work is Work.FOLLOW:
            return
        try:
            found = await self.find(session.id)
            _, counts = await self.read(lambda state: state.counts(session.id))
            details = {"roll_out": found.id, "type": found.type, "state": found.state, "why": found.why}
            await self._audit.record("", "roll-out-ended", details={**details, "boards": counts})
        except TemperdError as error:
            log.warning("the end of a roll-out is not on record", roll_out=session.id, why=str(error))

    def _tell(self, told: Told) -> None:
        if told.id in self._sessions:
            self._latest[told.id] = told
        self._hub.publish("roll-out", told.to_json())

    async def _watch_others(self) -> None:
        """Tell of roll-outs that other processes run, as far as the file has it."""
        while True:
            try:
                found = await self.read(self._counts_of_others)
            except TemperdError as error:
                log.warning("the state of roll-outs cannot be read", why=str(error))
            else:
                for key, told in found.items():
                    if key in self._others and self._others[key] != told:
                        self._hub.publish("roll-out", told)
                self._others = dict(found)
            await asyncio.sleep(LOOK_S)

    def _counts_of_others(self, state: FleetState) -> dict[str, Mapping[str, object]]:
        found: dict[str, Mapping[str, object]] = {}
        for item in state.roll_outs(self._place.tenant):
            if item.id not in self._sessions and (item.state == RUNNING or item.id in self._others):
                _, counts = state.counts(item.id)
                found[item.id] = {"id": item.id, "state": item.state, "why": item.why, "counts": counts}
        return found

    # --- records -----------------------------------------------------------------------------------------------------

    async def _record(self, roll_out: str, record: Record) -> None:
        async with self._writing:
            await asyncio.to_thread(self._records.write, roll_out, record)

    async def _rest(self, roll_out: str) -> None:
        async with self._writing:
            try:
                await asyncio.to_thread(self._records.rest, roll_out)
            except TemperdError as error:  # it is looked at once more after the next start: harmless
                log.warning("a record of a roll-out cannot be written", roll_out=roll_out, why=str(error))

    def _keep_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
