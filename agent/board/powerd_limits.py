"""Limits that temperd-powerd sets and puts back: only ever stricter than found, and remembered before they are set."""

from __future__ import annotations

import json
from pathlib import Path

from agent import strict_json
from agent.board.files import read_int, read_text, write_int
from agent.board.lever_files import (
    MAX_MARK,
    MAX_VALUE,
    cap_file,
    cooling_file,
    device_mark,
    is_another,
    is_lever,
    is_stricter,
    strictest,
)
from agent.board.powerd_wire import Refusal
from agent.durable import read_bounded, remove, remove_partials, write_atomic
from agent.errors import ArtifactError, BoardError

MAX_HELD = 64  # levers at once; the largest board known has a dozen
MAX_UNDO_BYTES = 32 << 10  # MAX_HELD at about 200 bytes each


class Limits:
    """The limits held for a client.

    Args:
        sys_root: where /sys is.
        undo_file: what was found before each change, written and synced before it; its folder exists and is ours.
        boot: identifies this boot: a file of an earlier one is dropped, because the kernel began anew.

    Attributes:
        warnings: what went wrong while an earlier helper's file was read.
    """

    def __init__(self, sys_root: Path, undo_file: Path, boot: str) -> None:
        self._sys, self._undo_file, self._boot = sys_root, undo_file, boot
        self.warnings: list[str] = []
        self._found, self._marks, self._most = self._left_behind()
        self._last = dict(self._most)  # of one that was killed no more is known

    @property
    def held(self) -> bool:
        """Whether anything is not as it was found."""
        return bool(self._found)

    def set_cap(self, policy: int, khz: int) -> None:
        """Cap the clock of a cpufreq policy; the value found ends the cap.

        Raises:
            Refusal: `absent`, `range`, `undo`, `refused` or `overridden`.
        """
        key = cap_file(policy)
        found = self._as_found(key, f"cpufreq policy {policy}")
        folder = (self._sys / key).parent
        if khz != found:
            if khz > found:
                raise Refusal("range", f"{khz} kHz is above the {found} kHz that were found")
            _check_khz(folder, khz)
        self._set(key, found, khz)

    def set_cooling(self, device: int, level: int) -> None:
        """Raise the level of a cooling device; the level found ends it.

        Raises:
            Refusal: `absent`, `range`, `undo`, `refused` or `overridden`.
        """
        key = cooling_file(device)
        found = self._as_found(key, f"cooling device {device}")
        most = read_int((self._sys / key).parent / "max_state") or 0
        if level != found:
            if level < found:
                raise Refusal("range", f"level {level} is below the {found} that was found")
            if level > most:
                raise Refusal("range", f"level {level} is above the highest, {most}")
        self._set(key, found, level)

    def restore(self) -> tuple[str, ...]:
        """Put everything back; what the kernel refuses stays remembered for the next call, and is returned."""
        refused = []
        for key in tuple(self._found):
            try:
                self._put_back(key)
            except Refusal as error:
                refused.append(str(error))
        return tuple(refused)

    def _as_found(self, key: str, what: str) -> int:
        current = read_int(self._sys / key)
        if current is None or not 0 <= current <= MAX_VALUE:
            raise Refusal("absent", f"there is no {what}, or it cannot be read")
        if key in self._found and self._is_another(key):
            self._forget(key)
        return self._found.get(key, current)

    def _is_another(self, key: str) -> bool:
        return is_another(self._sys, key, self._marks.get(key, ""))

    def _set(self, key: str, found: int, value: int) -> None:
        if value == found:
            self._found.setdefault(key, found)
            self._put_back(key, always=True)
            return
        self._remember(key, found, value)
        self._last[key] = value
        try:
            self._write(key, value)
        except Refusal:
            if read_int(self._sys / key) == found:
                self._forget(key)
            raise

    def _write(self, key: str, value: int) -> None:
        try:
            write_int(self._sys / key, value)
        except OSError as error:
            raise Refusal("refused", f"the kernel refuses {value} in {key}: {error.strerror}") from error
        now = read_int(self._sys / key)
        if now != value:
            raise Refusal("overridden", f"{key} says {now} although {value} was written")

    def _put_back(self, key: str, *, always: bool = False) -> None:
        found, path = self._found[key], self._sys / key
        if self._is_another(key):  # a driver was loaded anew: the device of that number is none of ours
            self._forget(key)
            return
        now = read_int(path)
        # The kernel's fan governor, say, asks for more by now and would not ask again: it is in charge.
        others = now is not None and key in self._last and is_stricter(key, now, self._last[key])
        if path.exists() and not others and (always or now != found):  # a device that is gone took its limit with it
            try:
                self._write(key, found)
            except Refusal as error:
                if error.code == "refused":
                    raise
                # Accepted and set otherwise again: that is another program's will now, and not ours to mend.
        self._forget(key)

    def _remember(self, key: str, found: int, value: int) -> None:
        most = strictest(key, value, self._most.get(key))
        if key in self._found and most == self._most.get(key):
            return
        if key not in self._found and len(self._found) >= MAX_HELD:
            raise Refusal("range", f"{MAX_HELD} limits are held already")
        try:
            marks = {key: device_mark(self._sys, key)} | self._marks
            self._save(self._found | {key: found}, marks, self._most | {key: most})
        except BoardError as error:  # a limit that could not be put back after a crash is not set
            raise Refusal("undo", f"{key} cannot be remembered: {error}") from error
        self._found[key], self._most[key], self._marks = found, most, marks

    def _forget(self, key: str) -> None:
        del self._found[key]
        for kept in (self._last, self._most, self._marks):
            kept.pop(key, None)
        try:
            self._save(self._found, self._marks, self._most)
        except BoardError as error:
            self.warnings.append(f"the list of limits to put back stays too long: {error}")

    def _save(self, found: dict[str, int], marks: dict[str, str], most: dict[str, int]) -> None:
        if found:
            body = {"boot": self._boot, "found": found, "marks": marks, "strictest": most}
            write_atomic(self._undo_file, json.dumps(body).encode())
        else:
            remove(self._undo_file)

    def _left_behind(self) -> tuple[dict[str, int], dict[str, str], dict[str, int]]:
        """What a killed helper had changed, the marks of those devices, and the strictest that it set in each."""
        try:
            remove_partials(self._undo_file.parent)
            body = strict_json.loads(
                read_bounded(self._undo_file, MAX_UNDO_BYTES), what="undo file", max_bytes=MAX_UNDO_BYTES
            )
        except FileNotFoundError:
            return {}, {}, {}
        except (ArtifactError, BoardError) as error:  # files are whole or absent: this one is no work of ours
            self.warnings.append(f"the undo file is ignored: {error}")
            return {}, {}, {}
        body = body if isinstance(body, dict) and body.get("boot") == self._boot else {}
        names = ("found", "marks", "strictest")
        found, marks, most = (part if isinstance(part := body.get(name), dict) else {} for name in names)
        kept = {key: value for key, value in found.items() if is_lever(key) and _believable(value)}
        told = {key: mark[:MAX_MARK] for key, mark in marks.items() if key in kept and isinstance(mark, str)}
        return kept, told, {key: value for key, value in most.items() if key in kept and _believable(value)}


def _believable(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_VALUE


def _check_khz(folder: Path, khz: int) -> None:
    """Refuse a clock that the board does not have.

    Raises:
        Refusal: `range`.
    """
    words = (read_text(folder / "scaling_available_frequencies") or "").split()
    table = sorted({int(word) for word in words if word.isdigit()})
    if table and khz not in table:
        raise Refusal("range", f"{khz} kHz is not in the board's table, {table[0]} to {table[-1]} kHz")
    least = read_int(folder / "cpuinfo_min_freq")
    if not table and (least is None or khz < least):  # drivers without a table take any clock between their bounds
        raise Refusal("range", f"{khz} kHz is below the board's lowest clock, {least} kHz")
    floor = read_int(folder / "scaling_min_freq") or 0
    if khz < floor:
        raise Refusal("range", f"{khz} kHz is below scaling_min_freq, {floor} kHz")
