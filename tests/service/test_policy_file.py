"""The policy in force, on a disk that other people write to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.board.profile import named_policy_text
from agent.errors import BoardError, ConfigError
from policies.policy import MAX_POLICY_BYTES, Policy, PolicyError, parse_policy
from service.policy_file import COMMANDED, COPY, PolicyFile, Source

COLD = 'name = "cold"\n[thermal.slow]\nduty = 0.6\n'
WARM = 'name = "warm"\n[thermal.slow]\nduty = 0.7\n'
WRONG = "[thermal.slow]\nduty = 7.0\n"


class Disk:
    """A state folder and a configured file."""

    def __init__(self, folder: Path) -> None:
        self.state, self.file = folder / "state", folder / "mine.toml"
        self.state.mkdir()

    def start(self, text: str | None = None, *, chosen: bool = True) -> PolicyFile:
        """As the daemon does."""
        if text is not None:
            self.file.write_text(text)
        return PolicyFile(self.state, str(self.file) if chosen else "", "raspberry-pi-4")

    @property
    def copy(self) -> str:
        return (self.state / COPY).read_text()

    def leftovers(self) -> set[str]:
        return {path.name for path in self.state.iterdir()} - {COPY, COMMANDED}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def settle(policies: PolicyFile) -> list[bool]:
    """Three ticks: one to see a change, one to take it, one to find nothing new."""
    return [policies.look() for _ in range(3)]


def test_without_a_file_the_profiles_policy_is_in_force(disk: Disk) -> None:
    policies = disk.start(chosen=False)
    assert (policies.policy.name, policies.now.source, policies.now.where) == (
        "raspberry-pi-4",
        Source.BOARD,
        "raspberry-pi-4",
    )
    assert disk.copy == named_policy_text("raspberry-pi-4")
    assert settle(policies) == [False] * 3


def test_a_file_that_changes_is_in_force_two_looks_later(disk: Disk) -> None:
    policies = disk.start(COLD)
    assert (policies.policy.thermal.slow.duty, policies.now.source) == (0.6, Source.FILE)
    disk.file.write_text(WARM)
    assert settle(policies) == [False, True, False]
    assert policies.policy.thermal.slow.duty == 0.7
    assert disk.copy == WARM


def test_a_file_that_is_being_written_is_not_taken_half(disk: Disk) -> None:
    policies = disk.start(COLD)
    whole = WARM + "[thermal.hot]\nduty = 0.4\n"
    seen = set()
    for end in range(1, len(whole) + 1):
        disk.file.write_text(whole[:end])
        policies.look()
        seen.add(policies.policy.name)
    assert seen == {"cold"}, "each look met another length"
    assert policies.look()
    assert policies.policy.thermal.hot.duty == 0.4


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_seen(disk: Disk) -> None:
    policies = disk.start(COLD)
    before = disk.file.stat()
    fresh = disk.file.with_suffix(".new")
    fresh.write_text(WARM)
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(disk.file)
    assert (disk.file.stat().st_size, disk.file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert any(settle(policies))
    assert policies.policy.name == "warm"


def test_an_order_to_read_again_does_not_wait(disk: Disk) -> None:
    policies = disk.start(COLD)
    disk.file.write_text(WARM)
    assert policies.look(at_once=True)
    assert policies.policy.name == "warm"


def test_a_changed_comment_is_no_other_policy(disk: Disk) -> None:
    policies = disk.start(COLD)
    disk.file.write_text(f"# mine\n{COLD}")
    assert settle(policies) == [False] * 3
    assert disk.copy.startswith("# mine")


def broken(kind: str, path: Path) -> None:
    """Make what lies at `path` no policy."""
    path.unlink()
    if kind == "value":
        path.write_text(WRONG)
    elif kind == "toml":
        path.write_text("[thermal")
    elif kind == "long":
        path.write_text("#" * (MAX_POLICY_BYTES + 1))
    elif kind == "bytes":
        path.write_bytes(b"name = '\xff'")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)


SAYS = {
    "value": "thermal.slow.duty",
    "toml": "not TOML",
    "long": "longer than 65536",
    "bytes": "cannot be read",
    "folder": "no file",
    "pipe": "no file",
    "loop": "cannot be read",
    "gone": "cannot be read: No such file",
}


@pytest.mark.parametrize("kind", SAYS)
def test_what_is_invalid_changes_nothing_and_is_said_once(disk: Disk, kind: str) -> None:
    policies = disk.start(COLD)
    broken(kind, disk.file)
    with capture_logs() as said:
        assert settle(policies) + settle(policies) == [False] * 6
    assert (policies.policy.name, disk.copy) == ("cold", COLD)
    assert SAYS[kind] in policies.complaint
    assert str(disk.file) in policies.complaint
    assert [entry["log_level"] for entry in said] == ["error"]


@pytest.mark.parametrize("kind", SAYS)
def test_an_invalid_file_does_not_take_a_board_down_at_its_next_start(disk: Disk, kind: str) -> None:
    disk.start(COLD)
    broken(kind, disk.file)
    policies = disk.start()
    assert (policies.policy.name, policies.now.source) == ("cold", Source.KEPT)
    assert SAYS[kind] in policies.complaint


def test_a_file_that_is_mended_is_in_force_again(disk: Disk) -> None:
    disk.start(COLD)
    policies = disk.start(WRONG)
    disk.file.write_text(WARM)
    assert any(settle(policies))
    assert (policies.policy.name, policies.complaint, policies.now.source) == ("warm", "", Source.FILE)


@pytest.mark.parametrize("kind", SAYS)
def test_the_first_start_refuses_an_invalid_file(disk: Disk, kind: str) -> None:
    disk.file.write_text(COLD)
    broken(kind, disk.file)
    with pytest.raises(ConfigError, match=SAYS[kind]):
        disk.start()
    assert list(disk.state.iterdir()) == []


def test_a_command_wins_over_the_file_until_it_is_taken_back(disk: Disk) -> None:
    policies = disk.start(COLD)
    assert policies.set_text(WARM) == {"name": ("cold", "warm"), "thermal.slow.duty": (0.6, 0.7)}
    disk.file.write_text(COLD + "[thermal.hot]\nduty = 0.4\n")
    assert settle(policies) == [False] * 3
    again = disk.start()
    assert (again.policy.name, again.now.source, disk.copy) == ("warm", Source.COMMAND, WARM)
    assert again.reset() == {
        "name": ("warm", "cold"),
        "thermal.slow.duty": (0.7, 0.6),
        "thermal.hot.duty": (0.5, 0.4),
    }
    assert (again.now.source, again.policy.thermal.hot.duty) == (Source.FILE, 0.4)
    assert disk.start().now.source is Source.FILE
    assert disk.leftovers() == set()


def test_a_policy_that_ships_is_set_by_its_name(disk: Disk) -> None:
    policies = disk.start(COLD)
    policies.set_shipped("jetson-orin-nano")
    assert (policies.policy, policies.now.where) == (
        parse_policy(named_policy_text("jetson-orin-nano")),
        "jetson-orin-nano",
    )
    with pytest.raises(ConfigError, match="Known policies: default"):
        policies.set_shipped("../../etc/passwd")
    assert policies.policy.name == "jetson-orin-nano"


def test_an_invalid_command_changes_nothing(disk: Disk) -> None:
    policies = disk.start(COLD)
    with pytest.raises(PolicyError) as caught:
        policies.set_text(WRONG)
    assert caught.value.key == "thermal.slow.duty"
    assert (policies.policy.name, disk.copy, (disk.state / COMMANDED).exists()) == ("cold", COLD, False)


def test_a_reset_to_an_invalid_file_is_refused(disk: Disk) -> None:
    policies = disk.start(COLD)
    policies.set_text(WARM)
    disk.file.write_text(WRONG)
    with pytest.raises(ConfigError, match="outside"):
        policies.reset()
    assert (policies.policy.name, policies.now.source) == ("warm", Source.COMMAND)
    assert disk.start().policy.name == "warm"


def test_a_commanded_policy_that_this_version_refuses_gives_way(disk: Disk) -> None:
    disk.start(COLD).set_text(WARM)
    (disk.state / COMMANDED).write_text("[later]\nkey = 1\n")
    policies = disk.start()
    assert (policies.policy.name, policies.now.source) == ("cold", Source.FILE)
    assert "later" in policies.complaint
    policies.set_text(WARM)
    assert policies.complaint == ""


STRICT = 'name = "strict"\n[gate]\nclass_least = 0.3\n'


def test_a_command_may_make_the_gate_stricter_only(disk: Disk) -> None:
    policies = disk.start(STRICT)
    with pytest.raises(PolicyError, match="milder than this board's own") as caught:
        policies.set_text(WARM)
    assert (caught.value.key, policies.policy.name) == ("gate.class_least", "strict")
    policies.set_text(WARM + "[gate]\nclass_least = 0.4\n")
    policies.set_text(WARM + "[gate]\nclass_least = 0.3\n")
    disk.file.write_text("[thermal")
    with pytest.raises(PolicyError):
        policies.set_text(WARM)


def test_an_owner_who_makes_the_gate_stricter_is_obeyed_at_the_next_start(disk: Disk) -> None:
    disk.start(COLD).set_text(WARM)
    policies = disk.start(STRICT)
    assert (policies.policy.name, policies.now.source) == ("strict", Source.FILE)
    assert "gate.class_least" in policies.complaint


def test_a_disk_that_refuses_leaves_the_policy_as_it_was(disk: Disk) -> None:
    policies = disk.start(COLD)
    (disk.state / COMMANDED).mkdir()  # a rename cannot replace a folder: a refusal that also root meets
    with pytest.raises(BoardError):
        policies.set_text(WARM)
    assert (policies.policy.name, disk.copy) == ("cold", COLD)
    assert disk.leftovers() == set()


def test_a_copy_that_could_not_be_written_is_written_when_the_disk_takes_it(disk: Disk) -> None:
    policies = disk.start(COLD)
    (disk.state / COPY).unlink()
    (disk.state / COPY).mkdir()
    policies.set_text(WARM)
    assert policies.policy.name == "warm", "durable as the command's, so in force"
    assert "jobs still read the policy before" in policies.complaint
    policies.look()
    (disk.state / COPY).rmdir()
    policies.look()
    assert (disk.copy, policies.complaint) == (WARM, "")


def test_a_crash_between_a_command_and_the_copy_is_made_good_at_the_start(disk: Disk) -> None:
    disk.start(COLD)
    (disk.state / COMMANDED).write_text(WARM)
    assert disk.start().policy.name == "warm"
    assert disk.copy == WARM


def test_the_copy_is_not_written_again_where_it_is_right(disk: Disk) -> None:
    disk.start(COLD)
    before = (disk.state / COPY).stat()
    disk.start()
    assert (disk.state / COPY).stat().st_mtime_ns == before.st_mtime_ns
    assert (disk.state / COPY).stat().st_ino == before.st_ino


def test_what_is_shown(disk: Disk) -> None:
    shown: dict[str, Any] = disk.start(COLD).shown()
    assert shown.pop("sha256").isalnum()
    assert shown == {"name": "cold", "source": "file", "where": str(disk.file), "complaint": ""}
    assert Policy().name == "default"


def test_an_owner_who_wants_no_policy_from_afar_gets_rid_of_one_that_was_set_before(disk: Disk) -> None:
    disk.start(COLD).set_text(WARM)
    with capture_logs() as logs:
        policies = PolicyFile(disk.state, str(disk.file), "raspberry-pi-4", by_command=False)
    assert (policies.policy.name, policies.now.source) == ("cold", Source.FILE)
    assert disk.copy == COLD
    assert [line["log_level"] for line in logs] == ["warning"]
    assert disk.start().policy.name == "warm", "allowed again, it counts again"
