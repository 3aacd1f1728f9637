"""A power cut at every step of a scrub leaves each file old or new, and the next scrub ends what was begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("scenario", "least"), [("mend", 100), ("make parity", 60), ("lose", 20)])
def test_a_kill_at_every_step(tmp_path: Path, scenario: str, least: int) -> None:
    program = Path(__file__).with_name("scrub_crash.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path, scenario], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= least, "the killer sees the steps"
