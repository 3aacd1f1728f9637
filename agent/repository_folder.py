"""A repository's folder with the keys at hand: what is in force there, and how the next release comes into force."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import CryptoSigner  # public, re-exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # public, re-exported without __all__

from agent.durable import make_folder, write_atomic
from agent.errors import SpecError, TemperdError, TrustError
from agent.repository_keys import GRANTS, ONLINE, ROLES, ROOT, SNAPSHOT, TARGETS, TIMESTAMP, KeyRing
from agent.repository_release import LIVES, Release, first_release, latest_root, read_document, read_release

DUE_PART = 2  # renewed in the second half of its life: a daily run may be missed for days
URGENT_PART = 6  # what could not be renewed is an error in the last sixth: two months of the root, a day of timestamp


@dataclass(frozen=True, slots=True)
class RoleState:
    """How long a role's document counts.

    Attributes:
        role: its name.
        version: of its document.
        expires: from then on boards refuse it.
        renewed: it was signed anew just now.
        problem: it is due and could not be renewed, and why; else empty.
        urgent: `problem` must not wait any longer.
    """

    role: str
    version: int
    expires: datetime
    renewed: bool
    problem: str = ""
    urgent: bool = False


class SignedFolder:
    """The documents in force below `folder`, for one writer at a time.

    Args:
        folder: the repository.
        keys: as many keys as are at hand.
        clock: the present time with time zone UTC.

    Raises:
        SpecError: there is no repository in `folder`.
        TrustError: the documents are not signed by the repository's own keys: they were changed behind our back.
        BoardError: a file is missing or the disk fails.
    """

    def __init__(self, folder: Path, keys: KeyRing, clock: Callable[[], datetime]) -> None:
        self.folder, self.keys, self.clock = folder, keys, clock
        self.metadata = folder / "metadata"
        self.release: Release
        self.load()

    @classmethod
    def create(cls, folder: Path, keys: KeyRing, clock: Callable[[], datetime], root_threshold: int) -> SignedFolder:
        """Make keys and an empty release; root keys lie in `keys.root_folders`, or with the others where none is given.

        Raises:
            SpecError: there is a repository or a key already, a key would be served, or the threshold cannot be met.
            BoardError: the disk fails.
        """
        root_folders = keys.root_folders or (keys.folder,)
        _check_fresh(folder, keys, root_folders, root_threshold)
        make_folder(keys.folder)
        make_folder(keys.folder / "data")
        make_folder(folder / "metadata", 0o755)
        make_folder(folder / "targets", 0o755)
        now = clock()
        root = Metadata(Root(expires=now + LIVES[ROOT], consistent_snapshot=True))
        for place in root_folders:
            root.signed.add_key(keys.make(ROOT, place).public_key, ROOT)
        root.signed.roles[ROOT].threshold = root_threshold
        for role in ONLINE:
            root.signed.add_key(keys.make(role, keys.folder).public_key, role)
        for signer in keys.find(ROOT, root.signed.roles[ROOT].keyids):
            root.sign(signer, append=True)
        release = first_release(root)
        release.delegate_grants(keys.make(GRANTS, keys.folder))
        release.write(folder / "metadata", {TARGETS, GRANTS}, lambda role: keys.need(role, release.keyids(role)), now)
        # The root comes last: a folder without one is no repository yet.
        write_atomic(folder / "metadata" / "1.root.json", root.to_bytes(), 0o644)
        return cls(folder, keys, clock)

    def load(self) -> None:
        """Read again what is on the disk; raises like the class."""
        latest_root(self.metadata)
        release = read_release(self.metadata)
        waiting = self.waiting()
        also = waiting.signed if waiting is not None and is_complete(release.root.signed, waiting) else None
        try:
            # A release under way to new keys, cut off before its root was there, counts as well.
            release.check(also)
        except RepositoryError as error:
            raise TrustError(f"repository was changed behind our back: {error}", where=str(self.folder)) from error
        self.release = release

    def signers(self, role: str) -> list[CryptoSigner]:
        """The role's keys at hand; raises like `KeyRing.need`."""
        return self.keys.need(role, self.release.keyids(role))

    def commit(self, roles: AbstractSet[str], signers: Callable[[str], list[CryptoSigner]] | None = None) -> None:
        """Bring changed documents into force.

        Args:
            roles: the roles whose documents changed; what follows from them is signed as well.
            signers: gives the keys of a role; `None`: those that are in force.

        Raises:
            SpecError: `repository-full`.
            BoardError: a key is missing or the disk fails. Boards see the release before, and so does this object.
            TrustError: a key is of another repository.
        """
        try:
            self.release.write(self.metadata, roles, signers or self.signers, self.clock())
        except TemperdError:
            self.load()
            raise

    def waiting(self) -> Metadata[Root] | None:
        """The root document that waits for signatures, or for the end of a rotation that was cut off."""
        path = self.waiting_path()
        return read_document(path, Root) if path is not None else None

    def waiting_path(self) -> Path | None:
        """Where it lies: only the version after the one in force can wait."""
        here = int(latest_root(self.metadata).name.split(".")[0])
        path = self.keys.pending / f"{here + 1}.root.json"
        return path if path.exists() else None

    def renew(self) -> None:
        """Sign everything but the root with new dates, due or not; raises like `commit`."""
        self.delegate_grants()
        self.commit({TARGETS, GRANTS})

    def delegate_grants(self) -> bool:
        """Give the grants of an older repository a role of their own, to come with the next commit; was it needed?"""
        if self.release.grants is not None:
            return False
        self.keys.need(TARGETS, self.release.keyids(TARGETS))
        self.release.delegate_grants(self.keys.make(GRANTS, self.keys.folder))
        return True

    def refresh(self) -> list[RoleState]:
        """Sign anew what is in the second half of its life, as far as its keys are at hand; the root is not touched.

        Raises:
            BoardError: the disk fails; boards see the release before.
            TrustError: a key file is broken.
        """
        now = self.clock()
        due = {role for role in self._roles() if self._is_due(role, now)}
        at_hand = {role for role in self._roles() if self.keys.find(role, self.release.keyids(role))}
        renewable = due & at_hand
        if not {SNAPSHOT, TIMESTAMP} <= at_hand:  # without them a new document cannot come into force
            renewable &= {TIMESTAMP} & at_hand
        if TARGETS in at_hand and {SNAPSHOT, TIMESTAMP} <= at_hand and self.delegate_grants():
            renewable |= {TARGETS, GRANTS}
        before = {role: document.signed.version for role, document in self.release.documents()}
        if renewable:
            self.commit(renewable)
        return [self.state(role, now, before.get(role, 0)) for role, _ in self.release.documents()]

    def state(self, role: str, now: datetime, version_before: int) -> RoleState:
        """How a role stands, seen from the version it had before."""
        signed = dict(self.release.documents())[role].signed
        renewed = signed.version > version_before
        due = self._is_due(role, now)
        left = signed.expires - now
        return RoleState(
            role,
            signed.version,
            signed.expires,
            renewed,
            f"due, and its key is not at hand: {self.keys.folder}" if due else "",
            due and left < LIVES[role] / URGENT_PART,
        )

    def _roles(self) -> list[str]:
        return [role for role, _ in self.release.documents() if role != ROOT]

    def _is_due(self, role: str, now: datetime) -> bool:
        expires: datetime = dict(self.release.documents())[role].signed.expires
        return expires - now < LIVES[role] / DUE_PART


def is_complete(previous: Root, root: Metadata[Root]) -> bool:
    """Enough keys of the root before and of this one have signed it, and it is the next one."""
    if root.signed.version != previous.version + 1:
        return False
    return bool(root.signed.get_root_verification_result(previous, root.signed_bytes, root.signatures))


def _check_fresh(folder: Path, keys: KeyRing, root_folders: tuple[Path, ...], threshold: int) -> None:
    for place in (keys.folder, *root_folders):
        if place.resolve().is_relative_to(folder.resolve()):
            raise SpecError("private keys must lie outside the repository's folder", where=str(place))
    if len({place.resolve() for place in root_folders}) < len(root_folders):
        raise SpecError("a folder for root keys is named twice", fix="Give each root key a folder of its own")
    if not 1 <= threshold <= len(root_folders):
        raise SpecError(f"{threshold} of {len(root_folders)} root keys cannot sign", where="root threshold")
    for path in (folder / "metadata").glob("*.root.json"):
        raise SpecError("there is a repository already", where=str(path))
    for path in [path for role in ROLES for path in keys.paths(role)]:
        raise SpecError(
            "there are keys already",
            where=str(path),
            fix="Of another repository: take another folder. Left by an init that was cut off: remove them",
        )
