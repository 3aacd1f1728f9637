#!/usr/bin/env python3
"""Chooses the wheels of a Debian package and writes them down, each with its version and its SHA-256.

    .venv-ort/bin/python packaging/deb/pin.py SUITE ARCHITECTURE [...]      # all four without arguments

pip resolves what pyproject.toml asks for, as that Debian's Python on that machine would, from the index that pip is set
up with. The answer is requirements-SUITE-ARCHITECTURE.txt beside this file; no address of an index stands in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from targets import MACHINES, SUITES, known, pip_options

HERE = Path(__file__).parent
PROJECT = HERE.parents[1] / "pyproject.toml"
MOST_ROUNDS = 10  # each adds what a marker asks for on the target alone; two have been enough


def markers(suite: str, architecture: str) -> dict[str, str]:
    """What environment markers read there."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": MACHINES[architecture],
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{SUITES[suite].python}.0",
        "python_version": SUITES[suite].python,
        "sys_platform": "linux",
        "extra": "",
    }


def asked() -> list[str]:
    """The requirements of a board: temperd's own and the stock runtime."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["ort"]]


def resolve(requirements: list[str], options: list[str]) -> dict[str, Any]:
    """What pip chooses for the requirements, by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", f"--report={report}", f"--target={folder}/none", *options, *requirements]
        subprocess.run(command, check=True)  # noqa: S603 - pip with names from pyproject.toml
        chosen = json.loads(report.read_text("utf-8"))["install"]
    return {canonicalize_name(item["metadata"]["name"]): item for item in chosen}


def closed(suite: str, architecture: str) -> dict[str, Any]:
    """All that is needed on the target and nothing else: pip judges markers by the machine that it runs on."""
    environment, options = markers(suite, architecture), pip_options(suite, architecture)
    wanted = asked()
    for _ in range(MOST_ROUNDS):
        chosen = resolve(wanted, options)
        needed: set[str] = set()
        missing: list[str] = []
        ahead = [Requirement(text) for text in asked()]
        while ahead:
            requirement = ahead.pop()
            name = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate(environment):
                continue
            if name not in chosen:
                missing.append(str(Requirement(str(requirement).partition(";")[0])))
            elif name not in needed:
                needed.add(name)
                ahead += [Requirement(text) for text in chosen[name]["metadata"].get("requires_dist", [])]
        if not missing:
            return {name: chosen[name] for name in sorted(needed)}
        wanted = [*asked(), *missing]
    sys.exit(f"pin.py: no complete set of wheels for {suite} {architecture} after {MOST_ROUNDS} rounds: {missing}")


def pinned(item: dict[str, Any]) -> str:
    """One line of the file."""
    metadata, download = item["metadata"], item["download_info"]
    digest = download.get("archive_info", {}).get("hashes", {}).get("sha256", "")
    if not digest:
        sys.exit(f"pin.py: the index gives no SHA-256 for {download['url'].rsplit('/', 1)[-1]}; use one that does")
    return f"{canonicalize_name(metadata['name'])}=={metadata['version']} --hash=sha256:{digest}"


def main(words: list[str]) -> int:
    """Write one file, or all."""
    pairs = [(suite, architecture) for suite in SUITES for architecture in MACHINES]
    if words:
        pairs = list(zip(words[::2], words[1::2], strict=True)) if len(words) % 2 == 0 else []
    if not pairs or not all(known(*pair) for pair in pairs):
        sys.stderr.write(f"pin.py: name a suite ({', '.join(SUITES)}) and an architecture ({', '.join(MACHINES)})\n")
        return 2
    for suite, architecture in pairs:
        chosen = closed(suite, architecture)
        path = HERE / f"requirements-{suite}-{architecture}.txt"
        head = [
            f"# The wheels in temperd's package for Debian {suite} on {architecture}: Python {SUITES[suite].python}.",
            "# Made by packaging/deb/pin.py; do not edit.",
        ]
        path.write_text("\n".join([*head, *map(pinned, chosen.values())]) + "\n", "utf-8")
        print(f"{path.name}: {len(chosen)} wheels")  # noqa: T201 - a command line prints
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
