"""The Debian package, as far as it can be judged without building it: `make deb-test` builds, boots and installs it."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.once

PROJECT = Path(__file__).parents[1]
DEB = PROJECT / "packaging/deb"
PINS = sorted(DEB.glob("requirements-*.txt"))
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*) --hash=sha256:[0-9a-f]{64}")


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a module of packaging/deb by its name."""
    monkeypatch.syspath_prepend(str(DEB))
    return importlib.import_module


def pins(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert all(found), f"{path.name}: a line is no version with a hash"
    return {match[1]: match[2] for match in found if match}


def test_every_suite_and_architecture_has_its_pins(part: Any) -> None:
    targets = part("targets")
    wanted = {f"requirements-{suite}-{machine}.txt" for suite in targets.SUITES for machine in targets.MACHINES}
    assert {path.name for path in PINS} == wanted


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_pins_give_what_the_project_asks_for(path: Path) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = pins(path)
    for text in [*project["dependencies"], *project["optional-dependencies"]["ort"]]:
        asked = Requirement(text)
        version = pinned.get(canonicalize_name(asked.name), "")
        assert version, f"{asked.name} is not pinned: run packaging/deb/pin.py"
        assert asked.specifier.contains(version), f"{text}: pinned is {version}; run packaging/deb/pin.py"


def test_all_packages_hold_the_same_versions() -> None:
    first, *others = [pins(path) for path in PINS]
    assert all(other == first for other in others)


@pytest.mark.parametrize(
    ("path", "stays_out"),
    [
        ("numpy/_core/tests/test_umath.py", True),
        ("onnx/backend/test/data/node/test_abs/model.onnx", True),
        ("numpy/_core/include/numpy/arrayobject.h", True),
        ("onnxruntime/transformers/optimizer.py", True),
        ("numpy-2.4.6.dist-info/RECORD", True),
        ("numpy/testing/__init__.py", False),
        ("onnx/reference/ops/op_abs.py", False),
        ("onnxruntime/quantization/__init__.py", False),
        ("numpy-2.4.6.dist-info/licenses/LICENSE.txt", False),
        ("numpy-2.4.6.dist-info/licenses/numpy/_core/src/npysort/x86-simd-sort/LICENSE.c", False),
        ("reedsolo.py", False),
    ],
)
def test_what_no_board_reads_stays_out(part: Any, path: str, stays_out: bool) -> None:
    assert part("assemble").left_out(path) is stays_out


def test_a_wheel_that_leads_elsewhere_is_refused(part: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "evil-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../outside.py", "")
    with pytest.raises(SystemExit, match=r"\.\./outside\.py"):
        part("assemble").unpack_wheel(wheel, tmp_path / "site")
    assert not (tmp_path / "outside.py").exists()


def test_scripts_of_wheels_are_left_and_modules_of_their_data_are_taken(part: Any, tmp_path: Path) -> None:
    wheel = tmp_path / "some-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some-1.data/scripts/some", "")
        archive.writestr("some-1.data/purelib/some.py", "")
    part("assemble").unpack_wheel(wheel, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").rglob("*")] == ["some.py"]


def test_an_extra_is_asked_for_by_its_own_name_and_marker(part: Any) -> None:
    with_extra = part("assemble").with_extra
    assert with_extra("onnxruntime>=1.20", "ort") == 'onnxruntime>=1.20; extra == "ort"'
    both = with_extra("tink>=1.16; sys_platform == 'linux' or os_name == 'nt'", "dev")
    assert both == "tink>=1.16; (sys_platform == 'linux' or os_name == 'nt') and extra == \"dev\""


def test_code_for_another_machine_is_found(part: Any) -> None:
    check, here = part("check"), Path(sys.executable).resolve()
    machine = next(name for name in ("aarch64", "x86_64") if name != part("platform").machine())
    said = list(check.faults_of_library(here, "bookworm", machine, frozenset()))
    assert f"{here.name}: not made for {machine}" in said


def test_a_wheel_for_another_python_is_found(part: Any, tmp_path: Path) -> None:
    info = tmp_path / "numpy-2.dist-info"
    info.mkdir()
    (info / "WHEEL").write_text("Tag: cp313-cp313-manylinux_2_28_aarch64\n", "utf-8")
    faults = part("check").faults_of_wheels
    assert list(faults(tmp_path, "trixie", "arm64")) == []
    assert [fault[:18] for fault in faults(tmp_path, "bookworm", "arm64")] == ["numpy-2.dist-info:"]
    assert [fault[:18] for fault in faults(tmp_path, "trixie", "amd64")] == ["numpy-2.dist-info:"]


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm"])
def test_maintainer_scripts_refuse_what_dpkg_never_says(script: str) -> None:
    done = subprocess.run(["sh", str(DEB / script), "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{script} does not know dance" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("host", "name"),
    [("bench-pi", "bench-pi"), ("My_Pi.local", "my-pi-local"), ("--", "board"), ("Größe", "gre"), ("a" * 64, "a" * 63)],
)
def test_a_board_is_named_after_its_host(tmp_path: Path, host: str, name: str) -> None:
    script = (DEB / "postinst").read_text("utf-8")
    function = script[script.index("board_name() {") : script.index("# Written once")]
    (tmp_path / "uname").write_text(f"#!/bin/sh\necho '{host}'\n", "utf-8")
    (tmp_path / "uname").chmod(0o755)
    shell = f'LC_ALL=C; export LC_ALL; PATH="{tmp_path}:$PATH"; {function}\nboard_name'
    done = subprocess.run(["sh", "-euc", shell], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


@pytest.mark.parametrize("words", [["buster", "amd64"], ["bookworm", "armhf"]])
def test_a_target_that_is_none_of_ours_is_refused(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run([str(DEB / "build.sh"), *words, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "of ours" in done.stderr
    assert not out.exists()
