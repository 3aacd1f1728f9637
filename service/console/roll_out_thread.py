"""One roll-out at work: a thread with an event loop, a connection to the broker and an open state file of its own.

A commit waits for the disk, and a wave of thousands signs for a second: neither may hold up pages. Everything here but
what says otherwise belongs to the thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from agent.errors import NetworkError, SpecError, TemperdError
from policies.strict import TableError, build
from service.commands import Request
from service.config import Mqtt
from service.fleet.fleet_link import FleetLink
from service.fleet.outcome import Outcome
from service.fleet.roll_out import Inbox, RollOutRun, Terms
from service.fleet.roll_out_lock import held
from service.fleet.roll_out_plan import Rules, resumed_rules
from service.fleet.state import ABORTED, ENDED, RUNNING, STOPPED, FleetState, RollOut
from service.logs import logger

GATHER_S = 0.5  # between two words of how far it is
POLL_S = 1.0  # between two looks at whether a broker or a key has come
STOP_PATIENCE_S = 2.0  # that commands on their way have to be confirmed in, once a stop was asked for
FOLLOW_S = 600.0  # that boards are listened to after a stop or an abort; whoever opens its page has it listen anew

log = logger("roll-out")


class Work(StrEnum):
    """What is to be done with a roll-out."""

    RUN = "run"
    """Begin, or go on after the console's end, by the rules it has."""
    RESUME = "resume"
    """Go on after a stop, by rules that may be new."""
    ABORT = "abort"
    FOLLOW = "follow"
    """Only listen to what its boards say."""


class Stage(StrEnum):
    """What it does right now."""

    CONNECTING = "connecting"
    """There is no broker."""
    NEEDS_KEY = "needs-key"
    """It has to sign, and the console key is locked."""
    SENDING = "sending"
    FOLLOWING = "following"
    """It sends nothing more and listens to what was sent."""


class Signs(Protocol):
    """What is needed of `Signer`; called from threads."""

    @property
    def ready(self) -> bool:
        """See `Signer`."""

    @property
    def locked(self) -> bool:
        """See `Signer`."""

    def sign(self, request: Request) -> bytes:
        """See `Signer`."""


@dataclass(frozen=True, slots=True)
class Told:
    """How far a roll-out is."""

    id: str
    state: str
    why: str
    stage: Stage
    counts: Mapping[str, int]
    """Boards by outcome."""
    away: int
    """Boards whose command is open, and which are offline."""

    def to_json(self) -> dict[str, object]:
        """For open pages."""
        named = {"id": self.id, "state": self.state, "why": self.why, "stage": str(self.stage)}
        return {**named, "counts": dict(self.counts), "away": self.away}


class _NeedsKeyError(Exception):
    """A wave has to be signed and there is no key for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where roll-outs of this console live."""

    mqtt: Mqtt
    tenant: str
    state: Path
    """The state file."""
    signer: Signs
    now: Callable[[], float]
    """Wall clock, seconds since 1970."""


class Session:
    """A roll-out at work.

    Args:
        place: see `Place`.
        roll_out: its id.
        work: what is to be done.
        given: for `RESUME`: rules that change.
        told: called on the loop that made the session, at most twice a second.
    """

    def __init__(
        self,
        place: Place,
        roll_out: str,
        work: Work,
        told: Callable[[Told], None],
        given: Mapping[str, object] | None = None,
    ) -> None:
        self.id, self.work = roll_out, work
        self._place, self._given, self._told = place, dict(given or {}), told
        self._pages = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = self._pages.create_future()
        """On the pages' loop. Done once the roll-out is held and what is to be done is in the file; or why not."""
        self.ended: asyncio.Future[TemperdError | None] = self._pages.create_future()
        """On the pages' loop. Done when the thread is at its end: why it broke off, or nothing."""
        self.canceled = False
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._run: RollOutRun | None = None
        self._stop = ""
        self._later: asyncio.TimerHandle | None = None
        self._stage = Stage.CONNECTING
        self._thread = threading.Thread(target=self._main, name=f"roll-out-{roll_out[-12:]}", daemon=True)

    # --- called from the pages' loop ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the thread."""
        self._thread.start()

    def stop(self, why: str) -> None:
        """Have it send nothing more; it listens on to what was sent."""
        self._call(self._take_stop, why)

    def cancel(self) -> None:
        """Break off where it stands, as a crash would: the file has all that is needed to go on."""
        self.canceled = True
        self._call(self._take_cancel)

    def _call(self, what: Callable[..., None], *words: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended by itself
            self._loop.call_soon_threadsafe(what, *words)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        failure: TemperdError | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._play())
        except asyncio.CancelledError:
            log.info("a roll-out was broken off", roll_out=self.id)
        except TemperdError as error:
            failure = error
        except Exception as error:  # a fault of ours must not look like a roll-out that goes on
            log.exception("a roll-out broke")
            failure = TemperdError(f"the roll-out broke: {type(error).__name__}", where=self.id)
        self._say(self._set_ended, failure)

    def _say(self, what: Callable[..., None], *words: object) -> None:
        with contextlib.suppress(RuntimeError):  # the pages' loop is closed: nobody asks any more
            self._pages.call_soon_threadsafe(what, *words)

    def _set_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def _set_ended(self, failure: TemperdError | None) -> None:
        if not self.begun.done():
            if failure is None:
                self.begun.cancel()
            else:
                self.begun.set_exception(failure)
        if not self.ended.done():
            self.ended.set_result(failure)

    def _take_stop(self, why: str) -> None:
        if self.work not in (Work.RUN, Work.RESUME):
            return
        self._stop = why
        if self._run is not None:
            self._run.stop(why)
        self._loop.call_later(STOP_PATIENCE_S, self._break_sending)

    def _break_sending(self) -> None:
        """Without a broker nothing is confirmed: what is on its way is in the file, and goes out when it goes on."""
        if self._sending is not None:
            self._sending.cancel()

    def _take_cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _play(self) -> None:
        self._task = asyncio.current_task()
        if self.canceled:
            return
        place = self._place
        with FleetState(place.state) as state, held(state, self.id):
            roll_out = self._journal(state)
            self._say(self._set_begun)
            inbox = Inbox()
            client_id = f"console-{secrets.token_hex(8)}"
            link = FleetLink(place.mqtt, place.tenant, client_id, inbox.take, topics=("conn",))
            self._run = run = RollOutRun(state, roll_out, self._sign, inbox, now=place.now, tell=self._tell)
            if self._stop:
                run.stop(self._stop)
            try:
                async with link:
                    await self._go(run, link)
            finally:
                self._hand_over(run)

    def _journal(self, state: FleetState) -> RollOut:
        """Put what is to be done into the file, before anything is done; the roll-out."""
        before = state.roll_out(self.id)
        if self.work is Work.ABORT:
            if before.state == ENDED:
                raise SpecError("this roll-out has ended, nothing is left to abort", where=self.id, reason="over")
            state.stand(self.id, ABORTED, "aborted by an operator")
        if self.work is Work.RESUME:
            if before.state in (ABORTED, ENDED):
                raise SpecError("this roll-out is over: begin a new one", where=self.id, reason="over")
            terms = Terms.of(before)
            state.stand(self.id, RUNNING, "", replace(terms, rules=new_rules(terms, self._given)).to_table())
        return state.roll_out(self.id)

    async def _go(self, run: RollOutRun, link: FleetLink) -> None:
        self._tell(run)
        runs = self.work in (Work.RUN, Work.RESUME)
        while not link.connected:
            with contextlib.suppress(NetworkError):
                await link.wait_connected(POLL_S)
            if self._stop and runs:
                run.end(STOPPED, self._stop)
                return
        self._stage = Stage.SENDING if runs else Stage.FOLLOWING
        self._tell(run)
        run.listen(link)  # what boards said while nobody looked comes first: less is sent again
        if runs:
            await self._with_key(run, link, lambda: self._send(run, link))
        elif self.work is Work.ABORT:
            await link.wait_quiet()
            await self._with_key(run, link, lambda: run.abort(link))
        self._stage = Stage.FOLLOWING
        await run.follow(link, FOLLOW_S)

    async def _send(self, run: RollOutRun, link: FleetLink) -> None:
        async def look_and_send() -> None:
            await link.wait_quiet()
            await run.run(link)

        self._sending = asyncio.ensure_future(look_and_send())
        try:
            await self._sending
        except asyncio.CancelledError:
            if not self._stop or self.canceled:
                raise
            run.end(STOPPED, self._stop)
        finally:
            self._sending = None

    async def _with_key(self, run: RollOutRun, link: FleetLink, do: Callable[[], Awaitable[None]]) -> None:
        """Do what signs; where the key is locked, listen until it is opened, or a stop is asked for."""
        while True:
            stage = self._stage
            try:
                await do()
            except _NeedsKeyError:
                self._stage = Stage.NEEDS_KEY
                while not self._place.signer.ready and not self._stop:
                    if not self._place.signer.locked:
                        fix = "Start the console with one, then go on or abort again"
                        raise SpecError("this console has no key to sign with", where=self.id, fix=fix) from None
                    if await run.follow(link, POLL_S):
                        await asyncio.sleep(POLL_S)
                self._stage = stage
            else:
                return

    def _sign(self, request: Request) -> bytes:
        signer = self._place.signer
        if not signer.ready:
            raise _NeedsKeyError
        try:
            return signer.sign(request)
        except SpecError as error:
            if signer.ready:
                raise
            raise _NeedsKeyError from error  # locked between the two

    def _tell(self, run: RollOutRun) -> None:
        if self._later is None:
            self._later = self._loop.call_later(GATHER_S, self._hand_over, run)

    def _hand_over(self, run: RollOutRun) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = None
        away = sum(run.commands[place].outcome == Outcome.OPEN for place in run.away)
        self._say(self._told, Told(self.id, run.roll_out.state, run.roll_out.why, self._stage, run.counts(), away))


def new_rules(terms: Terms, given: Mapping[str, object]) -> Rules:
    """The rules to go on with.

    Raises:
        SpecError: a rule that is none, or outside its limits.
    """
    try:
        return build(Rules, resumed_rules(terms.rules, given))
    except TableError as error:
        raise SpecError(error.what, where=error.key) from error
