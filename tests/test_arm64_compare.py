"""The comparison that the emulated arm64 run ends with must fail where it should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = Path(__file__).parents[1] / "packaging/arm64/compare.py"
LOSSES = {"one": [1.6, 1.5], "two": [0.7]}


def compared(tmp_path: Path, *others: dict[str, list[float]]) -> subprocess.CompletedProcess[str]:
    files = []
    for number, losses in enumerate((LOSSES, *others)):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps({"machine": "aarch64", "library": None, "losses": losses}))
        files.append(str(file))
    return subprocess.run([sys.executable, str(COMPARE), *files], capture_output=True, text=True, check=False)


def test_losses_within_a_ten_thousandth_are_the_same(tmp_path: Path) -> None:
    done = compared(tmp_path, {"one": [1.6, 1.50014], "two": [0.7]})
    assert done.returncode == 0
    assert "one: 9.3e-05" in done.stdout


@pytest.mark.parametrize(
    "other",
    [
        {"one": [1.6, 1.5002], "two": [0.7]},
        {"one": [1.6], "two": [0.7]},
        {"one": [1.6, 1.5]},
        {"one": [1.6, float("nan")], "two": [0.7]},
        {"one": [1.6, 1.5], "two": [0.7], "three": [1.0]},
    ],
    ids=["too far", "a step less", "a case less", "not a number", "a case more"],
)
def test_anything_else_fails(tmp_path: Path, other: dict[str, list[float]]) -> None:
    done = compared(tmp_path, LOSSES, other)
    assert done.returncode == 1
    assert "FAIL" in done.stdout


def test_nothing_to_compare_is_no_success(tmp_path: Path) -> None:
    done = compared(tmp_path)
    assert done.returncode == 2
    assert "two or more" in done.stderr
