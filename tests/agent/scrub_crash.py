"""Kills a scrub at each step that it persists; run as a program by test_scrub_crash.py.

    python scrub_crash.py FOLDER SCENARIO

For n = 1, 2, ..., the board of the scenario is copied, and a child that scrubs it is killed (SIGKILL) before its n-th
step: each write, truncation and sync of a file, each rename, removal and new file or folder. Odd cases of a write: the
first half of it is on the disk. Then what is left is judged, a scrub that nobody kills follows, and what that leaves is
judged as well. Prints the number of steps.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.simulators.stored_board import BASE, MODEL_A, MODEL_B, Board, destroy, flip, snapshot

EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
FILES = ("base", "model", "model before", "manifest", "checkpoint")


class Killer:
    """Counts the steps of this process below a folder and ends it before one of them."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder, self._left = str(folder), number

    def step(self, tear: Callable[[], object] = lambda: None) -> None:
        self._left -= 1
        if self._left == 0:
            tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        killer, fsync = self, os.fsync

        class Counted(io.FileIO):
            """Unbuffered, so that every write is a step."""

            def write(self, data: Any) -> int:
                piece = bytes(data)
                killer.step(lambda: super(Counted, self).write(piece[: len(piece) // 2]))
                return super().write(piece)

            def truncate(self, size: int | None = None) -> int:
                killer.step()
                return super().truncate(size)

        def sync(descriptor: int) -> None:
            killer.step()
            fsync(descriptor)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            made = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
            if (made or event in EVENTS) and str(arguments[0]).startswith(self._folder):
                killer.step()

        os.fdopen = lambda descriptor, _mode: Counted(descriptor, "r+")  # type: ignore[assignment]
        os.fsync = sync  # type: ignore[assignment]
        sys.addaudithook(hook)


def mend(board: Board) -> None:
    """Every file has a flipped bit."""
    board.scrub()
    for name in FILES:
        flip(board.file(name))


def make_parity(_: Board) -> None:
    """No file has parity yet."""


def lose(board: Board) -> None:
    """Base, active model and checkpoint are beyond parity."""
    board.scrub()
    for name in ("base", "model", "checkpoint"):
        destroy(board.file(name))


SCENARIOS: dict[str, Callable[[Board], None]] = {"mend": mend, "make parity": make_parity, "lose": lose}


def judge_left(board: Board, damaged: dict[str, bytes], whole: dict[str, bytes], scenario: str) -> None:
    """After the kill: each kept file is the damaged one, the whole one, or, where it is lost, gone."""
    for name in FILES:
        path = board.file(name)
        key = str(path.relative_to(board.state))
        if not path.exists():
            assert scenario == "lose", f"{name} is gone"
            assert name in ("base", "checkpoint"), f"{name} is gone"
            continue
        assert path.read_bytes() in (damaged[key], whole[key]), f"{name} is neither old nor new"
    assert board.active() in ({"a", "b"} if scenario == "lose" else {"b"})


def judge_end(board: Board, whole: dict[str, bytes], scenario: str) -> None:
    """After the next scrub: nothing half is left, and all that could be saved is whole."""
    assert not list(board.state.rglob("*.partial"))
    if scenario == "lose":
        # Gone where the kill came between removal and download: the next job that needs it downloads it.
        assert not board.base.exists() or board.base.read_bytes() == BASE
        assert board.store().load_active()[0] == MODEL_A
        assert board.store().open_checkpoint("job") is None
    else:
        assert snapshot(board.state) == whole
        assert board.store().load_active()[0] == MODEL_B
    again = board.scrub()
    assert (again.damaged, again.parity_made) == (0, 0)


def main(folder: Path, scenario: str) -> int:
    before = Board(folder / "before")
    whole_board = Board(folder / "whole")
    shutil.rmtree(folder / "whole")
    shutil.copytree(folder / "before", folder / "whole")
    whole_board.scrub()
    whole = snapshot(folder / "whole")
    SCENARIOS[scenario](before)
    damaged = snapshot(folder / "before")
    number = 0
    while True:
        number += 1
        copy = folder / "copy"
        shutil.copytree(folder / "before", copy)
        child = os.fork()
        if child == 0:
            board = Board(copy)
            board.network = True
            Killer(copy, number).arm()
            board.scrub()
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"step {number}: exit code {code}"
        board = Board(copy)
        board.network = True
        try:
            judge_left(board, damaged, whole, scenario)
            board.scrub()
            judge_end(board, whole, scenario)
        except AssertionError as error:
            raise AssertionError(f"killed before step {number}: {error}") from error
        shutil.rmtree(copy)
        if code == 0:
            return number - 1


if __name__ == "__main__":
    sys.stdout.write(f"{main(Path(sys.argv[1]), sys.argv[2])}\n")
