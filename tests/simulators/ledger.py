"""A board's desk and journal between a broker that loses, delays and repeats and a power that fails at any commit.

The desk, the journal and everything they own are the daemon's. Stand-ins: the uplink (confirms, loses, delays), the
worker behind `Workshop.start` (says what it is told to say, and obeys orders at once), the clocks, and the commit that
fails. Everything runs on one event loop that stands still between two steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.errors import BoardError, CommandError
from agent.keys_consoles import Role, TrustedConsole, keyid
from agent.messages import (
    EvaluateOrder,
    Failed,
    Finished,
    Message,
    Order,
    Planned,
    Scrubbed,
    ScrubOrder,
    Stage,
    Steer,
    SwitchOrder,
    Waits,
)
from agent.slots import read_manifest, read_status
from agent.switch import slot_of, switch_back
from policies.reading import Action, Decision
from service.agent_update import UpdateShop
from service.answers import RESULTS_KEPT
from service.asked import RUNNING
from service.commands import Request, new_id, read_command, sign_command
from service.desk import Desk
from service.device_link import Incoming
from service.job import TABLE, TERMINAL, Event, State, wire_status
from service.journal import LEDGER_KEPT, JobRecord, Journal
from service.launched import Launched
from service.model_commands import ModelShop
from service.policy_file import PolicyFile
from service.qualify_command import QualifyShop
from service.qualify_plan import Place
from service.scrub import ScrubShop
from service.state_version import BoardState, state_reader
from service.statuses import Clock
from service.steering import Steering
from service.workshop import Workshop
from tests.simulators.system_updates import QUIET, without_rauc

DEVICE = "board-1"
NOON = 1_800_000_000  # a console's clock, seconds since 1970
HOT = Decision(action=Action.PAUSE, rule="thermal.absolute-pause")
STAGES = ("VERIFYING", "UNSEALING", "PLANNING", "COMPILING", "TRAINING", "EVALUATING", "SEALING", "PROMOTING")
WORDS: dict[str, Message] = {
    "fail": Failed("bad-data", "no images"),
    "network": Failed("network", "nobody answers"),
    "plan": Planned({"plan": {}}),
}
FINAL = {"rejected", "succeeded", "failed", "timed_out", "canceled", "rolled_back"}
BOOKKEEPING = ("answers", "policy-begun", "high_water", "state")
"""What the journal may remember of a command that is refused."""


class PowerCutError(BaseException):
    """The board is off: nothing after this runs."""


class FailingJournal(Journal):
    """The journal on a board whose power fails before or after a chosen commit."""

    cut_in, cut_after, dead = 0, False, False
    full = False
    """The disk takes nothing."""

    def cut(self, commits: int, *, after: bool) -> None:
        """The power fails at the commit that is so many ahead; 1 is the next one."""
        self.cut_in, self.cut_after = commits, after

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        if self.dead:
            raise PowerCutError
        if self.full:
            raise BoardError("no space", reason="no-space")
        self.cut_in -= 1
        with super()._writing() as db:
            yield db
            if self.cut_in == 0 and not self.cut_after:
                self.dead = True
                raise PowerCutError
        if self.cut_in == 0:
            self.dead = True
            raise PowerCutError


class SimulatedWorker:
    """A worker that says what it is told to say."""

    pid = 1
    starved = False

    def __init__(self) -> None:
        self.said: asyncio.Queue[Message | int] = asyncio.Queue()
        self.order: Steer | None = None
        self.code = 0

    async def send(self, _message: Message) -> None:
        """Everything that is sent is a permission."""

    def offer(self, message: Message) -> bool:
        if isinstance(message, Steer):
            self.order = message
        return True

    async def messages(self) -> AsyncIterator[Message]:
        while not isinstance(message := await self.said.get(), int):
            yield message
            if isinstance(message, Finished | Failed | Scrubbed):
                return
        self.code = message

    def kill(self) -> None:
        self.said.put_nowait(-9)

    async def end(self, _grace_s: float = 0.0) -> int:
        return self.code


@dataclasses.dataclass
class Sent:
    """A message on its way to the broker."""

    future: asyncio.Future[bool]
    topic: tuple[str, str]
    body: dict[str, Any]
    retained: bool


@dataclasses.dataclass
class Mail:
    """A request on its way to the board."""

    kind: str
    id: str
    envelope: bytes


class LedgerWorld:
    """See the module. Each public method is one step, after which every promise is checked."""

    def __init__(self, folder: Path, *, ledger_kept: int = LEDGER_KEPT, by_command: bool = True) -> None:
        self.folder, self.ledger_kept, self.by_command = folder, ledger_kept, by_command
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._excepted)
        self.now_s, self.board_ahead_s, self.mono_s = float(NOON), 0.0, 100.0
        self.time_service = False
        self.hot = False
        self.made = 0
        self.states: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.switches = 0
        """How often another model became active."""
        self.counted: set[tuple[str, int]] = set()
        self.faults: list[str] = []
        # The broker.
        self.connected = True
        self.inbox: list[Mail] = []
        self.on_way: list[Sent] = []
        self.retained: dict[tuple[str, str], dict[str, Any]] = {}
        # What consoles know.
        self.requests: dict[str, Mail] = {}
        self.last_seen: dict[str, dict[str, Any]] = {}
        # The disk of the board that is not in the journal, and what must stay true of it.
        self.promoted: set[str] = set()
        self.ended: dict[str, tuple[str, str]] = {}
        self.acknowledged: dict[str, str] = {}
        keys = (Ed25519PrivateKey.from_private_bytes(letter * 32) for letter in (b"c", b"v", b"s"))
        self.console, self.viewer, self.stranger = keys
        self.trusted = dict([_trust(self.console, Role.OWNER), _trust(self.viewer, Role.VIEWER)])
        self._boot()

    # --- the board ---------------------------------------------------------------------------------------------------

    def _boot(self) -> None:
        path = self.folder / "journal.sqlite"
        opened = FailingJournal.open(path, self.board_now, self.ledger_kept)
        assert opened.quarantined is None
        self.journal = opened.journal
        floor = max([1_790_000_000.0, *(job.updated for job in self.journal.jobs(1))])
        self.policies = PolicyFile(self.folder, "", "default", by_command=self.by_command)
        board = SysfsBoard(BoardRoots(self.folder / "sys", self.folder / "proc"), named_profile("generic"))
        self.steering = Steering(board, self.policies.policy)
        clock = Clock(lambda: self.board_now, lambda: self.mono_s, lambda: self.time_service or self.board_now >= floor)
        self.worker: SimulatedWorker | None = None
        self.order: Message | None = None
        self.job: str = ""
        self.desk = Desk(
            *(self.journal, self.steering, self.policies, self, lambda: self.trusted, DEVICE, clock),
            Workshop(self._job_order, 0, lambda _message, _record: None, lambda _job: None, self._start),
            scrub_shop=ScrubShop(self._scrub_order, lambda: None, lambda: None, self._start),
            qualify_shop=QualifyShop(Place(self.folder, "", "generic", emulated=False), 1),
            model_shop=ModelShop(self.folder, 1, 0, self._evaluate_order, lambda: None, self._start),
            update_shop=UpdateShop(self.folder, Launched(), 0, ("", ""), metered=False),
            system_shop=without_rauc(self.folder),
            sight=QUIET,
            state=state_reader(self.journal, self.folder / "store", self.policies),
            policy_by_command=self.by_command,
        )
        # A stress run loads real cores for minutes: `stress` takes its command through the same steps instead.
        self.desk.qualifications.due = lambda: False  # type: ignore[method-assign]
        self.steering.decision = HOT if self.hot else Decision()
        try:
            self.desk.recover()
        except PowerCutError:  # it may fail again at once
            self.crash()
            return
        self.work = self.loop.create_task(self.desk.work())
        self._settle()

    @property
    def board_now(self) -> float:
        return max(0.0, self.now_s + self.board_ahead_s)

    async def _start(self, order: Message, _nice: int, _on_log: Callable[[str], None], _module: str = "") -> Any:
        self.worker, self.order = SimulatedWorker(), order
        return self.worker

    def _job_order(self, record: JobRecord) -> Order:
        assert record.id not in self.ended, "no command runs twice: this job has ended"
        self.job = record.id
        return Order(record.id, record.spec, str(self.folder), "", "", "", 1)

    def _evaluate_order(self, args: Mapping[str, object]) -> EvaluateOrder:
        self.job = ""
        return EvaluateOrder(str(self.folder), "", "", dict(args), 1)

    def _scrub_order(self) -> ScrubOrder:
        waiting = [name for name, asked in self.desk.scrubs._asked.items() if asked.status == RUNNING]
        assert not set(waiting) & self.ended.keys(), "no command runs twice: this scrub has ended"
        self.job = ""
        return ScrubOrder(str(self.folder), "", "")

    def publish_status(
        self, kind: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        if not self.connected:
            return None
        future: asyncio.Future[bool] = self.loop.create_future()
        self.on_way.append(Sent(future, (kind, command_id), json.loads(json.dumps(status)), retained))
        self._see_status(self.on_way[-1])
        return future

    def _excepted(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, PowerCutError):
            self.faults.append(repr(error or context))

    def _settle(self) -> None:
        """Let the loop run until nothing is left to do, then look at everything."""
        for _ in range(12):
            self.loop.run_until_complete(asyncio.sleep(0))
        if self.journal.dead:
            self.crash()
            return
        assert not self.faults, self.faults
        assert not self.work.done(), "the desk stopped working" + repr(self.work)
        self._check()

    # --- what happens ------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The power fails: all in memory is gone, all on its way is lost, all that was not acknowledged comes again."""
        self.journal.dead = True
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        with contextlib.suppress(PowerCutError):
            for _ in range(5):
                self.loop.run_until_complete(asyncio.sleep(0))
        if self.work.done() and not self.work.cancelled():
            self.work.exception()
        self.journal._db.close()
        self._lose()
        self.mono_s += 1.0
        self._boot()

    def cut(self, commits: int, *, after: bool) -> None:
        """The power will fail at a commit."""
        self.journal.cut(commits, after=after)

    def tick(self, seconds: float = 1.0) -> None:
        """The daemon's second."""
        self.now_s += seconds
        self.mono_s += seconds
        with self._powered():
            self.desk.runner.tick()
            self.desk.scrubs.steer()
            self.desk.models.steer()
            self.desk.wake()
            if self.connected:
                self.desk.catch_up()

    def heat(self, *, hot: bool) -> None:
        """The governor pauses all work, or lets it run."""
        self.hot = hot
        self.steering.decision = HOT if hot else Decision()
        self.tick()

    def set_clock(self, ahead_s: float) -> None:
        """The board's clock jumps, to so many seconds ahead of true time."""
        self.board_ahead_s = ahead_s
        self.tick()

    def confirm(self, count: int = 1) -> None:
        """The broker takes the oldest messages and says so."""
        with self._powered():
            for sent in self.on_way[:count]:
                self._receive(sent)
                sent.future.set_result(True)
            del self.on_way[:count]

    def lose(self, reached: int) -> None:
        """The connection is lost; some of what was on its way has reached the broker, which cannot say so any more."""
        for sent in self.on_way[:reached]:
            self._receive(sent)
        self.connected = False
        with self._powered():
            self._lose()

    def connect(self, *, wiped: bool = False) -> None:
        """The broker is there, with what it kept or without."""
        self.connected = True
        if wiped:
            self.retained.clear()
            self.inbox.clear()
        with self._powered():
            if wiped:
                self.desk.broker_lost()
            self.desk.publish_pending()

    def work_on(self, act: str) -> None:
        """The worker goes a step, if one is at work."""
        worker = self.worker
        if worker is None:
            return
        with self._powered():
            current = self.desk.runner.current
            if self.desk.models.running:
                worker.said.put_nowait(self._model_word(act, worker.order))
            elif self.desk.scrubs.running:
                worker.said.put_nowait(_scrub_word(act))
            elif current is not None:
                for message in self._words(act, current, worker.order):
                    worker.said.put_nowait(message)

    def work_until(self, state: State) -> None:
        """The worker goes on until its job stands there; scrubs that come before it end."""
        for _ in range(30):
            current = self.desk.runner.current
            if current is not None and current.standing.state is state:
                return
            self.work_on("next")
        raise AssertionError(f"no job comes to {state}")

    def stress(self, act: str) -> None:
        """The stress run that was asked for goes a step."""
        asked = self.desk.qualifications._asked
        if asked is None or asked.ended:
            return
        with self._powered():
            if asked.status != RUNNING:
                assert asked.id not in self.ended, "no command runs twice: this run has ended"
                self.desk.qualifications._advance(dataclasses.replace(asked, status=RUNNING))
            elif act == "fail":
                self.desk.qualifications._end("failed", "not-qualified", "too hot", {})
            else:
                self.desk.qualifications._end("succeeded", "", "", {})

    def state(self) -> BoardState | None:
        """What `birth` would say now; nothing where the power fails over it."""
        with self._powered():
            return self.desk.commands._state()
        return None

    # --- consoles ----------------------------------------------------------------------------------------------------

    def request(self, kind: str, args: dict[str, object], **changes: Any) -> Request:
        """A request as a console makes it now."""
        self.now_s += 0.01
        self.made += 1
        noise = self.made.to_bytes(10, "big")
        now = int(self.now_s)
        made = Request(new_id(int(self.now_s * 1000), lambda _n: noise), DEVICE, kind, now, now + 3600, args)
        return dataclasses.replace(made, **changes)

    def send(self, kind: str, args: dict[str, object], *, key: Ed25519PrivateKey | None = None, **changes: Any) -> str:
        """A console sends; the broker keeps it and has it for the board."""
        request = self.request(kind, args, **changes)
        mail = Mail(kind, request.id, sign_command(request, key or self.console))
        self.requests.setdefault(request.id, mail)
        self.inbox.append(mail)
        return request.id

    def deliver(self, index: int = 0, *, keep: bool = False) -> None:
        """One message of those for the board arrives, in any order; it goes when it is acknowledged."""
        if not self.inbox:
            return
        mail = self.inbox[index % len(self.inbox)]
        acknowledged: list[bool] = []
        incoming = Incoming(mail.kind, mail.id, mail.envelope, retained=False, ack=lambda: acknowledged.append(True))
        known, before, sent = self.journal.outcome(mail.id), self._dump(), len(self.on_way)
        new = known is None and mail.id > self.journal.recall("high_water") and self._is_for_us(mail)
        try:
            self.desk.commands.take(incoming)
        except PowerCutError:
            self.journal.dead = True
        if acknowledged and not keep:
            self.inbox.remove(mail)
        if acknowledged and new:
            self.acknowledged[mail.id] = mail.kind
        if self.journal.dead:
            self.crash()
            return
        if self.journal.full:
            assert not acknowledged, "what the disk refuses stays with the broker"
            assert self._dump() == before
            return
        assert acknowledged, "the disk took everything"
        outcome = self.journal.outcome(mail.id)
        if known is not None or outcome is None or outcome.startswith("rejected"):
            assert self._dump() == before, f"what was repeated or refused changed something: {mail}, {known}, {outcome}"
        if outcome is None or (known is None and outcome.startswith("rejected")):
            self._see_refusal(mail, outcome, self.on_way[sent:])
        self._settle()

    def everything_in_order(self) -> None:
        """No more trouble: all arrives, all work is done, all is confirmed. Then nothing that was accepted is lost."""
        self.journal.cut_in = 0
        self.board_ahead_s, self.time_service = 0.0, True  # it may have been ahead when the journal was written
        self.connect()
        self.heat(hot=False)
        while self.inbox:
            self.deliver()
        for job_id in list(self.desk._held._holds):
            self.send("resume", {"job": job_id})
            self.deliver()
        for _ in range(400):
            self.confirm(1000)
            self.tick(61.0)
            self.work_on("next")
            self.stress("next")
            if not self._unfinished() and not self.on_way:
                break
        assert not self._unfinished(), "something never ends"
        self._nothing_is_lost()

    # --- what must be true -------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """The journal: ends never change, and what was acknowledged is there."""
        for record in self.journal.jobs(1000):
            self._count(record.id, record.version, record.standing.state)
            if record.standing.state in TERMINAL:
                self._ends(record.id, (wire_status(record.standing.state).status, record.standing.reason_code))
        high_water = self.journal.recall("high_water")
        for command_id in self.acknowledged:
            outcome = self.journal.outcome(command_id)
            job = self.journal.job(command_id)
            assert outcome is not None or job is not None or command_id <= high_water, "an accepted command is lost"
            if outcome is not None and outcome.split(":")[0] in FINAL:
                self._ends(command_id, (*outcome.split(":"), "", "")[:2])

    def _count(self, job_id: str, version: int, state: State) -> None:
        """Each standing of a job once."""
        if (job_id, version) not in self.counted:
            self.counted.add((job_id, version))
            self.states[state] += 1

    def _ends(self, command_id: str, end: tuple[str, ...]) -> None:
        before = self.ended.setdefault(command_id, (end[0], end[1]))
        assert before == end, f"an end changed: {command_id} from {before} to {end}"

    def _see_status(self, sent: Sent) -> None:
        """Everything that is published is legal, and no older than what was published before."""
        body, (_kind, command_id) = sent.body, sent.topic
        if not sent.retained:
            assert body["status"] == "rejected"
            return
        state = _state(body)
        if command_id in self._job_ids():
            self._count(command_id, body["version"], state)
        before = self.last_seen.get(command_id)
        self.last_seen[command_id] = body
        if before is None:
            return
        assert body["version"] >= before["version"], "versions never fall"
        same = [name for name in ("status", "step", "reason_code") if body[name] != before[name]]
        if body["version"] == before["version"]:
            assert not same, f"one version says two things: {before} {body}"
        if before["status"] in FINAL:
            assert body["status"] == before["status"], "an end is final"
            forgotten = body["result"] is None and len(self.desk.commands.answers._results) == RESULTS_KEPT
            assert body["result"] == before["result"] or forgotten, "a result is told again as it was"
        elif command_id in self._job_ids():
            assert state in _reachable(_state(before)), f"{_state(before)} cannot become {state}"

    def _see_refusal(self, mail: Mail, outcome: str | None, told: list[Sent]) -> None:
        code = outcome.split(":")[1] if outcome else next((one.body["reason_code"] for one in told), "")
        if code:
            self.codes[code] += 1
        for one in told:
            assert one.topic == (mail.kind, mail.id)
            assert one.retained == (outcome is not None), "only what a trusted console signed is kept by the broker"

    def _is_for_us(self, mail: Mail) -> bool:
        """Whether a trusted console signed it for this board."""
        about = {"topic_type": mail.kind, "topic_id": mail.id, "trusted": self.trusted, "device": DEVICE}
        try:
            read_command(mail.envelope, **about)
        except CommandError:
            return False
        return True

    def _nothing_is_lost(self) -> None:
        high_water = self.journal.recall("high_water")
        for command_id, kind in self.acknowledged.items():
            if command_id <= high_water and self.journal.job(command_id) is None:
                continue
            found = self.retained.get((kind, command_id))
            assert found is not None, f"nobody ever said what came of {kind} {command_id}"
            assert found["status"] in FINAL
            assert (found["status"], found["reason_code"]) == self.ended[command_id]

    def _unfinished(self) -> bool:
        asked = self.desk.qualifications._asked
        rooms = (self.desk.scrubs, self.desk.models)
        open_ones = [one for room in rooms for one in room._asked.values() if not one.ended]
        return bool(self.journal.unfinished() or open_ones or (asked is not None and not asked.ended))

    # --- details -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _powered(self) -> Iterator[None]:
        try:
            yield
        except PowerCutError:
            self.crash()
        else:
            self._settle()

    def _lose(self) -> None:
        for sent in self.on_way:
            if not sent.future.done():
                sent.future.set_result(False)
        self.on_way.clear()

    def _receive(self, sent: Sent) -> None:
        if sent.retained:
            self.retained[sent.topic] = sent.body

    def _job_ids(self) -> set[str]:
        rows = self.journal._db.execute("SELECT id FROM jobs").fetchall()
        return {row["id"] for row in rows}

    def _dump(self) -> object:
        """Everything that a command may change."""
        db = self.journal._db
        marks = [tuple(row) for row in db.execute("SELECT * FROM marks").fetchall() if row["name"] not in BOOKKEEPING]
        jobs = [{**dict(row), "status_published": 0} for row in db.execute("SELECT * FROM jobs").fetchall()]
        return jobs, marks, self.policies.now.sha256, dict(self.desk.scrubs._asked), dict(self.desk.models._asked)

    def _words(self, act: str, record: JobRecord, order: Steer | None) -> list[Message | int]:  # noqa: PLR0911 - one for each thing it may say
        """What a worker says that does `act` next, and obeys the order it has."""
        state, action = record.standing.state, order.action if order is not None else ""
        if act == "vanish":
            return [-11]
        if order is not None and action == "ABORT" and state is not State.PROMOTING:
            return [Failed(order.rule, "ended as ordered")]
        if state is State.PROMOTING:
            return self._promotes(act, record)
        if record.id in self.promoted:  # the board went down before the journal had it
            return [Finished("SUCCEEDED", "", {})]
        if order is not None and action == "PAUSE":
            return [Waits(resting=True, rule=order.rule)]
        if act in WORDS:
            return [WORDS[act]]
        if state is State.PAUSED:
            return [Waits(resting=False, rule="")]
        return [Stage(STAGES[(STAGES.index(state) + 1) if state in STAGES else 0])]

    def _model_word(self, act: str, order: Steer | None) -> Message | int:
        """What a worker says of a model: a change is made on the disk before it is told."""
        what, current = self.order, self.desk.models._current
        assert current is None or current.id not in self.ended, "no command runs twice: this one has ended"
        if isinstance(what, SwitchOrder) and act != "fail":
            self.switches += change_over(self.folder / "store", what)
        if act == "vanish":
            return -11
        if order is not None and order.action == "ABORT":
            return Failed(order.rule, "ended as ordered")
        return Failed("bad-data", "no images") if act == "fail" else Finished("SUCCEEDED", "", {"slot": ""})

    def _promotes(self, act: str, record: JobRecord) -> list[Message | int]:
        if act == "roll back" and record.id not in self.promoted:
            return [Finished("ROLLED_BACK", "the self-test failed", {})]
        self.promoted.add(record.id)
        return [Finished("SUCCEEDED", "", {})]


def change_over(store: Path, order: SwitchOrder) -> int:
    """What the real one does to a status, without models; 1 where something changed."""
    status = read_status(store)
    if _held(store, status.active) == order.after:
        return 0
    assert _held(store, status.active) == order.before, "no job changed the model meanwhile"
    slot = slot_of(store, order.after, status.in_use()) if order.after else ""
    switch_back(store, slot, "by an operator")
    return 1


def _held(store: Path, slot: str) -> str:
    return read_manifest(store, slot).core.plaintext_sha256 if slot else ""


def _scrub_word(act: str) -> Message | int:
    if act == "vanish":
        return -11
    if act == "fail":
        return Failed("disk", "cannot be read")
    counts = {"files": 1, "damaged": 0, "repaired": 0, "unrepairable": 0}
    return Scrubbed({**counts, "findings": []})


def _trust(key: Ed25519PrivateKey, role: Role) -> tuple[str, TrustedConsole]:
    name, raw = keyid(key.public_key()), key.public_key().public_bytes_raw()
    return name, TrustedConsole(role, name, raw, Path(f"{role}.json"), role)


def _state(body: Mapping[str, Any]) -> State:
    name = body["step"] if body["status"] == "running" and body["step"] else body["status"]
    return State(name.upper()) if name.upper() in State.__members__ else State.TRAINING


def _reachable(state: State) -> set[State]:
    """States that a job may be in later, and now."""
    found, todo = {state}, [state]
    while todo:
        here = todo.pop()
        after = {to for (of, event), to in TABLE.items() if of is here}
        if any(of is here and event is Event.RESTART for of, event in TABLE):
            after.add(State.FAILED)  # the last attempt
        todo += after - found
        found |= after
    return found
