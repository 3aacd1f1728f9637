from __future__ import annotations

import pytest

from agent.board.plausible import MISSING, DieSensor, Judged, judge_millidegrees
from policies.reading import Health


@pytest.mark.parametrize(
    ("raw", "celsius"),
    [
        (45123, 45.123),
        (-5000, -5.0),
        (1, 0.001),
        (0, None),
        (-256000, None),
        (-40000, None),
        (150000, None),
        (2**31, None),
        (None, None),
    ],
)
def test_values_no_board_can_have(raw: int | None, celsius: float | None) -> None:
    assert judge_millidegrees(raw).value == celsius


def believed(sensor: DieSensor, celsius: float | None, second: float) -> float | None:
    return sensor.judge(MISSING if celsius is None else Judged(celsius, Health.OK), second).value


def test_a_value_that_never_moves_is_disbelieved_until_it_moves() -> None:
    sensor = DieSensor(frozen_after_s=5.0)
    assert [believed(sensor, 50.0, float(s)) for s in range(7)] == [50.0] * 6 + [None]
    assert believed(sensor, 50.1, 7.0) == 50.1


def test_a_coarse_sensor_may_rest() -> None:
    sensor = DieSensor(frozen_after_s=None)
    assert all(believed(sensor, 50.0, float(s)) == 50.0 for s in range(0, 10_000, 100))


def test_a_jump_is_a_glitch_until_it_holds() -> None:
    sensor = DieSensor(None)
    row = [50.0, 110.0, 50.2, 110.0, 110.1, 110.2, 110.3]
    assert [believed(sensor, c, float(s)) for s, c in enumerate(row)] == [50.0, None, 50.2, None, None, None, 110.3]


def test_a_fast_but_possible_rise_is_believed() -> None:
    sensor = DieSensor(None)
    assert [believed(sensor, c, float(s)) for s, c in enumerate([40.0, 70.0, 95.0])] == [40.0, 70.0, 95.0]
