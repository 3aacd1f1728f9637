"""The last warnings and errors of the log, kept in memory for a report: bounded, and without what may be a secret."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

KEPT = 200  # lines; a day of a board that is not well
MAX_LINE_BYTES = 400  # 80 KB in memory at most, and a report has room for all of them
MAX_VALUE = 120  # characters
MAX_KEYS = 12
LEVELS = frozenset({"warning", "error", "critical"})

_SECRET = re.compile(r"passw|secret|token|private|credential|\bpin\b", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=://)[^/\s@]*@")  # of an address: user:password@
HIDDEN = "(hidden)"
MAX_NUMBER = 1 << 63  # beyond it, readers differ, and Python itself writes no number of more than 4300 digits
LONG_NUMBER = "(a long number)"


class RecentLog:
    """See the module; a processor of structlog, as `service.logs` wants them."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT)
        self.total = 0
        """Warnings and errors since the start."""

    def __call__(self, _logger: object, _name: str, event: MutableMapping[str, Any], /) -> MutableMapping[str, Any]:
        """Keep what is at least a warning; the event goes on as it is."""
        if event.get("level") in LEVELS:
            self.total += 1
            self._lines.append(line(event))
        return event

    def lines(self) -> list[str]:
        """One JSON object each, the oldest first."""
        return list(self._lines)

    def clear(self) -> None:
        """Forget all."""
        self._lines.clear()
        self.total = 0


def line(event: Mapping[str, Any]) -> str:
    """An event as a JSON object of at most `MAX_LINE_BYTES`: the last keys go where it is longer."""
    kept = {str(key)[:MAX_VALUE]: _value(str(key), value) for key, value in list(event.items())[:MAX_KEYS]}
    order = ["ts", "level", "room", "event", *kept]
    table = {key: kept[key] for key in dict.fromkeys(order) if key in kept}
    while len(text := json.dumps(table, separators=(",", ":"))) > MAX_LINE_BYTES:
        table.popitem()
    return text


def _value(key: str, value: object) -> object:
    if _SECRET.search(key):
        return HIDDEN
    if value is None or isinstance(value, bool | int):
        return value if value is None or abs(value) < MAX_NUMBER else LONG_NUMBER
    text = _USERINFO.sub("", str(value))
    return text[-MAX_VALUE:] if key == "exception" else text[:MAX_VALUE]  # a traceback ends with what was wrong


RECENT = RecentLog()
"""That of this process."""
