"""`temperd fleet` and real daemons: three of them on one broker, one of which lets this console only look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.keys import create_console_key, create_identity
from agent.keys_consoles import Role, console_document
from service.cli import main
from tests.simulators.mosquitto import Mosquitto

ROOT = Path(__file__).parents[2]
BOARDS = ("pi-1", "pi-2", "pi-3")
WAIT_S = 60.0


def make_board(folder: Path, name: str, port: int, console: Path, role: Role) -> Path:
    """A configured board; its configuration file."""
    home = folder / name
    create_identity(home / "state" / "keys", name)
    (home / "trusted").mkdir()
    document = console_document(console.read_bytes(), console, role)
    (home / "trusted" / console.name).write_bytes(document)
    config = home / "temperd.toml"
    config.write_text(
        f'[device]\nname = "{name}"\nstate_dir = "state"\n[mqtt]\nhost = "127.0.0.1"\nport = {port}\nkeepalive_s = 5\n'
        '[repository]\nurl = "http://127.0.0.1:9"\nroot = "root.json"\n[board]\nemulated = "raspberry-pi-4"\n'
        '[commands]\ntrusted_consoles = "trusted"\n'
    )
    return config


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The key of a console that three daemons know."""
    broker = Mosquitto(tmp_path)
    public = create_console_key(tmp_path / "console", "alice")
    roles = (Role.OWNER, Role.OWNER, Role.VIEWER)
    configs = [make_board(tmp_path, name, broker.port, public, role) for name, role in zip(BOARDS, roles, strict=True)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RUNTIME_DIRECTORY", None)
    monkeypatch.setenv("TEMPERD_BROKER", f"127.0.0.1:{broker.port}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "laptop"))
    broker.start()
    command = [sys.executable, "-m", "service.cli", "run", "--config"]
    with (tmp_path / "daemons.log").open("wb") as log:
        daemons = [
            subprocess.Popen([*command, str(config)], stdout=log, stderr=log, env=environment) for config in configs
        ]
    yield tmp_path / "console" / "alice.key"
    for daemon in daemons:
        daemon.kill()
        daemon.wait()
    broker.stop()


def test_a_policy_is_rolled_out_to_daemons_and_a_viewer_is_refused(
    console: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fleet(*words: str) -> tuple[int, str]:
        code = main(["fleet", *words])
        return code, capsys.readouterr().out

    end = time.monotonic() + WAIT_S
    while [view["board"] for view in json.loads(fleet("list", "--json")[1]) if view["online"]] != list(BOARDS):
        assert time.monotonic() < end
    policy = ROOT / "policies" / "raspberry-pi-5.toml"
    summer = console.parent / "summer.toml"
    summer.write_text(policy.read_text().replace('name = "raspberry-pi-5"', 'name = "summer"'))
    assert fleet("group", "add", "plant", *BOARDS)[0] == 0
    words = ("set-policy", str(summer), "--group", "plant", "--canary-count", "1", "--stop-at", "50%")
    code, out = fleet("roll-out", *words, "--key", str(console), "--json")
    ended = json.loads(out.splitlines()[-1])
    assert [(board["board"], board["outcome"], board["reason_code"]) for board in ended["boards"]] == [
        ("pi-1", "succeeded", ""),
        ("pi-2", "succeeded", ""),
        ("pi-3", "refused", "not-permitted"),
    ]
    assert (code, ended["state"]) == (3, "done")
    end = time.monotonic() + WAIT_S
    while (views := json.loads(fleet("list", "--json")[1])) and [view["policy"] for view in views][:2] != [
        "summer"
    ] * 2:
        assert time.monotonic() < end
    shown = json.loads(fleet("show", "pi-1", "--json")[1])
    version, model = shown["state_version"], shown["model_sha256"]
    send = ("send", "pi-1", "pi-2", "scrub", "--watch", "--key", str(console))
    assert fleet(*send, "--expect", f"state_version={version + 1}")[0] == 3
    code, out = fleet(*send, "--expect", f"policy={shown['birth']['policy']['sha256']}", "--expect", "active_model=")
    assert (code, model) == (0, None), out
    assert "not-permitted" in fleet("send", "pi-3", "scrub", "--watch", "--key", str(console))[1]
