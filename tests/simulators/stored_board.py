"""A state folder as a board keeps it, small: a base, two tuned models and a checkpoint. Only the network is made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from agent.durable import write_atomic
from agent.errors import NetworkError
from agent.scrub import Report, Scrub
from agent.scrub_kept import kept_files
from agent.scrub_read import unhurried
from agent.slots import read_status
from agent.store import Store

KEY = bytes(range(32))
MODEL_A, MODEL_B = b"model of slot a" * 900, b"model of slot b" * 900
BASE = b"sealed base bytes" * 1000


class Board:
    """A state folder with a base, two slots and a checkpoint; parity is made by the first scrub."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.base = folder / "repository" / "bases" / "colours-1.0.sealed"
        self.fetched: list[tuple[str, str]] = []
        self.network = False
        if self.base.parent.exists():
            return
        self.base.parent.mkdir(parents=True)
        self.base.write_bytes(BASE)
        self.sign(hashlib.sha256(BASE).hexdigest())
        store = self.store()
        for model in (MODEL_A, MODEL_B):
            store.activate(store.stage(model, {"name": "colours"}))
            store.mark_good()
        store.seal_checkpoint("job", b"weights and moments" * 500)

    def sign(self, sha256: str) -> None:
        path = self.state / "repository" / "metadata" / "targets.json"
        path.parent.mkdir(exist_ok=True)
        targets = {"models/colours/1.0.sealed": {"hashes": {"sha256": sha256}, "length": len(BASE)}}
        path.write_text(json.dumps({"signed": {"targets": targets}, "signatures": []}))

    def store(self) -> Store:
        return Store(self.state / "store", KEY)

    def fetch(self, name: str, version: str) -> None:
        self.fetched.append((name, version))
        if not self.network:
            raise NetworkError("unreachable")
        write_atomic(self.base, BASE)

    def scrub(self, **changes: Callable[..., str]) -> Report:
        walk = Scrub(self.state, unhurried, **changes)
        store = self.store()
        walk.run(kept_files(self.state, store, self.fetch))
        walk.mended_status(store.recover())
        return walk.report

    def active(self) -> str:
        return read_status(self.state / "store").active

    def file(self, name: str) -> Path:
        return {
            "base": self.base,
            "model": self.state / "store" / "slots" / "b" / "model.sealed",
            "model before": self.state / "store" / "slots" / "a" / "model.sealed",
            "manifest": self.state / "store" / "slots" / "b" / "manifest.json",
            "checkpoint": self.state / "store" / "checkpoints" / "job.sealed",
        }[name]

    def parity(self, name: str) -> Path:
        return Scrub(self.state, unhurried).parity_of(self.file(name))


def flip(path: Path, place: int = -100) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def destroy(path: Path) -> None:
    """More damage than parity can mend."""
    path.write_bytes(bytes(len(path.read_bytes())))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
