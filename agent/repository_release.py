"""One release of a repository: the signed documents that boards see together, and the order in which they are written.

Leaves first, timestamp.json last: killed anywhere in between, boards see the release before. What a killed release left
is no part of any later one: the snapshot names each document by version, length and hash, the timestamp the snapshot.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar

from securesystemslib.signer import CryptoSigner  # public, re-exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # public, re-exported without __all__
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from agent.durable import read_bounded, remove_partials, write_atomic
from agent.errors import BoardError, SpecError, TrustError
from agent.repository_bounds import MAX_ROOT_BYTES, MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES, MAX_TIMESTAMP_BYTES
from agent.repository_keys import GRANTS, ROOT, SNAPSHOT, TARGETS, TIMESTAMP

# The shorter a role's life, the sooner a board notices that it is shown an old repository; the root, kept offline and
# seldom signed, lives longest.
ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=90)
SNAPSHOT_LIFE = timedelta(days=30)
TIMESTAMP_LIFE = timedelta(days=7)
LIVES = {
    ROOT: ROOT_LIFE,
    TARGETS: TARGETS_LIFE,
    GRANTS: TARGETS_LIFE,
    SNAPSHOT: SNAPSHOT_LIFE,
    TIMESTAMP: TIMESTAMP_LIFE,
}
READ_BYTES = {  # what boards read of each role's document
    ROOT: MAX_ROOT_BYTES,
    TARGETS: MAX_TARGETS_BYTES,
    GRANTS: MAX_TARGETS_BYTES,
    SNAPSHOT: MAX_SNAPSHOT_BYTES,
    TIMESTAMP: MAX_TIMESTAMP_BYTES,
}
GRANT_PATHS = "grants/*/*"
T = TypeVar("T", Root, Targets, Snapshot, Timestamp)
Document: TypeAlias = Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]


@dataclass(slots=True)
class Release:
    """Documents that belong together; `grants` is `None` where grants still stand among the targets (until 0.1)."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]
    grants: Metadata[Targets] | None

    def documents(self) -> Iterator[tuple[str, Document]]:
        """Role and document, from the root of trust to its leaves."""
        yield from ((ROOT, self.root), (TIMESTAMP, self.timestamp), (SNAPSHOT, self.snapshot), (TARGETS, self.targets))
        if self.grants is not None:
            yield GRANTS, self.grants

    def keyids(self, role: str) -> list[str]:
        """Ids of the keys that may sign for `role`."""
        named: list[str] = self._delegator(role).get_delegated_role(role).keyids
        return named

    def check(self, also: Root | None = None) -> None:
        """Every document is signed as its delegator asks, under this root or under `also`.

        Raises:
            RepositoryError: one is not.
        """
        for role, document in self.documents():
            delegator = self._delegator(role)
            try:
                delegator.verify_delegate(role, document.signed_bytes, document.signatures)
            except RepositoryError:
                if also is None or role in {ROOT, GRANTS}:
                    raise
                also.verify_delegate(role, document.signed_bytes, document.signatures)

    def delegate_grants(self, signer: CryptoSigner) -> None:
        """Move the grants out of the targets into a role of their own, signed by `signer`."""
        role = DelegatedRole(GRANTS, [], 1, terminating=True, paths=[GRANT_PATHS])
        self.targets.signed.delegations = Delegations({}, {GRANTS: role})
        self.targets.signed.add_key(signer.public_key, GRANTS)
        self.grants = Metadata(Targets())
        self.grants.signed.version = 0  # write() counts up before it signs
        moved = [path for path in self.targets.signed.targets if path.startswith("grants/")]
        for path in moved:
            self.grants.signed.targets[path] = self.targets.signed.targets.pop(path)

    def write(
        self, folder: Path, roles: AbstractSet[str], signers: Callable[[str], list[CryptoSigner]], now: datetime
    ) -> None:
        """Sign new versions of `roles`, and of snapshot and timestamp where they follow; write them, leaves first.

        Args:
            folder: of the metadata.
            roles: any but root.
            signers: gives the keys of a role; each of them signs.
            now: counts the expiry.

        Raises:
            SpecError: a document is longer than boards read; nothing of it was written.
            BoardError: the disk fails; boards see the release before. This object must be read again.
        """
        remove_partials(folder)  # what a crash left would be served
        meta = self.snapshot.signed.meta
        for role, document in ((GRANTS, self.grants), (TARGETS, self.targets)):
            if role in roles and document is not None:
                data = _sign(document, signers(role), now + LIVES[role])
                write_atomic(folder / f"{document.signed.version}.{role}.json", data, 0o644)
                meta[f"{role}.json"] = _meta_file(document.signed.version, data)
        if roles - {TIMESTAMP}:
            data = _sign(self.snapshot, signers(SNAPSHOT), now + LIVES[SNAPSHOT])
            write_atomic(folder / f"{self.snapshot.signed.version}.{SNAPSHOT}.json", data, 0o644)
            self.timestamp.signed.snapshot_meta = _meta_file(self.snapshot.signed.version, data)
        data = _sign(self.timestamp, signers(TIMESTAMP), now + LIVES[TIMESTAMP])
        write_atomic(folder / f"{TIMESTAMP}.json", data, 0o644)

    def _delegator(self, role: str) -> Root | Targets:
        return self.targets.signed if role == GRANTS else self.root.signed


def first_release(root: Metadata[Root]) -> Release:
    """An empty release of version 0, for `Release.write` to make version 1 of it."""
    release = Release(root, Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()), None)
    for document in (release.targets, release.snapshot, release.timestamp):
        document.signed.version = 0
    return release


def read_release(folder: Path) -> Release:
    """The release that `folder`/timestamp.json names, as it is written; `Release.check` judges it.

    Raises:
        SpecError: `no-repository`.
        TrustError: a document cannot be read.
        BoardError: a file is missing, or the disk fails.
    """
    root = read_document(latest_root(folder), Root)
    timestamp = read_document(folder / f"{TIMESTAMP}.json", Timestamp)
    snapshot = read_document(folder / f"{timestamp.signed.snapshot_meta.version}.{SNAPSHOT}.json", Snapshot)
    found = {}
    for role in (TARGETS, GRANTS):
        meta = snapshot.signed.meta.get(f"{role}.json")
        if meta is not None:
            found[role] = read_document(folder / f"{meta.version}.{role}.json", Targets)
    if TARGETS not in found:
        raise TrustError("the snapshot names no targets", where=str(folder))
    return Release(root, found[TARGETS], snapshot, timestamp, found.get(GRANTS))


def latest_root(folder: Path) -> Path:
    """The root document with the highest version in `folder`.

    Raises:
        SpecError: `no-repository`.
    """
    roots = {number: path for path in folder.glob("*.root.json") if (number := path.name.split(".")[0]).isdecimal()}
    if not roots:
        raise SpecError("there is no repository", where=str(folder.parent), reason="no-repository")
    return roots[max(roots, key=int)]


def read_document(path: Path, kind: type[T]) -> Metadata[T]:
    """A metadata document of the role `kind`, not yet judged.

    Raises:
        TrustError: it cannot be read, or is of another role.
        BoardError: it is missing, or the disk fails.
        ArtifactError: longer than 5 MB.
    """
    try:
        return parse_document(read_bounded(path, MAX_TARGETS_BYTES), kind, str(path))
    except FileNotFoundError as error:
        raise BoardError("repository file is missing", where=str(path)) from error


def parse_document(data: bytes, kind: type[T], where: str) -> Metadata[T]:
    """Like `read_document`, from bytes that come from `where`."""
    try:
        document: Metadata[T] = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise TrustError("repository metadata cannot be read", where=where) from error
    if not isinstance(document.signed, kind):
        raise TrustError("repository metadata is of another role", where=where)
    return document


def _sign(document: Document, signers: list[CryptoSigner], expires: datetime) -> bytes:
    document.signed.version += 1
    document.signed.expires = expires
    document.signatures.clear()
    for signer in signers:
        document.sign(signer, append=True)
    data = document.to_bytes()
    if len(data) > MAX_TARGETS_BYTES:
        raise SpecError(
            f"the {document.signed.type} document would be longer than the {MAX_TARGETS_BYTES} bytes that boards read",
            fix="Begin another repository",
            reason="repository-full",
        )
    return data


def _meta_file(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
