"""The worker program: one process a job, orders on standard input, messages on standard output.

Whatever happens here takes nothing with it: the daemon sees the end of the process and decides.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from dataclasses import replace
from typing import BinaryIO, TypeAlias

from agent.errors import EngineError, TemperdError
from agent.messages import (
    MAX_LINE_BYTES,
    OUT_OF_MEMORY,
    EvaluateOrder,
    Failed,
    Go,
    Message,
    Order,
    SelfTestOrder,
    Stage,
    Steer,
    SwitchOrder,
    decode,
)
from agent.one_order import begin, speak
from agent.plan import OUT_OF_MEMORY_FIX
from agent.private_memory import keep_memory_private
from agent.trainer import FREE, JobEndedError

AnyOrder: TypeAlias = Order | SwitchOrder | EvaluateOrder | SelfTestOrder

PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 75  # EX_TEMPFAIL: the daemon went away; the next one resumes from the checkpoint
READ_BYTES = 64 << 10
MAX_MESSAGE = 2000  # characters of an error that travel
ALLOCATION_FAILURES = ("Failed to allocate memory", "std::bad_alloc", "bad allocation")  # onnxruntime's, C++'s, MSVC's


class Mailbox:
    """Reads the daemon's lines on a thread; keeps the latest order to steer and wakes whoever waits for a `Go`.

    The descriptor is read without a buffered file: a thread inside one would block the interpreter's shutdown.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._rest = descriptor, b""
        self._latest = FREE
        self._verify = False
        self._granted: set[str] = set()
        self._news = threading.Condition()

    def first(self) -> AnyOrder:
        """The order that opens every conversation."""
        message = self._read()
        if not isinstance(message, AnyOrder):
            raise EngineError("the first line is not an order")
        threading.Thread(target=self._listen, daemon=True).start()
        return message

    def steer(self) -> Steer:
        """The latest order, `RUN` before the first; an order to verify stands until `verified`."""
        return replace(self._latest, reverify=True) if self._verify else self._latest

    def verified(self) -> None:
        """The frozen weights were verified."""
        self._verify = False

    def wait_for(self, stage: str) -> None:
        """Block until the daemon has written `stage` to its journal."""
        with self._news:
            self._news.wait_for(lambda: stage in self._granted or self._latest.action == "ABORT")
            if stage not in self._granted:
                raise JobEndedError("the job was ended", where=self._latest.rule, reason=self._latest.rule)
            self._granted.discard(stage)

    def _listen(self) -> None:
        try:
            while True:
                message = self._read()
                with self._news:
                    if isinstance(message, Steer):
                        self._latest = message
                        self._verify = self._verify or message.reverify
                    elif isinstance(message, Go):
                        self._granted.add(message.stage)
                    self._news.notify_all()
        except EngineError:
            os._exit(EXIT_ORPHANED)

    def _read(self) -> Message:
        while b"\n" not in self._rest:
            if len(self._rest) > MAX_LINE_BYTES:
                raise EngineError("the daemon sent an overlong line")
            data = os.read(self._descriptor, READ_BYTES)
            if not data:
                raise EngineError("the daemon has gone")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return decode(line)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the daemon ends: SIGKILL reaches even a stopped worker."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def carry_out(order: AnyOrder, mailbox: Mailbox, out: BinaryIO) -> Message:
    """Do the job; the last message to send."""
    lock = threading.Lock()

    def emit(message: Message) -> None:
        with lock:
            speak(out, message)

    def ask(stage: str, detail: str) -> None:
        emit(Stage(stage, detail))
        mailbox.wait_for(stage)

    try:
        from agent.memory import return_memory  # noqa: PLC0415 - a broken wheel must end as a message too

        return_memory()
        if isinstance(order, SwitchOrder):
            from agent.promote import switch  # noqa: PLC0415 - same; and nobody waits for what it does not need

            return switch(order, emit)
        if isinstance(order, SelfTestOrder):
            from agent.promote import self_test  # noqa: PLC0415 - same

            return self_test(order)
        if isinstance(order, EvaluateOrder):
            from agent.evaluation import Evaluation  # noqa: PLC0415 - same

            return Evaluation(order, emit, mailbox).execute()
        from agent.finetune import FineTune  # noqa: PLC0415 - same

        return FineTune(order, ask, emit, mailbox).execute()
    except Exception as error:  # noqa: BLE001 - the one seam of the process: every end is told, none is lost
        return _last_word(error)


def _last_word(error: Exception) -> Failed:
    """How the job ends for an error."""
    if isinstance(error, MemoryError) or _allocation_failed(error):
        return Failed(OUT_OF_MEMORY, f"not enough memory for this job. {OUT_OF_MEMORY_FIX}")
    if isinstance(error, TemperdError):
        outcome = "CANCELED" if isinstance(error, JobEndedError) and error.code == "canceled" else "FAILED"
        result = {**getattr(error, "result", {}), "exit_code": error.exit_code}
        return Failed(error.code, str(error)[:MAX_MESSAGE], outcome, result)
    if isinstance(error, ImportError):
        return Failed("no-runtime", f'{error}. Install one: pip install "temperd[ort]"')
    traceback.print_exception(error)  # a fault of ours: its trace goes to the log instead of three vain attempts
    return Failed("internal", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])


def _allocation_failed(error: Exception) -> bool:
    """Whether the runtime could not get memory: it says so only in words."""
    told = f"{error} {error.__cause__}"
    return isinstance(error, EngineError) and any(words in told for words in ALLOCATION_FAILURES)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m agent.worker`."""
    die_with_parent()
    _lines, out = begin("temperd-worker", 0, argv)
    keep_memory_private()
    mailbox = Mailbox(sys.stdin.fileno())
    try:
        order = mailbox.first()
    except EngineError as error:
        sys.stderr.write(f"temperd-worker: {error}; it is started by the daemon\n")
        return EXIT_ORPHANED
    last = carry_out(order, mailbox, out)
    speak(out, last)
    return 1 if isinstance(last, Failed) else 0


if __name__ == "__main__":
    sys.exit(main())
