"""The publisher's side of the model repository: a TUF repository as static files, made and extended on a laptop.

    <folder>/metadata/  <n>.root.json  <n>.targets.json  <n>.grants.json  <n>.snapshot.json  timestamp.json
    <folder>/targets/   models/<name>/<sha256>.<version>.sealed   grants/<device>/<sha256>.<name>-<version>.json
                        agent/<version>/<sha256>.temperd-<version>-py<python>-<arch>.tar.gz

Any web server may serve the folder; private keys lie elsewhere. In rooms of their own:

repository_keys     private keys, as far as they are at hand
repository_release  the documents that boards see together, and the order in which they are written
repository_folder   what is in force in a folder, and how the next release comes into force
repository_files    sealed models and grants as files
repository_root     rotation of keys
repository_check    what a board would say of it
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from tuf.api.metadata import TargetFile  # public, re-exported without __all__

from agent.card import ModelCard, Target, grant_path, parse, target_path
from agent.durable import remove_partials, write_atomic
from agent.errors import SpecError, TrustError
from agent.keys import KEY_BYTES, PublicDocument, make_grant, parse_public_document, read_secret
from agent.repository_files import store_sealed, store_small
from agent.repository_folder import SignedFolder
from agent.repository_keys import GRANTS, TARGETS, TIMESTAMP, KeyRing
from agent.repository_release import TARGETS_LIFE, TIMESTAMP_LIFE, latest_root
from agent.sealed import Sealed

__all__ = ["TARGETS_LIFE", "TIMESTAMP_LIFE", "Publisher", "utc_now"]


class Publisher:
    """A repository and the keys to extend it; one at a time for one folder.

    Args:
        folder: the repository.
        keys_folder: private keys, outside `folder`.
        clock: the present time with time zone UTC.

    Attributes:
        signed: the documents in force.

    Raises:
        SpecError: there is no repository in `folder`.
        TrustError: the folder's metadata is not signed by the repository's own keys: it was changed behind our back; or
            the keys are of another repository.
        BoardError: a file or the timestamp's key is missing, or the disk fails.
    """

    def __init__(self, folder: Path, keys_folder: Path, clock: Callable[[], datetime]) -> None:
        self._data_keys = keys_folder / "data"
        self.signed = SignedFolder(folder, KeyRing(keys_folder), clock)
        self.signed.signers(TIMESTAMP)  # without it nothing comes into force

    @classmethod
    def create(
        cls,
        folder: Path,
        keys_folder: Path,
        clock: Callable[[], datetime],
        root_folders: Sequence[Path] = (),
        root_threshold: int = 1,
    ) -> Publisher:
        """Make keys (0600) and an empty repository.

        Args:
            folder: the repository.
            keys_folder: private keys, outside `folder`.
            clock: the present time with time zone UTC.
            root_folders: one root key is made in each; none: one, in `keys_folder`.
            root_threshold: root keys that have to sign a change of keys.

        Raises:
            SpecError: there is one already, keys would be served with it, or the threshold cannot be met.
            BoardError: the disk fails.
        """
        SignedFolder.create(folder, KeyRing(keys_folder, root_folders), clock, root_threshold)
        return cls(folder, keys_folder, clock)

    @classmethod
    def open(cls, folder: Path, keys_folder: Path, clock: Callable[[], datetime]) -> Publisher:
        """The repository that `create` made; raises like the class."""
        return cls(folder, keys_folder, clock)

    @property
    def root_path(self) -> Path:
        """The root document: copy this file to every board, where it is pinned."""
        return latest_root(self.signed.metadata)

    def models(self) -> tuple[Target, ...]:
        """Every published model version."""
        found = self.signed.release.targets.signed.targets.values()
        return tuple(_target(item) for item in found if item.path.startswith("models/"))

    def publish(self, model: bytes | BinaryIO, card: ModelCard) -> Target:
        """Seal a model with a fresh data key and sign it in.

        Args:
            model: the file, or a stream of it that is read once.
            card: describes it.

        Raises:
            SpecError: `version-exists`; `card-mismatch`: the card's hash or length is not that of `model`.
            BoardError: a key is missing or the disk fails; boards still see the release before.
        """
        path = target_path(card.name, card.version)
        if path in self.signed.release.targets.signed.targets:
            raise SpecError(
                f"{card.name} {card.version} is published already",
                fix="A version never changes: raise the number",
                reason="version-exists",
            )
        self.signed.signers(TARGETS)  # told before the work is done
        table = card.to_table()
        key = os.urandom(KEY_BYTES)
        remove_partials(self._data_keys)  # a data key that a crash left
        write_atomic(self._data_key_path(card.name, card.version), key.hex().encode() + b"\n")
        stream = io.BytesIO(model) if isinstance(model, bytes) else model
        sealed = store_sealed(self.signed.folder / "targets", path, stream, key, card)
        target = _file(path, sealed, {"custom": table})
        self.signed.release.targets.signed.targets[path] = target
        self.signed.commit({TARGETS})
        return _target(target)

    def grant(self, device: PublicDocument | Mapping[str, object], name: str, version: str) -> str:
        """Let a board open a published version; repeating it replaces the grant.

        Needs the keys of grants, snapshot and timestamp, and the data key; not that of the targets.

        Args:
            device: the board's public document.
            name: of the model.
            version: of the model.

        Returns:
            The grant's path among the targets.

        Raises:
            SpecError: no such version, or the document is broken.
            BoardError: a key is missing, others may read it, or the disk fails.
        """
        document = device if isinstance(device, PublicDocument) else parse_public_document(device)
        target = self.signed.release.targets.signed.targets.get(target_path(name, version))
        if target is None:
            known = ", ".join(f"{item.name} {item.version}" for item in self.models())
            raise SpecError(f"{name} {version} is not published; there is {known or 'nothing yet'}")
        key = bytes.fromhex(read_secret(self._data_key_path(name, version)).decode())
        path = grant_path(document.device, name, version)
        self.add_grant(path, make_grant(document, key, target.hashes["sha256"]))
        return path

    def add_grant(self, path: str, data: bytes) -> None:
        """Sign `data` in as the grant at `path`; raises like `grant`."""
        self.signed.signers(TARGETS if self.signed.release.grants is None else GRANTS)  # told before the work is done
        stored = store_small(self.signed.folder / "targets", path, data)
        moved = self.signed.delegate_grants()
        grants = self.signed.release.grants
        assert grants is not None  # delegated above
        grants.signed.targets[path] = _file(path, stored, {})
        self.signed.commit({GRANTS, TARGETS} if moved else {GRANTS})

    def renew(self) -> None:
        """Sign the same content with new dates; due before the timestamp's seven days are over.

        Raises:
            BoardError: the disk fails; boards still see the release before, and so does this object.
        """
        self.signed.renew()

    def _data_key_path(self, name: str, version: str) -> Path:
        return self._data_keys / f"{name}-{version}.key"


def _file(path: str, stored: Sealed, extra: dict[str, object]) -> TargetFile:
    return TargetFile(stored.length, {"sha256": stored.sha256}, path, extra)


def _target(item: TargetFile) -> Target:
    custom = item.custom
    if not isinstance(custom, Mapping):
        raise TrustError("a model without a card", where=item.path)
    card = parse(custom)
    return Target(card.name, card.version, item.path, item.hashes["sha256"], item.length, card)


def utc_now() -> datetime:
    """The clock of a laptop."""
    return datetime.now(UTC)
