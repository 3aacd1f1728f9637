#!/usr/bin/env python3
"""One job on an emulated board, from the signed command to the promoted model; run from the project's folder.

    python packaging/arm64/job.py

Broker, web server, daemon and worker are real processes; only the model is small. Ends with 1 where the job does.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the tests' small world is not installed

from service.commands import sign_command  # noqa: E402 - needs the path above
from tests.simulators.fleet import World, as_json  # noqa: E402 - same

JOB_S = 1800.0  # half a minute on a board
PATIENCE = 20  # by emulation a program takes tens of seconds to start


class Patient(World):
    """A world in which everything takes long."""

    def wait(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:  # noqa: ANN401 - as there
        """As there, with more time."""
        return super().wait(true, seconds * PATIENCE)


def play(board: World) -> str:
    """Send the job, wait for its end, ask the tuned model; what happened."""
    begun = time.monotonic()
    images = board.images()
    request = board.request("fine-tune", board.job(images))
    envelope = sign_command(request, board.console_key)
    status = board.send_envelope("fine-tune", request.id, envelope, seconds=JOB_S)
    assert status["status"] == "succeeded", status
    result = status["result"]
    command = [sys.executable, "-m", "service.cli", "predict", "--json", "--config", str(board.config)]
    image = next((images / "green").iterdir())
    said = subprocess.run([*command, str(image)], capture_output=True, text=True, check=True)  # noqa: S603 - our own
    answer = as_json(said.stdout)
    assert answer["model_sha256"] == result["model_sha256"], "the tuned model is not the active one"
    assert answer["predictions"][0]["label"] == "green", answer
    accuracy = f"{result['accuracy_before']:.2f} -> {result['accuracy_after']:.2f}"
    return f"accuracy {accuracy}, {result['samples']} samples, {time.monotonic() - begun:.0f} s"


def main() -> int:
    """Print what happened."""
    with tempfile.TemporaryDirectory() as folder:
        board = Patient(Path(folder), speed=1.0)
        try:
            board.broker.start()
            board.publish()
            board.start()
            sys.stdout.write(f"     {platform.machine()}: {play(board)}\n")
        finally:
            board.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
