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

        Where it does not start any more its sensors stay silent, and the governor pauses.
        """
        with contextlib.suppress(BoardError):
            while True:
                code = await self._child.wait()
                log.error("the emulated board ended, starting it again", code=code)
                self._child = await _launch(*self._settings)
        log.error("the emulated board does not start any more")

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
