"""The worker as the daemon sees it: a child process that speaks messages and may end in any way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from agent.board.control_group import killed_for_memory
from agent.board.files import BoardRoots
from agent.errors import BoardError, EngineError
from agent.messages import MAX_LINE_BYTES, Message, decode, encode

STOP_GRACE_S = 5.0  # for a worker to write its checkpoint and leave
MAX_UNREAD_BYTES = 64 << 10  # of orders in the daemon, beyond what the pipe holds: an order has about 200 bytes
MAX_LOG_LINE = 500  # characters of one line of the worker's standard error
KERNEL = BoardRoots()  # also where the board is emulated: processes are not


async def wait_or_kill(child: asyncio.subprocess.Process, grace_s: float) -> None:
    """Wait until a child is gone; after `grace_s` seconds it is killed."""
    try:
        async with asyncio.timeout(grace_s):
            await child.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


class WorkerProcess:
    """One worker.

    Args:
        process: the child.
        on_log: told what it writes to standard error, line by line.
        roots: where the kernel tells what it killed in the daemon's control group, which is the worker's too.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, on_log: Callable[[str], None], roots: BoardRoots = KERNEL
    ) -> None:
        self._child, self._on_log, self._roots = process, on_log, roots
        self._killed_before = killed_for_memory(roots)
        self.starved = False
        """Whether the kernel killed it for want of memory; known after `end`."""
        self._logs = asyncio.ensure_future(self._read_logs())

    @classmethod
    async def start(
        cls, order: Message, nice: int, on_log: Callable[[str], None], module: str = "agent.worker"
    ) -> WorkerProcess:
        """Start a worker, the program `module`, and give it its order.

        Raises:
            BoardError: the system gives no process.
        """
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", module, "--nice", str(nice)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                env=environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the daemon: it lets the worker write a checkpoint
            )
        except OSError as error:
            raise BoardError(f"no worker can be started: {error.strerror}") from error
        worker = cls(child, on_log)
        await worker.send(order)
        return worker

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    async def send(self, message: Message) -> None:
        """Send a message; without effect when the worker has gone."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._child.stdin.write(encode(message))
            await self._child.stdin.drain()

    def offer(self, message: Message) -> bool:
        """Send a message without ever waiting: a worker that was frozen must not stop the governor.

        Returns:
            False where it was dropped, because the worker has long read nothing.
        """
        assert self._child.stdin is not None
        if self._child.stdin.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            return False
        self._child.stdin.write(encode(message))
        return True

    async def messages(self) -> AsyncIterator[Message]:
        """What the worker says, until it closes its output.

        Raises:
            EngineError: a line is too long or no message.
        """
        assert self._child.stdout is not None
        while True:
            try:
                line = await self._child.stdout.readline()
            except ValueError as error:
                raise EngineError("the worker wrote an overlong line") from error
            if not line:
                return
            yield decode(line)

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._child.kill()

    async def end(self, grace_s: float = STOP_GRACE_S) -> int:
        """Wait for the process, kill it after `grace_s`; its exit code, negative for a signal."""
        await wait_or_kill(self._child, grace_s)
        await self._logs
        assert self._child.returncode is not None
        before, now = self._killed_before, killed_for_memory(self._roots)
        counted = before is not None and now is not None and now > before
        self.starved = counted and self._child.returncode == -signal.SIGKILL
        return self._child.returncode

    async def _read_logs(self) -> None:
        assert self._child.stderr is not None
        with contextlib.suppress(ValueError):  # an overlong line ends the reading, never the job
            while line := await self._child.stderr.readline():
                self._on_log(line.decode(errors="replace").rstrip()[:MAX_LOG_LINE])


class StartWorker(Protocol):
    """Starts a worker, as `WorkerProcess.start` does."""

    async def __call__(
        self, order: Message, nice: int, on_log: Callable[[str], None], module: str = "agent.worker"
    ) -> WorkerProcess:
        """See `WorkerProcess.start`."""


def environment() -> dict[str, str]:
    """The daemon's environment, with this installation first on the import path."""
    here = str(Path(__file__).resolve().parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
