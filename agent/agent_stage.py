"""What a release leaves on the disk on its way into a slot, and how that is cleared. Needs nothing of the network."""

from __future__ import annotations

from pathlib import Path

from agent.agent_slots import agent_folder, clear, stage_folder
from agent.durable import disk_errors

ARCHIVE = "release.tar.gz"
_PARTS = "*.part"  # as agent.download names them, whose libraries the daemon does not load


def clear_stage(state: Path) -> None:
    """Remove what an update that was cut off left half unpacked.

    Raises:
        BoardError: `disk`.
    """
    stage = stage_folder(state)
    with disk_errors(stage):
        clear(stage)


def clear_leftovers(state: Path) -> None:
    """No update is open: what is left of the last one goes, a half download too.

    Raises:
        BoardError: `disk`.
    """
    clear_stage(state)
    folder = agent_folder(state)
    with disk_errors(folder):
        for path in (*folder.glob(_PARTS), folder / ARCHIVE):
            path.unlink(missing_ok=True)
