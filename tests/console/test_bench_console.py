"""The bench of the console, small: that what it tells is what happened."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.bench_console import PAGES, show
from service.bench_console_readers import queries
from service.bench_console_store import CHART_BOARD, DAY_POINTS, fill
from service.bench_ingest_devices import TENANT
from service.fleet.store import Filter, open_store
from tests.simulators.mosquitto import find_mosquitto


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "bench", "console", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
def test_pages_are_timed_and_news_of_boards_reaches_open_pages(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--devices", "60", "--live", "20", "--period", "0.2", "--seconds", "4", "--rounds", "2", "--readers", "10")
    done = bench(*few, "--no-browser", "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert set(report["pages_ms"]) == set(report["pages_busy_ms"]) == set(PAGES)
    assert all(0 < found["median"] <= found["most"] for found in report["pages_ms"].values())
    live = report["live"]
    assert live["sent"] == 20 * 20
    assert (live["lists"]["streams"], live["boards"]["streams"], live["cut"]) == (8, 2, 0)
    assert live["lists"]["events"] >= 8
    assert live["boards"]["events"] >= 2
    assert live["cores"]["console"] > 0
    show(report)
    assert "10 open pages" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [(("--live", "9", "--devices", "8"), "--live"), (("--readers", "0"), "--readers"), (("--rounds", "0"), "--rounds")],
)
def test_numbers_that_fit_nothing_are_refused(options: tuple[str, ...], told: str) -> None:
    done = bench(*options)
    assert done.returncode == 2
    assert told in done.stderr


def test_readers_show_pages_of_boards_that_talk() -> None:
    lists, boards = queries(3, 4, 100)
    assert [len(query.removeprefix("boards=").split(",")) for query in lists] == [50, 50, 50]
    assert lists[0] == lists[2] != lists[1]
    assert boards == [f"board=board-0000{place}" for place in range(4)]
    assert queries(1, 1, 3)[0] == ["boards=board-00000,board-00001,board-00002"]


def test_the_store_has_the_devices_and_a_day_of_one(tmp_path: Path) -> None:
    store, now = open_store(str(tmp_path / "store.sqlite")), time.time()
    fill(store, 7, now, random.Random(3))
    assert store.count() == 7 + DAY_POINTS
    assert [row.name for row in store.devices(Filter(tenant=TENANT), now)][-1] == "board-00006"
    chart = store.chart(TENANT, CHART_BOARD, {"board": ["temperature_celsius"]}, now - 86400, now, 720)
    assert chart
    assert store.condense(now) == 0
    store.close()
