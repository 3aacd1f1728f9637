"""Roll-outs in words and pictures: bars of waves, why one stopped, outcomes as a table of text. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from service.console.formats import iso, no_formula
from service.fleet.outcome import Outcome
from service.fleet.state import Sent

Words = Callable[..., str]

GOOD, BAD, OPEN, LEFT = "good", "bad", "open", "left"
_KINDS: Mapping[str, str] = {Outcome.SUCCEEDED: GOOD, Outcome.OPEN: OPEN, Outcome.WAITING: LEFT}
COLUMNS = ("place", "board", "id", "sent", "outcome", "status", "reason_code", "reason", "at")
_TOO_MANY = r"(?P<bad>\d+) of (?P<ended>\d+) boards .* \((?P<share>\d+)%, limit (?P<limit>\d+)%\)"
_WHY = (
    ("canaries", re.compile(f"canaries: {_TOO_MANY}")),
    ("too-many", re.compile(_TOO_MANY)),
    ("slow-canaries", re.compile(r"canaries did not end within (?P<seconds>[0-9.e+]+) s")),
    ("aborted", re.compile(r"aborted by an operator")),
    ("not-begun", re.compile(r"it could not begin")),
    ("stopped-by", re.compile(r"stopped by (?P<who>[a-z0-9._-]{1,32})(?:: (?P<why>.+))?", re.DOTALL)),
)
"""What `roll_out_plan` and this console write as the reason of a stop."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar: `good`, `bad`, `open` or `left`, how many boards, and where it lies, 0..100."""

    kind: str
    count: int
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Wave:
    """The canaries, or the rest.

    Attributes:
        total: boards.
        sent: boards whose command was made.
        ended: of those that have ended.
        parts: of its bar, those with boards.
        outcomes: boards by outcome.
    """

    total: int
    sent: int
    ended: int
    good: int
    bad: int
    parts: tuple[Part, ...]
    outcomes: Mapping[str, int]


def wave(counts: Mapping[str, int]) -> Wave:
    """A wave out of its boards by outcome."""
    kinds = dict.fromkeys((GOOD, BAD, OPEN, LEFT), 0)
    for outcome, count in counts.items():
        kinds[_KINDS.get(outcome, BAD)] += count
    total = sum(kinds.values())
    parts, x = [], 0.0
    for kind, count in kinds.items():
        if count:
            width = 100.0 * count / total
            parts.append(Part(kind, count, round(x, 3), round(width, 3)))
            x += width
    ended = kinds[GOOD] + kinds[BAD]
    known = {str(outcome): counts[outcome] for outcome in Outcome if counts.get(outcome)}
    return Wave(total, total - kinds[LEFT], ended, kinds[GOOD], kinds[BAD], tuple(parts), known)


def together(*counts: Mapping[str, int]) -> dict[str, int]:
    """Boards by outcome of several waves."""
    found: dict[str, int] = {}
    for each in counts:
        for outcome, count in each.items():
            found[outcome] = found.get(outcome, 0) + count
    return found


def why_words(why: str, words: Words) -> str:
    """Why a roll-out stopped, in the viewer's language where its form is known; else as it is."""
    for key, form in _WHY:
        if found := form.fullmatch(why):
            values = {name: value or "" for name, value in found.groupdict().items()}
            said = "stopped" if values.get("why") == "" else key
            return words(f"roll_out.why.{said}", **values)
    return why


def as_csv(commands: Iterable[Sent]) -> str:
    """Where each board stands, a line each, in the order of the roll-out; times in UTC."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(COLUMNS)
    for command in commands:
        status = command.status or {}
        told = (status.get(key) for key in ("status", "reason_code", "reason"))
        row = (
            command.place,
            command.board,
            command.id,
            int(command.sent),
            command.outcome,
            *told,
            iso(status.get("ts")),
        )
        table.writerow([no_formula("" if value is None else str(value)) for value in row])
    return out.getvalue()
