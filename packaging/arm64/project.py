#!/usr/bin/env python3
"""What pyproject.toml says, one answer a line, for the emulated arm64 tests.

python3 project.py requirements   # what the engine and its tests import
python3 project.py sources        # C files of the kernel library, from the project's folder
python3 project.py flags          # how they are compiled
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
NOT_NEEDED = ("mypy", "ruff", "scikit-learn")  # tools of the gate, and images that only the demo learns from


def requirements(project: dict[str, Any]) -> list[str]:
    """Requirements of the package, of stock onnxruntime, of the pretrained weights and of the tests."""
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["ort"], *extras["demo"], *extras["dev"]]
    return [requirement for requirement in wanted if not requirement.startswith(NOT_NEEDED)]


def library(project: dict[str, Any]) -> dict[str, Any]:
    """The one extension module: the kernel library."""
    (module,) = project["tool"]["setuptools"]["ext-modules"]
    return dict(module)


def main() -> int:
    """Answer the question in the arguments; 2 where it is none of the three."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))
    answers = {
        "requirements": requirements(project),
        "sources": library(project)["sources"],
        "flags": library(project)["extra-compile-args"],
    }
    question = " ".join(sys.argv[1:])
    if question not in answers:
        sys.stderr.write(f"project.py: ask for one of {', '.join(answers)}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in answers[question]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
