"""The scrub's process: what it is told, what it says, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.keys_identity import create_identity
from agent.messages import Failed, Message, Scrubbed, ScrubOrder, Steer, decode, encode
from agent.scrub_worker import EXIT_ORPHANED

ROOT = Path(__file__).parents[2]
RUN = Steer("RUN", 1.0, 0, reverify=False, rule="run")


def order(state: Path) -> ScrubOrder:
    return ScrubOrder(str(state), "http://127.0.0.1:1", str(state / "root.json"))


def started(*messages: Message) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-m", "agent.scrub_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdin is not None
    child.stdin.write(b"".join(map(encode, messages)))
    child.stdin.flush()
    return child


def last_word(child: subprocess.Popen[bytes]) -> Message:
    assert child.stdout is not None
    line = child.stdout.readline()
    child.wait(timeout=30)  # first: a closed conversation ends it too
    with child:
        return decode(line)


def test_it_reports(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys", "board-1")
    child = started(order(tmp_path), RUN)
    report = last_word(child)
    assert isinstance(report, Scrubbed)
    assert (report.report["files"], report.report["damaged"], report.report["findings"]) == (0, 0, [])
    assert child.returncode == 0


@pytest.mark.parametrize("rule", ["thermal.critical", "stopping"])
def test_an_order_ends_it_by_name(tmp_path: Path, rule: str) -> None:
    create_identity(tmp_path / "keys", "board-1")
    checkpoint = tmp_path / "store" / "checkpoints" / "job.sealed"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nothing that opens")
    child = started(order(tmp_path), Steer("ABORT", 0.0, 0, reverify=False, rule=rule))
    said = last_word(child)
    assert isinstance(said, Failed)
    assert said.code == rule
    assert child.returncode == 1
    assert checkpoint.exists(), "nothing was judged"


@pytest.mark.parametrize(("metered", "why"), [(False, "not a root document"), (True, "downloads cost money here")])
def test_what_only_a_download_can_mend_is_removed_while_there_is_none(
    tmp_path: Path, *, metered: bool, why: str
) -> None:
    create_identity(tmp_path / "keys", "board-1")
    (tmp_path / "root.json").write_text("{}")
    base = tmp_path / "repository" / "bases" / "colours-1.0.sealed"
    base.parent.mkdir(parents=True)
    base.write_bytes(b"not what was signed")
    targets = {"models/colours/1.0.sealed": {"hashes": {"sha256": "0" * 64}}}
    (tmp_path / "repository" / "metadata").mkdir()
    (tmp_path / "repository" / "metadata" / "targets.json").write_text(json.dumps({"signed": {"targets": targets}}))
    report = last_word(started(dataclasses.replace(order(tmp_path), metered=metered), RUN))
    assert isinstance(report, Scrubbed)
    (found,) = report.report["findings"]
    assert (found["path"], found["action"]) == ("repository/bases/colours-1.0.sealed", "removed")
    assert why in found["told"]
    assert not base.exists()


def test_without_keys_it_says_what_is_missing(tmp_path: Path) -> None:
    child = started(order(tmp_path), RUN)
    said = last_word(child)
    assert isinstance(said, Failed)
    assert "identity" in said.message
    assert child.returncode == 1


def test_it_waits_for_its_first_order_to_steer_and_goes_when_the_daemon_has_gone(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys", "board-1")
    checkpoint = tmp_path / "store" / "checkpoints" / "job.sealed"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nothing that opens")
    child = started(order(tmp_path))
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(timeout=1.5)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(timeout=30) == EXIT_ORPHANED
    assert checkpoint.exists()
    with child:
        pass


@pytest.mark.parametrize("line", [b"", b"hello\n", encode(RUN)])
def test_what_is_no_order_ends_it(line: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.scrub_worker"], input=line, capture_output=True, cwd=ROOT, check=False
    )
    assert done.returncode == EXIT_ORPHANED
    assert b"it is started by the daemon" in done.stderr
