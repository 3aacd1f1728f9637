"""docs/mqtt.md names every key of the telemetry."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.messages import Progress
from policies.policy import Policy
from service.steering import Steering

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("group", ["board", "training", "energy"])
def test_every_key_is_explained(group: str, tmp_path: Path) -> None:
    board = SysfsBoard(BoardRoots(tmp_path, tmp_path), named_profile("generic"))
    steering = Steering(board, Policy())
    keys = {
        "board": list(steering.board_metrics()),
        "training": list(Progress.__slots__),
        "energy": list(steering.energy_metrics(0)),
    }[group]
    page = (DOCS / ("energy.md" if group == "energy" else "mqtt.md")).read_text(encoding="utf-8")
    assert [key for key in keys if f"`{key}`" not in page] == []
