"""Starting the emulated board as a child process of the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from agent.board.sysfs import BoardRoots
from agent.errors import BoardError
from service.logs import logger

READY_S = 20.0  # a loaded machine starts an interpreter in a few seconds
POLL_S = 0.05
FIRST_DELAY_S, LONGEST_DELAY_S = 0.5, 60.0  # between attempts to start a board that keeps ending

log = logger("board")


class EmulatedBoardProcess:
    """A running `agent.board.emulated`."""

    def __init__(self, child: asyncio.subprocess.Process, tree: Path, profile: str, speed: float) -> None:
        self._child, self._settings = child, (tree, profile, speed)
        self.roots = BoardRoots.of_tree(tree)

    @classmethod
    async def start(cls, tree: Path, profile: str, speed: float) -> EmulatedBoardProcess:
        """Start the board and wait until its tree is complete.

        Raises:
            BoardError: it ended or was not ready in time.
        """
        return cls(await _launch(tree, profile, speed), tree, profile, speed)

    async def keep(self) -> None:
        """Start the board again whenever it ends: it also lets go of workers that the lost one had stopped.

        While it does not start, its sensors stay silent and the governor pauses.
        """
        delay = FIRST_DELAY_S
        while True:
            code = await self._child.wait()
            log.error("the emulated board ended, starting it again", code=code, in_s=delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)
            with contextlib.suppress(BoardError, OSError):
                self._child = await _launch(*self._settings)

    async def stop(self) -> None:
        """End it; it lets go of every process that it slows."""
        if self._child.returncode is None:
            self._child.terminate()
            await self._child.wait()


async def _launch(tree: Path, profile: str, speed: float) -> asyncio.subprocess.Process:
    _prepare(tree)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent.board.emulated", "--tree", str(tree), "--profile", profile),
        *("--load-of", str(os.getpid()), "--speed", str(speed)),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is for the daemon
    )
    for _ in range(int(READY_S / POLL_S)):
        if _is_ready(tree):
            return child
        if child.returncode is not None:
            break
        await asyncio.sleep(POLL_S)
    if child.returncode is None:
        child.kill()
        await child.wait()
    raise BoardError("the emulated board did not start", where=profile, fix="Its message stands above")


def _prepare(tree: Path) -> None:
    """An earlier board's sign of readiness would be believed."""
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "ready").unlink(missing_ok=True)


def _is_ready(tree: Path) -> bool:
    return (tree / "ready").exists()
