"""What the slots on disk say, read without a key: the status, and each slot's manifest.

`status.json` says which slot is active; it changes by one rename, so after any crash exactly one slot is active, or
none (the base model runs). `status.copy.json` is written just before it and believed only where `status.json` is
damaged: it then says the same, or, after a crash between the two, what was about to be said and was safe to say.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from agent.card import MAX_PLAINTEXT_BYTES, SHA256
from agent.durable import disk_errors, read_bounded, write_atomic
from agent.errors import ArtifactError, BoardError, SealedFileError
from agent.strict_json import canonical, loads
from policies.strict import TableError, build, limits

SLOTS = ("a", "b")
FROZEN_FOLDER = "frozen"  # beside the slots: weights that they share
GOOD = "good"  # marks a slot that passed its trial
MAIN, COPY = "status.json", "status.copy.json"
STATUS_CORRUPT = "status-corrupt"
MAX_STATUS_BYTES = 4096  # two names, a reason and a hash
MAX_MANIFEST_BYTES = 512 << 10  # a card with ten thousand labels
MAX_REASON_CHARACTERS = 300  # a sentence or two


@dataclass(frozen=True, slots=True)
class SlotView:
    """The active slot without its weights.

    Attributes:
        slot: `a` or `b`.
        trial: activated and not yet marked good.
        previous: slot to go back to; empty: back to no tuned model.
        manifest: what was given to `Store.stage`.
        plaintext_sha256: of the model file.
        sealed_sha256: of the sealed file.
    """

    slot: str
    trial: bool
    previous: str
    manifest: dict[str, object]
    plaintext_sha256: str
    sealed_sha256: str


@dataclass(frozen=True, slots=True)
class Status:
    """Which slot is active (empty: none), which one to go back to, and why the last one was left."""

    active: str = field(default="", metadata=limits(choices=("", *SLOTS)))
    previous: str = field(default="", metadata=limits(choices=("", *SLOTS)))
    trial: bool = False
    rolled_back: str = field(default="", metadata=limits(longest=MAX_REASON_CHARACTERS))
    staged: str = field(default="", metadata=limits(choices=("", *SLOTS)))
    """Holds a model that passed its gate and its self-test, and waits for somebody's word."""
    left: str = field(default="", metadata=limits(choices=("", *SLOTS)))
    """Holds a good model that somebody left; it can be gone back to, and is never taken by itself."""

    def __post_init__(self) -> None:
        if (self.active or self.trial) and self.active in {"", self.previous}:
            raise TableError("active", "is empty or the same as previous")
        for name in ("staged", "left"):
            if (slot := getattr(self, name)) and slot in (self.active, self.previous):
                raise TableError(name, "is in use")

    def table(self) -> dict[str, object]:
        """As it is written: what versions without `staged` and `left` can read wherever neither is set."""
        table = asdict(self)
        return {name: value for name, value in table.items() if value or name not in ("staged", "left")}

    def without(self, slot: str) -> Status:
        """The same, but that a slot that is not active holds nothing that could be asked for."""
        previous, staged, left = ("" if name == slot else name for name in (self.previous, self.staged, self.left))
        return replace(self, previous=previous, staged=staged, left=left)

    def in_use(self) -> tuple[str, ...]:
        """Slots that may be asked for: active, previous, staged, left."""
        return tuple(dict.fromkeys(filter(None, (self.active, self.previous, self.staged, self.left))))


def checkpoint_path(folder: Path, name: str) -> Path:
    """Where the checkpoint `name` lies below the state folder `folder` of the store."""
    return folder / "checkpoints" / f"{name}.sealed"


def read_status(folder: Path) -> Status:
    """The store's status; needs no key.

    Raises:
        BoardError: `status-corrupt`: neither copy verifies, or they are gone while good slots are there; `disk`.
    """
    try:
        return _read_main(folder)
    except BoardError as error:
        if error.code != STATUS_CORRUPT:
            raise
        try:
            return _read_file(folder / "slots" / COPY)
        except (FileNotFoundError, ArtifactError, TableError):
            raise error from None


def level_status(folder: Path) -> str:
    """Make both copies say what `read_status` says.

    Returns:
        What was damaged, as a sentence; empty where nothing was. Copies that differ after a crash are no damage.

    Raises:
        BoardError: like `read_status`; the disk fails.
    """
    told, copy = "", None
    try:
        _read_main(folder)
    except BoardError as error:
        if error.code != STATUS_CORRUPT:
            raise
        told = f"{error}"
    status = read_status(folder)
    try:
        copy = _read_file(folder / "slots" / COPY)
    except FileNotFoundError:
        pass  # an earlier version kept one copy
    except (ArtifactError, TableError) as error:
        told = f"the copy of the slot status was damaged: {error}"
    if told or (status != (copy or Status())):
        write_status(folder, status)
    return told


def read_active(folder: Path) -> SlotView | None:
    """The active slot, for display; needs no key and does not look at the weights.

    Raises:
        BoardError: see `read_status`.
        SealedFileError: `slot-broken`: the active slot's manifest is missing or broken.
    """
    status = read_status(folder)
    return view(folder, status) if status.active else None


def write_status(folder: Path, status: Status) -> None:
    """Switch the status in one rename, that of `status.json`.

    What `status` refers to must be whole already: from the first rename on, that of the copy, it may be believed.

    Raises:
        BoardError: the disk fails; the status is as it was.
    """
    table = status.table()
    checksum = hashlib.sha256(canonical(table)).hexdigest()
    for name in (COPY, MAIN):
        write_atomic(folder / "slots" / name, canonical({**table, "checksum": checksum}))


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """Frozen weights outside of a slot: hash and length of their plaintext."""

    sha256: str
    length: int = field(metadata=limits(1, MAX_PLAINTEXT_BYTES))

    def __post_init__(self) -> None:
        _check_hash("sha256", self.sha256)


@dataclass(frozen=True, slots=True)
class DeltaPart:
    """What a slot's sealed file holds in the place of a whole model: hash and length of its plaintext."""

    sha256: str
    length: int = field(metadata=limits(1, MAX_PLAINTEXT_BYTES))

    def __post_init__(self) -> None:
        _check_hash("sha256", self.sha256)


@dataclass(frozen=True, slots=True)
class Core:
    """What a slot's sealed file is bound to; `sequence` counts stagings, so the newest slot has the highest.

    `form` is `whole`, or `delta` with both its parts; the hash and length of the plaintext are the whole model's.
    """

    manifest: dict[str, object]
    plaintext_length: int = field(metadata=limits(0, MAX_PLAINTEXT_BYTES))
    plaintext_sha256: str
    sequence: int = field(metadata=limits(1, 2**53))
    form: str = field(default="whole", metadata=limits(choices=("whole", "delta")))
    delta: DeltaPart | None = None
    frozen: FrozenPart | None = None

    def __post_init__(self) -> None:
        _check_hash("plaintext_sha256", self.plaintext_sha256)
        if {self.delta is not None, self.frozen is not None} != {self.form == "delta"}:
            raise TableError("form", "does not fit the parts")

    def table(self) -> dict[str, object]:
        """As it is bound and written: a whole model's says nothing of forms, as before there were two."""
        table = asdict(self)
        if self.form == "whole":
            for name in ("form", "delta", "frozen"):
                del table[name]
        return table

    def stored(self) -> tuple[str, int]:
        """Hash and length of the plaintext of the slot's sealed file."""
        if self.delta is not None:
            return self.delta.sha256, self.delta.length
        return self.plaintext_sha256, self.plaintext_length


@dataclass(frozen=True, slots=True)
class Manifest:
    """A slot's manifest.json: the bound core, and the sealed file that was written for it."""

    core: Core
    sealed_sha256: str
    sealed_length: int


def read_manifest(folder: Path, slot: str) -> Manifest:
    """The manifest of a slot.

    Raises:
        SealedFileError: `slot-broken`: missing or broken.
        BoardError: the disk fails.
    """
    path = folder / "slots" / slot / "manifest.json"
    try:
        table = loads(read_bounded(path, MAX_MANIFEST_BYTES), what="manifest", max_bytes=MAX_MANIFEST_BYTES)
        return build(Manifest, cast("dict[str, object]", table if isinstance(table, dict) else {}))
    except (FileNotFoundError, ArtifactError, TableError) as error:
        raise SealedFileError(
            f"slot {slot} is empty or broken: {error}", where=str(path), reason="slot-broken"
        ) from error


def sequence(folder: Path, slot: str) -> int:
    """Number of the staging that filled the slot; 0 where it is empty or broken."""
    try:
        return read_manifest(folder, slot).core.sequence
    except SealedFileError:
        return 0


def view(folder: Path, status: Status) -> SlotView:
    """The active slot of `status`; raises like `read_manifest`."""
    read = read_manifest(folder, status.active)
    core = read.core
    return SlotView(
        status.active, status.trial, status.previous, core.manifest, core.plaintext_sha256, read.sealed_sha256
    )


def _check_hash(key: str, value: str) -> None:
    if not SHA256.fullmatch(value):
        raise TableError(key, "is not 64 hexadecimal digits")


def _read_main(folder: Path) -> Status:
    path = folder / "slots" / MAIN
    try:
        return _read_file(path)
    except FileNotFoundError:
        with disk_errors(folder):
            lost = any((folder / "slots" / slot / GOOD).exists() for slot in SLOTS)
        if lost:
            raise _corrupt(path, "is gone") from None
        return Status()
    except (ArtifactError, TableError) as error:
        raise _corrupt(path, str(error)) from error


def _read_file(path: Path) -> Status:
    return _checked_status(loads(read_bounded(path, MAX_STATUS_BYTES), what="status", max_bytes=MAX_STATUS_BYTES))


def _checked_status(table: object) -> Status:
    if not isinstance(table, dict):
        raise TableError("", "is not a table")
    checksum = table.pop("checksum", None)
    if checksum != hashlib.sha256(canonical(table)).hexdigest():
        raise TableError("checksum", "does not fit")
    return build(Status, table)


def _corrupt(path: Path, why: str) -> BoardError:
    return BoardError(
        f"slot status cannot be used: {why}",
        where=str(path),
        fix="It is mended before the next job",
        reason=STATUS_CORRUPT,
    )
