"""Boards that a policy has learnt: ten minutes of changing load, clock and fan on a simulated board."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest

from agent.board.simulated import SimulatedBoard
from policies.outlook import Outlook
from policies.predictive import PredictiveState, learn
from policies.reading import Decision

STAGES = ((1.0, 0, 1.0), (1.0, 4, 1.0), (0.5, 4, 1.0), (1.0, 0, 1.0), (0.0, 2, 1.0))
STAGES += ((1.0, 2, 0.3), (0.3, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.0), (0.7, 4, 1.0))
"""(place in the clock table as a share of it, fan level, utilisation), a minute each."""


def excite(board: SimulatedBoard, *, fan: bool = True) -> PredictiveState:
    state, top = PredictiveState(), len(board.constants.points) - 1
    for place, level, busy in STAGES:
        cap = board.constants.points[round(place * top)].frequency_hz
        board.apply(Decision(frequency_cap_hz=cap, cooling_level=level if fan else 0))
        for _ in range(60):
            board.advance(1.0, busy)
            state = learn(state, board.read(board.elapsed_s), Outlook())
    board.apply(Decision())
    return state


@lru_cache
def _state(name: str, ambient_celsius: float, *, fan: bool, ambient_sensor: bool) -> PredictiveState:
    board = SimulatedBoard(name, ambient_celsius=ambient_celsius, ambient_sensor=ambient_sensor)
    return excite(board, fan=fan)


@pytest.fixture(scope="session")
def learnt() -> Callable[..., PredictiveState]:
    """What ten minutes teach of a board, by its name, ambient, and whether fan and ambient sensor are there."""

    def of(
        name: str, ambient_celsius: float = 25.0, *, fan: bool = True, ambient_sensor: bool = True
    ) -> PredictiveState:
        return _state(name, ambient_celsius, fan=fan, ambient_sensor=ambient_sensor)

    return of


@pytest.fixture(scope="session")
def teach() -> Callable[..., PredictiveState]:
    """The ten minutes themselves, for a board of one's own."""
    return excite
