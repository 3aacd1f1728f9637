"""The pinned root of a repository, for people to compare: whoever holds its keys decides what a board trains."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.exceptions import StorageError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from agent.durable import read_bounded
from agent.errors import BoardError, TrustError
from agent.keys_files import WRITABLE_BY_OTHERS, check_mode
from agent.repository_bounds import MAX_ROOT_BYTES


@dataclass(frozen=True, slots=True)
class PinnedRoot:
    """What a root document says of itself.

    Attributes:
        sha256: of the file, in hexadecimal.
        version: rises with each rotation of keys.
        expires: from then on it counts no more.
        threshold: signatures that the next root needs.
        keyids: keys of the role `root`, in hexadecimal, sorted.
    """

    sha256: str
    version: int
    expires: datetime
    threshold: int
    keyids: tuple[str, ...]


def read_root(path: Path) -> PinnedRoot:
    """A root document that its own keys sign.

    Raises:
        BoardError: `key-missing`; `key-permissions`: others may write it; `disk`.
        TrustError: it is no root document, or its own keys do not sign it.
        ArtifactError: longer than 64 KiB.
    """
    return parse_root(_bytes(path), str(path))


def parse_root(data: bytes, where: str) -> PinnedRoot:
    """Like `read_root`, from the bytes of the file."""
    try:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
        root = metadata.signed
        if not isinstance(root, Root):
            raise TrustError("not a root document", where=where)
        root.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, StorageError) as error:
        raise TrustError("not a root document that its own keys sign", where=where) from error
    role = root.roles[Root.type]
    digest = hashlib.sha256(data).hexdigest()
    return PinnedRoot(digest, root.version, root.expires, role.threshold, tuple(sorted(role.keyids)))


def _bytes(path: Path) -> bytes:
    try:
        data = read_bounded(path, MAX_ROOT_BYTES)
    except FileNotFoundError as error:
        fix = "Pin it: temperd keys trust-repository 1.root.json"
        raise BoardError("no repository is pinned", where=str(path), fix=fix, reason="key-missing") from error
    check_mode(path, WRITABLE_BY_OTHERS)
    return data
