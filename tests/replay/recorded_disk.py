"""A disk that forgets: what a process asked of it, recorded by strace, and the states a power cut may leave.

What was not synced may be there, be lost, or be torn at a sector. Names in a folder that was not synced change in their
order, as on journaling file systems, and independently of the bytes of the files. New folders are always there: the
sync of what lies in one brings it along on ext4, XFS, Btrfs and F2FS.
"""

from __future__ import annotations

import copy
import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SECTOR_BYTES = 512
TRACED = "openat,write,pwrite64,fsync,fdatasync,rename,symlink,unlink,ftruncate,close"
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Operation(NamedTuple):
    """One call: `kind`, its descriptor and strings and plain numbers, and what it returned."""

    kind: str
    descriptor: int
    strings: tuple[bytes, ...]
    numbers: tuple[int, ...]
    flags: str
    result: int


def record(life: str, folder: Path, promises: Path) -> list[Operation]:
    """Run one life of recorded_life.py; its calls in order."""
    trace, script = promises.with_suffix(".trace"), Path(__file__).with_name("recorded_life.py")
    command = ["strace", "-f", "-xx", "-s", "10000000", "-e", f"trace={TRACED}", "-o", str(trace), sys.executable]
    root = script.parents[2]
    subprocess.run(
        [*command, str(script), life, str(folder), str(promises)],
        check=True,
        timeout=120,
        env={"PYTHONPATH": str(root)},
    )
    joined: dict[str, str] = {}
    found = []
    for raw in trace.read_text().splitlines():
        thread, _, rest = raw.partition(" ")
        line = raw
        if raw.endswith("<unfinished ...>"):
            joined[thread] = raw.removesuffix(" <unfinished ...>")
            continue
        if "resumed>" in rest:
            line = joined.pop(thread) + raw.split("resumed>", 1)[1]
        call = _CALL.match(line)
        if call:
            found.append(_operation(call))
    return found


def _operation(call: re.Match[str]) -> Operation:
    kind, arguments, result = call.groups()
    strings = tuple(bytes.fromhex(text.replace("\\x", "")) for text in _STRING.findall(arguments))
    plain = _STRING.sub("", arguments).split(", ")
    numbers = tuple(int(part) for part in plain if re.fullmatch(r"-?\d+", part))
    descriptor = numbers[0] if numbers and kind not in {"openat", "rename", "symlink", "unlink"} else -1
    return Operation(kind, descriptor, strings, numbers, arguments, int(result))


@dataclass
class File:
    """Bytes for sure on the disk, and the writes (position, bytes) not synced since; position -1 cuts the length."""

    synced: bytes = b""
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    link: str = ""
    """Where it leads, if it is a symbolic link."""

    def sync(self) -> None:
        """All of it is on the disk."""
        self.synced, self.pending = self.after(self.pending), []

    def after(self, writes: list[tuple[int, bytes]]) -> bytes:
        """The bytes after some writes."""
        data = bytearray(self.synced)
        for at, piece in writes:
            if at < 0:
                length = int.from_bytes(piece, "big")
                data = data[:length].ljust(length, b"\0")
                continue
            data.extend(bytes(max(0, at + len(piece) - len(data))))
            data[at : at + len(piece)] = piece
        return bytes(data)

    def torn(self, chance: random.Random) -> bytes:
        """The bytes after a power cut."""
        kind = chance.randrange(4)
        if kind == 0 or not self.pending:
            return self.synced
        if kind == 1:
            return self.after(self.pending)
        writes = []
        for at, piece in self.pending:
            if at < 0 or chance.randrange(2):
                writes.append((at, piece))
            elif chance.randrange(2):  # a torn one: only some of its sectors
                start = chance.randrange(0, len(piece) + 1, SECTOR_BYTES)
                end = chance.randrange(start, len(piece) + SECTOR_BYTES, SECTOR_BYTES)
                writes.append((at + start, piece[start:end]))
        return self.after(writes)


class Disk:
    """Files below one folder, as they are now and as a power cut may leave them."""

    def __init__(self, folder: Path, promises: Path) -> None:
        self._folder, self._promises = folder, promises
        self._files: list[File] = []
        self._live: dict[Path, int] = {}
        self._kept: dict[Path, int] = {}
        self._pending: dict[Path, list[tuple[str, Path, Path | int]]] = {}
        self._open: dict[int, list[int]] = {}
        self._folders: dict[int, Path] = {}
        self._promise_descriptor = -1
        self.promised: str = ""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self._live[path] = self._kept[path] = len(self._files)
                self._files.append(File(path.read_bytes()))

    def apply(self, done: Operation) -> bool:
        """Take in one call; whether it changed anything."""
        return bool(getattr(self, f"_{done.kind}")(done))

    def _openat(self, done: Operation) -> bool:
        path = Path(done.strings[0].decode())
        if path == self._promises:
            self._promise_descriptor = done.result
            return False
        self._open.pop(done.result, None)
        self._folders.pop(done.result, None)
        if "O_DIRECTORY" in done.flags or path.is_dir():
            self._folders[done.result] = path
            return False
        if not path.is_relative_to(self._folder) or path.name.endswith("-shm"):
            return False
        if path not in self._live:
            if "O_CREAT" not in done.flags:
                return False
            self._files.append(File())
            self._name("add", path, len(self._files) - 1)
        elif "O_TRUNC" in done.flags:
            self._files[self._live[path]].pending.append((-1, bytes(8)))
        self._open[done.result] = [self._live[path], 0]
        return True

    def _name(self, kind: str, path: Path, other: Path | int) -> None:
        _rename(self._live, kind, path, other)
        self._pending.setdefault(path.parent, []).append((kind, path, other))

    def _write(self, done: Operation) -> bool:
        if done.descriptor == self._promise_descriptor:
            self.promised = done.strings[0].decode()
            return True
        if done.descriptor not in self._open:
            return False
        number, at = self._open[done.descriptor]
        self._files[number].pending.append((at, done.strings[0][: done.result]))
        self._open[done.descriptor][1] += done.result
        return True

    def _pwrite64(self, done: Operation) -> bool:
        if done.descriptor not in self._open:
            return False
        self._files[self._open[done.descriptor][0]].pending.append((done.numbers[-1], done.strings[0][: done.result]))
        return True

    def _ftruncate(self, done: Operation) -> bool:
        if done.descriptor not in self._open:
            return False
        self._files[self._open[done.descriptor][0]].pending.append((-1, done.numbers[-1].to_bytes(8, "big")))
        return True

    def _fsync(self, done: Operation) -> bool:
        if done.descriptor in self._open:
            self._files[self._open[done.descriptor][0]].sync()
            return True
        for change in self._pending.pop(self._folders.get(done.descriptor, Path()), []):
            _rename(self._kept, *change)
        return True

    _fdatasync = _fsync

    def _rename(self, done: Operation) -> bool:
        old, new = (Path(text.decode()) for text in done.strings)
        if old in self._live:
            self._name("move", old, new)
        return True

    def _symlink(self, done: Operation) -> bool:
        leads, path = (text.decode() for text in done.strings)
        if Path(path).is_relative_to(self._folder):
            self._files.append(File(link=leads))
            self._name("add", Path(path), len(self._files) - 1)
        return True

    def _unlink(self, done: Operation) -> bool:
        path = Path(done.strings[0].decode())
        if path in self._live:
            self._name("drop", path, -1)
        return True

    def _close(self, done: Operation) -> bool:
        self._open.pop(done.descriptor, None)
        self._folders.pop(done.descriptor, None)
        return False

    def crash(self, chance: random.Random, target: Path) -> None:
        """Write below `target` what a power cut now may leave."""
        names = copy.copy(self._kept)
        for changes in self._pending.values():
            for change in changes[: chance.choice([0, len(changes), chance.randrange(len(changes) + 1)])]:
                _rename(names, *change)
        for path, number in names.items():
            left = target / path.relative_to(self._folder)
            left.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._files[number].link:
                left.symlink_to(self._files[number].link)
                continue
            left.write_bytes(self._files[number].torn(chance))
            left.chmod(0o600)


def _rename(names: dict[Path, int], kind: str, path: Path, other: Path | int) -> None:
    if isinstance(other, Path):
        if path in names:
            names[other] = names.pop(path)
    elif kind == "add":
        names[path] = other
    else:
        names.pop(path, None)
