"""The file of a back-up: a plain tar archive (USTAR, POSIX.1-1988) of regular files, its table of contents last.

    journal.sqlite, store/..., board.json, policy-command.toml     as they lie in the state folder
    temperd-backup.json     {"manifest": {...}, "sha256": of its canonical form}

Any tar reads it. What is read back is taken for hostile all the same: names, counts and lengths are bounded before a
byte is written, and a file that was cut off has no table of contents.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from agent.card import NAME, SHA256
from agent.errors import ArtifactError
from agent.strict_json import canonical, loads
from policies.strict import TableError, build, limits

FORMAT = "temperd-backup-1"
CONTENTS = "temperd-backup.json"
TOPS = ("journal.sqlite", "store", "board.json", "policy-command.toml")
"""What a back-up may hold of a state folder."""
MAX_FILES = 2000  # two slots, their parity, and frozen weights that they share: some dozens
MAX_FILE_BYTES = 4 << 30  # a slot has at most 1 GiB
MAX_CONTENTS_BYTES = 1 << 20  # 2000 files at 200 bytes each, and an identity
BLOCK = 512  # of tar
PIECE_BYTES = 1 << 20
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_PARTS = 4  # store/slots/a/model.sealed
_REGULAR = b"0"


@dataclass(frozen=True, slots=True)
class SealedKeys:
    """The identity, encrypted; see `service.backup_keys`. Hexadecimal."""

    salt: str = field(metadata=limits(longest=64))
    nonce: str = field(metadata=limits(longest=64))
    sealed: str = field(metadata=limits(longest=32 << 10))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a back-up is of.

    Attributes:
        format: of the file.
        device: whose state it is.
        made_at: seconds since 1970.
        agent: version of temperd that made it.
        journal_schema: of the journal in it.
        machine: hash that tells two machines apart and names none; empty: not known.
        files: SHA-256 by name, hexadecimal.
        keys: the board's private keys, encrypted; `None`: left out.
    """

    device: str = field(metadata=limits(longest=64))
    made_at: float = field(metadata=limits(0.0, 1e11))
    agent: str = field(metadata=limits(longest=64))
    journal_schema: int = field(metadata=limits(0, 1000))
    machine: str = field(metadata=limits(longest=64))
    files: dict[str, str] = field(metadata=limits(longest=64))
    keys: SealedKeys | None = None
    format: str = field(default=FORMAT, metadata=limits(choices=(FORMAT,)))

    def __post_init__(self) -> None:
        """Refuse what no board wrote."""
        if not NAME.fullmatch(self.device):
            raise TableError("device", f"does not match {NAME.pattern}")
        if len(self.files) > MAX_FILES:
            raise TableError("files", f"are more than {MAX_FILES}")
        for name, digest in self.files.items():
            if not SHA256.fullmatch(digest) or not is_allowed(name):
                raise TableError("files", "has a name or a hash that no board writes")

    def table(self) -> dict[str, object]:
        """JSON values."""
        names = ("format", "device", "made_at", "agent", "journal_schema", "machine", "files")
        keys = self.keys and {"salt": self.keys.salt, "nonce": self.keys.nonce, "sealed": self.keys.sealed}
        return {**{name: getattr(self, name) for name in names}, "keys": keys}

    def bound(self) -> bytes:
        """What the encrypted keys are bound to: everything but themselves."""
        return canonical({**self.table(), "keys": None})


def is_allowed(name: str) -> bool:
    """Whether a file of this name belongs into a back-up."""
    parts = name.split("/")
    return (
        parts[0] in TOPS
        and len(parts) <= _MAX_PARTS
        and ((len(parts) > 1) == (parts[0] == "store"))
        and all(_PART.fullmatch(part) for part in parts)
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def write_file(out: BinaryIO, name: str, source: BinaryIO, length: int) -> str:
    """Append a file; its SHA-256.

    Raises:
        ArtifactError: it is shorter than `length`: somebody writes into it.
        OSError: the disk fails.
    """
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = length, 0o600
    out.write(entry.tobuf(tarfile.USTAR_FORMAT))
    digest, left = hashlib.sha256(), length
    while left:
        piece = source.read(min(left, PIECE_BYTES))
        if not piece:
            raise ArtifactError("a file became shorter while it was read", where=name)
        digest.update(piece)
        out.write(piece)
        left -= len(piece)
    out.write(bytes(-length % BLOCK))
    return digest.hexdigest()


def write_contents(out: BinaryIO, manifest: Manifest) -> None:
    """Append the table of contents, and the end of the archive."""
    table = manifest.table()
    data = canonical({"manifest": table, "sha256": hashlib.sha256(canonical(table)).hexdigest()})
    write_file(out, CONTENTS, io.BytesIO(data), len(data))
    out.write(bytes(2 * BLOCK))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_archive(source: BinaryIO, make: Callable[[str], BinaryIO]) -> Manifest:
    """Read an archive to its end, writing each file to what `make` opens for it.

    Args:
        source: the archive.
        make: opens a new file by its name, which is one that `is_allowed`.

    Raises:
        ArtifactError: `backup-newer`; `backup-broken`: cut off, changed, or no back-up; what `make` opened is rubbish.
        OSError: a disk fails.
    """
    found: dict[str, str] = {}
    for name, length in _headers(source):
        if name == CONTENTS:
            manifest = _contents(_whole(source, length))
            if manifest.files != found:
                raise broken("its files are not those of its table of contents")
            return manifest
        if not is_allowed(name) or name in found or len(found) >= MAX_FILES:
            raise broken("a file in it belongs to no state folder")
        with make(name) as out:
            found[name] = _copy(source, out, length)
    raise broken("it was cut off")


def broken(what: str) -> ArtifactError:
    """A back-up that cannot be used."""
    return ArtifactError(f"the back-up cannot be used: {what}", fix="Take another one", reason="backup-broken")


def _headers(source: BinaryIO) -> Iterator[tuple[str, int]]:
    """Name and length of each file; the caller reads its bytes before it asks for the next."""
    while True:
        block = source.read(BLOCK)
        if len(block) < BLOCK or not any(block):
            return
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise broken("it is no archive, or was changed") from error
        most = MAX_CONTENTS_BYTES if entry.name == CONTENTS else MAX_FILE_BYTES
        if entry.type != _REGULAR or not 0 <= entry.size <= most:
            raise broken("something in it is no file, or too long")
        yield entry.name, entry.size


def _copy(source: BinaryIO, out: BinaryIO, length: int) -> str:
    digest, left = hashlib.sha256(), length
    while left:
        piece = source.read(min(left, PIECE_BYTES))
        if not piece:
            raise broken("it was cut off")
        digest.update(piece)
        out.write(piece)
        left -= len(piece)
    source.read(-length % BLOCK)
    return digest.hexdigest()


def _whole(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) < length:
        raise broken("it was cut off")
    return data


def _contents(data: bytes) -> Manifest:
    try:
        table = loads(data, what="table of contents", max_bytes=MAX_CONTENTS_BYTES)
    except ArtifactError as error:
        raise broken(error.what) from error
    inner = table.get("manifest") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(inner, dict):
        raise broken("its table of contents is none")
    made_as = inner.get("format")
    if isinstance(made_as, str) and made_as != FORMAT and made_as.startswith("temperd-backup-"):
        fix = "Install that version here first"
        raise ArtifactError("the back-up was made by a newer temperd", fix=fix, reason="backup-newer")
    if hashlib.sha256(canonical(inner)).hexdigest() != table.get("sha256"):
        raise broken("its table of contents was changed")
    try:
        return build(Manifest, inner)
    except TableError as error:
        raise broken(f"{error.key} {error.what}") from error


def lies_at(folder: Path, name: str) -> Path:
    """Where the file `name` of a back-up lies below `folder`."""
    return folder.joinpath(*name.split("/"))
