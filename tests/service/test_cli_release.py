"""`temperd release`: a file from wheels, signed into a repository; and what a console asks boards for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import SpecError
from agent.repository import Publisher, utc_now
from service.cli import main
from service.cli_fleet import arguments
from service.cli_fleet_roll_out import _words
from service.commands import UPDATE_AGENT
from tests.simulators.wheels import wheel


class Maker:
    """A publisher's desk."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.pins = folder / "pins.txt"
        self.pins.write_text("numpy==2.1.0 --hash=sha256:00\ntuf==7.0.1\n")
        Publisher.create(folder / "repo", folder / "keys", utc_now)

    def wheel(self, version: str = "0.2.0", *, tags: str = "cp311-cp311-linux_aarch64") -> Path:
        files = {
            "agent/__init__.py": f'__version__ = "{version}"\n'.encode(),
            "agent/engine/native/_ops.so": b"\x7fELF",
        }
        return wheel(self.folder, "temperd", version, files, requires=("numpy>=1.26",), tags=tags)

    def run(self, *words: object, code: int = 0) -> str:
        assert main(["release", *map(str, words)]) == code
        said = self._capsys.readouterr()
        return said.out + said.err

    def build(self, *words: object, version: str = "0.2.0", code: int = 0) -> str:
        own = self.wheel(version)
        fixed = ("--out", self.folder / "dist", "--wheel", own, "--for-python", "3.11", "--against", self.pins)
        return self.run("build", *fixed, *words, code=code)

    def publish(self, name: str, *words: object, code: int = 0) -> str:
        fixed = ("--repo", self.folder / "repo", "--keys", self.folder / "keys")
        return self.run("publish", self.folder / "dist" / name, *fixed, *words, code=code)


@pytest.fixture
def maker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Maker:
    return Maker(tmp_path, capsys)


def test_build_and_publish_say_what_a_board_will_get(maker: Maker) -> None:
    told = json.loads(maker.build("--json"))
    assert told["file"].endswith("temperd-0.2.0-py3.11-aarch64.tar.gz")
    assert (told["arch"], told["needs"], told["kernels"]) == ("aarch64", {"numpy": "2.1.0", "tuf": "7.0.1"}, True)
    assert told["length"] == Path(told["file"]).stat().st_size
    extra = wheel(maker.folder, "tuf", "7.1.0", {"tuf/__init__.py": b""})
    said = maker.build("--bundle", extra)
    assert "brings temperd 0.2.0, tuf 7.1.0" in said
    assert "needs numpy 2.1.0\n" in said
    assert "agent/0.2.0/temperd-0.2.0-py3.11-aarch64.tar.gz" in maker.publish("temperd-0.2.0-py3.11-aarch64.tar.gz")
    maker.build("--security-floor", 3, version="0.3.0")
    assert "withdrawn: 0.2.0" in maker.publish("temperd-0.3.0-py3.11-aarch64.tar.gz")


def test_without_compiled_code_it_says_what_is_lost(maker: Maker) -> None:
    said = maker.build("--arch", "any")
    assert "temperd-0.2.0-py3.11-any.tar.gz" in said
    assert "slower" in said


def test_what_cannot_be_built_or_published_is_said(maker: Maker) -> None:
    assert "3.11" in maker.build("--for-python", "2", code=2)
    assert "not for Python 3.13" in maker.build("--for-python", "3.13", code=2)
    assert "NAME==VERSION" in maker.build("--bundle", "numpy>=2", code=2)
    maker.pins.write_text("tuf==7.0.1\n")
    assert "requires numpy" in maker.build(code=2)
    assert "no source" in maker.run("build", "--out", maker.folder / "dist", "--source", maker.folder, code=2)
    (maker.folder / "dist" / "junk.tar.gz").write_bytes(b"junk")
    assert "gzip" in maker.publish("junk.tar.gz", code=3)
    assert "no such" in maker.publish("none.tar.gz", code=1).lower()


def test_a_console_names_a_version_or_a_file(tmp_path: Path) -> None:
    assert arguments(UPDATE_AGENT, "") == {}
    assert arguments(UPDATE_AGENT, "0.2.0") == {"version": "0.2.0"}
    path = tmp_path / "update.toml"
    path.write_text('version = "0.1.0"\nwindow_s = 1800\nallow_downgrade = true\n')
    assert arguments(UPDATE_AGENT, str(path)) == {"version": "0.1.0", "window_s": 1800, "allow_downgrade": True}
    assert _words(["update-agent", "0.2.0"]) == (UPDATE_AGENT, "0.2.0")
    for wrong in ("new", "0.2.0-rc1", str(tmp_path / "none.toml")):
        with pytest.raises(SpecError):
            arguments(UPDATE_AGENT, wrong)
    path.write_text("window_s = 1\n")
    with pytest.raises(SpecError, match="window_s"):
        arguments(UPDATE_AGENT, str(path))
