from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.messages import Progress, Steer
from service.obedience import MOST_DELAYS, MOST_OPEN, Obedience

ORDER = Steer("RUN", 1.0, 0, reverify=False, rule="run")
STEP = Progress(0, 1, 1, 9, 16, 0.5, None, 3, 25, 120.0, 1)


def told(obeyed: int, at: float) -> Progress:
    return replace(STEP, obeyed=obeyed, obeyed_mono_s=at)


def test_the_time_from_a_reading_to_its_order_obeyed_is_told() -> None:
    heard = Obedience()
    for read_s, obeyed_s in ((10.0, 10.5), (20.0, 20.1), (30.0, 30.9)):
        order = heard.numbered(ORDER, read_s)
        heard.hear(told(order.number, obeyed_s))
        heard.hear(told(order.number, obeyed_s))  # every later message says so again
    figures = heard.told()
    assert (figures["orders"], figures["longest_step_s"]) == (3, 0.12)
    assert round(float(str(figures["obey_s_median"])), 6) == 0.5
    assert round(float(str(figures["obey_s_max"])), 6) == 0.9


def test_orders_that_were_overtaken_or_came_from_no_reading_do_not_count() -> None:
    heard = Obedience()
    heard.numbered(ORDER, 10.0)
    assert heard.numbered(ORDER, 11.0) == replace(ORDER, number=2)
    heard.hear(told(2, 11.25))
    heard.hear(told(heard.numbered(ORDER, None).number, 99.0))
    assert (heard.told()["obey_s_max"], heard.told()["orders"]) == (0.25, 3)


def test_nothing_was_obeyed_yet() -> None:
    heard = Obedience()
    heard.numbered(ORDER, 1.0)
    heard.hear(STEP)
    assert (heard.told()["obey_s_median"], heard.told()["obey_s_max"]) == (None, None)


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 5.0, allow_subnormal=False)), max_size=300))
def test_the_largest_delay_is_never_below_the_median(orders: list[tuple[bool, float]]) -> None:
    heard = Obedience()
    for second, (answered, delay) in enumerate(orders):
        number = heard.numbered(ORDER, float(second)).number
        if answered:
            heard.hear(told(number, second + delay))
    figures = heard.told()
    median, most = figures["obey_s_median"], figures["obey_s_max"]
    assert (median is None) == (most is None) == (not any(answered for answered, _ in orders))
    if isinstance(median, float) and isinstance(most, float):
        assert 0.0 <= median <= most <= 5.0 + 1e-9


def test_a_worker_that_says_nothing_for_long_costs_no_memory() -> None:
    heard = Obedience()
    for second in range(3 * MOST_OPEN):
        heard.numbered(ORDER, float(second))
    assert len(heard._open) == MOST_OPEN
    for second in range(MOST_DELAYS + 5):
        heard.hear(told(heard.numbered(ORDER, 0.0).number, 1.0 if second < MOST_DELAYS else 2.0))
    assert len(heard._delays) == MOST_DELAYS
    assert heard.told()["obey_s_max"] == 2.0
