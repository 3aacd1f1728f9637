#!/usr/bin/env python3
"""Lays out temperd's environment for an image, as packaging/deb lays out that of a package.

    environment.py SUITE ARCHITECTURE WHEELS LIBRARY STAGE

WHEELS is a folder of wheels, LIBRARY the kernel library built for ARCHITECTURE, STAGE the folder that stands for `/`.
Nothing of what is laid out is run but Python's own compiler, which is that of the suite. What does not fit ends it with
a line for each fault.
"""

from __future__ import annotations

import compileall
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "packaging/deb"))

from assemble import ENVIRONMENT, environment  # noqa: E402 - a script in a folder that is no package
from check import faults  # noqa: E402 - same
from targets import SUITES, known  # noqa: E402 - same


def main(words: list[str]) -> int:
    """Lay it out, compile it and judge it; 2 where this Python or the target is none of ours."""
    if len(words) != len(("SUITE", "ARCHITECTURE", "WHEELS", "LIBRARY", "STAGE")) or not known(*words[:2]):
        sys.stderr.write("environment.py: SUITE ARCHITECTURE WHEELS LIBRARY STAGE\n")
        return 2
    suite, architecture, wheels, library, stage = words
    running = "{}.{}".format(*sys.version_info)
    if running != SUITES[suite].python:
        sys.stderr.write(f"environment.py: {suite} has Python {SUITES[suite].python}, this is {running}: no bytecode\n")
        return 2
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    environment(project, suite, Path(wheels), Path(library), Path(stage))
    compileall.compile_dir(Path(stage, ENVIRONMENT, "lib"), quiet=1, stripdir=stage, prependdir="/")
    wrong = list(faults(Path(stage), suite, architecture))
    sys.stderr.write("".join(f"environment.py: {fault}\n" for fault in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
