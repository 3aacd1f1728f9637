"""The benches of the fleet's side, small: that what they count is what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service import bench_ingest
from service.bench_ingest import show
from tests.simulators.mosquitto import find_mosquitto

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (make tools)")


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "bench", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_every_message_of_simulated_boards_is_counted_where_it_is_sent_and_where_it_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "kept.sqlite")
    few = ("--devices", "31", "--period", "0.5", "--seconds", "2", "--processes", "2", "--consumers", "2")
    done = bench("ingest", *few, "--format", "cbor", "--store", place, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["sent"] == report["confirmed"] == report["stored"] == 31 * 4
    assert (report["lost"], report["failed"]) == (0, 0)
    assert sum(report["consumers_stored"]) == 31 * 4
    assert min(report["consumers_stored"]) > 0
    assert report["cores"]["boards"] > 0
    show(report)
    assert "lost 0" in capsys.readouterr().out
    again = bench("ingest", *few, "--store", place)
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_what_is_missing_in_the_store_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ingest, "DRAIN_S", 0.0)
    assert bench_ingest._drained(lambda: 7, 9) == 7
    assert bench_ingest._drained(lambda: 9, 9) == 9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("ingest", "--devices", "0"), "--devices"),
        (("ingest", "--period", "0"), "--period"),
        (("ingest", "--seconds", "1"), "--seconds"),
        (("ingest", "--consumers", "99"), "--consumers"),
        (("link", "--commands", "0"), "--commands"),
    ],
)
def test_bounds(options: tuple[str, ...], told: str) -> None:
    done = bench(*options)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_daemon_answers_commands_and_idles() -> None:
    done = bench("link", "--commands", "10", "--seconds", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["round_trip"]["commands"] == 10
    assert 0 < report["round_trip"]["median_ms"] <= report["round_trip"]["most_ms"]
    assert report["idle"]["daemon_percent"] >= 0
