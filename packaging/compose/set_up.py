#!/opt/temperd/bin/python
"""Sets a rehearsed fleet up, as docs/container.md does by hand: model, console, and boards that trust both.

    set-up-rehearsal BOARD...

Runs when every board has made its identity, and may run again: what is there is left as it is. It holds the publisher's
keys, the console's key and the boards' folders at once, which nobody has outside a rehearsal.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PROGRAM = "/opt/temperd/bin/temperd"
FILES = Path("/usr/share/temperd/rehearsal")
BOARDS = Path("/boards")  # the volume of each, by its name
REPOSITORY = Path("/srv/repository")
CONSOLE = Path("/srv/console")
DATA = Path("/data")
MODEL = "efficientnet-lite0"
WRITTEN = Path("/run/temperd")

PROFILE = """\
key = "rehearsal.key"
[mqtt]
host = "localhost"
"""
# Minutes of two cores, not a quarter of an hour: what is frozen is run once and kept.
JOB = f"""\
model = "{MODEL}"
data = "/data/digits.npz"
depth = "75"
epochs = 3
"""
# What `temperd keys` asks a board's configuration for, with its volume where it is here.
BOARD = """\
[device]
name = "{name}"
state_dir = "{folder}"
[repository]
url = "http://localhost/"
root = "{folder}/root.json"
[commands]
trusted_consoles = "{folder}/consoles"
"""


def main(boards: list[str]) -> None:
    """Everything in order; the exit code is that of the first step that failed."""
    if not (CONSOLE / "rehearsal.key").exists():
        temperd("keys", "console", "rehearsal", "--out", str(CONSOLE))
    give(CONSOLE / "fleet.toml", PROFILE)
    give(CONSOLE / "job.toml", JOB)
    for file in FILES.glob("digit*"):
        if not (DATA / file.name).exists():
            shutil.copy(file, DATA)
    documents = [str(BOARDS / name / f"{name}.device.json") for name in boards]
    model = [str(FILES / f"{MODEL}.onnx"), "--name", MODEL, "--labels", str(FILES / "labels.txt")]
    keys = CONSOLE / "publisher-keys"
    temperd("publish", *model, "--repo", str(REPOSITORY), "--keys", str(keys), "--for", *documents)
    root = next(iter(sorted((REPOSITORY / "metadata").glob("*.root.json"))))
    for name in boards:
        config = WRITTEN / f"{name}.toml"
        config.write_text(BOARD.format(name=name, folder=BOARDS / name), encoding="utf-8")
        temperd("keys", "trust-repository", str(root), "--config", str(config))
        temperd("keys", "trust", str(CONSOLE / "rehearsal.pub.json"), "--config", str(config))


def give(path: Path, text: str) -> None:
    """Write a file that is somebody's to edit afterwards."""
    if not path.exists():
        path.write_text(text, encoding="utf-8")


def temperd(*arguments: str) -> None:
    """One verb, or the end."""
    done = subprocess.run([PROGRAM, *arguments], check=False)  # noqa: S603 - our own program
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
