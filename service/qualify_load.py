"""The load of a stress run: a process for each core, told how much of its time to work."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass

from agent.errors import BoardError
from service.worker_process import environment, wait_or_kill

MODULE = "agent.worker_stress"
MAX_LINE_BYTES = 256  # two numbers
GRACE_S = 2.0  # for a process to see that its input ended


@dataclass(slots=True)
class _Core:
    child: asyncio.subprocess.Process
    products: int = 0
    wrong: int = 0


class StressLoad:
    """Running load; `start` makes one, `stop` ends it. The processes also end when this one is killed.

    Args:
        cores: its processes.
    """

    def __init__(self, cores: list[_Core]) -> None:
        self._cores = cores
        self._share = 0.0
        self._readers = [asyncio.ensure_future(_follow(core)) for core in cores]

    @classmethod
    async def start(cls, cores: int) -> StressLoad:
        """One process a core, idle at first.

        Raises:
            BoardError: the system gives no process.
        """
        started: list[_Core] = []
        try:
            for _ in range(cores):
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", MODULE),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=MAX_LINE_BYTES,
                    env=environment(),
                    start_new_session=True,  # Ctrl-C in a terminal is for the run: it puts the limits back first
                )
                started.append(_Core(child))
        except OSError as error:
            await cls(started).stop()
            raise BoardError(f"no load can be started: {error.strerror}") from error
        return cls(started)

    @property
    def products(self) -> int:
        """Pieces of work done so far, by all cores; told about twice a second."""
        return sum(core.products for core in self._cores)

    @property
    def wrong(self) -> int:
        """Those whose result differed from the first."""
        return sum(core.wrong for core in self._cores)

    @property
    def lost(self) -> int:
        """Processes that ended although nobody asked them to."""
        return sum(core.child.returncode is not None for core in self._cores)

    async def set(self, share: float) -> None:
        """Let every core work `share` of its time, 0..1."""
        if share == self._share:
            return
        self._share = share
        for core in self._cores:
            assert core.child.stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                core.child.stdin.write(f"{share}\n".encode())
                await core.child.stdin.drain()

    async def stop(self) -> None:
        """End every process, and wait until it is gone."""
        for core in self._cores:
            assert core.child.stdin is not None
            core.child.stdin.close()
        for core in self._cores:
            await wait_or_kill(core.child, GRACE_S)
        await asyncio.gather(*self._readers)


async def _follow(core: _Core) -> None:
    assert core.child.stdout is not None
    with contextlib.suppress(ValueError):  # an overlong line, or no numbers: not our program
        while line := await core.child.stdout.readline():
            products, wrong = line.split()
            core.products, core.wrong = int(products), int(wrong)
