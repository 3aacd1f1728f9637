"""The command set-policy, from its answer to what is on the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.errors import BoardError
from policies.reading import OperatingPoint
from service.answers import Answers
from service.commands import Command, new_id
from service.journal import Journal, Verdict
from service.policy_commands import BEGUN, PolicyCommands
from service.policy_file import COMMANDED, PolicyFile, Source
from service.policy_watch import PolicyWatch
from service.statuses import Clock, Statuses

NOW = 1_800_000_000
COLD = 'name = "cold"\n[thermal.slow]\nduty = 0.6\n'
WARM = 'name = "warm"\n'
PI5 = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(1500, 2401, 100))


class Bench:
    """A daemon's set-policy on a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.state, self.file = folder, folder / "mine.toml"
        self.file.write_text('name = "mine"\n')
        self.seen: list[dict[str, Any]] = []
        self.changes = 0
        self.told: list[str] = []
        self.start()

    def start(self, *, allowed: bool = True) -> None:
        """As the daemon does; on the journal that is there."""
        if hasattr(self, "journal"):
            self.journal.close()
        self.journal = Journal.open(self.state / "journal.sqlite", 0.0).journal
        statuses = Statuses(self.journal, self, Clock(lambda: float(NOW), lambda: 1.0, lambda: True))
        self.policies = PolicyFile(self.state, str(self.file), "default")
        self.answers = Answers(self.journal, statuses, lambda _id: None)
        self.commands = PolicyCommands(self.journal, self.answers, self.policies, allowed=allowed, changed=self.count)

    def publish_status(self, kind: str, _id: str, status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        assert kind == "set-policy"
        self.seen.append(dict(status))
        return None

    def count(self) -> None:
        self.changes += 1

    def tell(self) -> None:
        self.told.append(str(self.policies.shown()["name"]))

    def command(self, at: int = 0, noise: bytes = b"\1", **args: object) -> Command:
        command_id = new_id((NOW + at) * 1000, lambda count: noise * count)
        return Command(command_id, "board-1", "set-policy", NOW + at, NOW + 600, args, digest=f"{at} {noise!r}")

    def send(self, at: int = 0, noise: bytes = b"\1", **args: object) -> tuple[str, str]:
        self.commands.take(self.command(at, noise, **args))
        return self.seen[-1]["status"], self.seen[-1]["reason_code"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_policy_is_durable_and_in_force_before_it_is_answered(bench: Bench) -> None:
    assert bench.send(text=COLD) == ("succeeded", "")
    assert (bench.state / COMMANDED).read_text() == COLD
    assert (bench.policies.policy.name, bench.changes) == ("cold", 1)
    command = bench.command()
    assert bench.journal.judge(command.id, command.digest) is Verdict.REPEAT
    bench.start()
    assert bench.policies.policy.name == "cold"


def test_the_answer_says_what_changed(bench: Bench) -> None:
    bench.send(text=COLD)
    result = bench.seen[-1]["result"]
    assert result["changed"] == {"name": {"from": "mine", "to": "cold"}, "thermal.slow.duty": {"from": 0.75, "to": 0.6}}
    assert (result["name"], result["source"], result["sha256"]) == ("cold", "command", bench.policies.now.sha256)


def test_by_name_and_back(bench: Bench) -> None:
    assert bench.send(name="raspberry-pi-4") == ("succeeded", "")
    assert bench.policies.policy.name == "raspberry-pi-4"
    assert bench.send(1, reset=True) == ("succeeded", "")
    assert (bench.policies.policy.name, bench.policies.now.source) == ("mine", Source.FILE)
    assert bench.seen[-1]["result"]["changed"]["name"] == {"from": "raspberry-pi-4", "to": "mine"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"text": "[thermal.slow]\nduty = 7.0"}, "thermal.slow.duty: 7.0 is outside"),
        ({"text": "[thermal.slow]\ndelta_kelvin = 34.0"}, "thermal.hot.delta_kelvin: trips must rise"),
        ({"text": "not toml"}, "not TOML"),
        ({"name": "no-such"}, "Known policies"),
    ],
)
def test_what_is_invalid_is_rejected_with_its_key_and_changes_nothing(
    bench: Bench, args: dict[str, object], says: str
) -> None:
    assert bench.send(**args) == ("rejected", "bad-policy")
    assert says in bench.seen[-1]["reason"]
    assert (bench.policies.policy.name, bench.changes, (bench.state / COMMANDED).exists()) == ("mine", 0, False)
    assert bench.journal.outcome(bench.command().id).startswith("rejected:bad-policy:")


def test_a_reset_to_a_broken_file_is_rejected(bench: Bench) -> None:
    bench.send(text=COLD)
    bench.file.write_text("[thermal")
    assert bench.send(1, reset=True) == ("rejected", "bad-policy")
    assert bench.policies.policy.name == "cold"


def test_an_owner_may_keep_the_policy_to_himself(bench: Bench) -> None:
    bench.start(allowed=False)
    assert bench.send(text=COLD) == ("rejected", "policy-fixed")
    assert bench.policies.policy.name == "mine"


def test_of_two_commands_the_one_issued_last_wins_whatever_comes_first(bench: Bench) -> None:
    assert bench.send(5, text=WARM) == ("succeeded", "")
    bench.start()
    assert bench.send(4, text=COLD) == ("rejected", "superseded")
    assert bench.policies.policy.name == "warm"
    assert bench.send(5, b"\2", text=COLD) == ("succeeded", "")
    assert bench.send(5, b"\1", text=WARM) == ("rejected", "superseded")
    assert bench.policies.policy.name == "cold"


@pytest.mark.parametrize("done", ["nothing", "begun", "file", "in force"])
def test_a_power_cut_at_any_step_ends_in_the_same_place(bench: Bench, done: str) -> None:
    command = bench.command(text=COLD)
    if done != "nothing":
        bench.journal.remember(BEGUN, f"{command.id} {command.digest}")
    if done == "file":
        (bench.state / COMMANDED).write_text(COLD)
    elif done == "in force":
        bench.policies.set_text(COLD)
    bench.start()
    assert bench.commands.begun(command) == (done != "nothing")
    assert not bench.commands.begun(bench.command(1, text=COLD))
    assert bench.journal.judge(command.id, command.digest) is Verdict.NEW, "the broker brings it again"
    bench.commands.take(command)
    assert bench.seen[-1]["status"] == "succeeded"
    assert (bench.policies.policy.name, (bench.state / "policy.toml").read_text()) == ("cold", COLD)
    assert not bench.commands.begun(command)
    assert bench.journal.judge(command.id, command.digest) is Verdict.REPEAT


def test_a_repeat_is_answered_with_what_changed_the_first_time(bench: Bench) -> None:
    bench.send(text=COLD)
    bench.start()
    bench.answers.repeat(bench.command().id, "set-policy")
    assert len(bench.seen) == 2
    assert bench.seen[-1] == bench.seen[0]


def test_a_disk_that_refuses_leaves_the_command_to_the_broker(bench: Bench) -> None:
    (bench.state / COMMANDED).mkdir()
    command = bench.command(text=COLD)
    with pytest.raises(BoardError):
        bench.commands.take(command)
    assert (bench.seen, bench.changes, bench.policies.policy.name) == ([], 0, "mine")
    assert bench.journal.judge(command.id, command.digest) is Verdict.NEW


def test_the_watch_takes_a_changed_file_and_says_misfits_once_for_each_policy(bench: Bench) -> None:
    watch = PolicyWatch(bench.policies, (*PI5, OperatingPoint(2_800_000_000, 1.0)), bench.count, bench.tell)
    with capture_logs() as said:
        watch.tick(())
        for _ in range(3):
            watch.tick(PI5)
    told = [entry["what"] for entry in said]
    assert len(told) == 2
    assert told[0].startswith("the kernel does not list 2800 MHz")
    assert told[1].startswith("thermal.hot.frequency_ratio 0.6 asks for at most 1440 MHz")
    bench.file.write_text('name = "fits"\n[thermal.hot]\nfrequency_ratio = 0.7\n')
    with capture_logs() as said:
        for _ in range(3):
            watch.tick(PI5)
    assert [entry["event"] for entry in said] == ["policy changed"]
    assert (bench.changes, bench.told) == (1, ["fits"])
    bench.file.write_text('name = "again"\n')
    watch.ask()
    with capture_logs() as said:
        watch.tick(PI5)
    assert [entry["event"] for entry in said] == ["policy changed", "policy and board do not fit"]
    assert bench.told == ["fits", "again"]


def test_the_watch_tells_of_a_command_and_of_a_file_that_broke(bench: Bench) -> None:
    watch = PolicyWatch(bench.policies, (), bench.count, bench.tell)
    watch.tick(())
    assert bench.told == []
    bench.send(text=COLD)
    watch.tick(())
    assert bench.told == ["cold"]
    bench.send(1, reset=True)
    bench.file.write_text("[thermal")
    for _ in range(4):
        watch.tick(())
    assert bench.told == ["cold", "mine", "mine"]
    assert "not TOML" in bench.policies.complaint
