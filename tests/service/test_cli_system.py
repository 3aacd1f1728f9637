"""A system image by the command line: published on a laptop, asked for from a console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import SpecError
from agent.repository import Publisher, utc_now
from service.cli import main
from service.cli_fleet import _system_arguments

pytestmark = pytest.mark.once


@pytest.fixture
def publish(tmp_path: Path) -> list[str]:
    Publisher.create(tmp_path / "repo", tmp_path / "keys", utc_now)
    bundle = tmp_path / "plant.raucb"
    bundle.write_bytes(b"a bundle")
    places = ["--repo", str(tmp_path / "repo"), "--keys", str(tmp_path / "keys")]
    return ["release", "publish-system", str(bundle), "--version", "2.0", "--compatible", "board-x", *places]


def test_a_bundle_is_published_once_and_verifies(
    publish: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*publish, "--name", "plant-image"]) == 0
    assert "system/plant-image/2.0.raucb" in capsys.readouterr().out
    assert main([*publish, "--name", "plant-image", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["compatible"], told["security_floor"]) == ("system", "board-x", 0)
    root = next((tmp_path / "repo/metadata").glob("*.root.json"))
    assert main(["repo", "verify", "--repo", str(tmp_path / "repo"), "--root", str(root)]) == 0
    capsys.readouterr()
    (tmp_path / "plant.raucb").write_bytes(b"other bytes")
    assert main([*publish, "--name", "plant-image"]) == 2
    assert "raise the number" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--name", "Plant!"], ["--name", "plant", "--security-floor", "-1"]])
def test_what_no_board_would_take_is_not_published(
    publish: list[str], wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*publish, *wrong]) == 2
    assert wrong[-2] in capsys.readouterr().err


def test_an_image_is_asked_for_by_name_and_version_or_by_a_file(tmp_path: Path) -> None:
    assert _system_arguments("plant-image") == {"name": "plant-image"}
    assert _system_arguments("plant-image=2.0") == {"name": "plant-image", "version": "2.0"}
    spec = tmp_path / "update.toml"
    spec.write_text('name = "plant-image"\nwindow_s = 1800\nallow_downgrade = true\n')
    assert _system_arguments(str(spec))["window_s"] == 1800


@pytest.mark.parametrize("argument", ["", "Plant!", "plant=two", "=2.0"])
def test_what_no_board_would_take_is_not_sent(argument: str) -> None:
    with pytest.raises(SpecError):
        _system_arguments(argument)
