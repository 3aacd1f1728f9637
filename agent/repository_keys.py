"""The publisher's private keys: a file each, named after its role and found by key id.

    <keys>/targets.pem            the first key of a role
    <keys>/targets-1f2e3d4c.pem   a later one; the digits begin its key id
    <keys>/retired/               what the repository names no more
    <keys>/data/                  one data key for each published version
    <keys>/pending/2.root.json    a root document that waits for signatures; it is not served

Root keys may lie in folders of their own, such as USB sticks: a folder that is not there is a stick not plugged in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner  # public, re-exported without __all__

from agent.durable import disk_errors, make_folder, only_holder, remove_partials, sync_folder, write_atomic
from agent.errors import BoardError, SpecError, TrustError
from agent.keys_files import read_secret

ROOT, TARGETS, SNAPSHOT, TIMESTAMP, GRANTS = "root", "targets", "snapshot", "timestamp", "grants"
ROLES = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP, GRANTS)
ONLINE = (TARGETS, SNAPSHOT, TIMESTAMP)  # what the root names besides itself
MAX_KEYS = 64  # files of one role in one folder: a rotation leaves one at most
SHORT_KEYID = 8  # digits of a key id in file names
_NAME = re.compile(rf"({'|'.join(ROLES)})(-[0-9a-f]{{{SHORT_KEYID}}})?\.pem")


class KeyRing:
    """Private keys as far as they are at hand.

    Args:
        folder: the publisher's keys folder.
        root_folders: where root keys lie besides; those that do not exist are passed over.
    """

    def __init__(self, folder: Path, root_folders: Sequence[Path] = ()) -> None:
        self.folder, self.root_folders = folder, tuple(root_folders)

    @property
    def pending(self) -> Path:
        """Folder of the root document that waits for signatures."""
        return self.folder / "pending"

    def find(self, role: str, keyids: Collection[str]) -> list[CryptoSigner]:
        """The role's keys with these ids that are at hand, sorted by id.

        Raises:
            BoardError: `key-permissions` or `disk`.
            TrustError: a key file is broken.
        """
        signers = {s.public_key.keyid: s for _, s in self._all(role) if s.public_key.keyid in keyids}
        return [signers[keyid] for keyid in sorted(signers)]

    def need(self, role: str, keyids: Collection[str]) -> list[CryptoSigner]:
        """Like `find`, at least one.

        Raises:
            BoardError: `key-missing`: there is no key file of this role; or see `find`.
            TrustError: there are some, of another repository; or see `find`.
        """
        found = self.find(role, keyids)
        if found:
            return found
        if self.paths(role):
            raise TrustError(f"the {role} key is not the one of this repository", where=str(self.folder))
        raise BoardError(
            f"the {role} key is missing",
            where=str(self.folder / f"{role}.pem"),
            fix=f"This needs the machine that holds it; lost for good: temperd repo rotate {role}",
            reason="key-missing",
        )

    def paths(self, role: str) -> list[Path]:
        """The role's key files, wherever they lie.

        Raises:
            BoardError: `disk`.
            SpecError: more than 64 in one folder.
        """
        found: list[Path] = []
        for folder in (self.folder, *self.root_folders) if role == ROOT else (self.folder,):
            with disk_errors(folder):
                named = sorted(path for path in folder.glob(f"{role}*.pem") if _NAME.fullmatch(path.name))
            if len(named) > MAX_KEYS:
                raise SpecError(f"more than {MAX_KEYS} {role} keys in one folder", where=str(folder))
            found += [path for path in named if path not in found]
        return found

    def folder_of(self, keyid: str) -> Path | None:
        """Where the root key with this id lies; `None`: not at hand. Raises like `find`."""
        return next((path.parent for path, signer in self._all(ROOT) if signer.public_key.keyid == keyid), None)

    def make(self, role: str, folder: Path) -> CryptoSigner:
        """A new key, mode 0600, named after the role alone where that name is free.

        Raises:
            BoardError: the disk fails.
        """
        signer = CryptoSigner.generate_ed25519()
        make_folder(folder)
        remove_partials(folder)  # half a private key that a crash left
        path = folder / f"{role}.pem"
        if path.exists():
            path = folder / _long_name(role, signer)
        write_atomic(path, signer.private_bytes)
        return signer

    def retire(self, role: str, keyids: Collection[str]) -> None:
        """Put the role's keys with other ids than these aside. None is deleted: that is for people to decide.

        Raises:
            BoardError: the disk fails; what was moved stays moved, the rest is moved the next time.
            TrustError: a key file is broken.
        """
        for path, signer in self._all(role):
            if signer.public_key.keyid in keyids:
                continue
            aside = path.parent / "retired"
            make_folder(aside)
            with disk_errors(path):
                path.replace(aside / _long_name(role, signer))
                sync_folder(aside)
                sync_folder(path.parent)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the keys folder: two publications at once would lose one of them.

        Raises:
            BoardError: `busy`, or the disk fails.
        """
        make_folder(self.folder)
        busy = BoardError("another publication is under way", where=str(self.folder), fix="Wait for it", reason="busy")
        with only_holder(self.folder / "lock", busy):
            yield

    def _all(self, role: str) -> list[tuple[Path, CryptoSigner]]:
        return [(path, _load(path)) for path in self.paths(role)]


def _long_name(role: str, signer: CryptoSigner) -> str:
    return f"{role}-{signer.public_key.keyid[:SHORT_KEYID]}.pem"


def _load(path: Path) -> CryptoSigner:
    data = read_secret(path)
    try:
        return CryptoSigner(load_pem_private_key(data, None))
    except (ValueError, TypeError) as error:
        raise TrustError("publisher key cannot be read", where=str(path)) from error
