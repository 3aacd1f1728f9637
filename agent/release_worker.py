"""The process that brings a release of temperd to the board: one order in, a question before the slot is touched.

A process of its own because the repository's libraries have no place in a supervisor that idles for months.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

from agent.errors import EngineError, TemperdError
from agent.messages import MAX_LINE_BYTES, Failed, Finished, Go, Message, ReleaseOrder, Stage, Warned, decode
from agent.one_order import begin, speak

EXIT_ORPHANED = 75  # EX_TEMPFAIL: the daemon went away; the next one goes on with what has come
MAX_MESSAGE = 2000  # characters of an error that travel


class Conversation:
    """Lines of the daemon in, messages out; when the daemon has gone the process ends, which every step survives."""

    def __init__(self, lines: BinaryIO, out: BinaryIO) -> None:
        self._lines, self._out = lines, out
        self._granted: set[str] = set()
        self._news = threading.Condition()

    def order(self) -> ReleaseOrder:
        """The first line.

        Raises:
            EngineError: it is none.
        """
        message = decode(self._lines.readline(MAX_LINE_BYTES))
        if not isinstance(message, ReleaseOrder):
            raise EngineError("the first line is not an order for a release")
        threading.Thread(target=self._listen, daemon=True).start()
        return message

    def ask(self, stage: str, detail: str) -> None:
        """Wait until the daemon has written `stage` to its journal."""
        self.say(Stage(stage, detail))
        with self._news:
            self._news.wait_for(lambda: stage in self._granted)
            self._granted.discard(stage)

    def say(self, message: Message) -> None:
        """Tell the daemon."""
        speak(self._out, message)

    def _listen(self) -> None:
        try:
            while line := self._lines.readline(MAX_LINE_BYTES):
                message = decode(line)
                if isinstance(message, Go):
                    with self._news:
                        self._granted.add(message.stage)
                        self._news.notify_all()
        finally:
            os._exit(EXIT_ORPHANED)


def carry_out(order: ReleaseOrder, talk: Conversation) -> Message:
    """The last word: what is in the slot, or why nothing new is."""
    try:
        from agent.pull_release import Wanted, board_here, pull_release  # noqa: PLC0415 - a broken wheel is told too
        from agent.trust import ModelRepository  # noqa: PLC0415 - same

        state = Path(order.state_dir)
        repository = ModelRepository(order.repository_url, Path(order.repository_root), state / "repository")
        here = board_here(order.running, order.running_digest, frozenset(order.refused))
        wanted = Wanted(order.version, order.allow_downgrade, order.slot, order.metered)
        release = pull_release(repository, state, wanted, here, talk.ask, lambda what: talk.say(Warned(what)))
    except TemperdError as error:
        return Failed(error.code, str(error)[:MAX_MESSAGE], result={"exit_code": error.exit_code})
    except Exception as error:  # noqa: BLE001 - the one seam of the process: every end is told, none is lost
        traceback.print_exception(error)
        return Failed("internal", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
    if release is None:
        return Finished("SUCCEEDED", "", {"version": order.running, "changed": False})
    return Finished("SUCCEEDED", "", {"version": release.version, "digest": release.files_sha256, "changed": True})


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m agent.release_worker`."""
    stream, out = begin("temperd-release", 0, argv)
    talk = Conversation(stream, out)
    try:
        order = talk.order()
    except EngineError as error:
        sys.stderr.write(f"temperd-release: {error}; it is started by the daemon\n")
        return EXIT_ORPHANED
    last = carry_out(order, talk)
    talk.say(last)
    return 1 if isinstance(last, Failed) else 0


if __name__ == "__main__":
    sys.exit(main())
