"""What one reading of a board costs: this machine's own sensors, and trees of files."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from agent.board.edac import memory_errors
from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from agent.errors import BoardError
from policies.reading import Health, Reading

PERCENTILE = 0.99
TICK_S = 1.0
"""Between two readings, as the board's clock is told: the daemon looks once a second, so what is kept between two
readings grows old as it does there, although the bench does not wait."""
COUNTERS = 100  # readings of the memory controllers' counters, which a scrub alone looks at
OWN = "this machine"


def measure(readings: int, trees: Sequence[Path], say: Callable[[str], None]) -> dict[str, object]:
    """Read each board `readings` times.

    Args:
        readings: how often, after the first reading, which is told apart.
        trees: folders with `sys` and `proc` in them, beside this machine's own.
        say: is told the progress.

    Returns:
        Milliseconds of a reading for each board, and what was there to read.

    Raises:
        BoardError: a folder is no tree.
    """
    for tree in trees:
        if not (tree / "sys").is_dir() or not (tree / "proc").is_dir():
            raise BoardError(
                "not a tree of a board: it has no sys and proc",
                where=str(tree),
                fix="Name a folder as the emulated board makes it: python -m agent.board.emulated --tree DIR",
            )
    boards = {OWN: BoardRoots()} | {tree.name or str(tree): BoardRoots.of_tree(tree) for tree in trees}
    rows = []
    for name, roots in boards.items():
        say(name)
        rows.append(_row(name, roots, readings))
    return {"readings": readings, "rows": rows}


def _row(name: str, roots: BoardRoots, readings: int) -> dict[str, object]:
    board = SysfsBoard(roots, pick_profile(read_model(roots)))
    board.read(0.0)
    there = _there(board.read(TICK_S))  # rates need two readings
    board = SysfsBoard(roots, board.profile)
    first = _milliseconds(lambda: board.read(0.0))
    times = [_milliseconds(partial(board.read, number * TICK_S)) for number in range(1, readings + 1)]
    walls, processors = [wall for wall, _ in times], [processor for _, processor in times]
    return {
        "board": name,
        "profile": board.profile.name,
        "there": there,
        "first_ms": first[0],
        "median_ms": statistics.median(walls),
        "p99_ms": _percentile(walls),
        "processor_median_ms": statistics.median(processors),
        "processor_p99_ms": _percentile(processors),
        "memory_errors_ms": statistics.median(_milliseconds(lambda: memory_errors(roots))[0] for _ in range(COUNTERS)),
    }


def _milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock on the wall, and of the processor alone."""
    wall, processor = time.perf_counter(), time.thread_time()
    work()
    return (time.perf_counter() - wall) * 1e3, (time.thread_time() - processor) * 1e3


def _percentile(values: list[float]) -> float:
    return sorted(values)[math.ceil(PERCENTILE * len(values)) - 1]


def _there(reading: Reading) -> list[str]:
    """What the board has, so that a short time on a machine without sensors is not taken for a good one."""
    found = [name for name, health in reading.health if health is Health.OK]
    others = {
        "clock": reading.frequency_hz is not None,
        "gpu-clock": reading.gpu_frequency_hz is not None,
        "memory": reading.memory_available_bytes is not None,
        "pressure": bool(reading.pressure),
    }
    return found + [name for name, is_there in others.items() if is_there]


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    where = report["machine"]
    print(f"{where['processor']}, {where['cores']} cores; {report['readings']} readings each, milliseconds\n")
    print(f"  {'':<20}{'clock on the wall':^27}{'processor':^18}")
    print(f"  {'':<20}{'median':>9}{'p99':>9}{'first':>9}{'median':>9}{'p99':>9}   there")
    columns = ("median_ms", "p99_ms", "first_ms", "processor_median_ms", "processor_p99_ms")
    for row in report["rows"]:
        times = "".join(f"{row[key]:>9.3f}" for key in columns)
        print(f"  {row['board']:<20}{times}   {', '.join(row['there'])}")
    print("\n  everything once; folders are listed again every tenth time; first: nothing is kept yet")
    print("  processor: without the time in which other programs ran")
