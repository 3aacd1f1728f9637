"""Boards for updates of the system image: one without RAUC, for desks whose subject is something else."""

from __future__ import annotations

from pathlib import Path

from agent.messages import SystemOrder
from policies.reading import Reading
from policies.trial_health import Baseline
from service.rauc import Rauc
from service.system_trial import Sight
from service.system_update import SystemShop


async def _answers() -> str:
    return ""


QUIET = Sight(lambda: Reading(0.0), lambda: False, lambda: False, lambda: True, lambda: False, _answers)
"""A board on which nothing happens."""


def without_rauc(folder: Path) -> SystemShop:
    """A board that cannot be updated."""

    def order(name: str, version: str, compatible: str, installed: str, allow_downgrade: bool) -> SystemOrder:
        return SystemOrder(str(folder), "", "", name, version, compatible, installed, allow_downgrade)

    return SystemShop(folder, "boot-1", 0, order, Rauc(), Baseline, lambda: "this board has no RAUC")
