from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bandwidth import (
    CACHES,
    FILE_NAME,
    LEAST_BUFFER_BYTES,
    LEAST_COPIES,
    MAX_FILE_BYTES,
    MOST_BUFFER_BYTES,
    MOST_COPIES,
    BandwidthError,
    Measured,
    MemoryBandwidth,
    admit,
    at_pace,
    bandwidth_told,
    measure,
    required_bandwidth,
)

SLOW = Measured(1e9, LEAST_BUFFER_BYTES)


def memory_in(
    state: Path, takes: list[Measured], *, board: str = "pi", boot: str = "boot-1", threads: int = 4, share: float = 1.0
) -> MemoryBandwidth:
    """A board that gives `takes` one after the other, and no more."""
    return MemoryBandwidth(state, board, boot, threads, share, lambda: takes.pop(0))


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that moves by `step_s` at each look."""
    now = [0.0]

    def clock() -> float:
        now[0] += step_s
        return now[0]

    return clock


def test_required_bandwidth_is_the_figure_of_r10() -> None:
    """7 MB of parameters, two operations for each, 20 ms: 1.4 GB/s."""
    assert required_bandwidth(7e6, 2, 0.020) == pytest.approx(1.4e9)
    assert required_bandwidth(7e6, 2, 0.010) == pytest.approx(2.8e9)
    assert math.isclose(required_bandwidth(14e6, 1, 0.020), required_bandwidth(7e6, 2, 0.020))


@given(
    st.floats(1.0, 1e9, allow_subnormal=False),
    st.floats(0.5, 8.0, allow_subnormal=False),
    st.floats(1e-4, 60.0, allow_subnormal=False),
)
def test_a_tighter_budget_or_a_larger_model_requires_more(size: float, operations: float, budget_s: float) -> None:
    required = required_bandwidth(size, operations, budget_s)
    assert required_bandwidth(size, operations, budget_s / 2) == pytest.approx(2 * required)
    assert required_bandwidth(2 * size, operations, budget_s) == pytest.approx(2 * required)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_real_measurement_is_that_of_a_memory(threads: int) -> None:
    found = measure(threads, time.perf_counter)
    assert 1e8 < found.bytes_per_s < 1e13
    assert found.buffer_bytes == LEAST_BUFFER_BYTES
    assert found.threads == threads
    assert found.beyond_cache is None, "the kernel did not say how large the cache is"


def test_the_fastest_copy_counts_and_both_directions_do() -> None:
    assert measure(1, ticking(0.01)).bytes_per_s == pytest.approx(2 * LEAST_BUFFER_BYTES / 0.01)


@pytest.mark.parametrize(("step_s", "copies"), [(100.0, LEAST_COPIES), (0.0, MOST_COPIES)])
def test_the_number_of_copies_is_bounded_on_any_clock(
    monkeypatch: pytest.MonkeyPatch, step_s: float, copies: int
) -> None:
    looks = [0]
    inner = ticking(step_s)

    def clock() -> float:
        looks[0] += 1
        return inner()

    monkeypatch.setattr("agent.bandwidth.LEAST_BUFFER_BYTES", 4096)
    measure(1, clock)
    assert copies * 2 <= looks[0] <= copies * 3 + 2


@pytest.mark.parametrize(
    ("cache", "size", "beyond"),
    [
        (1 << 20, LEAST_BUFFER_BYTES, True),
        (8 << 20, CACHES * (8 << 20), True),
        (32 << 20, MOST_BUFFER_BYTES, False),
    ],
)
def test_buffers_are_larger_than_the_cache_or_it_is_said(cache: int, size: int, *, beyond: bool) -> None:
    found = measure(1, time.perf_counter, cache)
    assert (found.buffer_bytes, found.beyond_cache) == (size, beyond)
    assert 2 * found.buffer_bytes < 64 << 20


def test_a_boot_is_measured_once(tmp_path: Path) -> None:
    first = memory_in(tmp_path, [SLOW]).known()
    assert first == replace(SLOW, board="pi", boot_id="boot-1", threads=4)
    assert memory_in(tmp_path, []).known() == first


@pytest.mark.parametrize("change", [{"board": "jetson"}, {"boot": "boot-2"}, {"threads": 2}, {"share": 1.0}], ids=str)
def test_another_boot_board_or_clock_is_measured_again(tmp_path: Path, change: dict[str, str | int]) -> None:
    memory_in(tmp_path, [SLOW], share=0.5).known()
    takes = [replace(SLOW, bytes_per_s=3e9)]
    assert memory_in(tmp_path, takes, **{"share": 0.5} | change).known().bytes_per_s == 3e9  # type: ignore[arg-type]
    assert takes == []


def test_without_a_boot_id_nothing_is_kept(tmp_path: Path) -> None:
    memory_in(tmp_path, [SLOW], boot="").known()
    assert list(tmp_path.iterdir()) == []
    assert memory_in(tmp_path, [SLOW], boot="").known().bytes_per_s == SLOW.bytes_per_s


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"bytes_per_s": NaN}',
        b'{"bytes_per_s": -1.0, "buffer_bytes": 5}',
        b" " * (MAX_FILE_BYTES + 1),
        json.dumps({"bytes_per_s": 9e12, "buffer_bytes": 1, "board": "pi", "boot_id": "boot-1", "schema": 2}).encode(),
    ],
)
def test_a_broken_file_is_measured_over(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    assert memory_in(tmp_path, [SLOW]).known().bytes_per_s == SLOW.bytes_per_s
    assert memory_in(tmp_path, []).known().bytes_per_s == SLOW.bytes_per_s


def test_a_file_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert memory_in(tmp_path, [SLOW]).known().bytes_per_s == SLOW.bytes_per_s


def test_a_job_within_the_boards_bandwidth_is_taken_with_both_figures(tmp_path: Path) -> None:
    told = admit(7_000_000, 20.0, memory_in(tmp_path, [replace(SLOW, bytes_per_s=1.5e9, beyond_cache=True)]))
    assert told["required_bytes_per_s"] == pytest.approx(1.4e9)
    assert (told["measured_bytes_per_s"], told["model_bytes"], told["budget_ms"]) == (1.5e9, 7_000_000, 20.0)


def test_a_job_without_a_budget_is_always_taken(tmp_path: Path) -> None:
    told = admit(7_000_000, 0.0, memory_in(tmp_path, [replace(SLOW, bytes_per_s=1.0)]))
    assert (told["required_bytes_per_s"], told["budget_ms"], told["measured_bytes_per_s"]) == (None, None, 1.0)


def test_a_job_that_needs_more_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(BandwidthError) as caught:
        admit(7_000_000, 20.0, memory_in(tmp_path, [SLOW, SLOW]))
    error = caught.value
    assert (error.code, error.where, error.exit_code) == ("bandwidth", "budget_ms", 2)
    for number in ("7 MB", "20 ms", "1.4 GB/s", "1 GB/s", "budget_ms to 28"):
        assert number in str(error)
    assert error.result == {"bandwidth": bandwidth_told(7_000_000, 20.0, SLOW)}
    admit(7_000_000, 28.1, memory_in(tmp_path, []))  # what it advises is taken


def test_no_job_is_refused_on_an_old_figure(tmp_path: Path) -> None:
    memory_in(tmp_path, [SLOW]).known()
    told = admit(7_000_000, 20.0, memory_in(tmp_path, [replace(SLOW, bytes_per_s=2e9)]))
    assert told["measured_bytes_per_s"] == 2e9
    assert memory_in(tmp_path, []).known().bytes_per_s == 2e9, "the better of a boot is kept"


@pytest.mark.parametrize(("budget_ms", "met"), [(20.0, True), (5.0, False), (0.0, None)])
def test_a_result_tells_what_a_pass_really_took(budget_ms: float, met: bool | None) -> None:
    told = at_pace(bandwidth_told(7_000_000, budget_ms, SLOW), 2.0, 200)
    assert (told["pass_ms"], told["budget_met"]) == (10.0, met)
    assert told["required_at_pace_bytes_per_s"] == pytest.approx(2.8e9)


def test_without_figures_or_steps_nothing_is_told_of_a_pass() -> None:
    planned = bandwidth_told(7_000_000, 20.0, SLOW)
    assert at_pace({}, 2.0, 200) == {}
    assert at_pace(planned, 0.0, 200) == at_pace(planned, 2.0, 0) == planned
