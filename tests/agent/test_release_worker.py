"""The release worker as the process it is: one order, a last word, and an end with its daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.messages import Failed, ReleaseOrder, Stage, decode, encode
from agent.release_worker import EXIT_ORPHANED

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
LONG_S = 60.0


def worker() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.release_worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip


def order(folder: Path) -> bytes:
    return encode(ReleaseOrder(str(folder), "http://127.0.0.1:9", str(folder / "root.json"), "latest", "a", "0.1.0"))


@pytest.mark.parametrize("line", [b"", b"{}\n", b'{"type":"go","stage":"A"}\n'])
def test_what_is_no_order_is_refused(line: bytes) -> None:
    with worker() as process:
        _, said = process.communicate(line, timeout=LONG_S)
    assert process.returncode == EXIT_ORPHANED
    assert b"it is started by the daemon" in said


def test_a_fault_is_its_last_word(tmp_path: Path) -> None:
    with worker() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order(tmp_path))
        process.stdin.flush()
        last = decode(process.stdout.readline())
        assert process.wait(LONG_S) == 1
        process.stdin.close()
    assert isinstance(last, Failed)
    assert last.code == "bad-config"
    assert "root.json" in last.message
    json.dumps(last.result)


def test_it_asks_and_goes_with_its_daemon(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(b"{}")
    with worker() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(order(tmp_path))
        process.stdin.flush()
        assert decode(process.stdout.readline()) == Stage("PULLING", "latest")
        process.stdin.close()
        assert process.wait(LONG_S) == EXIT_ORPHANED
