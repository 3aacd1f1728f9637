"""Making another model active by somebody's word: back to one that ran before, or on to one that is staged.

Needs no key: which slots can be asked for, and the one rename that switches. Whoever switches has opened the model and
tried it first, see `agent.promote.change_over`.

    active(b), previous(a)  --back to a-->      active(a), left(b)
    active(a), left(b)      --back to b-->      active(b), previous(a)
    active(b), previous(a)  --back to base-->   none active, left(b)
    active(a), staged(b)    --on to b-->        active(b), previous(a)
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from agent.durable import remove, write_atomic
from agent.errors import SealedFileError, SpecError
from agent.slots import (
    GOOD,
    MAX_REASON_CHARACTERS,
    SLOTS,
    Status,
    level_status,
    read_manifest,
    read_status,
    sequence,
    write_status,
)

BASE = "base"
"""In the place of a model's hash: no tuned model."""
NO_MODEL, NO_SLOT, WRONG_STATE = "no-active-model", "no-such-slot", "wrong-state"


@dataclass(frozen=True, slots=True)
class Way:
    """From one model to another: hashes of their plaintext; empty where no tuned model runs."""

    before: str | None
    """`None`: the slot that is active is broken."""
    after: str


def way_back(folder: Path, to: str = "") -> Way:
    """Where going back leads.

    Args:
        folder: of the store.
        to: hash of a model, `BASE`, or empty: the model before the active one, else the base.

    Raises:
        SpecError: `no-active-model`: there is nothing to leave. `no-such-slot`: no slot holds such a model that ran
            before. `wrong-state`: that model is active.
        SealedFileError: `slot-broken`: the slot before is.
        BoardError: see `agent.slots.read_status`.
    """
    status = read_status(folder)
    before = _before(folder, status)
    if not to:
        if not status.active:
            raise SpecError("no tuned model is active, the base model runs already", reason=NO_MODEL)
        return Way(before, _sha256(folder, status.previous))
    if to == before or (to == BASE and not status.active):
        raise SpecError("that model runs already", reason=WRONG_STATE)
    if to == BASE:
        return Way(before, "")
    slot_of(folder, to, (status.previous, status.left))
    return Way(before, to)


def way_on(folder: Path, job: str) -> Way:
    """Where promoting the staged model of `job` leads.

    Raises:
        SpecError: `no-such-slot`: no model of that job is staged, or another one was staged since. `wrong-state`: it
            is active.
        SealedFileError, BoardError: see `agent.slots.read_status`.
    """
    status = read_status(folder)
    if staged := staged_by(folder, job):
        return Way(_before(folder, status), staged[1])
    if status.active and _job(folder, status.active) == job:
        raise SpecError(f"the model of job {job} is active", reason=WRONG_STATE)
    what = f"no model of job {job} waits to be promoted"
    raise SpecError(what, fix="A later job may have taken its slot", reason=NO_SLOT)


def staged_by(folder: Path, job: str) -> tuple[str, str] | None:
    """Slot and hash of the model of `job` that is staged; `None`: there is none.

    Raises:
        BoardError: see `agent.slots.read_status`.
    """
    slot = read_status(folder).staged
    with suppress(SealedFileError):
        if slot and _job(folder, slot) == job:
            return slot, _sha256(folder, slot)
    return None


def slot_of(folder: Path, sha256: str, among: Iterable[str]) -> str:
    """The slot of `among` that holds the model with this hash.

    Raises:
        SpecError: `no-such-slot`: none does.
        BoardError: the disk fails.
    """
    for slot in filter(None, among):
        with suppress(SealedFileError):
            if read_manifest(folder, slot).core.plaintext_sha256 == sha256:
                return slot
    raise SpecError(f"no slot holds a good model {sha256[:64]}", reason=NO_SLOT)


def stage(folder: Path, slot: str) -> None:
    """Say that the model in `slot`, which is not active, waits for somebody's word.

    Raises:
        BoardError: the disk fails or the status is corrupt; nothing changed.
    """
    write_status(folder, replace(read_status(folder).without(slot), staged=slot))


def switch_back(folder: Path, slot: str, reason: str) -> None:
    """Leave the active model for that of another slot, or for the base where `slot` is empty.

    Doing it again after a crash at any step is doing it once: the status changes by one rename.

    Args:
        folder: of the store.
        slot: was tried; is not active.
        reason: kept in the status.

    Raises:
        BoardError: the disk fails or the status is corrupt; what was active still is, or `slot` is.
    """
    level_status(folder)
    status = read_status(folder)
    if slot and slot == status.left and sequence(folder, slot) > sequence(folder, status.active) > 0:
        switch_on(folder, slot)  # what was left by mistake: all is as it was before
        return
    # The marks first: should the status be lost from here on, then what is rebuilt is what was asked for.
    if slot:
        write_atomic(folder / "slots" / slot / GOOD, b"")
    for other in SLOTS:
        if other != slot:
            remove(folder / "slots" / other / GOOD)
    left = status.active or status.left
    after = replace(status.without(slot), active=slot, previous="", left="" if left == slot else left)
    write_status(folder, replace(after, rolled_back=reason[:MAX_REASON_CHARACTERS]))


def switch_on(folder: Path, slot: str) -> None:
    """Make a newer model active; the one before it can be gone back to.

    Raises:
        BoardError: the disk fails or the status is corrupt; what was active still is, or `slot` is.
    """
    level_status(folder)
    status = read_status(folder)
    write_atomic(folder / "slots" / slot / GOOD, b"")
    write_status(folder, replace(status.without(slot), active=slot, previous=status.active, rolled_back=""))


def _job(folder: Path, slot: str) -> object:
    return read_manifest(folder, slot).core.manifest.get("job")


def _before(folder: Path, status: Status) -> str | None:
    try:
        return _sha256(folder, status.active)
    except SealedFileError:
        return None


def _sha256(folder: Path, slot: str) -> str:
    return read_manifest(folder, slot).core.plaintext_sha256 if slot else ""
