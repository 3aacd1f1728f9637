"""What the outbox counts over restarts, in one small file: lost messages, backfilled ones, and sequence numbers.

A sequence number never comes twice on one board, so that consumers know a message that was sent twice. Numbers are
reserved a block at a time: after a crash the count goes on behind the block, after a clean end where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agent.durable import read_bounded, remove_partials, write_atomic
from agent.errors import TemperdError
from agent.strict_json import loads
from policies.strict import TableError, build_known, limits
from service.logs import logger
from service.outbox_segment import BLOCK_BYTES

STATE_BYTES = 2 * BLOCK_BYTES  # the file, and its successor while that is written
SEQ_BLOCK = 4096  # numbers reserved at a time: one small write for an hour of work, or a day of idling
_NAME = "state.json"
_MAX_BYTES = 4096  # the file has about 100
_MOST = 2**53  # JSON readers agree about whole numbers up to here

log = logger("outbox")


@dataclass(frozen=True, slots=True)
class _Kept:
    """The file."""

    next_seq: int = field(metadata=limits(1, _MOST))
    dropped_total: int = field(default=0, metadata=limits(0, _MOST))
    backfilled_total: int = field(default=0, metadata=limits(0, _MOST))


class Counters:
    """See the module.

    Args:
        folder: of the outbox; it may be missing, and may be read-only.
        mono_s: monotonic clock, seconds since the board started. Without a file numbers begin at its milliseconds: no
            daemon of this boot can have come that far at less than a thousand messages a second.

    Attributes:
        dropped_total: messages lost for good.
        backfilled_total: messages that arrived later.
    """

    def __init__(self, folder: Path, mono_s: float) -> None:
        self._path = folder / _NAME
        kept = self._load() or _Kept(1 + int(mono_s * 1000))
        self._next, self._reserved = kept.next_seq, kept.next_seq
        self.dropped_total, self.backfilled_total = kept.dropped_total, kept.backfilled_total
        self._saved: _Kept | None = None
        self._refused = False

    def next_seq(self) -> int:
        """A number that was never given before."""
        if self._next >= self._reserved:
            self._reserved = self._next + SEQ_BLOCK
            self.save()
        self._next += 1
        return self._next - 1

    def lose(self, records: int) -> None:
        """Count messages that are gone for good."""
        self.dropped_total += records

    def save(self, *, clean: bool = False) -> None:
        """Write the file if it changed; a disk that refuses is asked again next time.

        Args:
            clean: the daemon ends here: no number beyond the present one was given.
        """
        next_seq = self._next if clean else self._reserved
        kept = _Kept(next_seq, self.dropped_total, self.backfilled_total)
        if kept == self._saved:
            return
        try:
            write_atomic(self._path, json.dumps(asdict(kept), separators=(",", ":")).encode())
        except TemperdError as error:
            tell = log.debug if self._refused else log.warning  # it is tried again each minute
            tell("the counters of the outbox were not written", why=str(error))
            self._refused = True
            return
        self._saved, self._refused = kept, False

    def _load(self) -> _Kept | None:
        try:
            remove_partials(self._path.parent)
            return build_known(
                _Kept, _table(loads(read_bounded(self._path, _MAX_BYTES), what=_NAME, max_bytes=_MAX_BYTES))
            )
        except FileNotFoundError:
            return None
        except (TemperdError, TableError) as error:
            log.warning("the counters of the outbox are lost", where=str(self._path), why=str(error))
            return None


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TableError("", "not an object")
    return value
