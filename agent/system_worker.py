"""The process that brings a system image to the board: one order in, one last word out.

A process of its own because the repository's libraries have no place in a supervisor that idles for months.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from agent.errors import EngineError, TemperdError
from agent.messages import Failed, Message, SystemOrder, decode
from agent.one_order import begin, speak

EXIT_ORPHANED = 75  # EX_TEMPFAIL: the daemon went away; the next one goes on with what has come
MAX_MESSAGE = 2000  # characters of an error that travel


def carry_out(order: SystemOrder) -> Message:
    """The last word: where the bundle is, or why there is none."""
    try:
        from agent.system_image import pull  # noqa: PLC0415 - a broken wheel must end as a message too
        from agent.trust import ModelRepository  # noqa: PLC0415 - same

        state = Path(order.state_dir)
        return pull(order, ModelRepository(order.repository_url, Path(order.repository_root), state / "repository"))
    except TemperdError as error:
        return Failed(error.code, str(error)[:MAX_MESSAGE], result={"exit_code": error.exit_code})
    except Exception as error:  # noqa: BLE001 - the one seam of the process: every end is told, none is lost
        traceback.print_exception(error)
        return Failed("internal", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])


def _first(lines: Iterator[bytes]) -> SystemOrder:
    message = decode(next(lines, b""))
    if not isinstance(message, SystemOrder):
        raise EngineError("the first line is not an order for a system image")
    return message


def _leave_with_daemon(lines: Iterator[bytes]) -> None:
    for _line in lines:
        pass
    os._exit(EXIT_ORPHANED)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m agent.system_worker`."""
    stream, out = begin("temperd-system", 0, argv)
    lines = iter(stream)
    try:
        order = _first(lines)
    except EngineError as error:
        sys.stderr.write(f"temperd-system: {error}; it is started by the daemon\n")
        return EXIT_ORPHANED
    threading.Thread(target=_leave_with_daemon, args=(lines,), daemon=True).start()
    last = carry_out(order)
    speak(out, last)
    return 1 if isinstance(last, Failed) else 0


if __name__ == "__main__":
    sys.exit(main())
