"""Tuned models in two slots, A and B, and training checkpoints; all sealed with the board's own key.

    <folder>/slots/{a,b}/  model.sealed  manifest.json  good
    <folder>/slots/status.json  status.copy.json
    <folder>/frozen/<sha256>.sealed
    <folder>/checkpoints/<name>.sealed

A slot holds a whole model, or what was trained of it (agent/delta.py) and the name of the frozen weights, which both
slots may share. It is written while the status does not refer to it. `good` marks a slot that passed its trial: only
such slots are taken when the status is lost and has to be rebuilt.

    none | good(a)  --stage, activate-->  trial(b)  --mark_good-->  good(b)
                                          trial(b)  --roll_back-->  good(a) | none
                                          good(b)   --roll_back-->  good(a) | none
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

from agent.card import MAX_PLAINTEXT_BYTES, NAME
from agent.delta import DELTA_BROKEN, join
from agent.durable import (
    atomic_writer,
    disk_error,
    disk_errors,
    make_folder,
    remove,
    remove_partials,
    sync_folder,
    write_atomic,
)
from agent.errors import BoardError, SealedFileError, SpecError
from agent.frozen_blobs import FrozenBlobs, divide
from agent.keys_storage import unseal_with_any
from agent.sealed import Binding, Sealed, seal
from agent.slot_file import is_sealed_as, slot_binding, slot_file
from agent.slots import (
    GOOD,
    MAIN,
    MAX_MANIFEST_BYTES,
    MAX_REASON_CHARACTERS,
    SLOTS,
    STATUS_CORRUPT,
    Core,
    FrozenPart,
    SlotView,
    Status,
    checkpoint_path,
    level_status,
    read_active,
    read_manifest,
    read_status,
    sequence,
    view,
    write_status,
)
from agent.strict_json import canonical, loads
from policies.strict import build

MAX_CHECKPOINT_BYTES = 4 * MAX_PLAINTEXT_BYTES  # weights, two optimizer moments and a margin
MAX_CORE_BYTES = MAX_MANIFEST_BYTES - 1024  # the rest of the manifest is a hash and a length
_HASH_BYTES = 32


class Store:
    """The board's tuned models and checkpoints. One writer at a time: the worker.

    Args:
        folder: the daemon's state folder.
        storage_key: 32 bytes, from the board's identity; seals everything new.
        previous_keys: storage keys before it, which may still be needed to open what is there.

    Raises:
        BoardError: the disk fails.
    """

    def __init__(self, folder: Path, storage_key: bytes, *previous_keys: bytes) -> None:
        self._folder, self._key, self._keys = folder, storage_key, (storage_key, *previous_keys)
        self._slots, self._checkpoints = folder / "slots", folder / "checkpoints"
        self._frozen = FrozenBlobs(folder, self._keys)
        for path in (*(self._slots / slot for slot in SLOTS), self._checkpoints):
            make_folder(path)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    def recover(self) -> tuple[str, ...]:
        """Clear what a crash left; to be called once before anything else.

        A status that is damaged is taken from its copy. When both are, it is set aside as `status.corrupt` and
        rebuilt: active is the newest slot that was marked good and still verifies.

        Returns:
            What had to be rebuilt, in sentences for the log and the fleet console; empty when all was well.

        Raises:
            BoardError: the disk fails.
        """
        for folder in (self._slots, *(self._slots / slot for slot in SLOTS), self._checkpoints):
            remove_partials(folder)
        self._frozen.clear()
        try:
            told = level_status(self._folder)
        except BoardError as error:
            if error.code != STATUS_CORRUPT:
                raise
            return (f"{error}", self._rebuild())
        return (told, "mended from its other copy") if told else ()

    def stage(self, model: bytes, manifest: Mapping[str, object], frozen: Iterable[bytes] = ()) -> str:
        """Seal a tuned model into the slot that is not active.

        Args:
            model: the model file.
            manifest: JSON values that go with it (card, metrics, origin); bound to the sealed file.
            frozen: raw bytes of tensors that later models will have too. They are kept once for both slots, if the slot
                becomes smaller by `agent.frozen_blobs.LEAST_SAVING` for it.

        Returns:
            The slot, `a` or `b`.

        Raises:
            SpecError: `trial-open`: the active slot is on trial, its predecessor must stay; the model or manifest is
                too long, or the manifest is not JSON.
            BoardError: the disk fails or the status is corrupt; the active slot is untouched.
        """
        status = read_status(self._folder)
        if status.trial:
            raise SpecError("a tuned model is on trial", fix="Mark it good or roll it back", reason="trial-open")
        slot = "b" if status.active == "a" else "a"
        stored, blob, parts = divide(model, frozen)
        core = self._core(model, manifest, parts)
        level_status(self._folder)  # a copy that is ahead may speak of the slot that is written now
        if slot in status.in_use():
            write_status(self._folder, status.without(slot))
        folder = self._slots / slot
        remove(folder / GOOD)
        if parts:
            self._frozen.keep(blob)
        self._seal_slot(folder, stored, core)
        self._frozen.clear()
        return slot

    def activate(self, slot: str) -> SlotView:
        """Make a staged slot active, on trial; one rename.

        Raises:
            SpecError: `slot` is active already, or another one is on trial.
            SealedFileError: the slot is broken or empty; nothing changed.
            BoardError: the disk fails or the status is corrupt; nothing changed.
        """
        status = read_status(self._folder)
        if status.trial or status.active == slot or slot not in SLOTS:
            raise SpecError(f"slot {slot!r} cannot be activated", where=f"active: {status.active or 'none'}")
        self.load(slot)
        after = replace(status.without(slot), active=slot, previous=status.active, trial=True, rolled_back="")
        write_status(self._folder, after)
        return view(self._folder, after)

    def mark_good(self) -> None:
        """End the trial: the active slot stays.

        Raises:
            SpecError: nothing is active.
            BoardError: the disk fails or the status is corrupt.
        """
        status = read_status(self._folder)
        if not status.active:
            raise SpecError("no tuned model is active", reason="no-active-model")
        write_atomic(self._slots / status.active / GOOD, b"")
        if status.trial:
            write_status(self._folder, replace(status, trial=False))

    def roll_back(self, reason: str) -> SlotView | None:
        """Leave the active slot for the one before it, or for none.

        Args:
            reason: kept in the status, cut at 300 characters.

        Returns:
            The slot now active, or `None`: the base model runs.

        Raises:
            SpecError: nothing is active.
            SealedFileError: the slot before is broken too: nothing is active now, somebody has to look.
            BoardError: the disk fails or the status is corrupt.
        """
        status = read_status(self._folder)
        if not status.active:
            raise SpecError("no tuned model is active", reason="no-active-model")
        broken: SealedFileError | None = None
        if status.previous:
            try:
                self.load(status.previous)
            except SealedFileError as error:
                broken = error
        remove(self._slots / status.active / GOOD)
        active, told = "" if broken else status.previous, reason[:MAX_REASON_CHARACTERS]
        after = replace(status, active=active, previous="", trial=False, rolled_back=told)
        write_status(self._folder, after)
        if broken:
            raise broken
        return view(self._folder, after) if after.active else None

    def active(self) -> SlotView | None:
        """The active slot without its weights; raises like `read_active`."""
        return read_active(self._folder)

    def load_active(self) -> tuple[bytes, dict[str, object]]:
        """The active model file, unsealed in memory and verified, and its manifest.

        Raises:
            BoardError: `no-active-model`; `status-corrupt`; `disk`.
            SealedFileError: the slot does not verify.
        """
        status = read_status(self._folder)
        if not status.active:
            raise BoardError("no tuned model is active", reason="no-active-model")
        return self.load(status.active)

    def verifies(self, slot: str) -> bool:
        """Whether the model in a slot opens with the board's key and is the one its manifest is of.

        Raises:
            BoardError: the disk fails.
        """
        try:
            self.load(slot)
        except SealedFileError:
            return False
        return True

    def seal_checkpoint(self, name: str, data: bytes) -> Sealed:
        """Keep a training checkpoint; the one before it is replaced in one rename.

        Raises:
            SpecError: the name does not match `agent.card.NAME`, or more than 1 GiB.
            BoardError: the disk fails; the checkpoint before is as it was.
        """
        path = self._checkpoint_path(name)
        if len(data) > MAX_CHECKPOINT_BYTES:
            raise SpecError(f"checkpoint has {len(data)} bytes, at most {MAX_CHECKPOINT_BYTES}", reason="too-long")
        digest = hashlib.sha256(data)
        with atomic_writer(path) as stream:
            stream.write(digest.digest())
            return seal(io.BytesIO(data), stream, self._key, _checkpoint_binding(name, digest.hexdigest()))

    def open_checkpoint(self, name: str) -> bytes | None:
        """The checkpoint kept under this name, or `None`.

        Raises:
            SpecError: the name does not match `agent.card.NAME`.
            SealedFileError: it does not verify: start without it.
            BoardError: the disk fails.
        """
        try:
            return self._open_checkpoint(self._checkpoint_path(name), name)[0]
        except FileNotFoundError:
            return None

    def drop_checkpoint(self, name: str) -> None:
        """Forget a checkpoint; no matter whether there is one.

        Raises:
            SpecError: the name does not match `agent.card.NAME`.
            BoardError: the disk fails.
        """
        remove(self._checkpoint_path(name))

    def reseal(self) -> tuple[str, ...]:
        """Seal again, under the current key, what only a previous one opens; to be repeated after a crash.

        What opens with no key is left as it is: no key helps it.

        Returns:
            What was sealed again: `slot a`, `checkpoint <name>`.

        Raises:
            BoardError: the disk fails; what was not sealed again opens as before.
        """
        done = []
        for slot in SLOTS:
            try:
                read = read_manifest(self._folder, slot)
                stored, key = self._open_stored(slot, read.core)
                blob, blob_key = self._frozen.open(read.core.frozen) if read.core.frozen else (b"", self._key)
            except SealedFileError:
                continue
            if blob_key != self._key:
                self._frozen.keep(blob)
            path = self._slots / slot / "model.sealed"
            stale = key != self._key or not is_sealed_as(path, read.sealed_sha256)  # a crash may part the two files
            if stale:
                self._seal_slot(path.parent, stored, read.core)
            if stale or blob_key != self._key:
                done += [f"slot {slot}"]
        for path in sorted(self._checkpoints.glob("*.sealed")):
            with suppress(SealedFileError):
                data, key = self._open_checkpoint(path, path.stem)
                if key != self._key:
                    self.seal_checkpoint(path.stem, data)
                    done += [f"checkpoint {path.stem}"]
        return tuple(done)

    def opens_frozen(self, part: FrozenPart) -> bool:
        """Whether frozen weights that slots share open with the board's key.

        Raises:
            BoardError: the disk fails.
        """
        try:
            self._frozen.open(part)
        except SealedFileError:
            return False
        return True

    def _seal_slot(self, folder: Path, stored: bytes, core: Core) -> None:
        with atomic_writer(folder / "model.sealed") as stream:
            sealed = seal(io.BytesIO(stored), stream, self._key, slot_binding(core))
        table = {"core": core.table(), "sealed_sha256": sealed.sha256, "sealed_length": sealed.length}
        write_atomic(folder / "manifest.json", canonical(table))

    def _core(self, model: bytes, manifest: Mapping[str, object], parts: Mapping[str, object]) -> Core:
        if len(model) > MAX_PLAINTEXT_BYTES:
            raise SpecError(f"tuned model has {len(model)} bytes, at most {MAX_PLAINTEXT_BYTES}", reason="too-long")
        core = {
            "manifest": manifest,
            "plaintext_length": len(model),
            "plaintext_sha256": hashlib.sha256(model).hexdigest(),
            "sequence": 1 + max(sequence(self._folder, slot) for slot in SLOTS),
            **parts,
        }
        try:
            # Read back as it will be read from the disk: what is bound must be what is found there.
            read = loads(canonical(core), what="manifest", max_bytes=MAX_CORE_BYTES, error=SpecError)
        except (TypeError, ValueError) as error:
            raise SpecError(f"manifest is not JSON: {error}") from error
        return build(Core, cast("dict[str, object]", read))

    def _checkpoint_path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise SpecError(f"checkpoint name {name[:64]!r} does not match {NAME.pattern}")
        return checkpoint_path(self._folder, name)

    def load(self, slot: str) -> tuple[bytes, dict[str, object]]:
        """The model file in a slot and its manifest; raises like `load_active`."""
        core = read_manifest(self._folder, slot).core
        return self._open_slot(slot, core), core.manifest

    def _open_slot(self, slot: str, core: Core) -> bytes:
        stored, _ = self._open_stored(slot, core)
        if core.frozen is None:
            return stored
        model = join(stored, self._frozen.open(core.frozen)[0])
        if (len(model), hashlib.sha256(model).hexdigest()) != (core.plaintext_length, core.plaintext_sha256):
            raise SealedFileError(f"slot {slot} joins to another model", where=slot, reason=DELTA_BROKEN)
        return model

    def _open_stored(self, slot: str, core: Core) -> tuple[bytes, bytes]:
        with slot_file(self._slots / slot / "model.sealed") as stream:
            return unseal_with_any(stream, self._keys, slot_binding(core), core.stored()[1])

    def _open_checkpoint(self, path: Path, name: str) -> tuple[bytes, bytes]:
        try:
            with path.open("rb") as stream:
                binding = _checkpoint_binding(name, stream.read(_HASH_BYTES).hex())
                return unseal_with_any(stream, self._keys, binding, MAX_CHECKPOINT_BYTES)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise disk_error(error, path) from error

    def _rebuild(self) -> str:
        path = self._slots / MAIN
        with disk_errors(path):
            if path.exists():
                path.replace(path.with_name("status.corrupt"))
                sync_folder(self._slots)
        usable = [slot for slot in SLOTS if (self._slots / slot / GOOD).exists() and self.verifies(slot)]
        newest = max(usable, key=lambda slot: sequence(self._folder, slot), default="")
        previous = next((slot for slot in usable if slot != newest), "")
        write_status(self._folder, Status(active=newest, previous=previous))
        return f"status rebuilt from the slots: active is {newest or 'none, the base model runs'}"


def _checkpoint_binding(name: str, plaintext_sha256: str) -> Binding:
    return Binding(f"checkpoint/{name}", "1", plaintext_sha256)
