from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from agent.board.record import FILE_NAME, BoardRecord, Qualification, read_record, write_record
from agent.strict_json import canonical
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import Decision, OperatingPoint, Reading
from service.learnt import SAVE_EVERY_S, Learnt
from service.steering import Steering

POINTS = (OperatingPoint(1_000_000_000, 0.7), OperatingPoint(2_000_000_000, 0.9))


@dataclass
class Warming:
    """A board at full load that warms up, with a meter."""

    celsius: float = 40.0

    def read(self, mono_s: float) -> Reading:
        self.celsius += 0.05
        return Reading(
            mono_s, self.celsius, 25.0, 2_000_000_000, operating_points=POINTS, power_watts=6.0,
            power_is_modelled=False, power_source="hwmon", utilisation=1.0,
        )  # fmt: skip

    def apply(self, _: Decision) -> tuple[str, ...]:
        return ()

    def restore(self) -> tuple[str, ...]:
        return ()


def taught(seconds: int = 60) -> Steering:
    steering = Steering(Warming(), Policy())
    for second in range(seconds):
        steering.tick(float(second), working=True, phase="training", outlook=Outlook())
    return steering


def fresh() -> Steering:
    return Steering(Warming(), Policy())


@pytest.fixture
def logged() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as found:
        yield found  # type: ignore[misc]


def test_what_was_learnt_is_known_to_the_next_daemon(tmp_path: Path) -> None:
    steering = taught()
    assert steering.learnt() != fresh().learnt()
    Learnt(tmp_path, "Pi 4", "raspberry-pi-4", steering).save()
    later = fresh()
    Learnt(tmp_path, "Pi 4", "raspberry-pi-4", later).load()
    assert canonical(later.learnt()) == canonical(steering.learnt())


def test_a_record_of_another_board_teaches_nothing_and_is_told(tmp_path: Path, logged: list[dict[str, object]]) -> None:
    Learnt(tmp_path, "Pi 4", "raspberry-pi-4", taught()).save()
    later = fresh()
    Learnt(tmp_path, "Pi 5", "raspberry-pi-5", later).load()
    assert later.learnt() == fresh().learnt()
    assert "'Pi 4'" in str(logged[-1]["why"])


@pytest.mark.parametrize("models", [{"power": 5}, {"unknown": 1.0}, {"learnt_s": -1.0}])
def test_models_that_are_none_are_not_used(
    tmp_path: Path, logged: list[dict[str, object]], models: dict[str, object]
) -> None:
    write_record(tmp_path, BoardRecord("Pi 4", "raspberry-pi-4", models=models))
    later = fresh()
    Learnt(tmp_path, "Pi 4", "raspberry-pi-4", later).load()
    assert later.learnt() == fresh().learnt()
    assert [line["event"] for line in logged] == ["what was learnt of the board is not used"]


def test_a_broken_record_costs_what_was_learnt_and_no_more(tmp_path: Path, logged: list[dict[str, object]]) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"{")
    learnt = Learnt(tmp_path, "Pi 4", "raspberry-pi-4", taught())
    learnt.load()
    learnt.save()
    assert "put aside" in str(logged[0]["why"])
    found = read_record(tmp_path, "Pi 4").record
    assert found is not None
    assert found.models


def test_the_qualification_in_the_record_stays(tmp_path: Path) -> None:
    passed = Qualification(passed=True, unix_s=1.8e9, duration_s=600.0, delta_t_kelvin=27.0)
    write_record(tmp_path, BoardRecord("Pi 4", "raspberry-pi-4", passed))
    Learnt(tmp_path, "Pi 4", "raspberry-pi-4", taught()).save()
    found = read_record(tmp_path, "Pi 4").record
    assert found is not None
    assert found.qualification == passed


def test_it_is_saved_when_a_job_has_ended_and_every_ten_minutes_of_one(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    steering = taught()
    learnt = Learnt(tmp_path, "Pi 4", "raspberry-pi-4", steering)
    saved = []
    for second in range(int(3 * SAVE_EVERY_S)):
        working = 100 <= second < 100 + 1.5 * SAVE_EVERY_S
        steering.tick(float(second), working=working, phase="training" if working else "", outlook=Outlook())
        learnt.tick(float(second), working=working)
        if path.exists():
            saved.append(second)
            path.unlink()
    assert saved == [99 + SAVE_EVERY_S, 100 + 1.5 * SAVE_EVERY_S]


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    learnt = Learnt(tmp_path, "Pi 4", "raspberry-pi-4", taught())
    learnt.save()
    (tmp_path / FILE_NAME).unlink()
    learnt.save()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_is_told_of_once(tmp_path: Path, logged: list[dict[str, object]]) -> None:
    steering = taught()
    learnt = Learnt(tmp_path / "gone", "Pi 4", "raspberry-pi-4", steering)
    for _ in range(3):
        learnt.save()
    assert [line["event"] for line in logged] == ["what was learnt of the board cannot be kept"]


def test_a_number_that_is_none_is_told_of_once_and_stops_no_governor(
    tmp_path: Path, logged: list[dict[str, object]]
) -> None:
    steering = taught()
    steering.learnt = lambda: {"watts": float("nan")}  # type: ignore[method-assign]
    learnt = Learnt(tmp_path, "Pi 4", "raspberry-pi-4", steering)
    for _ in range(3):
        learnt.save()
    assert [line["event"] for line in logged] == ["what was learnt of the board cannot be kept"]
    assert list(tmp_path.iterdir()) == []
