#!/usr/bin/env python3
"""Runs in the emulated machine and does what the test outside says, over a virtio serial port.

One JSON object a line. In: `{"run": "shell text", "seconds": 60}`. Out: `{"code": 0, "output": "..."}` with the end of
what was written to both streams; code 124 where the time was not enough. The first line says that it listens.
"""

from __future__ import annotations

import json
import os
import subprocess

PORT = "/dev/virtio-ports/temperd.test"
MOST_OUTPUT = 1 << 20  # bytes; what is longer is told by its end


def run(script: str, seconds: float) -> dict[str, object]:
    """Exit code and output of a shell script; timeout(1) ends its children too."""
    done = subprocess.run(  # noqa: S603 - it is there to run what the test asks for
        ["/usr/bin/timeout", "--kill-after=5", str(seconds), "/bin/bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return {"code": done.returncode, "output": done.stdout[-MOST_OUTPUT:].decode(errors="replace")}


def say(port: int, told: dict[str, object]) -> None:
    """Write one line whole: the port takes what fits its ring at a time."""
    rest = json.dumps(told).encode() + b"\n"
    while rest:
        rest = rest[os.write(port, rest) :]


def main() -> None:
    """Serve until the machine ends."""
    port = os.open(PORT, os.O_RDWR)
    say(port, {"code": 0, "output": "listening"})
    rest = b""
    while chunk := os.read(port, 1 << 16):
        rest += chunk
        while b"\n" in rest:
            line, _, rest = rest.partition(b"\n")
            asked = json.loads(line)
            say(port, run(asked["run"], asked["seconds"]))


if __name__ == "__main__":
    main()
