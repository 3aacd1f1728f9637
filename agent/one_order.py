"""What the processes have in common that the daemon starts for one order: lines in, messages out, a last word."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import BinaryIO

from agent.board.control_group import be_killed_first
from agent.board.files import BoardRoots
from agent.messages import Message, encode


def begin(program: str, nice: int, argv: Sequence[str] | None) -> tuple[BinaryIO, BinaryIO]:
    """Read the command line and give way to the board's own work.

    Args:
        program: its name in messages.
        nice: scheduling priority where none is given.
        argv: the command line; `None`: this process's.

    Returns:
        Lines of the daemon, and where messages to it go: libraries may print, and what they print goes to standard
        error from here on.
    """
    parser = argparse.ArgumentParser(prog=program, description="Started by temperd; reads one order.")
    parser.add_argument("--nice", type=int, default=nice, help="added to the scheduling priority (0..19)")
    options = parser.parse_args(argv)
    be_killed_first(BoardRoots())
    os.nice(options.nice)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False), out


def speak(out: BinaryIO, message: Message) -> None:
    """Tell the daemon."""
    out.write(encode(message))
    out.flush()
