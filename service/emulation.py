"""Starting the emulated board as a child process of the daemon."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from agent.board.sysfs import BoardRoots
from agent.errors import BoardError

READY_S = 20.0  # a loaded machine starts an interpreter in a few seconds
POLL_S = 0.05


class EmulatedBoardProcess:
    """A running `agent.board.emulated`."""

    def __init__(self, child: asyncio.subprocess.Process, tree: Path) -> None:
        self._child, self.roots = child, BoardRoots.of_tree(tree)

    @classmethod
    async def start(cls, tree: Path, profile: str, speed: float) -> EmulatedBoardProcess:
        """Start the board and wait until its tree is complete.

        Raises:
            BoardError: it ended or was not ready in time.
        """
        _prepare(tree)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent.board.emulated", "--tree", str(tree), "--profile", profile),
            *("--load-of", str(os.getpid()), "--speed", str(speed)),
            stdin=asyncio.subprocess.DEVNULL,
        )
        for _ in range(int(READY_S / POLL_S)):
            if _is_ready(tree):
                return cls(child, tree)
            if child.returncode is not None:
                break
            await asyncio.sleep(POLL_S)
        if child.returncode is None:
            child.kill()
            await child.wait()
        raise BoardError("the emulated board did not start", where=profile, fix="Its message stands above")

    async def wait(self) -> int:
        """Exit code, once the board has gone."""
        return await self._child.wait()

    async def stop(self) -> None:
        """End it; it lets go of every process that it slows."""
        if self._child.returncode is None:
            self._child.terminate()
            await self._child.wait()


def _prepare(tree: Path) -> None:
    """An earlier board's sign of readiness would be believed."""
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "ready").unlink(missing_ok=True)


def _is_ready(tree: Path) -> bool:
    return (tree / "ready").exists()
