"""A life of the store, the journal or the publisher, to be run under strace.

What it writes to the file given says what has been promised so far.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from agent.card import ModelCard, Preprocess
from agent.repository import Publisher, utc_now
from agent.store import Store
from service.journal import Journal

KEY = bytes(range(32))
MODELS = {"": b"", "one": b"model one" * 500, "two": b"model two" * 700, "three": b"model three" * 100}
CHECKPOINTS = {"": b"", "c1": b"first" * 2000, "c2": b"second" * 1500}


def store_life(folder: Path, promise: int) -> None:
    """Promises: the active model, and the checkpoint."""
    store = Store(folder, KEY)
    store.activate(store.stage(MODELS["one"], {}))
    store.mark_good()
    os.write(promise, b"one,")
    store.seal_checkpoint("job", CHECKPOINTS["c1"])
    os.write(promise, b"one,c1")
    slot = store.stage(MODELS["two"], {})
    os.write(promise, b"one,c1")
    store.activate(slot)
    os.write(promise, b"two,c1")
    store.seal_checkpoint("job", CHECKPOINTS["c2"])
    os.write(promise, b"two,c2")
    store.roll_back("asked")
    os.write(promise, b"one,c2")
    store.drop_checkpoint("job")
    os.write(promise, b"one,")
    store.activate(store.stage(MODELS["three"], {}))
    store.mark_good()
    os.write(promise, b"three,")


def journal_life(folder: Path, promise: int) -> None:
    """Promises: the number of the last session."""
    for _ in range(3):
        journal = Journal.open(folder / "journal.db", 0.0).journal
        for _ in range(4):
            os.write(promise, str(journal.next_session()).encode())
        journal.close()


def card_of(version: int) -> ModelCard:
    """A card for the model `b"model <version>"`."""
    model = f"model {version}".encode()
    return ModelCard(
        name="m",
        version=str(version),
        security_floor=0,
        task="image-classification",
        preprocess=Preprocess(1.0, 0.0),
        input_shape=(3, 8, 8),
        plaintext_sha256=hashlib.sha256(model).hexdigest(),
        plaintext_length=len(model),
    )


def publisher_life(folder: Path, promise: int) -> None:
    """Promises: the number of versions published."""
    publisher = Publisher.open(folder / "repository", folder / "keys", utc_now)
    for version in range(1, 4):
        publisher.publish(f"model {version}".encode(), card_of(version))
        os.write(promise, str(version).encode())


if __name__ == "__main__":
    name, folder, promises = sys.argv[1:]
    descriptor = os.open(promises, os.O_WRONLY | os.O_CREAT, 0o600)
    {"store": store_life, "journal": journal_life, "publisher": publisher_life}[name](Path(folder), descriptor)
