"""`temperd release`: releases of temperd itself, made and published on a laptop or in CI."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent.durable import atomic_writer, disk_errors, make_folder
from agent.errors import BoardError, SpecError
from service.cli import say_json

if TYPE_CHECKING:
    from agent.agent_release import AgentRelease
    from agent.build_release import Built

PIP_S = 1800.0  # a wheel is built and a few are fetched, also over a slow line
MAX_SAID = 600  # of what pip says when it fails
_PYTHON = re.compile(r"3\.[1-9][0-9]?")
_PINNED = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!_-]+")
_MANYLINUX = ("manylinux2014", "manylinux_2_28", "manylinux_2_34")
"""Platforms whose wheels run on Debian 12 and later."""
SERVED = 0o644
_NO_SOURCE = (".*", "build", "*.egg-info", "__pycache__", "*.so", "tests", "docs", "temperd-demo")


def build(options: argparse.Namespace) -> int:
    """Make a release."""
    from agent.agent_archive import write_archive  # noqa: PLC0415 - what other verbs must not load
    from agent.build_release import Recipe, build_release, pins_here, read_pins, read_wheel  # noqa: PLC0415 - same

    python = options.for_python or f"{sys.version_info.major}.{sys.version_info.minor}"
    if not _PYTHON.fullmatch(python):
        raise SpecError(f"{python[:20]!r} is no version of Python such as 3.11", where="--for-python")
    out = Path(options.out)
    make_folder(out, 0o755)
    with tempfile.TemporaryDirectory(prefix="temperd-release-") as scratch:
        wheels = _wheels(options, python, Path(scratch))
        if options.against:
            environment = read_pins(Path(options.against))
        else:
            environment = pins_here(read_wheel(wheels[0], python).requires)
        made = build_release(Recipe(wheels, python, environment, options.arch, options.security_floor))
    path = out / made.name
    with atomic_writer(path, SERVED) as stream:
        write_archive(stream, made.contents)
    _tell(options, made, path)
    return 0


def _wheels(options: argparse.Namespace, python: str, scratch: Path) -> tuple[Path, ...]:
    own = Path(options.wheel) if options.wheel else _built(Path(options.source), scratch / "own")
    arch = options.arch or _arch_of(own)
    return (own, *(_bundled(spec, python, arch, scratch / str(i)) for i, spec in enumerate(options.bundle)))


def _arch_of(own: Path) -> str:
    return next((arch for arch in ("aarch64", "x86_64") if own.stem.endswith(arch)), "any")


def _built(source: Path, folder: Path) -> Path:
    """The wheel of temperd's source, with the compiled kernel library where a compiler is."""
    if not (source / "pyproject.toml").is_file():
        raise SpecError(
            "there is no source of temperd", where=str(source), fix="Name it: --source DIR, or --wheel FILE"
        )
    # From a copy: what an earlier build left beside the sources would come into the wheel, modules long removed too.
    copy = folder.with_name("source")
    with disk_errors(source):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*_NO_SOURCE))
    return _pip(["wheel", "--no-deps", "--wheel-dir", str(folder), str(copy)], folder)


def _bundled(spec: str, python: str, arch: str, folder: Path) -> Path:
    if spec.endswith(".whl"):
        return Path(spec)
    if not _PINNED.fullmatch(spec):
        raise SpecError(f"{spec[:80]!r} is neither a wheel nor NAME==VERSION", where="--bundle")
    platforms = [] if arch == "any" else [f"--platform={name}_{arch}" for name in _MANYLINUX]
    chosen = [f"--python-version={python}", "--only-binary=:all:", *(platforms or ["--platform=any"])]
    return _pip(["download", "--no-deps", *chosen, "--dest", str(folder), spec], folder)


def _pip(words: list[str], folder: Path) -> Path:
    """The one wheel that pip leaves in `folder`.

    Raises:
        BoardError: there is no pip, or it fails.
    """
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=PIP_S)  # noqa: S603 - our own words
    except subprocess.TimeoutExpired as error:
        raise BoardError(f"pip did not end within {PIP_S:g} s", where=words[0]) from error
    found = sorted(folder.glob("*.whl")) if folder.exists() else []
    if done.returncode or len(found) != 1:
        said = done.stderr.decode(errors="replace").strip()[-MAX_SAID:]
        raise BoardError(f"pip {words[0]} failed: {said}", fix="Name wheels instead: --wheel, --bundle FILE")
    return found[0]


def _tell(options: argparse.Namespace, made: Built, path: Path) -> None:
    release, length = made.release, path.stat().st_size
    if options.json:
        say_json({**release.to_table(), "file": str(path), "length": length, "kernels": made.has_kernels})
        return
    print(
        f"{path}: {length / 1e6:.2f} MB, {release.unpacked_length / 1e6:.2f} MB unpacked, for Python {release.python}"
    )
    print(f"brings {_named(release.bundled)}")
    print(f"needs {_named(release.needs)}")
    if not made.has_kernels:
        print("without the kernel library: training is slower than with a wheel that was compiled for the board")


def _named(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) or "nothing"


def publish(options: argparse.Namespace) -> int:
    """Sign a release in."""
    from agent.publish_release import publish_release, published  # noqa: PLC0415 - what other verbs must not load
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - same
    from agent.repository_keys import KeyRing  # noqa: PLC0415 - same

    with KeyRing(Path(options.keys)).lock():
        publisher = Publisher.open(Path(options.repo), Path(options.keys), utc_now)
        release = publish_release(publisher, Path(options.file))
        withdrawn = _withdrawn(published(publisher))
    if options.json:
        say_json({**release.to_table(), "path": release.path, "withdrawn": withdrawn})
    else:
        print(f"published temperd {release.version} for {release.arch}, Python {release.python}: {release.path}")
        print(f"digest {release.files_sha256}")
        if withdrawn:
            print(f"withdrawn: {', '.join(withdrawn)}")
    return 0


def _withdrawn(releases: tuple[AgentRelease, ...]) -> list[str]:
    floor = max(one.security_floor for one in releases)
    return sorted({one.version for one in releases if one.security_floor < floor})
