"""The process that scrubs: one order in, steered while it works, one report out.

A process of its own because numpy and the board's secret key have no place in a supervisor that idles for hours.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from agent.errors import EngineError, NetworkError, TemperdError
from agent.keys_identity import load_identity
from agent.messages import Failed, Message, Scrubbed, ScrubOrder, Steer, decode
from agent.one_order import begin, speak
from agent.private_memory import keep_memory_private
from agent.scrub import Report, Scrub
from agent.scrub_kept import kept_files
from agent.scrub_read import Pace
from agent.store import Store

EXIT_ORPHANED = 75  # EX_TEMPFAIL: the daemon went away; the next one scrubs again
MAX_MESSAGE = 2000  # characters of an error that travel
WAIT = Steer("PAUSE", 0.0, 0, reverify=False, rule="not-told-yet")


class _Orders:
    """Keeps the latest order to steer; ends the process when the daemon has gone, which every step survives."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines, self._latest = lines, WAIT
        threading.Thread(target=self._listen, daemon=True).start()

    def steer(self) -> Steer:
        """The latest order; a pause before the first."""
        return self._latest

    def _listen(self) -> None:
        try:
            for line in self._lines:
                message = decode(line)
                if isinstance(message, Steer):
                    self._latest = message
        finally:
            os._exit(EXIT_ORPHANED)


def scrub(order: ScrubOrder, pace: Pace) -> Report:
    """Carry out one order.

    Raises:
        TemperdError: the scrub cannot go on; what it has mended stays mended.
    """
    state = Path(order.state_dir)
    store = Store(state / "store", *load_identity(state / "keys").storage_keys)

    def fetch(name: str, version: str) -> None:
        if order.metered:
            raise NetworkError("downloads cost money here", reason="metered-link")
        from agent.trust import ModelRepository  # noqa: PLC0415 - the network's libraries, for a board in need only

        repository = ModelRepository(order.repository_url, Path(order.repository_root), state / "repository")
        repository.refresh()
        repository.fetch(repository.find(name, version))

    walk = Scrub(state, pace)
    walk.run(kept_files(state, store, fetch))
    walk.mended_status(store.recover())
    return walk.report


def carry_out(order: ScrubOrder, pace: Pace) -> Message:
    """The last word: a report, or why there is none."""
    try:
        return Scrubbed(scrub(order, pace).table())
    except TemperdError as error:
        return Failed(error.code, str(error)[:MAX_MESSAGE])
    except Exception as error:  # noqa: BLE001 - the one seam of the process: every end is told, none is lost
        traceback.print_exception(error)
        return Failed("internal", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])


def _first(lines: Iterator[bytes]) -> ScrubOrder:
    message = decode(next(lines, b""))
    if not isinstance(message, ScrubOrder):
        raise EngineError("the first line is not an order to scrub")
    return message


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m agent.scrub_worker`."""
    stream, out = begin("temperd-scrub", 19, argv)
    keep_memory_private()
    lines = iter(stream)
    try:
        order = _first(lines)
    except EngineError as error:
        sys.stderr.write(f"temperd-scrub: {error}; it is started by the daemon\n")
        return EXIT_ORPHANED
    last = carry_out(order, Pace(_Orders(lines).steer, time.monotonic, time.sleep))
    speak(out, last)
    return 1 if isinstance(last, Failed) else 0


if __name__ == "__main__":
    sys.exit(main())
