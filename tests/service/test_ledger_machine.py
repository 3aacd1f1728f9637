"""Commands, crashes, repeats and reorderings against the real desk and journal: no command runs twice, none that was
accepted is lost, ends never change. What is checked after each step stands in `tests.simulators.ledger`.

A longer run: `make ledger`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from agent.errors import BoardError
from agent.store import Store
from agent.switch import BASE, way_back
from service.command_desk import MAX_UNFINISHED, STRANGERS_AT_ONCE
from service.commands import MAX_ENVELOPE_BYTES, Refusal, sign_command
from service.job import State
from service.scrub import MAX_ASKED
from tests.simulators.ledger import LedgerWorld, Mail

RUNS, STEPS = int(os.environ.get("TEMPERD_LEDGER_RUNS", "40")), 50
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - the power fails in the simulator only
JOB: dict[str, object] = {"model": "net", "data": "/srv/photos"}
COLD, WARM = 'name = "cold"\n[thermal.slow]\nduty = 0.6\n', 'name = "warm"\n'
DECIDED_LATER = {"wrong-state", "superseded", "busy", "bad-policy", "policy-fixed", "no-active-model", "not-updatable"}
"""Refusals that are no `Refusal`: of commands that were judged good, by who carries them out."""
NEVER = {State.REJECTED}
"""A command that is refused makes no job."""

states: Counter[str] = Counter()
codes: Counter[str] = Counter()


def in_a_world(folder: str, **about: Any) -> LedgerWorld:
    return LedgerWorld(Path(folder), **about)


def leave(world: LedgerWorld) -> None:
    states.update(world.states)
    codes.update(world.codes)
    world.work.cancel()
    world.journal._db.close()
    world.loop.close()


class LedgerMachine(RuleBasedStateMachine):
    """Anything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=IN_MEMORY)

    @initialize(kept=st.sampled_from([8, 20, 10_000]))
    def begin(self, kept: int) -> None:
        self.world = in_a_world(self.folder.name, ledger_kept=kept)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            for name in self.world.states:
                event(f"state {name}")
            for name in self.world.codes:
                event(f"refused {name}")
            try:
                self.world.everything_in_order()
            finally:
                leave(self.world)
        self.folder.cleanup()

    def a_job(self, pick: int) -> str:
        known = [key for key, mail in self.world.requests.items() if mail.kind == "fine-tune"]
        return known[pick % len(known)] if known else self.world.request("fine-tune", JOB).id

    @rule(priority=st.integers(-1, 1), most_wait_s=st.sampled_from([0, 30]))
    def fine_tune(self, priority: int, most_wait_s: int) -> None:
        self.world.send("fine-tune", {**JOB, "priority": priority, "most_wait_s": most_wait_s})

    @rule(count=st.integers(0, 9))
    def a_job_at_work(self, count: int) -> None:
        self.world.send("fine-tune", JOB)
        for _ in range(len(self.world.inbox)):
            self.world.deliver()
        self.work_long(count)

    @rule(kind=st.sampled_from(["cancel", "pause", "resume"]), pick=st.integers(0, 9))
    def control(self, kind: str, pick: int) -> None:
        self.world.send(kind, {"job": self.a_job(pick)})

    @rule(kind=st.sampled_from(["scrub", "qualify"]))
    def other_work(self, kind: str) -> None:
        self.world.send(kind, {})

    @rule(kind=st.sampled_from(["evaluate", "rollback", "cancel"]), pick=st.integers(0, 9))
    def models(self, kind: str, pick: int) -> None:
        known = [key for key, mail in self.world.requests.items() if mail.kind in ("evaluate", "rollback")]
        if kind == "cancel":
            if known:
                self.world.send(kind, {"job": known[pick % len(known)]})
            return
        self.world.send(kind, {"data": "/srv/photos"} if kind == "evaluate" else {"to": ("", "base")[pick % 2]})

    @rule(args=st.sampled_from([{"text": COLD}, {"text": WARM}, {"reset": True}, {"text": "[broken"}]))
    def set_policy(self, args: dict[str, object]) -> None:
        self.world.send("set-policy", args)

    @rule(stale=st.booleans(), kind=st.sampled_from(["fine-tune", "set-policy"]))
    def with_expectation(self, kind: str, stale: bool) -> None:
        if (state := self.world.state()) is None:
            return
        expect = {"policy": state.policy, "state_version": state.state_version - stale, "active_model": ""}
        self.world.send(kind, {"text": COLD} if kind == "set-policy" else JOB, expect=expect)

    @rule(
        changes=st.sampled_from(
            [
                {"not_after": 1_799_999_000, "issued_at": 1_799_998_000},
                {"device": "board-2"},
                {"args": {"modle": "net"}},
                {"schema": 2},
                {"type": "update-agent"},
                {"expect": {"moon": "full"}},
            ]
        )
    )
    def bad_command(self, changes: dict[str, Any]) -> None:
        rest = {name: value for name, value in changes.items() if name not in ("type", "args")}
        self.world.send(changes.get("type", "fine-tune"), changes.get("args", JOB), **rest)

    @rule(who=st.sampled_from(["viewer", "stranger"]))
    def command_of_somebody_else(self, who: str) -> None:
        self.world.send("fine-tune", JOB, key=getattr(self.world, who))

    @rule(pick=st.integers(0, 99), who=st.sampled_from(["console", "viewer", "stranger"]))
    def same_id_other_body(self, pick: int, who: str) -> None:
        if mail := self.sent(pick):
            other = self.world.request(mail.kind, {"job": mail.id}, id=mail.id)
            self.world.inbox.append(Mail(mail.kind, mail.id, sign_command(other, getattr(self.world, who))))

    @rule(pick=st.integers(0, 99))
    def send_again(self, pick: int) -> None:
        if mail := self.sent(pick):
            self.world.inbox.append(mail)

    def sent(self, pick: int) -> Mail | None:
        known = list(self.world.requests.values())
        return known[pick % len(known)] if known else None

    @rule(index=st.integers(0, 9), keep=st.booleans())
    def deliver(self, index: int, keep: bool) -> None:
        self.world.deliver(index, keep=keep)

    @rule(count=st.integers(1, 5))
    def deliver_some(self, count: int) -> None:
        for _ in range(count):
            self.world.deliver()

    @rule(act=st.sampled_from(["next", "next", "next", "plan", "fail", "network", "vanish", "roll back"]))
    def work(self, act: str) -> None:
        self.world.work_on(act)

    @rule(count=st.integers(1, 12))
    def work_long(self, count: int) -> None:
        for _ in range(count):
            self.world.work_on("next")

    @rule(act=st.sampled_from(["next", "fail"]))
    def stress(self, act: str) -> None:
        self.world.stress(act)

    @rule(hot=st.booleans())
    def heat(self, hot: bool) -> None:
        self.world.heat(hot=hot)

    @rule(seconds=st.sampled_from([1.0, 61.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule(ahead_s=st.sampled_from([0.0, 0.0, -3600.0, -1_800_000_000.0, 3600.0]))
    def clock_jumps(self, ahead_s: float) -> None:
        self.world.set_clock(ahead_s)

    @rule(count=st.integers(1, 9))
    def confirm(self, count: int) -> None:
        self.world.confirm(count)

    @rule(reached=st.integers(0, 5))
    def connection_lost(self, reached: int) -> None:
        self.world.lose(reached)

    @rule(wiped=st.booleans())
    def connected(self, wiped: bool) -> None:
        if not self.world.connected:
            self.world.connect(wiped=wiped)

    @rule(commits=st.integers(1, 6), after=st.booleans())
    def power_will_fail(self, commits: int, after: bool) -> None:
        self.world.cut(commits, after=after)

    @rule()
    def power_fails(self) -> None:
        self.world.crash()


Tour = Callable[[LedgerWorld], object]


def all_stages(world: LedgerWorld) -> None:
    """A job through every stage, paused and resumed on the way; canceled when it has ended."""
    job = world.send("fine-tune", JOB)
    world.deliver()
    world.heat(hot=True)
    world.heat(hot=False)
    world.work_until(State.TRAINING)
    world.send("pause", {"job": job})
    world.deliver()
    world.work_until(State.PAUSED)
    world.send("resume", {"job": job})
    world.deliver()
    world.work_until(State.PROMOTING)
    world.work_on("next")
    world.send("cancel", {"job": job})
    world.deliver()


def other_ends(world: LedgerWorld) -> None:
    """Rolled back, failed, too late, canceled while it waits and while it works."""
    world.heat(hot=True)
    for act, state in (("roll back", State.PROMOTING), ("fail", State.VERIFYING)):
        world.send("fine-tune", JOB)
        world.deliver()
        world.heat(hot=False)
        world.work_until(state)
        world.work_on(act)
        world.heat(hot=True)
    world.send("fine-tune", {**JOB, "most_wait_s": 5})
    for _ in range(2):
        world.send("cancel", {"job": world.send("fine-tune", JOB)})
    world.deliver()
    world.tick(10.0)
    world.heat(hot=False)
    for _ in range(4):
        world.deliver()
    world.work_on("next")


def out_of_order(world: LedgerWorld) -> None:
    """A pause that arrives after the resume that was sent later; a cancel before its job."""
    job = world.send("fine-tune", JOB)
    world.deliver()
    world.send("pause", {"job": job})
    world.send("resume", {"job": job})
    world.deliver(1)
    world.deliver()
    assert job not in world.desk._held
    world.send("cancel", {"job": world.send("fine-tune", JOB)})
    world.deliver(1)
    world.deliver()


def refusals(world: LedgerWorld) -> None:
    """All that can be told from a command alone, or from the board's clock."""
    world.send("format-disk", {})
    world.send("update-agent", {})
    world.send("fine-tune", JOB, device="board-2")
    world.send("fine-tune", JOB, key=world.viewer)
    world.send("fine-tune", JOB, key=world.stranger)
    world.send("fine-tune", JOB, schema=2)
    world.send("fine-tune", JOB, expect={"moon": "full"})
    world.send("fine-tune", JOB, expect={"active_model": "ab" * 32})
    world.send("fine-tune", {"data": "x"})
    world.send("fine-tune", JOB, issued_at=0, not_after=1_900_000_000)
    world.send("fine-tune", JOB, issued_at=1_799_990_000, not_after=1_799_990_001)
    good = world.requests[world.send("fine-tune", JOB)]
    unsigned = b'{"payload":"e30=","payloadType":"application/vnd.temperd.command+json","signatures":[]}'
    flipped = good.envelope.replace(b'"sig":"', b'"sig":"AAAA')
    for envelope in (b"\xff", unsigned, flipped, b" " * (MAX_ENVELOPE_BYTES + 1)):
        world.inbox.append(Mail("fine-tune", world.request("fine-tune", JOB).id, envelope))
    world.inbox.append(Mail("scrub", world.request("scrub", {}).id, good.envelope))
    other = world.request("fine-tune", {**JOB, "epochs": 3}, id=good.id)
    while world.inbox:
        world.deliver()
    world.inbox.append(Mail("fine-tune", good.id, sign_command(other, world.console)))
    world.deliver()
    for ahead_s in (-3600.0, -1_800_000_000.0):
        world.set_clock(ahead_s)
        world.send("fine-tune", JOB)
        world.deliver()


def after_pruning(world: LedgerWorld) -> None:
    """What the ledger has forgotten stays dead."""
    job = world.requests[world.send("fine-tune", JOB)]
    scrub = world.requests[world.send("scrub", {})]
    for _ in range(10):
        world.send("cancel", {"job": scrub.id})
    while world.inbox:
        world.deliver()
    world.inbox += [scrub, job]
    world.deliver()
    world.deliver()
    assert world.codes["replay"] == 1, "of the job its status is known: nobody's word replaces it"


def too_much(world: LedgerWorld) -> None:
    """More jobs, scrubs and stress runs than are taken; a way back from nothing."""
    world.send("rollback", {})
    world.deliver()
    world.heat(hot=True)
    for _ in range(MAX_UNFINISHED + 1):
        world.send("fine-tune", {**JOB, "most_wait_s": 5})
        world.deliver()
    for kind in (*["scrub"] * (MAX_ASKED + 1), "qualify", "qualify"):
        world.send(kind, {})
        world.deliver()
    world.tick(10.0)


def policies(world: LedgerWorld) -> None:
    """In the order in which they were issued, and none that is broken."""
    for text in (COLD, "[broken", WARM):
        world.send("set-policy", {"text": text})
    world.deliver(2)
    world.deliver()
    world.deliver()
    assert world.policies.policy.name == "warm"
    world.send("set-policy", {"text": "[broken"})
    world.deliver()
    state = world.state()
    assert state is not None
    guarded = world.send("set-policy", {"text": COLD}, expect={"policy": state.policy})
    world.cut(2, after=False)  # it is in force, and the answer is not in the ledger
    world.deliver()
    assert world.policies.policy.name == "cold"
    world.deliver()
    assert world.journal.outcome(guarded) == "succeeded", "what it changed itself must not refuse it"


def power_cuts(world: LedgerWorld) -> None:
    """Each command with a cut at each of its commits."""
    for after in (False, True):
        for commits in range(1, 7):
            job = world.send("fine-tune", JOB)
            for kind, args in (
                ("pause", {"job": job}),
                ("scrub", {}),
                ("set-policy", {"text": COLD if after else WARM}),
            ):
                world.send(kind, args)
            for kind in ("qualify", "cancel"):
                world.send(kind, {"job": job} if kind == "cancel" else {})
            while world.inbox:
                world.cut(commits, after=after)
                world.deliver()
                world.journal.cut_in = 0
                world.deliver()
                world.heat(hot=commits % 2 == 0)
                world.work_on("next")
                world.stress("next")
                world.stress("next")


def lost_ends(world: LedgerWorld) -> None:
    """The connection is lost while ends are on their way; the broker has them, or not."""
    for reached in (0, 1000):
        for kind, args in (("fine-tune", JOB), ("scrub", {}), ("qualify", {}), ("set-policy", {"text": COLD})):
            world.send(kind, args)
            world.deliver()
            world.confirm(1000)
            for _ in range(15):
                world.work_on("next")
                world.stress("next")
            world.lose(reached)
            world.connect()


def full_disk(world: LedgerWorld) -> None:
    """What cannot be journaled is neither done, answered nor acknowledged; the broker brings it again."""
    world.heat(hot=True)
    job = world.send("fine-tune", JOB)
    world.deliver()
    for kind, args in (
        *((kind, {"job": job}) for kind in ("pause", "resume", "cancel")),
        *(("fine-tune", JOB), ("scrub", {}), ("qualify", {}), ("set-policy", {"text": COLD}), ("promote", {})),
    ):
        command = world.send(kind, args)
        world.journal.full, told = True, len(world.on_way)
        world.deliver()
        assert len(world.on_way) == told
        assert world.journal.outcome(command) is None
        world.journal.full = False
        world.deliver()
        assert world.journal.outcome(command) is not None


def changes(world: LedgerWorld) -> None:
    """Another model while a job is at work, with a cut at each commit: the job goes on, the model changes once."""
    store, asked = Store(world.folder / "store", bytes(32)), []
    for model in (b"one", b"two"):
        store.activate(store.stage(model, {}))
        store.mark_good()
    for after in (False, True):
        for commits in range(1, 7):
            world.send("fine-tune", JOB)
            world.deliver()
            world.work_until(State.TRAINING)
            ways = way_back(store.folder), way_back(store.folder, BASE)
            wanted = ways[commits % 2].after
            asked.append(world.send("rollback", {"to": wanted or BASE}, expect={"active_model": ways[0].before}))
            world.cut(commits, after=after)
            world.deliver()
            for act in ("vanish", "next", "next", "next", "next"):
                world.tick()
                world.work_on(act)
            world.journal.cut_in = 0
            world.deliver()
            for _ in range(4):
                world.tick()
                world.work_on("next")
            assert world.journal.outcome(asked[-1]) == "succeeded"
            active = store.active()
            assert (active.plaintext_sha256 if active else "") == wanted
            store.activate(store.stage(b"%d" % len(asked), {}))
            store.mark_good()
    assert world.switches == len(asked)
    world.send("evaluate", {"data": "/srv/photos"})
    world.deliver()


def fixed_policy(world: LedgerWorld) -> None:
    world.send("set-policy", {"reset": True})
    world.deliver()


TOURS: list[tuple[Tour, dict[str, Any]]] = [
    (all_stages, {}),
    (other_ends, {}),
    (out_of_order, {}),
    (refusals, {}),
    (after_pruning, {"ledger_kept": 8}),
    (too_much, {}),
    (policies, {}),
    (power_cuts, {}),
    (lost_ends, {}),
    (full_disk, {}),
    (changes, {}),
    (fixed_policy, {"by_command": False}),
]


def toured(tour: Tour, about: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder, **about)
        try:
            tour(world)
            world.everything_in_order()
        finally:
            leave(world)


@pytest.mark.parametrize(("tour", "about"), TOURS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_tour_ends_with_nothing_lost(tour: Tour, about: dict[str, Any]) -> None:
    toured(tour, about)


def test_whatever_happens_nothing_runs_twice_and_nothing_is_lost() -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None, suppress_health_check=checks),
    )


def test_every_state_and_every_refusal_is_reached() -> None:
    for tour, about in TOURS if not states else ():
        toured(tour, about)
    for what, found in (("states", states), ("refusals", codes)):
        print(f"\n{what} reached: {', '.join(f'{name} {count}' for name, count in sorted(found.items()))}")  # noqa: T201 - the summary of a run with -s
    assert set(states) == set(State) - NEVER
    assert set(codes) == {*Refusal, *DECIDED_LATER} - {Refusal.SAFE_MODE}  # of a board, not of a command


def test_a_flood_of_strangers_leaves_no_trace() -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        before = world._dump()
        rows = world.journal._db.execute("SELECT count(*) FROM ledger").fetchone()[0]
        for _ in range(3 * STRANGERS_AT_ONCE):
            world.send("fine-tune", JOB, key=world.stranger)
            world.deliver()
        assert len(world.on_way) == STRANGERS_AT_ONCE, "answers are bounded"
        world.confirm(1000)
        assert world.retained == {}, "and the broker keeps none"
        assert (world._dump(), world.journal._db.execute("SELECT count(*) FROM ledger").fetchone()[0]) == (before, rows)
        assert world.desk.commands.refused_total == 3 * STRANGERS_AT_ONCE
        good = world.send("cancel", {"job": world.request("cancel", {}).id})
        world.deliver()
        assert world.on_way[-1].topic == ("cancel", good)
        leave(world)


def test_what_a_full_disk_refused_is_done_once_it_takes_again() -> None:
    """The broker repeats nothing while the connection stands, and loses nothing either."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        job = world.send("fine-tune", JOB)
        world.deliver()
        world.confirm(1000)
        world.lose(0)
        world.journal.full = True
        with pytest.raises(BoardError):
            world.connect(wiped=True)
        scrub = world.send("scrub", {})
        world.deliver()
        with pytest.raises(BoardError):
            world.tick()
        world.journal.full = False
        world.tick()
        world.confirm(1000)
        assert world.retained.keys() == {("fine-tune", job), ("scrub", scrub)}
        leave(world)


def test_a_broker_that_lost_all_is_told_of_what_waits() -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        world.heat(hot=True)
        asked: dict[str, dict[str, object]] = {"scrub": {}, "qualify": {}, "evaluate": {"data": "/data"}}
        waiting = {(kind, world.send(kind, args)) for kind, args in asked.items()}
        while world.inbox:
            world.deliver()
        world.confirm(1000)
        for _ in range(3):
            world.tick()
        assert world.on_way == [], "once is enough"
        world.lose(0)
        world.connect(wiped=True)
        world.tick()
        world.confirm(1000)
        assert {topic: body["status"] for topic, body in world.retained.items()} == dict.fromkeys(waiting, "accepted")
        leave(world)


def test_a_disk_that_fills_as_a_job_ends_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BoardError("no space", reason="no-space")

    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        job = world.send("fine-tune", JOB)
        world.deliver()
        world.work_until(State.TRAINING)
        world.send("cancel", {"job": job})
        world.deliver()
        monkeypatch.setattr(world.journal, "remember", refuse)
        world.work_on("next")
        assert world.journal.job(job).standing.state is State.CANCELED
        assert world.desk.scrubs._after_job, "it ended as any other"
        assert job in world.journal.recall("canceled")
        world.crash()
        assert job not in world.journal.recall("canceled")
        leave(world)


@pytest.mark.parametrize(("kind", "args"), [("scrub", {}), ("qualify", {}), ("evaluate", {"data": "/data"})])
def test_a_command_that_has_ended_is_told_again_as_it_was(kind: str, args: dict[str, object]) -> None:
    """A broker that forgot the session hands all retained requests over once more."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        command = world.send(kind, args)
        mail = world.inbox[0]
        world.deliver()
        for _ in range(5):
            world.work_on("next")
            world.stress("next")
            world.tick()
        world.confirm(1000)
        ended = world.retained[kind, command]
        assert (ended["status"], ended["version"], ended["result"] is None) == ("succeeded", 3, False)
        world.inbox.append(mail)
        world.deliver()
        world.confirm(1000)
        again = world.retained[kind, command]
        assert again == ended | {"ts": again["ts"]}
        leave(world)


def test_who_waits_for_a_model_does_not_wait_for_the_rests_of_a_scrub() -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        world = in_a_world(folder)
        assert not world.desk.scrubs._hurried
        world.send("evaluate", {"data": "/data"})
        world.deliver()
        assert world.desk.scrubs._hurried
        leave(world)
