"""Frozen weights that slots share when they hold deltas: `<store>/frozen/<sha256>.sealed`, named by their content.

A file is written before any manifest names it and removed when no manifest does, so power cuts leave a file too many
at worst, which the next `recover` clears.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.delta import split
from agent.durable import atomic_writer, disk_error, disk_errors, make_folder, remove, remove_partials
from agent.errors import SealedFileError
from agent.keys_storage import unseal_with_any
from agent.sealed import Binding, seal
from agent.slots import FROZEN_FOLDER, SLOTS, FrozenPart, read_manifest

SUFFIX = ".sealed"
LEAST_SAVING = 0.3  # of a whole model's bytes; for less, slots had better depend on nothing but themselves


def divide(model: bytes, frozen: Iterable[bytes]) -> tuple[bytes, bytes, dict[str, object]]:
    """What a slot stores of a model, the frozen weights that it shares, and the fields of `Core` that tell of both.

    Returns:
        Delta, frozen weights and fields; or the model, nothing and no fields where a delta saves too little.
    """
    delta, blob = split(model, frozen)
    if len(delta) > (1 - LEAST_SAVING) * len(model):
        return model, b"", {}
    return delta, blob, {"form": "delta", "delta": _part(delta), "frozen": _part(blob)}


class FrozenBlobs:
    """The shared files of one store.

    Args:
        folder: the store's folder.
        keys: storage keys, 32 bytes each; the first seals.
    """

    def __init__(self, folder: Path, keys: Sequence[bytes]) -> None:
        self._store, self._folder, self._keys = folder, folder / FROZEN_FOLDER, keys

    def keep(self, blob: bytes) -> None:
        """Write frozen weights, unless they are there and open with the current key.

        Raises:
            BoardError: the disk fails; what was there is as it was.
        """
        part = FrozenPart(hashlib.sha256(blob).hexdigest(), len(blob))
        try:
            if self.open(part)[1] == self._keys[0]:
                return
        except SealedFileError:
            pass  # missing or damaged: written anew
        make_folder(self._folder)
        with atomic_writer(self._path(part.sha256)) as stream:
            seal(io.BytesIO(blob), stream, self._keys[0], _binding(part.sha256))

    def open(self, part: FrozenPart) -> tuple[bytes, bytes]:
        """Frozen weights, and the key that opened them.

        Raises:
            SealedFileError: missing or they do not verify.
            BoardError: the disk fails.
        """
        path = self._path(part.sha256)
        try:
            with path.open("rb") as stream:
                return unseal_with_any(stream, self._keys, _binding(part.sha256), part.length)
        except FileNotFoundError as error:
            raise SealedFileError("frozen weights are missing", where=str(path), reason="slot-broken") from error
        except OSError as error:
            raise disk_error(error, path) from error

    def clear(self) -> None:
        """Remove what a killed writer left and what no manifest names.

        A manifest that is there and cannot be read may be mended, so nothing is removed while there is one.

        Raises:
            BoardError: the disk fails.
        """
        if not self._folder.is_dir():
            return
        remove_partials(self._folder)
        named = set()
        for slot in SLOTS:
            try:
                part = read_manifest(self._store, slot).core.frozen
            except SealedFileError:
                if (self._store / "slots" / slot / "manifest.json").exists():
                    return
            else:
                named |= {part.sha256} if part else set()
        with disk_errors(self._folder):
            found = sorted(self._folder.glob(f"*{SUFFIX}"))
        for path in found:
            if path.name.removesuffix(SUFFIX) not in named:
                remove(path)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{SUFFIX}"


def _part(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "length": len(data)}


def _binding(sha256: str) -> Binding:
    return Binding("slot/frozen-weights", "1", sha256)
