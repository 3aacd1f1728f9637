"""Releases of temperd made from this tree, as another version and with what is wrong with them; for any board."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from agent.agent_archive import write_archive
from agent.agent_release import AgentRelease
from agent.build_release import Recipe, build_release, pins_here, read_wheel
from agent.publish_release import publish_release
from agent.repository import Publisher, utc_now
from tests.simulators.fleet import World
from tests.simulators.wheels import own_wheel

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
LAUNCHER = ("-I", "-m", "service.launch", "run")


def release_file(folder: Path, version: str, changes: Mapping[str, bytes] | None = None, arch: str = "") -> Path:
    """A release of this tree for this machine and environment.

    Args:
        folder: where the wheel and the file go.
        version: of it.
        changes: files that it has otherwise.
        arch: another one than `any`.
    """
    own = own_wheel(folder / "wheels", version, changes)
    environment = pins_here(read_wheel(own, PYTHON).requires)
    made = build_release(Recipe((own,), PYTHON, environment, arch or "any"))
    path = folder / made.name
    with path.open("wb") as stream:
        write_archive(stream, made.contents)
    return path


def publish(world: World, version: str, changes: Mapping[str, bytes] | None = None, arch: str = "") -> AgentRelease:
    """Make and publish one in the world's repository, which is made where there is none."""
    fresh = not (world.folder / "repository" / "metadata").exists()
    make = Publisher.create if fresh else Publisher.open
    publisher = make(world.folder / "repository", world.folder / "publisher-keys", utc_now)
    (world.folder / "root.json").write_bytes(publisher.root_path.read_bytes())
    return publish_release(publisher, release_file(world.folder, version, changes, arch))


def other_machine() -> str:
    """An architecture that this machine is not."""
    return "x86_64" if platform.machine() == "aarch64" else "aarch64"
