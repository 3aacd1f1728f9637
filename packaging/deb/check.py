#!/usr/bin/env python3
"""Judges what a package would install, without running it: right machine, right wheels, nothing foreign needed.

    check.py FOLDER SUITE ARCHITECTURE

FOLDER is a laid-out or unpacked package. Every library is read with readelf. What is wrong is said line by line, and
the exit code is 1.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from targets import MACHINES, SUITES, abis, known, platforms

READELF_MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
# The C and C++ libraries and zlib, which the package depends on. Everything else has to come along.
OF_THE_SYSTEM = re.compile(r"(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s|libz|ld-linux-[a-z0-9-]+)\.so\.\d")
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
GLIBC = re.compile(r"GLIBC_2\.(\d+)")
WANTED = ("agent", "policies", "service", "numpy", "onnx", "onnxruntime", "cryptography", "tuf", "paho", "jeepney")
UNWANTED = ("pip", "setuptools", "pytest", "mypy", "sympy")


def libraries(root: Path) -> list[Path]:
    """Every ELF file."""
    return [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink() and is_elf(path)]


def is_elf(path: Path) -> bool:
    """Whether it is machine code."""
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def faults_of_library(path: Path, suite: str, machine: str, brought: frozenset[str]) -> Iterator[str]:
    """What is wrong with one library."""
    command = ["readelf", "--file-header", "--dynamic", "--version-info", "--wide", str(path)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - readelf
    if READELF_MACHINES[machine] not in told:
        yield f"{path.name}: not made for {machine}"
    for needed in NEEDED.findall(told):
        if not OF_THE_SYSTEM.fullmatch(needed) and needed not in brought:
            yield f"{path.name}: needs {needed}, which neither comes along nor is depended on"
    newest = max(map(int, GLIBC.findall(told)), default=0)
    if newest > SUITES[suite].glibc:
        yield f"{path.name}: needs glibc 2.{newest}, {suite} has 2.{SUITES[suite].glibc}"


def faults_of_wheels(site: Path, suite: str, architecture: str) -> Iterator[str]:
    """What is wrong with the wheels, by the tags that they were published under."""
    fitting = {*platforms(suite, architecture), "any"}
    binary = {*abis(suite)}
    for wheel in sorted(site.glob("*.dist-info/WHEEL")):
        tags = [line.split("-") for line in re.findall(r"^Tag: (\S+)$", wheel.read_text("utf-8"), re.MULTILINE)]
        if not any(abi in binary and platform in fitting for _, abi, platform in tags):
            yield f"{wheel.parent.name}: a wheel for {tags}"


def faults(root: Path, suite: str, architecture: str) -> Iterator[str]:
    """All that is wrong."""
    site = root / f"opt/temperd/lib/python{SUITES[suite].python}/site-packages"
    for name in WANTED:
        if not (site / name).is_dir():
            yield f"{name} is missing"
    for name in UNWANTED:
        if (site / name).exists():
            yield f"{name} is there and has no work on a board"
    found = libraries(root)
    brought = frozenset(path.name for path in found)
    if "_ops.so" not in brought:
        yield "the kernel library is missing"
    for path in found:
        yield from faults_of_library(path, suite, MACHINES[architecture], brought)
    yield from faults_of_wheels(site, suite, architecture)
    tag = f"cpython-{SUITES[suite].python.replace('.', '')}.pyc"
    for source in sorted((site / "service").glob("*.py")):
        if not (source.parent / "__pycache__" / f"{source.stem}.{tag}").exists():
            yield f"service/{source.name} has no bytecode"


def main(words: list[str]) -> int:
    """Say what is wrong."""
    if len(words) != len(("FOLDER", "SUITE", "ARCHITECTURE")) or not known(*words[1:]):
        sys.stderr.write("check.py: FOLDER SUITE ARCHITECTURE\n")
        return 2
    wrong = list(faults(Path(words[0]), words[1], words[2]))
    sys.stderr.write("".join(f"check.py: {fault}\n" for fault in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
