"""The live view: a small file in memory-backed storage that `temperd status` reads, written once a second."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from agent import strict_json
from agent.durable import read_bounded
from agent.errors import ArtifactError, BoardError

FILE_NAME = "live.json"
SYSTEM_RUNTIME = Path("/run/temperd")  # where systemd and the container put the live view
MAX_LIVE_BYTES = 64 << 10  # about 2 KB
_as_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
STALE_S = 10.0  # written once a second; after ten missed writes nobody is at home


def runtime_folder(state_dir: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the file lies: systemd's runtime directory (memory-backed), else `run` in the state folder."""
    return Path(environ.get("RUNTIME_DIRECTORY", "") or state_dir / "run")


def live_folder(state_dir: Path) -> Path:
    """Where a daemon that may run as a service has left its view, as seen by another process."""
    folder = runtime_folder(state_dir)
    return SYSTEM_RUNTIME if not _is_there(folder) and _is_there(SYSTEM_RUNTIME) else folder


def _is_there(folder: Path) -> bool:
    try:
        return (folder / FILE_NAME).exists()
    except PermissionError:
        return False


def write_live(folder: Path, view: Mapping[str, object]) -> None:
    """Replace the view at once; it is worth nothing after a power cut, so nothing is synced."""
    name = f"{folder}/{FILE_NAME}"
    fresh = f"{name}.new"
    with open(fresh, "wb") as file:  # noqa: PTH123 - each second: a third less time than with paths and text
        file.write(_as_json(view).encode())
    os.replace(fresh, name)  # noqa: PTH105 - same


def remove_live(folder: Path) -> None:
    """The daemon goes: nobody shall believe the last view."""
    (folder / FILE_NAME).unlink(missing_ok=True)


def read_live(folder: Path, mono_s: float) -> dict[str, object]:
    """The view of a daemon that runs now.

    Args:
        folder: see `runtime_folder`.
        mono_s: monotonic clock, seconds, of this boot.

    Raises:
        BoardError: there is none, or it is stale: the daemon does not run.
    """
    try:
        data = read_bounded(folder / FILE_NAME, MAX_LIVE_BYTES)
        view = strict_json.loads(data, what="live view", max_bytes=MAX_LIVE_BYTES)
    except (FileNotFoundError, BoardError, ArtifactError) as error:
        raise BoardError("temperd does not run here", where=str(folder), fix="Start it: temperd run") from error
    written = view.get("mono_s") if isinstance(view, dict) else None
    if not isinstance(view, dict) or not isinstance(written, int | float) or not 0 <= mono_s - written <= STALE_S:
        raise BoardError("temperd does not answer", where=str(folder), fix="Start it: temperd run", reason="stale")
    return view
