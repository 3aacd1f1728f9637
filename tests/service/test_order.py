"""Which job runs next when charge is short (R11), as the desk picks it from the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.energy import Energy, Spent
from agent.messages import EvaluateOrder, Order, ScrubOrder
from agent.spec import parse_spec
from policies.reading import Action, Decision
from service.agent_update import UpdateShop
from service.commands import new_id
from service.desk import Desk
from service.energy_book import EnergyBook
from service.job import MAX_ATTEMPTS, Standing, State
from service.journal import JobRecord, Journal
from service.launched import Launched
from service.model_commands import ModelShop
from service.policy_file import PolicyFile
from service.qualify_command import QualifyShop
from service.qualify_plan import Place
from service.scrub import ScrubShop
from service.state_version import BoardState
from service.statuses import Clock
from service.steering import Steering
from service.workshop import Workshop
from tests.simulators.system_updates import QUIET, without_rauc

LOW = Decision(action=Action.SLOW, rule="battery.low")
HOT_AND_LOW = Decision(action=Action.SLOW, rule="thermal.delta-t-hot", notes=("battery.low",))
ON_BATTERY = Decision(frequency_rule="supply.lost", notes=("supply.lost",))


def refuse_worker(_record: JobRecord) -> Order:
    raise AssertionError("no worker is started here")


def refuse_scrub() -> ScrubOrder:
    raise AssertionError("no scrub is started here")


class Silence:
    """Nobody listens."""

    def publish_status(self, _type: str, _id: str, _status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        return None


def refuse_evaluation(_args: object) -> EvaluateOrder:
    raise AssertionError("no evaluation is to run")


class Bench:
    """A desk with waiting jobs of several depths."""

    def __init__(self, folder: Path, order: str = "most-frozen-first") -> None:
        self.file = folder / "mine.toml"
        self.file.write_text(f'[battery]\norder = "{order}"\n')
        self.policies = PolicyFile(folder, str(self.file), "default")
        board = SysfsBoard(BoardRoots(folder / "sys", folder / "proc"), named_profile("generic"))
        self.steering = Steering(board, self.policies.policy)
        self.journal = Journal.open(folder / "journal.sqlite", 0.0).journal
        clock = Clock(lambda: 1.8e9, lambda: 100.0, lambda: True)
        shop = Workshop(refuse_worker, 0, lambda _message, _record: None, lambda _job: None)
        scrubs = ScrubShop(refuse_scrub, lambda: None, lambda: None)
        self.desk = Desk(
            *(self.journal, self.steering, self.policies, Silence(), dict, "board-1", clock, shop),
            state=lambda: BoardState("", "", 1),
            scrub_shop=scrubs,
            qualify_shop=QualifyShop(Place(folder, "", "generic", emulated=False), 1),
            model_shop=ModelShop(folder, 1, 0, refuse_evaluation, lambda: None),
            update_shop=UpdateShop(folder, Launched(), 0, ("", ""), metered=False),
            system_shop=without_rauc(folder),
            sight=QUIET,
        )
        self.names: dict[str, str] = {}
        for number, depth in enumerate(("25", "75", "0", "head", "auto")):
            job_id = new_id(1_800_000_000_000 + number, lambda count: b"\1" * count)
            self.names[job_id] = depth
            self.desk.accept(job_id, "digest", parse_spec({"model": "m", "data": "/srv/d", "depth": depth}))

    def next(self) -> str:
        record = self.desk._next()
        assert record is not None
        return self.names[record.id]


@pytest.mark.parametrize(
    ("decision", "order", "first"),
    [
        (Decision(), "most-frozen-first", "25"),
        (ON_BATTERY, "most-frozen-first", "25"),
        (LOW, "most-frozen-first", "head"),
        (HOT_AND_LOW, "most-frozen-first", "head"),
        (LOW, "least-frozen-first", "0"),
    ],
)
def test_the_next_job(tmp_path: Path, decision: Decision, order: str, first: str) -> None:
    bench = Bench(tmp_path, order)
    bench.steering.decision = decision
    assert bench.next() == first


def test_the_order_follows_a_policy_that_changes(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.steering.decision = LOW
    assert bench.next() == "head"
    bench.file.write_text('[battery]\norder = "least-frozen-first"\n')
    assert bench.policies.look(at_once=True)
    bench.desk.policy_changed()
    assert bench.next() == "0"


def test_quiet_hours_that_pause_defer_what_waits_and_say_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.steering.decision = Decision(action=Action.PAUSE, rule="schedule.quiet", duty=0.0)
    assert bench.desk._next() is None
    assert {record.standing.reason_code for record in bench.journal.unfinished()} == {"schedule.quiet"}


def test_a_job_that_a_start_gives_up_or_a_console_cancels_leaves_no_energy_behind(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    book = EnergyBook(bench.journal)
    given_up, canceled, waiting = list(bench.names)[:3]
    for job_id in (given_up, canceled, waiting):
        book.keep(job_id, Energy({"training": Spent(5.0, 2.0)}))
    bench.journal.update(given_up, 0.0, standing=Standing(State.TRAINING, MAX_ATTEMPTS))
    bench.desk.recover()
    bench.journal.record("c", "digest", "succeeded", bench.desk.canceling(canceled))
    bench.desk.obey()
    assert book._all().keys() == {waiting}
