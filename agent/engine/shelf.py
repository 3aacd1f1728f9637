"""Programs of other update plans, kept while they wait: the governor moves a boundary there and back."""

from __future__ import annotations

from collections import OrderedDict

from agent.engine.base import UpdatePlan
from agent.engine.program import Program

SHELF_BYTES = 48 << 20  # a ladder of five MobileNetV2 programs takes 40 MiB


class Shelf:
    """Programs by plan, the least recently used given up first when their sum passes `SHELF_BYTES`.

    All are of one share of the usual micro-batch: who changes it clears the shelf.
    """

    def __init__(self, most: int = SHELF_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[UpdatePlan, Program] = OrderedDict()

    def take(self, plan: UpdatePlan) -> Program | None:
        """The program of a plan, which leaves the shelf."""
        return self._kept.pop(plan, None)

    def clear(self) -> None:
        """Give all up."""
        self._kept.clear()

    def put(self, plan: UpdatePlan, program: Program) -> None:
        """Keep a program; it stays at least until the next one comes."""
        self._kept[plan] = program
        while len(self._kept) > 1 and sum(kept.kept_bytes for kept in self._kept.values()) > self._most:
            self._kept.popitem(last=False)
