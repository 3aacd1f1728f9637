"""One roll-out: the state file ahead of every publication, the plan for what comes next, the broker last.

Killed at any point it goes on with the same bytes: a command is in the file before it is sent, and a board that has it
already answers with the status it has. So no board runs its command twice.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from agent.errors import NetworkError
from policies.strict import build, limits
from service.commands import (
    CANCEL,
    EVALUATE,
    FINE_TUNE,
    MAX_LIFETIME_S,
    PROMOTE,
    QUALIFY,
    ROLLBACK,
    Request,
    new_id,
)
from service.fleet.boards import MAX_BOARDS, connection_of, is_newer, slim
from service.fleet.fleet_link import FleetLink
from service.fleet.outcome import NOT_ENDED, WITHOUT_WORD, Outcome, of_status
from service.fleet.roll_out_plan import Move, Rules, Step, next_step
from service.fleet.state import FleetState, RollOut, Sent
from service.logs import logger

LATE_S = 60.0  # a board may have taken a command in its last second; its status gets this long to arrive
TICK_S = 1.0  # how often expiry and canaries' time are looked at when nothing comes in
AT_ONCE = 20  # publications on their way; the link takes a hundred
LEAST_CANCEL_S = 3600  # how long a cancel stays at the broker at least
MAX_STATUS_CHARACTERS = 500  # of a reason that is kept
CANCELABLE = frozenset((FINE_TUNE, QUALIFY, EVALUATE, PROMOTE, ROLLBACK))  # the last two until they have begun
UNKNOWN_JOB = "wrong-state"  # the answer to a cancel of what the board does not have; other refusals tell nothing of it
_KEPT = ("status", "step", "version", "reason_code", "reason", "progress", "eta_s", "ts")

log = logger("roll-out")

Sign = Callable[[Request], bytes]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a roll-out asks of each board, and how it goes."""

    rules: Rules
    args: dict[str, object]
    expect: dict[str, object] = field(default_factory=dict)
    valid_s: int = field(default=86400, metadata=limits(1, MAX_LIFETIME_S))
    """How long each command may wait for its board."""

    def to_table(self) -> dict[str, object]:
        """As it is kept."""
        return asdict(self)

    @classmethod
    def of(cls, roll_out: RollOut) -> Terms:
        """As it was kept."""
        return build(cls, roll_out.terms)


@dataclass(frozen=True, slots=True)
class Inbox:
    """What came in since the last look; filled by the link, emptied by the roll-out."""

    online: dict[str, bool] = field(default_factory=dict)
    numbers: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Session and connection of the latest presence."""
    sent: dict[str, str] = field(default_factory=dict)
    """Board by id of each command that was sent. Of others nothing is kept: anybody may write below his own root."""
    statuses: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """The newest by command id."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, topic: str, body: Mapping[str, object] | None, _retained: bool) -> None:  # noqa: FBT001 - a callback
        """See `FleetLink`."""
        levels = topic.split("/")
        if body is None:
            return
        match levels[3:]:
            case [board, "conn"] if board in self.online or len(self.online) < MAX_BOARDS:
                if (numbers := connection_of(body)) < self.numbers.get(board, numbers):
                    return  # a last will that comes late
                self.online[board], self.numbers[board] = body.get("online") is True, numbers
            case [board, "cmd", _, command_id, "sts"] if self.sent.get(command_id) == board:
                before = self.statuses.get(command_id)
                if before is None or is_newer(body, before):
                    self.statuses[command_id] = body
            case _:
                return
        self.arrived.set()


class RollOutRun:
    """A roll-out at work. Only one process may run one: the caller holds its lock.

    Args:
        state: the file that has it.
        roll_out: which.
        sign: signs a request; called when a wave begins.
        inbox: what the link fills.
        now: wall clock, seconds since 1970.
        tell: called after every change, for whoever watches.
    """

    def __init__(
        self,
        state: FleetState,
        roll_out: RollOut,
        sign: Sign,
        inbox: Inbox,
        *,
        now: Callable[[], float],
        tell: Callable[[RollOutRun], None] = lambda _run: None,
    ) -> None:
        self.roll_out, self.terms = roll_out, Terms.of(roll_out)
        self.commands = state.commands(roll_out.id)
        self._state, self._sign, self._inbox, self._now, self._tell = state, sign, inbox, now, tell
        self._by_id: dict[str, int] = {}
        self._know(self.commands)
        self._delivered: set[int] = set()
        self._untried: set[int] = set()
        """Places whose command was made here and never given to the link."""
        self._connection = 0
        self._asked_to_stop = ""

    @property
    def outcomes(self) -> list[Outcome]:
        """Where each board stands, in order."""
        return [Outcome(command.outcome) for command in self.commands]

    @property
    def away(self) -> frozenset[int]:
        """Places of boards that are offline, or never were on this broker, and have not answered."""
        online = self._inbox.online
        silent = (command for command in self.commands if command.status is None)
        return frozenset(command.place for command in silent if not online.get(command.board, False))

    def _canary_age_s(self) -> float:
        canaries = self.commands[: self.terms.rules.canary]
        begun = [command.not_after - self.terms.valid_s for command in canaries if command.id]
        return self._now() - min(begun) if begun else 0.0

    def counts(self) -> dict[str, int]:
        """Boards by outcome."""
        return dict(Counter(str(outcome) for outcome in self.outcomes))

    async def run(self, link: FleetLink) -> RollOut:
        """Go on until it is done or stopped; what it came to."""
        self.listen(link)
        while True:
            self._inbox.arrived.clear()
            self._look()
            if self._asked_to_stop:
                return self.end("stopped", self._asked_to_stop)
            step = next_step(self.terms.rules, self.outcomes, self.away, self._canary_age_s())
            if step.move is Move.SEND:
                self._make(step)
            elif step.move is not Move.WAIT:
                return self.end("stopped" if step.move is Move.STOP else "done", step.why)
            await self._deliver(link)
            self._tell(self)
            if step.move is Move.WAIT:
                await self._news()

    async def follow(self, link: FleetLink, timeout_s: float) -> bool:
        """Only look on until nothing is open; False when that took longer than `timeout_s`."""
        self.listen(link)
        end = self._now() + timeout_s
        while True:
            self._inbox.arrived.clear()
            self._look()
            self._tell(self)
            if Outcome.OPEN not in self.outcomes:
                return True
            if self._now() >= end:
                return False
            await self._news()

    async def abort(self, link: FleetLink) -> None:
        """Send nothing more, take back what no board has answered, cancel what can be canceled."""
        self.end("aborted", "aborted by an operator")
        self.listen(link)
        self._look()
        chosen = [command.place for command in self.commands if command.outcome == Outcome.OPEN]
        for command in (self.commands[place] for place in chosen):  # before cancels are signed: a key may be locked
            if command.status is None:
                await link.clear(command.board, self.roll_out.type, command.id)
        if self.roll_out.type in CANCELABLE:
            self._keep([self._with_cancel(self.commands[place]) for place in chosen])
            self.listen(link)
        for command in (self.commands[place] for place in chosen):
            if command.cancel_id:
                left = self._cancel_s(command)
                await link.send(command.board, CANCEL, command.cancel_id, command.cancel, expires_s=left)

    def listen(self, link: FleetLink) -> None:
        """Ask the broker for the statuses of what is open."""
        for command in self.commands:
            if command.id and Outcome(command.outcome) in {Outcome.OPEN, *WITHOUT_WORD}:
                link.listen(command.board, f"cmd/{self.roll_out.type}/{command.id}/sts")
                if command.cancel_id:
                    link.listen(command.board, f"cmd/{CANCEL}/{command.cancel_id}/sts")

    def stop(self, why: str) -> None:
        """Have `run` send nothing more and return: what is on its way is still confirmed, what was sent goes on."""
        self._asked_to_stop = why
        self._inbox.arrived.set()

    def end(self, state: str, why: str) -> RollOut:
        """Journal that it sends nothing more, and why.

        Commands that were made and never tried are unmade: they count as not sent, and are signed anew on going on.
        """
        untried = (self.commands[place] for place in sorted(self._untried))
        unmade = [command for command in untried if command.outcome == Outcome.OPEN]
        for command in unmade:
            self._by_id.pop(command.id, None)
            self._inbox.sent.pop(command.id, None)
        self._untried.clear()
        self._keep([replace(c, id="", envelope=b"", not_after=0) for c in unmade], outcome=Outcome.WAITING)
        self._state.stand(self.roll_out.id, state, why)
        self.roll_out = replace(self.roll_out, state=state, why=why)
        self._tell(self)
        return self.roll_out

    async def _news(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self._inbox.arrived.wait()
        except TimeoutError:
            return

    # --- what boards said --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Journal what came in, and what expired without an answer."""
        changed: list[Sent] = []
        for command_id, body in self._inbox.statuses.items():
            place = self._by_id.get(command_id)
            if place is not None and (fresh := _with_status(self.commands[place], body)):
                changed.append(fresh)
        self._keep(changed)
        self._keep([command for command in self.commands if self._is_unknown(command)], outcome=Outcome.TAKEN_BACK)
        self._inbox.statuses.clear()
        now = self._now()
        silent = [command for command in self.commands if command.outcome == Outcome.OPEN and command.status is None]
        self._keep([command for command in silent if now > command.not_after + LATE_S], outcome=Outcome.EXPIRED)

    def _is_unknown(self, command: Sent) -> bool:
        """Whether the board knows no job of that id to cancel, and never told of one: it does not have it."""
        answer = self._inbox.statuses.get(command.cancel_id) if command.cancel_id else None
        silent = command.outcome == Outcome.OPEN and command.status is None
        return silent and answer is not None and answer.get("reason_code") == UNKNOWN_JOB

    def _keep(self, changed: Sequence[Sent], outcome: Outcome | None = None) -> None:
        """In the file, then in memory; with another outcome, if one is given."""
        if outcome is not None:
            changed = [replace(command, outcome=str(outcome)) for command in changed]
        if changed:
            self._state.write(self.roll_out.id, changed)
            for command in changed:
                self.commands[command.place] = command
            self._know(changed)

    def _know(self, commands: Sequence[Sent]) -> None:
        """Hear what boards say about these and their cancels."""
        for command in commands:
            if command.id:
                self._by_id[command.id] = command.place
                self._inbox.sent[command.id] = command.board
            if command.cancel_id:
                self._inbox.sent[command.cancel_id] = command.board

    # --- sending -----------------------------------------------------------------------------------------------------

    def _make(self, step: Step) -> None:
        """Sign the commands of a wave and journal them: from here on they are sent, whatever happens."""
        made: list[Sent] = []
        for command in (self.commands[place] for place in step.places):
            now = self._now()
            command_id = new_id(int(now * 1000), os.urandom)
            until = int(now) + self.terms.valid_s
            terms, kind = self.terms, self.roll_out.type
            request = Request(command_id, command.board, kind, int(now), until, terms.args, terms.expect)
            envelope, outcome = self._sign(request), str(Outcome.OPEN)
            made.append(replace(command, id=command_id, envelope=envelope, not_after=until, outcome=outcome))
        self._keep(made)
        self._untried.update(command.place for command in made)

    async def _deliver(self, link: FleetLink) -> None:
        """Publish what is open and was not published over this connection: a broker that was wiped gets it again."""
        if link.connections != self._connection:
            self._connection = link.connections
            self._delivered.clear()
        open_ones = [command for command in self.commands if command.outcome == Outcome.OPEN]
        fresh = [c for c in open_ones if c.status is None and c.place not in self._delivered]
        for start in range(0, len(fresh), AT_ONCE):
            if self._asked_to_stop:
                return
            batch = fresh[start : start + AT_ONCE]
            sent = await asyncio.gather(*(self._send(link, command) for command in batch))
            done = [command for command, confirmed in zip(batch, sent, strict=True) if confirmed]
            self._delivered.update(command.place for command in done)
            self._keep([replace(self.commands[command.place], sent=True) for command in done if not command.sent])

    async def _send(self, link: FleetLink, command: Sent) -> bool:
        left = int(command.not_after - self._now())
        if left <= 0:
            return False
        self._untried.discard(command.place)
        link.listen(command.board, f"cmd/{self.roll_out.type}/{command.id}/sts")
        try:
            await link.send(command.board, self.roll_out.type, command.id, command.envelope, expires_s=left)
        except NetworkError as error:
            log.warning("the broker did not take a command, it is sent again", board=command.board, why=str(error))
            return False
        return True

    def _with_cancel(self, command: Sent) -> Sent:
        """A command with its cancel; the one it has, if this is not the first try."""
        if command.cancel_id:
            return command
        now = int(self._now())
        cancel_id = new_id(now * 1000, os.urandom)
        until = now + self._cancel_s(command)
        request = Request(cancel_id, command.board, CANCEL, now, until, {"job": command.id})
        return replace(command, cancel_id=cancel_id, cancel=self._sign(request))

    def _cancel_s(self, command: Sent) -> int:
        """A cancel lives as long as what it cancels could still begin."""
        return min(MAX_LIFETIME_S, max(LEAST_CANCEL_S, int(command.not_after - self._now())))


def _with_status(command: Sent, body: Mapping[str, object]) -> Sent | None:
    """The command with a newer status, or `None`."""
    if command.status is not None and not is_newer(body, command.status):
        return None
    outcome = of_status(body.get("status"))
    if Outcome(command.outcome) not in NOT_ENDED | WITHOUT_WORD:
        return None
    kept = {**dict.fromkeys(_KEPT), **slim(body, _KEPT)}
    kept["reason"] = str(body.get("reason") or "")[:MAX_STATUS_CHARACTERS]
    kept["reason_code"] = str(body.get("reason_code") or "")[:MAX_STATUS_CHARACTERS]
    return replace(command, outcome=str(outcome), status=kept) if kept != command.status else None
