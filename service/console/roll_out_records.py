"""What the console itself keeps of roll-outs: who began them, why, and which it has at work. A small file for each.

The state file is shared with `temperd fleet`, which knows neither users nor which roll-outs are this console's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agent.durable import disk_errors, make_folder, remove, write_atomic
from policies.strict import TableError, build_known, limits
from service.commands import COMMAND_ID

FOLDER = "roll-outs"
MAX_RECORDS = 1000  # the state file keeps a hundred that are over, and those that are not are fewer
MAX_RECORD_BYTES = 16 << 10  # a reason of 500 characters, each of them up to twelve bytes in JSON, and a name


@dataclass(frozen=True, slots=True)
class Record:
    """One roll-out of this console."""

    by: str = field(default="", metadata=limits(longest=64))
    """Name of the user who began it."""
    why: str = field(default="", metadata=limits(longest=1000))
    """What the user said."""
    at_work: bool = False
    """The console goes on with it when it starts."""


class Records:
    """The folder of records. One thread at a time.

    Args:
        state: the console's folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self.known: dict[str, Record] = {}
        """By id."""

    def load(self) -> None:
        """Read what there is; a file that cannot be read is passed over.

        Raises:
            BoardError: the folder cannot be used.
        """
        make_folder(self._folder)
        with disk_errors(self._folder):
            paths = sorted(self._folder.glob("*.json"), reverse=True)[:MAX_RECORDS]
        for path in paths:
            if COMMAND_ID.fullmatch(path.stem):
                with contextlib.suppress(OSError, ValueError, RecursionError, TableError):
                    self.known[path.stem] = _read(path)

    def write(self, roll_out: str, record: Record) -> None:
        """Keep a record, durably.

        Raises:
            BoardError: `no-space` or `disk`.
        """
        write_atomic(self._folder / f"{roll_out}.json", json.dumps(asdict(record)).encode())
        self.known[roll_out] = record

    def rest(self, roll_out: str) -> None:
        """The console has it at work no more.

        Raises:
            BoardError: `no-space` or `disk`.
        """
        before = self.known.get(roll_out, Record())
        if before.at_work:
            self.write(roll_out, replace(before, at_work=False))

    def keep_only(self, roll_outs: Collection[str]) -> None:
        """Forget those that the state file has forgotten.

        Raises:
            BoardError: `disk`.
        """
        for gone in self.known.keys() - set(roll_outs):
            remove(self._folder / f"{gone}.json")
            del self.known[gone]


def _read(path: Path) -> Record:
    with path.open("rb") as stream:
        found = json.loads(stream.read(MAX_RECORD_BYTES))
    if not isinstance(found, dict):
        raise TableError("", f"{path.name} is no table")
    return build_known(Record, found)
