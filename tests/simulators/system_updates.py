"""Boards for updates of the system image: one without RAUC, and one whose two slots are a test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.errors import BoardError
from agent.messages import SystemOrder
from policies.reading import Reading
from policies.trial_health import Baseline
from service.rauc import Rauc, RaucState
from service.system_shop import SystemShop
from service.system_trial import Sight


async def _answers() -> str:
    return ""


QUIET = Sight(lambda: Reading(0.0), lambda: False, lambda: False, lambda: True, lambda: False, _answers)
"""A board on which nothing happens."""


def without_rauc(folder: Path) -> SystemShop:
    """A board that cannot be updated."""

    def order(name: str, version: str, compatible: str, installed: str, allow_downgrade: bool) -> SystemOrder:
        return SystemOrder(str(folder), "", "", name, version, compatible, installed, allow_downgrade)

    return SystemShop(folder, "boot-1", 0, order, Rauc(), Baseline, lambda: "this board has no RAUC")


class PlannedSystem:
    """RAUC, boot loader and board in one: two slots, faults on demand.

    Attributes:
        booted: slot that runs.
        primary: slot that is booted next, unless it is bad.
        bad: slots that are not booted.
        reboots: how often the board was told to restart.
        marks: slots and what they were marked.
        fault: raised by the next call of that name; it stays.
    """

    def __init__(self) -> None:
        self.booted = self.primary = "A"
        self.bad: set[str] = set()
        self.reboots = 0
        self.marks: list[tuple[str, str]] = []
        self.faults: dict[str, BoardError] = {}
        self.versions = {"A": "1.0", "B": ""}
        self.installed: list[str] = []
        self.hangs: asyncio.Event | None = None

    async def state(self) -> RaucState:
        self._fail("state")
        return RaucState("board-x", self.booted, version=self.versions[self.booted])

    async def install(self, path: str, told: Callable[[float], None]) -> None:
        self._fail("install")
        told(0.5)
        if self.hangs is not None:
            await self.hangs.wait()
        other = "B" if self.booted == "A" else "A"
        self.installed.append(path)
        self.versions[other], self.primary = "2.0", other
        self.bad.discard(other)

    async def mark(self, state: str) -> str:
        self._fail("mark")
        self.marks.append((self.booted, state))
        if state == "bad":
            self.bad.add(self.booted)
        return f"marked {self.booted} {state}"

    async def reboot(self) -> None:
        self._fail("reboot")
        self.reboots += 1

    def boot(self) -> None:
        """What the boot loader does."""
        other = "B" if self.primary == "A" else "A"
        self.booted = other if self.primary in self.bad else self.primary

    def _fail(self, call: str) -> None:
        if call in self.faults:
            raise self.faults[call]
