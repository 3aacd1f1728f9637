"""The publisher's side of the model repository: a TUF repository as static files, made and extended on a laptop.

    <folder>/metadata/  1.root.json  <n>.targets.json  <n>.snapshot.json  timestamp.json
    <folder>/targets/   models/<name>/<sha256>.<version>.sealed   grants/<device>/<sha256>.<name>-<version>.json

Any web server may serve the folder. Private keys lie elsewhere, with one data key for each published version. Files are
written from the leaf to the root of trust, timestamp.json last: a board sees the old release or the new one.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner  # public, re-exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # public, re-exported without __all__
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.card import ModelCard, Target, grant_path, parse, target_path
from agent.durable import make_folder, read_bounded, write_atomic
from agent.errors import BoardError, SpecError, TrustError
from agent.keys import KEY_BYTES, PublicDocument, make_grant, parse_public_document, read_secret
from agent.sealed import Binding, seal

# The shorter a role's life, the sooner a board notices that it is shown an old repository; the root, kept offline and
# seldom signed, lives longest.
ROOT_LIFE = timedelta(days=365)
TARGETS_LIFE = timedelta(days=90)
SNAPSHOT_LIFE = timedelta(days=30)
TIMESTAMP_LIFE = timedelta(days=7)
MAX_METADATA_BYTES = 5_000_000  # what the TUF client reads of targets metadata
T = TypeVar("T", Root, Targets, Snapshot, Timestamp)
ROLES = ("root", "targets", "snapshot", "timestamp")


class Publisher:
    """A repository and the keys to extend it; one at a time for one folder.

    Args:
        folder: the repository.
        keys_folder: private keys, outside `folder`.
        clock: the present time with time zone UTC.

    Raises:
        SpecError: there is no repository in `folder`.
        TrustError: the folder's metadata is not signed by the repository's own keys: it was changed behind our back.
        BoardError: a file is missing or the disk fails.
    """

    def __init__(self, folder: Path, keys_folder: Path, clock: Callable[[], datetime]) -> None:
        self._folder, self._keys, self._clock = folder, keys_folder, clock
        _latest_root(folder)  # a wrong folder is told before wrong keys
        self._signers = {role: _load_signer(keys_folder / f"{role}.pem") for role in ROLES}
        self._load()

    @classmethod
    def create(cls, folder: Path, keys_folder: Path, clock: Callable[[], datetime]) -> Publisher:
        """Make keys (0600) and an empty repository.

        Raises:
            SpecError: there is one already, or the keys would be served with it.
            BoardError: the disk fails.
        """
        if keys_folder.resolve().is_relative_to(folder.resolve()):
            raise SpecError("private keys must lie outside the repository's folder", where=str(keys_folder))
        for path in (folder / "metadata", keys_folder / "root.pem"):
            if path.exists():
                raise SpecError("a repository or its keys exist already", where=str(path))
        for private in (keys_folder, keys_folder / "data"):
            make_folder(private)
        make_folder(folder / "metadata", 0o755)
        make_folder(folder / "targets", 0o755)
        signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        for role, signer in signers.items():
            write_atomic(keys_folder / f"{role}.pem", signer.private_bytes)
        _write_first_release(folder / "metadata", signers, clock())
        return cls(folder, keys_folder, clock)

    @classmethod
    def open(cls, folder: Path, keys_folder: Path, clock: Callable[[], datetime]) -> Publisher:
        """The repository that `create` made; raises like the class."""
        return cls(folder, keys_folder, clock)

    @property
    def root_path(self) -> Path:
        """The root document: copy this file to every board, where it is pinned."""
        return _latest_root(self._folder)

    def models(self) -> tuple[Target, ...]:
        """Every published model version."""
        found = self._targets.signed.targets.values()
        return tuple(_target(item) for item in found if item.path.startswith("models/"))

    def publish(self, model: bytes, card: ModelCard) -> Target:
        """Seal a model with a fresh data key and sign it in.

        Raises:
            SpecError: the version exists, or the card's hash or length is not that of `model`.
            BoardError: the disk fails; boards still see the release before.
        """
        path = target_path(card.name, card.version)
        if path in self._targets.signed.targets:
            raise SpecError(
                f"{card.name} {card.version} is published already",
                fix="A version never changes: raise the number",
                reason="version-exists",
            )
        if len(model) != card.plaintext_length or hashlib.sha256(model).hexdigest() != card.plaintext_sha256:
            raise SpecError("the card is not that of this model file", where=card.name, reason="card-mismatch")
        key = os.urandom(KEY_BYTES)
        write_atomic(self._data_key_path(card.name, card.version), key.hex().encode() + b"\n")
        sealed = io.BytesIO()
        seal(io.BytesIO(model), sealed, key, Binding(card.name, card.version, card.plaintext_sha256))
        return _target(self._add(path, sealed.getvalue(), card.to_table()))

    def grant(self, device: PublicDocument | Mapping[str, object], name: str, version: str) -> str:
        """Let a board open a published version; repeating it replaces the grant.

        Args:
            device: the board's public document.
            name: of the model.
            version: of the model.

        Returns:
            The grant's path among the targets.

        Raises:
            SpecError: no such version, or the document is broken.
            BoardError: the data key is missing, others may read it, or the disk fails.
        """
        document = device if isinstance(device, PublicDocument) else parse_public_document(device)
        target = self._targets.signed.targets.get(target_path(name, version))
        if target is None:
            known = ", ".join(f"{item.name} {item.version}" for item in self.models())
            raise SpecError(f"{name} {version} is not published; there is {known or 'nothing yet'}")
        key = bytes.fromhex(read_secret(self._data_key_path(name, version)).decode())
        path = grant_path(document.device, name, version)
        self._add(path, make_grant(document, key, target.hashes["sha256"]), None)
        return path

    def renew(self) -> None:
        """Sign the same content with new dates; due before the timestamp's seven days are over.

        Raises:
            BoardError: the disk fails; boards still see the release before, and so does this object.
        """
        try:
            self._release(self._clock())
        except BoardError:
            self._load()
            raise

    def _release(self, now: datetime) -> None:
        targets, snapshot, timestamp = self._targets, self._snapshot, self._timestamp
        targets.signed.expires = now + TARGETS_LIFE
        targets.signed.version += 1
        self._sign_and_write(targets, "targets", f"{targets.signed.version}.targets.json")
        snapshot.signed.expires = now + SNAPSHOT_LIFE
        snapshot.signed.version += 1
        snapshot.signed.meta["targets.json"] = MetaFile(targets.signed.version)
        self._sign_and_write(snapshot, "snapshot", f"{snapshot.signed.version}.snapshot.json")
        timestamp.signed.expires = now + TIMESTAMP_LIFE
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        self._sign_and_write(timestamp, "timestamp", "timestamp.json")

    def _load(self) -> None:
        metadata = self._folder / "metadata"
        self._root = _read(_latest_root(self._folder), Root)
        self._timestamp = _read(metadata / "timestamp.json", Timestamp)
        self._snapshot = _read(metadata / f"{self._timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        targets_version = self._snapshot.signed.meta["targets.json"].version
        self._targets = _read(metadata / f"{targets_version}.targets.json", Targets)
        self._check_signatures()

    def _add(self, path: str, data: bytes, custom: dict[str, object] | None) -> TargetFile:
        digest = hashlib.sha256(data).hexdigest()
        parent, _, name = path.rpartition("/")
        folder = self._folder / "targets" / parent
        make_folder(folder, 0o755)
        write_atomic(folder / f"{digest}.{name}", data, 0o644)
        extra = {} if custom is None else {"custom": custom}
        target = TargetFile(len(data), {"sha256": digest}, path, extra)
        self._targets.signed.targets[path] = target
        self.renew()
        return target

    def _sign_and_write(
        self, document: Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp], role: str, name: str
    ) -> None:
        document.sign(self._signers[role])
        write_atomic(self._folder / "metadata" / name, document.to_bytes(), 0o644)

    def _data_key_path(self, name: str, version: str) -> Path:
        return self._keys / "data" / f"{name}-{version}.key"

    def _check_signatures(self) -> None:
        root = self._root
        try:
            for role, document in (
                ("root", root),
                ("targets", self._targets),
                ("snapshot", self._snapshot),
                ("timestamp", self._timestamp),
            ):
                root.signed.verify_delegate(role, document.signed_bytes, document.signatures)
            for role, signer in self._signers.items():
                if signer.public_key.keyid not in root.signed.roles[role].keyids:
                    raise TrustError(f"the {role} key is not the one of this repository", where=str(self._keys))
        except RepositoryError as error:
            raise TrustError(f"repository was changed behind our back: {error}", where=str(self._folder)) from error


def _write_first_release(folder: Path, signers: Mapping[str, CryptoSigner], now: datetime) -> None:
    root = Root(expires=now + ROOT_LIFE, consistent_snapshot=True)
    for role, signer in signers.items():
        root.add_key(signer.public_key, role)
    documents: list[tuple[str, str, Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]]] = [
        ("root", "1.root.json", Metadata(root)),
        ("targets", "1.targets.json", Metadata(Targets(expires=now + TARGETS_LIFE))),
        ("snapshot", "1.snapshot.json", Metadata(Snapshot(expires=now + SNAPSHOT_LIFE))),
        ("timestamp", "timestamp.json", Metadata(Timestamp(expires=now + TIMESTAMP_LIFE))),
    ]
    for role, name, document in documents:
        document.sign(signers[role])
        write_atomic(folder / name, document.to_bytes(), 0o644)


def _latest_root(folder: Path) -> Path:
    roots = [path for path in (folder / "metadata").glob("*.root.json") if path.name.split(".")[0].isdecimal()]
    if not roots:
        raise SpecError("there is no repository", where=str(folder), reason="no-repository")
    return max(roots, key=lambda path: int(path.name.split(".")[0]))


def _read(path: Path, kind: type[T]) -> Metadata[T]:
    try:
        data = read_bounded(path, MAX_METADATA_BYTES)
        document: Metadata[T] = Metadata.from_bytes(data)
    except FileNotFoundError as error:
        raise BoardError("repository file is missing", where=str(path)) from error
    except RepositoryError as error:
        raise TrustError("repository metadata cannot be read", where=str(path)) from error
    if not isinstance(document.signed, kind):
        raise TrustError("repository metadata is of another role", where=str(path))
    return document


def _load_signer(path: Path) -> CryptoSigner:
    data = read_secret(path)
    try:
        return CryptoSigner(load_pem_private_key(data, None))
    except (ValueError, TypeError) as error:
        raise TrustError("publisher key cannot be read", where=str(path)) from error


def _target(item: TargetFile) -> Target:
    custom = item.custom
    if not isinstance(custom, Mapping):
        raise TrustError("a model without a card", where=item.path)
    card = parse(custom)
    return Target(card.name, card.version, item.path, item.hashes["sha256"], item.length, card)


def utc_now() -> datetime:
    """The clock of a laptop."""
    return datetime.now(UTC)
