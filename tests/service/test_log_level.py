"""Another log level at run time: taken from a file, back by itself, and nothing but a wish is believed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import SpecError
from service import logs
from service.cli_log_level import duration_s
from service.log_level import CONFIGURED, FILE_NAME, LogLevel, Wish

VIEW: dict[str, object] = {
    "board": {"temperature_celsius": 41.5, "action": "RUN", "duty": 1.0, "charge": None},
    "job": {"id": "job-1", "step": "training"},
    "training": {"epoch": 3, "loss": 0.5},
    "link": {"connected": True, "unconfirmed": 2},
    "telemetry": {"outbox_messages": 0, "fault": ""},
}


class Room:
    """A daemon's log as a stream, at `info`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stream = folder, io.StringIO()
        self.level = LogLevel(folder, "info", "json", self._configure)
        self._configure("info", "json")

    def _configure(self, level: str, form: str) -> None:
        logs.configure(level, form, stream=self.stream)

    def ask(self, data: bytes) -> None:
        (self.folder / FILE_NAME).write_bytes(data)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def names(self) -> list[str]:
        return [event["event"] for event in self.events()]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_debug_tells_each_second_and_ends_by_itself(room: Room) -> None:
    room.level.tick(0.0, VIEW)
    assert room.events() == []
    room.ask(Wish("debug", 60.0).encode())
    for second in (1.0, 2.0, 60.9, 61.0, 62.0):
        room.level.tick(second, VIEW)
    assert room.names() == ["log level", "second", "second", "second", "log level"]
    second = room.events()[1]
    assert (second["temperature_celsius"], second["job_id"], second["loss"]) == (41.5, "job-1", 0.5)
    assert second["unconfirmed"] == 2
    assert "charge" not in second
    assert room.level.level == "info"
    assert not (room.folder / FILE_NAME).exists()


def test_a_quieter_level_is_said_before_it_is_quiet_and_can_be_ended_at_once(room: Room) -> None:
    room.ask(Wish("error", 60.0).encode())
    room.level.tick(0.0, VIEW)
    logs.logger("test").warning("unheard")
    room.ask(Wish(CONFIGURED).encode())
    room.level.tick(1.0, VIEW)
    logs.logger("test").info("heard")
    assert room.names() == ["log level", "log level", "heard"]


def test_a_wish_that_was_asked_of_an_earlier_daemon_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(Wish("debug").encode())
    later = Room(tmp_path)
    later.level.tick(0.0, VIEW)
    assert later.level.level == "info"
    assert later.events() == []


@given(st.binary(max_size=300) | st.sampled_from([b'{"level":"debug","for_s":1e9}', b'{"level":"loud"}', b"[]"]))
def test_what_is_no_wish_changes_nothing_and_is_removed(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    room = Room(tmp_path_factory.mktemp("room"))
    room.ask(data)
    room.level.tick(0.0, VIEW)
    assert room.level.level == "info"
    assert room.names()[-1] == "the wish for a log level is passed over"
    assert not (room.folder / FILE_NAME).exists()


def test_times_are_bounded() -> None:
    assert [duration_s(text) for text in ("1s", "10m", "24h")] == [1.0, 600.0, 86400.0]
    for text in ("0s", "25h", "10", "-1m", "1d", ""):
        with pytest.raises(SpecError):
            duration_s(text)
