"""A board that no profile knows: the safe generic profile, said once."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keys_identity import create_identity
from service import logs
from service.config import load_config
from service.daemon import Daemon

UNKNOWN = "unknown board, the safe generic profile serves"
CONFIG = """
[device]
name = "board-1"
state_dir = "state"
[repository]
url = "http://localhost:1"
[board]
sys_root = "{folder}/sys"
proc_root = "{folder}/proc"
powerd = ""
profile = "{profile}"
"""


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    """The daemon's log."""
    stream = io.StringIO()
    logs.configure("info", "json", stream=stream)
    yield stream
    logs.configure()


def started(folder: Path, model: str, profile: str, said: io.StringIO) -> list[dict[str, object]]:
    """What the daemon's log says of a start, a scrub and an end on a board of that device-tree model."""
    (folder / "sys").mkdir()
    (folder / "proc/device-tree").mkdir(parents=True)
    (folder / "proc/device-tree/model").write_text(model + "\0")
    (folder / "temperd.toml").write_text(CONFIG.format(folder=folder, profile=profile))
    create_identity(folder / "state/keys", "board-1")
    asyncio.run(Daemon(load_config(folder / "temperd.toml")).one_scrub())
    return [json.loads(line) for line in said.getvalue().splitlines()]


def test_an_unknown_board_is_said_once(tmp_path: Path, said: io.StringIO) -> None:
    lines = started(tmp_path, "Banana Board 9", "auto", said)
    assert [line["model"] for line in lines if line["event"] == UNKNOWN] == ["Banana Board 9"]


@pytest.mark.parametrize(
    ("model", "profile"), [("Raspberry Pi 4 Model B Rev 1.5", "auto"), ("Banana Board 9", "raspberry-pi-4")]
)
def test_a_board_that_is_known_or_named_is_not_called_unknown(
    tmp_path: Path, said: io.StringIO, model: str, profile: str
) -> None:
    assert UNKNOWN not in [line["event"] for line in started(tmp_path, model, profile, said)]
