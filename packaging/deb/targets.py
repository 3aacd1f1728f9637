#!/usr/bin/env python3
"""The Debian releases and machines that packages are made for, and what pip has to be told of them.

targets.py SUITE ARCHITECTURE    # pip's options, one a line
"""

from __future__ import annotations

import sys
from typing import NamedTuple

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
OLDEST_GLIBC = 17  # manylinux2014: older wheels are not made any more


class Suite(NamedTuple):
    """What a Debian release comes with: its Python, and the minor version of its C library."""

    python: str
    glibc: int


SUITES = {"bookworm": Suite("3.11", 36), "trixie": Suite("3.13", 41)}


def platforms(suite: str, architecture: str) -> list[str]:
    """The platform tags of wheels that run there, the newest first."""
    machine = MACHINES[architecture]
    numbered = [f"manylinux_2_{glibc}_{machine}" for glibc in range(SUITES[suite].glibc, OLDEST_GLIBC - 1, -1)]
    return [*numbered, f"manylinux2014_{machine}"]


def abis(suite: str) -> list[str]:
    """The binary interfaces that its Python loads."""
    return [f"cp{SUITES[suite].python.replace('.', '')}", "abi3", "none"]


def pip_options(suite: str, architecture: str) -> list[str]:
    """The options that make pip choose wheels for that Debian and not for this machine."""
    return [
        "--only-binary=:all:",
        *(f"--platform={platform}" for platform in platforms(suite, architecture)),
        f"--python-version={SUITES[suite].python}",
        "--implementation=cp",
        *(f"--abi={abi}" for abi in abis(suite)),
    ]


def known(suite: str, architecture: str) -> bool:
    """Whether packages are made for it."""
    return suite in SUITES and architecture in MACHINES


def main(words: list[str]) -> int:
    """Print the options; 2 where the target is none of ours."""
    if len(words) != len(("SUITE", "ARCHITECTURE")) or not known(*words):
        sys.stderr.write(f"targets.py: name a suite ({', '.join(SUITES)}) and one of {', '.join(MACHINES)}\n")
        return 2
    sys.stdout.write("".join(f"{option}\n" for option in pip_options(*words)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
