"""What can be said of the container's files without building: packaging/container/test.sh builds and runs them."""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from agent.board.profile import GENERIC, named_profile
from service.config import load_config

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "packaging/compose/compose.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BOARDS = [name for name in SERVICES if name.startswith("board-")]


def module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


pytestmark = pytest.mark.once
ENTRYPOINT = module("packaging/container/entrypoint.py")


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_label_says_the_version_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE


def test_a_plain_build_makes_the_daemon_alone() -> None:
    assert DOCKERFILE.rstrip().splitlines()[-1] == "FROM temperd"


def test_the_image_ends_as_nobody_special_and_under_an_init() -> None:
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    assert 'ENTRYPOINT ["tini", "--", "temperd"]' in DOCKERFILE


def test_all_that_is_copied_enters_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    lines = [line for line in DOCKERFILE.splitlines() if line.startswith("COPY") and "--from" not in line]
    wanted = [word for line in lines for word in line.split()[1:-1] if not word.startswith("--")]
    assert wanted
    for source in wanted:
        assert list(ROOT.glob(source)), f"{source} is not there"
        assert any(fnmatch.fnmatch(source, rule[1:]) for rule in rules), f"{source} is kept out by .dockerignore"


def test_every_wheel_of_the_rehearsal_is_pinned_by_hash() -> None:
    text = (ROOT / "packaging/container/requirements-rehearsal.txt").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+(\s+--hash=sha256:[0-9a-f]{64})+", line), line


def test_pip_takes_nothing_that_is_not_pinned() -> None:
    for line in DOCKERFILE.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if re.search(r"-m pip (install|download)", command):
                assert "--require-hashes" in command, command


# --- the entry point -------------------------------------------------------------------------------------------------


def written(folder: Path, variables: dict[str, str]) -> Path:
    path = folder / "temperd.toml"
    path.write_text(ENTRYPOINT.config_text(variables), encoding="ascii")
    return path


def test_without_a_variable_the_configuration_is_valid(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, {}))
    assert config.board.emulated == "raspberry-pi-4"
    assert config.device.state_dir == "/var/lib/temperd"


def test_a_real_board_is_asked_for_with_an_empty_variable(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, {"TEMPERD_EMULATED": "", "TEMPERD_BOARD": "jetson-orin-nano"}))
    assert not config.board.emulated
    assert config.board.profile == "jetson-orin-nano"


def test_no_value_adds_a_key() -> None:
    hostile = '"\n[worker]\nthreads = 1 # \\'
    for name in ENTRYPOINT.SETTINGS:
        table = tomllib.loads(ENTRYPOINT.config_text({name: hostile}))
        assert hostile in [value for section in table.values() for value in section.values()], name
        assert set(table) == {"device", "mqtt", "repository", "board", "commands"}


def test_every_variable_has_its_row() -> None:
    page = (ROOT / "docs/container.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(TEMPERD_\w+)` \| `([^`]*)` \|", page, re.MULTILINE))
    assert rows == ENTRYPOINT.SETTINGS


def test_a_volume_of_another_user_is_said_with_what_to_do(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ENTRYPOINT.os, "geteuid", lambda: 10001)
    monkeypatch.setattr(ENTRYPOINT.os, "getegid", lambda: 10001)
    monkeypatch.setattr(ENTRYPOINT.os, "access", lambda *_: False)
    with pytest.raises(SystemExit) as ended:
        ENTRYPOINT.check_owner(tmp_path)
    assert ended.value.code == ENTRYPOINT.CONFIGURATION == 78
    assert "chown -R 10001:10001" in capsys.readouterr().err


def test_a_volume_of_ours_is_taken(tmp_path: Path) -> None:
    ENTRYPOINT.check_owner(tmp_path)
    ENTRYPOINT.check_owner(tmp_path / "not-there")


def test_a_full_volume_is_said_and_a_roomy_one_is_not(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    ENTRYPOINT.tell_room(tmp_path / "not-there")
    monkeypatch.setattr(ENTRYPOINT, "LEAST_ROOM", 0)
    ENTRYPOINT.tell_room(tmp_path)
    assert not capsys.readouterr().err
    monkeypatch.setattr(ENTRYPOINT, "LEAST_ROOM", 1 << 62)
    ENTRYPOINT.tell_room(tmp_path)
    assert f"bytes are left [{tmp_path}]" in capsys.readouterr().err


# --- the fleet -------------------------------------------------------------------------------------------------------


def test_three_boards_of_three_kinds() -> None:
    kinds = {SERVICES[name]["environment"]["TEMPERD_EMULATED"] for name in BOARDS}
    assert len(kinds) == len(BOARDS) == 3
    assert all(named_profile(kind) != GENERIC for kind in kinds)
    assert all(SERVICES[name]["environment"]["TEMPERD_DEVICE"] == name for name in BOARDS)
    assert all(set(SERVICES[name]["environment"]) <= set(ENTRYPOINT.SETTINGS) for name in BOARDS)


def test_set_up_knows_every_board() -> None:
    assert SERVICES["set-up"]["command"] == BOARDS
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["set-up"]["volumes"])
    assert {name: mounts[name] for name in BOARDS} == {name: f"/boards/{name}" for name in BOARDS}
    assert set(SERVICES["set-up"]["depends_on"]) == set(BOARDS)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined_and_bounded(name: str) -> None:
    service = SERVICES[name]
    module("packaging/compose/play.py").check(name, {**service, "ports": []})
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["healthcheck"]
    assert service["image"].startswith("temperd") or re.search(r":\d+\.\d+\.\d+$", service["image"])
    assert service["image"].startswith("temperd") == ("build" in service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_the_file_is_played_wholly_or_not_at_all() -> None:
    with pytest.raises(AssertionError, match="privileged"):
        module("packaging/compose/play.py").check("x", {**SERVICES["broker"], "ports": [], "privileged": True})


def test_every_volume_is_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {name for name in used if not name.startswith(".")} == set(COMPOSE["volumes"])
