"""Limits written into the kernel's files: read back, complained about once, and put back at the end.

The values found are remembered in a small file before the first change, so that a restart after `kill -9` can still
put them back. A file of an earlier boot is ignored: the kernel began anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent import strict_json
from agent.board.files import read_int, write_int
from agent.durable import write_atomic
from agent.errors import ArtifactError, BoardError
from policies.strict import TableError, build, limits

FREQUENCIES = "devices/system/cpu/cpufreq"
MAX_UNDO_BYTES = 16 << 10  # a few dozen levers at about 80 bytes each
MAX_VALUE = 100_000_000  # 100 GHz in kHz
_ALLOWED = re.compile(
    rf"{FREQUENCIES}/policy[0-9]{{1,4}}/scaling_max_freq|class/thermal/cooling_device[0-9]{{1,4}}/cur_state"
)
"""The only files that are ever written below the sysfs root, whatever the undo file says."""


@dataclass(frozen=True, slots=True)
class _Undo:
    """The undo file."""

    boot: str = field(metadata=limits(longest=64))
    originals: dict[str, int] = field(metadata=limits(0, MAX_VALUE))


class Levers:
    """The writable files of one board.

    Args:
        sys_root: where /sys is.
        undo_file: where found values are remembered, or `None`.
        boot: identifies this boot of the kernel.
    """

    def __init__(self, sys_root: Path, undo_file: Path | None, boot: str) -> None:
        self._root, self._undo_file, self._boot = sys_root, undo_file, boot
        self._new: list[str] = []
        self._standing: dict[str, str] = {}
        self._held: dict[str, int] = {}
        self._originals = self._load()
        for key in self._originals:  # what a killed process left there is ours
            if (left := read_int(sys_root / key)) is not None:
                self._held[key] = left

    def hold_down(self, path: Path, limit: int | None) -> None:
        """Keep the value at `path` at or below `limit`, never above what was found; `None`: as found."""
        self._hold(path, limit, min)

    def hold_up(self, path: Path, floor: int) -> None:
        """Keep the value at `path` at or above `floor`, never below what was found; 0: as found."""
        self._hold(path, floor or None, max)

    def restore(self) -> None:
        """Put back everything that was changed."""
        for key in tuple(self._originals):
            self._ease(key)

    def complaints(self) -> tuple[str, ...]:
        """What went wrong since the last call; a complaint that stands is not repeated."""
        new, self._new = tuple(self._new), []
        return new

    def _hold(self, path: Path, bound: int | None, choose: Callable[[int, int], int]) -> None:
        key = str(path.relative_to(self._root))
        if bound is None:
            self._ease(key)
            return
        current, held = read_int(path), self._held.get(key)
        if current is None:
            return
        wanted = choose(self._originals.get(key, current), bound)
        if current != held and choose(current, wanted) == current:
            self._standing.pop(key, None)
            return  # as strict as asked, or another program (the kernel's fan governor) is stricter still
        if current != wanted:
            # Remembered even if the write is refused: asking again each second must not write the undo file again.
            if not self._remember(key, current) or not self._write(key, wanted):
                return
            self._held[key] = wanted
        if held is not None and current != held:
            self._complain(key, f"{key} was set to {current} by another program; set to {wanted} again")
        else:
            self._standing.pop(key, None)

    def _ease(self, key: str) -> None:
        original = self._originals.get(key)
        if original is not None and (read_int(self._root / key) in (None, original) or self._write(key, original)):
            self._forget(key)

    def _write(self, key: str, wanted: int) -> bool:
        path = self._root / key
        try:
            write_int(path, wanted)
        except OSError as error:
            self._complain(key, f"{key} cannot be written ({error.strerror}): this lever is lacking")
            return False
        found = read_int(path)
        if found != wanted:
            self._complain(key, f"{key} stays at {found} although {wanted} was written: something else holds it")
            return False
        return True

    def _complain(self, key: str, text: str) -> None:
        if key not in self._standing:
            self._new.append(text)
        self._standing[key] = text

    def _remember(self, key: str, value: int) -> bool:
        if key in self._originals:
            return True
        self._originals[key] = value
        try:
            self._save()
        except BoardError as error:  # a limit that could not be put back after a crash is not set
            del self._originals[key]
            self._complain(key, f"{key} is left alone: its value cannot be remembered ({error})")
            return False
        return True

    def _forget(self, key: str) -> None:
        del self._originals[key]
        self._held.pop(key, None)
        self._standing.pop(key, None)
        try:
            self._save()
        except BoardError as error:
            self._complain("undo", f"the list of changed limits cannot be written: {error}")

    def _save(self) -> None:
        if self._undo_file is None:
            return
        if self._originals:
            body = {"boot": self._boot, "originals": self._originals}
            write_atomic(self._undo_file, strict_json.canonical(body))
        else:
            self._undo_file.unlink(missing_ok=True)

    def _load(self) -> dict[str, int]:
        if self._undo_file is None or not self._undo_file.exists():
            return {}
        try:
            data = self._undo_file.read_bytes()
            body = strict_json.loads(data, what="list of changed limits", max_bytes=MAX_UNDO_BYTES)
            undo = build(_Undo, body if isinstance(body, dict) else {})
        except (OSError, ArtifactError, TableError) as error:
            self._complain("undo", f"the list of changed limits is unreadable and ignored: {error}")
            return {}
        if undo.boot != self._boot:
            return {}
        return {key: value for key, value in undo.originals.items() if _ALLOWED.fullmatch(key)}
