"""A life of the store, the journal, the publisher or a board that pulls, to be run under strace.

What it writes to the file given says what has been promised so far.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from agent.card import ModelCard, Preprocess
from agent.repository import Publisher, utc_now
from agent.store import Store
from agent.trust import ModelRepository
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


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a web server for the folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def board_life(folder: Path, promise: int) -> None:
    """Promises: the newest version fetched. The repository and its keys lie beside the folder."""
    web = folder.parent / "web"
    publisher = Publisher.open(web, folder.parent / "web-keys", utc_now)
    with serving(web) as url:
        for version in range(1, 3):
            publisher.publish(f"model {version}".encode(), card_of(version))
            board = ModelRepository(url, web / "metadata" / "1.root.json", folder)
            board.refresh()
            board.fetch(board.find("m"))
            os.write(promise, str(version).encode())


if __name__ == "__main__":
    name, folder, promises = sys.argv[1:]
    descriptor = os.open(promises, os.O_WRONLY | os.O_CREAT, 0o600)
    {"store": store_life, "journal": journal_life, "publisher": publisher_life, "board": board_life}[name](
        Path(folder), descriptor
    )
