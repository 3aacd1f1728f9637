"""The examples of docs/fleet.md: all are understood, and the walk is walked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent.keys import create_console_key
from service.cli import _parser, main
from service.fleet.access import read_profile
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto

PAGE = (Path(__file__).parents[2] / "docs" / "fleet.md").read_text("utf-8")
EXAMPLES = re.findall(r"^    temperd (fleet .*)$", PAGE, re.MULTILINE)
WALK = re.findall(
    r"^    temperd (fleet .*)$", PAGE.partition("## A walk")[2].partition("The walk takes")[0], re.MULTILINE
)
PROFILE = "\n".join(line[4:] for line in PAGE.partition("TEMPERD_PROFILE):\n\n")[2].partition("\n\n")[0].splitlines())


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_understood(example: str) -> None:
    options = _parser().parse_args(shlex.split(example))
    assert options.verb.startswith("cli_fleet")


def test_the_profile_is_one(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(PROFILE)
    assert read_profile(path)["key"] == str(tmp_path / "alice.key")


def test_the_walk_is_walked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(WALK) > 5
    broker = Mosquitto(tmp_path)
    public = create_console_key(tmp_path, "alice")
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / public.name).write_bytes(public.read_bytes())
    (tmp_path / "job.toml").write_text('model = "colours"\ndata = "/srv/images"\n')
    profile = f'key = "alice.key"\nstate = "fleet.sqlite"\n[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
    (tmp_path / "fleet.toml").write_text(profile)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEMPERD_BROKER", raising=False)
    monkeypatch.setenv("TEMPERD_PROFILE", str(tmp_path / "fleet.toml"))
    broker.start()
    try:
        with answering_boards(broker.port, tmp_path / "trusted", tmp_path / "done.log", "pi-1", "pi-2", "pi-3"):
            assert main(["fleet", "send", "pi-1", "pi-2", "pi-3", "scrub", "--watch"]) == 0  # all are there
            for example in WALK:
                assert main(shlex.split(example)) == 0, example
    finally:
        broker.stop()
    assert "3 succeeded" in capsys.readouterr().out
