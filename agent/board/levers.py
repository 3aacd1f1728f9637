"""Limits written into the kernel's files: read back, complained about once, and put back at the end.

A file that this user may not write is written by temperd-powerd, where that runs; the helper then remembers what was
found. For files that we write ourselves the values found are kept in a small file before the first change, so that a
restart after `kill -9` can still put them back. A file of an earlier boot is ignored: the kernel began anew.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent import strict_json
from agent.board.files import read_int, write_int
from agent.board.lever_files import (
    FREQUENCIES,
    MAX_MARK,
    MAX_VALUE,
    capped_policy,
    device_mark,
    is_another,
    is_lever,
    is_stricter,
    strictest,
)
from agent.board.powerd_link import WAITING, PowerdLink
from agent.durable import remove, write_atomic
from agent.errors import ArtifactError, BoardError
from policies.reading import Health
from policies.strict import TableError, build_known, limits

__all__ = ["FREQUENCIES", "Levers"]

MAX_UNDO_BYTES = 32 << 10  # a few dozen levers at about 200 bytes each
TRY_AGAIN_ROUNDS = 30  # between attempts to write a lever that was refused, while nothing is asked of it
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WORST_FIRST = (Health.REFUSED, Health.OVERRIDDEN, Health.MISSING, Health.OK)


@dataclass(frozen=True, slots=True)
class _Undo:
    """The undo file."""

    boot: str = field(metadata=limits(longest=64))
    originals: dict[str, int] = field(metadata=limits(0, MAX_VALUE))
    marks: dict[str, str] = field(default_factory=dict, metadata=limits(longest=MAX_MARK))
    """What those devices said they are."""
    strictest: dict[str, int] = field(default_factory=dict, metadata=limits(0, MAX_VALUE))
    """That was ever set in each."""


class Levers:
    """The writable files of one board.

    Args:
        sys_root: where /sys is.
        undo_file: where found values are remembered, or `None`.
        boot: identifies this boot of the kernel.
        link: temperd-powerd, for what may not be written directly, or `None`.
    """

    def __init__(self, sys_root: Path, undo_file: Path | None, boot: str, link: PowerdLink | None = None) -> None:
        self._root, self._undo_file, self._boot, self._link = sys_root, undo_file, boot, link
        self._new: list[str] = []
        self._standing: dict[str, str] = {}
        self._health: dict[str, Health] = {}
        self._held: dict[str, int] = {}
        self._lent: dict[str, int] = {}
        """Files that the helper writes, each with the connection over which it was last written."""
        self._rounds = 0
        self._originals, self._marks, self._most = self._load()
        for key in self._originals:  # what a killed process left there is ours, but for what it never asked for
            if (left := read_int(sys_root / key)) is not None:
                most = self._most.get(key, left)
                self._held[key] = most if is_stricter(key, left, most) else left

    @property
    def health(self) -> dict[str, Health]:
        """Health of `frequency-cap` and `cooling`, each the worst of its files; one never asked for is left out.

        `refused` stays until a write succeeds; while nothing is asked of the lever that is tried every 30 rounds.
        """
        found: dict[str, Health] = {}
        for key, state in self._health.items():
            name = "frequency-cap" if capped_policy(key) is not None else "cooling"
            found[name] = min(found.get(name, state), state, key=_WORST_FIRST.index)
        return found

    def hold_down(self, path: Path, limit: int | None) -> None:
        """Keep the value at `path` at or below `limit`, never above what was found; `None`: as found."""
        self._hold(path, limit, min)

    def hold_up(self, path: Path, floor: int) -> None:
        """Keep the value at `path` at or above `floor`, never below what was found; 0: as found."""
        self._hold(path, floor or None, max)

    def restore(self) -> None:
        """Put back everything that was changed."""
        if self._link and self._lent.keys() & self._originals.keys():
            self._link.next_round()
            with contextlib.suppress(BoardError):  # said of each lever that then does not go
                self._ask_for(self._link.restore)
        for key in tuple(self._originals):
            self._ease(key)
        if self._link:
            self._link.close()

    def complaints(self) -> tuple[str, ...]:
        """What went wrong since the last call, which ends a round; a complaint that stands is not repeated."""
        new, self._new = tuple(self._new), []
        self._rounds += 1
        if self._link:
            self._link.next_round()
        return new

    def _hold(self, path: Path, bound: int | None, choose: Callable[[int, int], int]) -> None:
        key = str(path.relative_to(self._root))
        current, held = read_int(path), self._held.get(key)
        if self._is_another(key):
            self._forget(key)  # a driver was loaded anew, and this number is another device's now
            held = None
        if current is None:
            self._health[key] = Health.MISSING
            self._held.pop(key, None)  # whoever brings it back begins anew: no override
            return
        if bound is None:
            self._ease(key)
            self._try_again(key, current)
            return
        wanted = choose(self._originals.get(key, current), bound)
        if current != held and choose(current, wanted) == current:
            self._well(key)
            return  # as strict as asked, or another program (the kernel's fan governor) is stricter still
        connection = self._lent.get(key)
        if current != wanted:
            # Remembered even if the write is refused: asking again each second must not write the undo file again.
            if not self._remember(key, current, wanted) or not self._write(key, wanted):
                return
            self._held[key] = wanted
        if held is None or current == held:
            self._well(key)
        elif connection != self._lent.get(key):
            self._complain(key, f"temperd-powerd ended and had put {key} back; set to {wanted} again", Health.OK)
        else:
            text = f"{key} was set to {current} by another program; set to {wanted} again"
            self._complain(key, text, Health.OVERRIDDEN)

    def _is_another(self, key: str) -> bool:
        return key in self._originals and is_another(self._root, key, self._marks.get(key, ""))

    def _ease(self, key: str) -> None:
        original, path = self._originals.get(key), self._root / key
        if original is None:
            return
        if self._is_another(key):
            self._forget(key)
            return
        now, held = read_int(path), self._held.get(key)
        # The kernel's fan governor, say, asks for more by now and would not ask again: it is in charge.
        others = now is not None and held is not None and is_stricter(key, now, held)
        # What cannot be read now is written all the same; a device that is gone took its limit with it.
        if others or now == original or not path.exists() or self._write(key, original):
            self._forget(key)
            if self._health.get(key) is not Health.REFUSED:
                self._well(key)

    def _try_again(self, key: str, current: int) -> None:
        """Write what is there already into a lever that was refused: it may be given to us by now."""
        if self._health.get(key, Health.MISSING) is Health.MISSING:
            self._health[key] = Health.OK
        elif key not in self._originals:
            refused = self._health[key] is Health.REFUSED
            if not refused or (self._rounds % TRY_AGAIN_ROUNDS == 0 and self._write(key, current)):
                self._well(key)

    def _write(self, key: str, wanted: int) -> bool:
        try:
            if not self._write_directly(key, wanted) and not self._write_by_helper(key, wanted):
                return False
        except (OSError, BoardError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._complain(key, f"{key} cannot be written ({why}): this lever is lacking", Health.REFUSED)
            return False
        found = read_int(self._root / key)
        if found != wanted:
            text = f"{key} stays at {found} although {wanted} was written: something else holds it"
            self._complain(key, text, Health.OVERRIDDEN)
            return False
        return True

    def _write_directly(self, key: str, wanted: int) -> bool:
        """Whether it was written; false: it is for the helper to write."""
        if key in self._lent:
            return False
        try:
            write_int(self._root / key, wanted)
        except OSError as error:
            if self._link is None or error.errno not in _NOT_OURS:
                raise
        else:
            return True
        self._lent[key] = 0
        if key in self._originals:
            self._save()  # without it
        return False

    def _write_by_helper(self, key: str, wanted: int) -> bool:
        """Whether it was written; false: no answer yet."""
        link = self._link
        if link is None or not self._ask_for(lambda: link.set(key, wanted)):
            return False
        self._lent[key] = link.connections
        return True

    def _ask_for(self, ask: Callable[[], None]) -> bool:
        try:
            ask()
        except BoardError as error:
            if error.code == WAITING:
                return False
            raise BoardError(f"not by this user, and {error}") from error
        return True

    def _well(self, key: str) -> None:
        self._standing.pop(key, None)
        self._health[key] = Health.OK

    def _complain(self, key: str, text: str, health: Health | None = None) -> None:
        if key not in self._standing:
            self._new.append(text)
        self._standing[key] = text
        if health:
            self._health[key] = health

    def _remember(self, key: str, found: int, wanted: int) -> bool:
        known, before = key in self._originals, self._most.get(key)
        self._most[key] = strictest(key, wanted, before)
        if known and self._most[key] == before:
            return True
        if not known:
            self._originals[key], self._marks[key] = found, device_mark(self._root, key)
        try:
            self._save()
        except BoardError as error:  # a limit that could not be put back after a crash is not set
            if before is not None:
                self._most[key] = before
            if not known:
                del self._originals[key], self._marks[key], self._most[key]
            text = f"{key} is left alone: its value cannot be remembered ({error})"
            self._complain(key, text, Health.REFUSED)
            return False
        return True

    def _forget(self, key: str) -> None:
        del self._originals[key]
        for kept in (self._held, self._lent, self._marks, self._most):
            kept.pop(key, None)
        try:
            self._save()
        except BoardError as error:
            self._complain("undo", f"the list of changed limits cannot be written: {error}")

    def _save(self) -> None:
        if self._undo_file is None:
            return
        ours = {key: value for key, value in self._originals.items() if key not in self._lent}
        if ours:
            marks = {key: mark for key, mark in self._marks.items() if key in ours}
            most = {key: value for key, value in self._most.items() if key in ours}
            body = {"boot": self._boot, "originals": ours, "marks": marks, "strictest": most}
            write_atomic(self._undo_file, strict_json.canonical(body))
        else:
            remove(self._undo_file)

    def _load(self) -> tuple[dict[str, int], dict[str, str], dict[str, int]]:
        if self._undo_file is None or not self._undo_file.exists():
            return {}, {}, {}
        try:
            data = self._undo_file.read_bytes()
            body = strict_json.loads(data, what="list of changed limits", max_bytes=MAX_UNDO_BYTES)
            undo = build_known(_Undo, body if isinstance(body, dict) else {})
        except (OSError, ArtifactError, TableError) as error:
            self._complain("undo", f"the list of changed limits is unreadable and ignored: {error}")
            return {}, {}, {}
        if undo.boot != self._boot:
            return {}, {}, {}
        originals = {key: value for key, value in undo.originals.items() if is_lever(key)}
        marks = {key: mark for key, mark in undo.marks.items() if key in originals}
        return originals, marks, {key: value for key, value in undo.strictest.items() if key in originals}
