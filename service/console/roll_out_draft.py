"""Roll-outs that somebody is putting together: which boards, what is sent, how it goes. In memory, and bounded."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.errors import SpecError
from service.config import NAME
from service.console.act_sent import TOKEN
from service.fleet.roll_out_plan import MAX_BOARDS, Rules

MAX_DRAFTS = 16  # of all users: one of 20,000 boards takes up to 2 MB
MAX_OF_ONE = 4  # of one user
LIFE_S = 4 * 3600.0  # without a touch
MAX_FILTER = 600  # characters of the fleet page's query: a search of 100, each byte written as three, and the rest
MAX_NAMED = 100  # characters of a name that is told as wrong
_APART = re.compile(r"[\s,;]+")


@dataclass(slots=True)
class Draft:
    """One of them. What was typed is kept as typed, so that each step can be gone back to.

    Attributes:
        id: in the URLs of its steps.
        by: name of the user; others do not find it.
        touched: when it was used last, seconds.
        names: boards as they were typed.
        filter: query of the fleet page.
        group: name of a group.
        boards: who that is, each once.
        kind: type of the command.
        given: fields of the last two steps, as posted.
        args: arguments of the command; `None` before they were checked.
        rules: how it goes; `None` before that was checked.
        expect: conditions on each board's state.
        valid_s: how long a command waits for its board.
        begun: id of the roll-out that it became.
    """

    id: str
    by: str
    touched: float
    names: str = ""
    filter: str = ""
    group: str = ""
    boards: tuple[str, ...] = ()
    kind: str = ""
    given: dict[str, str] = field(default_factory=dict)
    args: dict[str, object] | None = None
    rules: Rules | None = None
    expect: dict[str, object] = field(default_factory=dict)
    valid_s: int = 0
    begun: str = ""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while it begins: a form that is posted twice begins one."""


class Drafts:
    """All of them; the oldest go.

    Args:
        clock: seconds; any that goes on.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._drafts: OrderedDict[str, Draft] = OrderedDict()

    def new(self, by: str) -> Draft:
        """An empty one."""
        self._drop_old()
        own = [draft.id for draft in self._drafts.values() if draft.by == by]
        for extra in own[: max(0, len(own) + 1 - MAX_OF_ONE)]:
            del self._drafts[extra]
        while len(self._drafts) >= MAX_DRAFTS:
            self._drafts.popitem(last=False)
        draft = Draft(secrets.token_urlsafe(16), by, self._clock())
        self._drafts[draft.id] = draft
        return draft

    def find(self, draft_id: str, by: str) -> Draft | None:
        """A user's own draft."""
        self._drop_old()
        found = self._drafts.get(draft_id) if TOKEN.fullmatch(draft_id) else None
        if found is None or found.by != by:
            return None
        found.touched = self._clock()
        self._drafts.move_to_end(draft_id)
        return found

    def _drop_old(self) -> None:
        since = self._clock() - LIFE_S
        for draft in [draft for draft in self._drafts.values() if draft.touched < since]:
            del self._drafts[draft.id]


def read_names(text: str) -> tuple[str, ...]:
    """Boards out of what somebody typed: names with blanks, commas, semicolons or lines between, each once.

    Raises:
        SpecError: one is no name, or there are too many.
    """
    names = tuple(dict.fromkeys(word for word in _APART.split(text) if word))
    for name in names:
        if not NAME.fullmatch(name):
            what = f"{name[:MAX_NAMED]!r} is no name of a board: 1 to 63 of a-z, 0-9 and dash"
            raise SpecError(what, where="names")
    if len(names) > MAX_BOARDS:
        raise SpecError(f"{len(names)} boards, at most {MAX_BOARDS}", where="names", reason="too-many")
    return names


def ordered(boards: tuple[str, ...], online: Mapping[str, bool]) -> list[str]:
    """The order of a roll-out: boards that are online first, else as they came."""
    return sorted(boards, key=lambda board: not online.get(board, False))
