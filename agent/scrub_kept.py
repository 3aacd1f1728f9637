"""What a board keeps and must not lose to flipped bits: each file, who vouches for it, and what is left without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.card import MAX_PLAINTEXT_BYTES, NAME, SHA256, VERSION, target_path
from agent.durable import disk_errors, read_bounded, remove
from agent.errors import ArtifactError, BoardError, SealedFileError, TemperdError
from agent.repository_bounds import MAX_TARGETS_BYTES
from agent.scrub_read import sha256_on_disk
from agent.slots import FROZEN_FOLDER, GOOD, SLOTS, STATUS_CORRUPT, FrozenPart, read_manifest, read_status
from agent.store import Store
from agent.strict_json import loads

MAX_FILES = 10_000  # in one folder; a board keeps some dozens
MODEL = "model.sealed"

SLOT = "slot"  # kind of file: one key tells of all files of a slot together
DOWNLOADED, REMOVED, ROLLED_BACK, LEFT = "downloaded", "removed", "rolled-back", "left"


class Loss(NamedTuple):
    """What was done about a file that parity could not mend."""

    action: str
    """`downloaded`: whole again. `removed`, `rolled-back`, `left`: it is lost."""
    told: str


@dataclass(frozen=True, slots=True)
class Kept:
    """One file.

    Attributes:
        path: where it lies.
        kind: `base`, `frozen`, `slot` or `checkpoint`.
        sha256: what a signature or a manifest says it is, in hexadecimal; empty where nobody says.
        verifies: whether the board's key opens what is there; `None` where no key of the board's can tell.
        lose: called when it cannot be mended.
    """

    path: Path
    kind: str
    sha256: str
    verifies: Callable[[], bool] | None
    lose: Callable[[], Loss]


def kept_files(state: Path, store: Store, fetch: Callable[[str, str], None]) -> Iterator[Kept]:
    """All files, found as they are asked for: a manifest is mended before it is read to vouch for its model.

    Args:
        state: the daemon's state folder.
        store: the board's slots and checkpoints.
        fetch: downloads the base of this name and version, verified, or raises TemperdError.

    Raises:
        BoardError: the disk fails.
    """
    yield from _bases(state / "repository", fetch)
    yield from _frozen(state / "store", store)  # first: slots that share them are judged with them
    yield from _slots(state / "store", store)
    yield from _checkpoints(state / "store" / "checkpoints", store)


def _bases(repository: Path, fetch: Callable[[str, str], None]) -> Iterator[Kept]:
    signed = _signed_hashes(repository / "metadata" / "targets.json")
    for path in _files(repository / "bases"):
        name, _, version = path.name.removesuffix(".sealed").rpartition("-")
        if path.suffix == ".sealed" and NAME.fullmatch(name) and VERSION.fullmatch(version):
            sha256 = signed.get(target_path(name, version), "")
            yield Kept(path, "base", sha256, None, partial(_lose_base, path, name, version, fetch))


def _lose_base(path: Path, name: str, version: str, fetch: Callable[[str, str], None]) -> Loss:
    remove(path)  # first: whatever happens next, nobody takes it for a base
    try:
        fetch(name, version)
    except TemperdError as error:
        return Loss(REMOVED, f"it is downloaded with the next job that needs it; not now: {error}")
    return Loss(DOWNLOADED, "")


def _signed_hashes(path: Path) -> dict[str, str]:
    """Hashes by target path, from the metadata kept from the last refresh; empty where that cannot be read.

    Signatures are not checked again: flipped bits are looked for here, and every job verifies the metadata anew.
    """
    try:
        table = loads(read_bounded(path, MAX_TARGETS_BYTES), what="targets", max_bytes=MAX_TARGETS_BYTES)
    except (FileNotFoundError, ArtifactError):
        return {}
    targets = _table(_table(_table(table).get("signed")).get("targets"))
    hashes = {name: _table(_table(info).get("hashes")).get("sha256") for name, info in targets.items()}
    return {name: digest for name, digest in hashes.items() if isinstance(digest, str) and SHA256.fullmatch(digest)}


def _table(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _frozen(folder: Path, store: Store) -> Iterator[Kept]:
    """Frozen weights that slots share: all that are there, and those that manifests name and that are gone."""
    found = {path.name.removesuffix(".sealed") for path in _files(folder / FROZEN_FOLDER)}
    for sha256 in sorted(found | {name for slot in _slots_in_use(folder) if (name := _frozen_of(folder, slot))}):
        if SHA256.fullmatch(sha256):
            part = FrozenPart(sha256, MAX_PLAINTEXT_BYTES)  # the manifest that knows its length may be damaged
            path = folder / FROZEN_FOLDER / f"{sha256}.sealed"
            opens, lose = partial(store.opens_frozen, part), partial(_lose_frozen, folder, sha256, store)
            yield Kept(path, "frozen", "", opens, lose)


def _frozen_of(folder: Path, slot: str) -> str:
    try:
        part = read_manifest(folder, slot).core.frozen
    except SealedFileError:
        return ""
    return part.sha256 if part else ""


def _lose_frozen(folder: Path, sha256: str, store: Store) -> Loss:
    """All slots that share them are lost, the active one last."""
    slots, active = _slots_in_use(folder), _active(folder)
    losses = [
        _lose_slot(folder, slot, store)
        for slot in sorted(slots, key=lambda slot: slot == active)
        if _frozen_of(folder, slot) == sha256
    ]
    if not losses:
        return Loss(LEFT, "no slot in use needs it")
    return Loss(losses[-1].action, "; ".join(loss.told for loss in losses))


def _active(folder: Path) -> str:
    try:
        return read_status(folder).active
    except BoardError as error:
        if error.code != STATUS_CORRUPT:
            raise
        return ""


def _slots(folder: Path, store: Store) -> Iterator[Kept]:
    """The files of the slots in use; what a slot held before it was left is of no use to anybody."""
    for slot in _slots_in_use(folder):
        lose = partial(_lose_slot, folder, slot, store)
        for path in _files(folder / "slots" / slot):
            if path.name not in (GOOD, MODEL):
                yield Kept(path, SLOT, "", partial(_slot_is_whole, folder, slot, store), lose)
        try:
            sha256 = read_manifest(folder, slot).sealed_sha256
        except SealedFileError:
            sha256 = ""
        model = folder / "slots" / slot / MODEL
        if sha256 or model.exists():
            yield Kept(model, SLOT, sha256, partial(store.verifies, slot), lose)


def _slots_in_use(folder: Path) -> tuple[str, ...]:
    """Of a status that is broken nothing is believed: all good slots are mended before it is rebuilt from them."""
    try:
        status = read_status(folder)
    except BoardError as error:
        if error.code != STATUS_CORRUPT:
            raise
        return tuple(slot for slot in SLOTS if (folder / "slots" / slot / GOOD).exists())
    return status.in_use()


def _slot_is_whole(folder: Path, slot: str, store: Store) -> bool:
    """Whether the manifest fits its model, also in what no key binds."""
    if not store.verifies(slot):
        return False
    return read_manifest(folder, slot).sealed_sha256 == sha256_on_disk(folder / "slots" / slot / MODEL)


def _lose_slot(folder: Path, slot: str, store: Store) -> Loss:
    try:
        active = read_status(folder).active
    except BoardError as error:
        if error.code != STATUS_CORRUPT:
            raise
        return Loss(LEFT, f"slot {slot} will not be active when the status is rebuilt")
    if active != slot:
        return Loss(LEFT, f"slot {slot} cannot be gone back to")
    try:
        view = store.roll_back("broken slot")
    except SealedFileError as error:
        return Loss(ROLLED_BACK, f"the base model runs: the model before is broken too ({error})")
    return Loss(ROLLED_BACK, f"slot {view.slot} is active now" if view else "the base model runs")


def _checkpoints(folder: Path, store: Store) -> Iterator[Kept]:
    for path in _files(folder):
        name = path.name.removesuffix(".sealed")
        if path.suffix == ".sealed" and NAME.fullmatch(name):
            yield Kept(path, "checkpoint", "", partial(_opens, store, name), partial(_lose_checkpoint, store, name))


def _opens(store: Store, name: str) -> bool:
    try:
        return store.open_checkpoint(name) is not None
    except SealedFileError:
        return False


def _lose_checkpoint(store: Store, name: str) -> Loss:
    store.drop_checkpoint(name)
    return Loss(REMOVED, f"the training of job {name} starts over")


def _files(folder: Path) -> list[Path]:
    """Regular files, sorted; none where there is no folder.

    Raises:
        BoardError: the disk fails, or more than `MAX_FILES`.
    """
    with disk_errors(folder):
        if not folder.is_dir():
            return []
        found = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    if len(found) > MAX_FILES:
        raise BoardError(f"{len(found)} files, at most {MAX_FILES} are scrubbed", where=str(folder))
    return [path for path in found if not path.name.startswith(".")]
