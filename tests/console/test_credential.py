"""A console key handed over by systemd, and the unit that does it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from agent.errors import BoardError
from agent.keys_consoles import create_console_key
from agent.keys_files import read_private
from service import cli

UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "examples" / "temperd-console.service"
AS_SYSTEMD = 0o440  # the mask of its access list shows as the group's bits


@pytest.mark.skipif(os.geteuid() != 0, reason="files of root's group need root")
def test_a_key_that_systemd_handed_over_is_read_and_one_elsewhere_with_its_mode_is_not(tmp_path: Path) -> None:
    create_console_key(tmp_path, "console")
    path = tmp_path / "console.key"
    path.chmod(AS_SYSTEMD)
    assert read_private(path, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    for environ in ({}, {"CREDENTIALS_DIRECTORY": ""}, {"CREDENTIALS_DIRECTORY": str(tmp_path.parent)}):
        with pytest.raises(BoardError, match="others may read"):
            read_private(path, environ=environ)
    path.chmod(0o444)
    with pytest.raises(BoardError, match="others may read"):
        read_private(path, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_the_units_command_is_one_that_temperd_takes() -> None:
    text = UNIT.read_text("utf-8").replace("\\\n", " ")
    (line,) = [line.removeprefix("ExecStart=") for line in text.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line)
    assert words[1:4] == ["-I", "-m", "service.cli"]
    options = cli._parser().parse_args(words[4:])
    assert options.key == "%d/console.key"
    assert "LoadCredentialEncrypted=console.key\n" in text
