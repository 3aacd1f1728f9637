"""Long things that a few boards are asked for: what their commands take, and their whole births. Kept for a while."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.fleet.boards import MAX_CAPABILITIES, MAX_NAME

MAX_BOARDS_KEPT = 200  # whom somebody looked at last
MAX_DETAIL_BYTES = 64 << 10  # of one as JSON: the capability of a fine-tune has about 8 KiB, a birth 12
MAX_ALL_BYTES = 16 << 20  # as JSON; as Python values it is some five times as much
KEPT_S = 600.0  # a board says its capabilities with each connect; who asks later is told anew


@dataclass(slots=True)
class _Kept:
    at: float
    size: int = 0
    capabilities: dict[str, dict[str, Any]] = field(default_factory=dict)
    birth: dict[str, Any] | None = None


class Details:
    """By board, the one that was asked for longest ago goes first. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._boards: OrderedDict[str, _Kept] = OrderedDict()
        self.bytes = 0
        """Of all, as JSON."""

    def want(self, board: str, now: float) -> None:
        """From now on keep what this board says."""
        kept = self._boards.get(board)
        if kept is None or now - kept.at > KEPT_S:
            self.forget(board)
            self._boards[board] = _Kept(now)
        self._boards.move_to_end(board)
        self._trim()

    def forget(self, board: str) -> None:
        """What was kept of a board is not true any more."""
        kept = self._boards.pop(board, None)
        if kept is not None:
            self.bytes -= kept.size

    def take(self, board: str, levels: list[str], body: Mapping[str, object]) -> bool:
        """A message of a board, by its levels below the board's root; whether it was one to keep.

        What is too long, or too much, is not kept.
        """
        kept = self._boards.get(board)
        match levels:
            case ["birth"] if kept is not None:
                size = _size(body)
                if size <= MAX_DETAIL_BYTES:
                    self._grow(kept, size - kept.size)
                    kept.capabilities.clear()  # it has come back, perhaps as another version
                    kept.birth = dict(body)
            case ["cmd", kind] if kept is not None and len(kind) <= MAX_NAME:
                size = _size(body)
                fits = kind in kept.capabilities or len(kept.capabilities) < MAX_CAPABILITIES
                if fits and size <= MAX_DETAIL_BYTES:
                    self._grow(kept, size - _size(kept.capabilities.get(kind, {})))
                    kept.capabilities[kind] = dict(body)
            case _:
                return False
        self._trim()
        return True

    def _grow(self, kept: _Kept, size: int) -> None:
        kept.size += size
        self.bytes += size

    def capability(self, board: str, kind: str) -> Mapping[str, Any] | None:
        """What was kept of a type of command."""
        kept = self._boards.get(board)
        return None if kept is None else kept.capabilities.get(kind)

    def birth(self, board: str) -> Mapping[str, Any] | None:
        """The whole birth, if it is kept."""
        kept = self._boards.get(board)
        return None if kept is None else kept.birth

    def _trim(self) -> None:
        while len(self._boards) > MAX_BOARDS_KEPT or (self.bytes > MAX_ALL_BYTES and len(self._boards) > 1):
            self.forget(next(iter(self._boards)))


def _size(body: Mapping[str, object]) -> int:
    return len(json.dumps(body)) if body else 0
