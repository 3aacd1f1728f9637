"""A publisher with a web server and boards that read from it, all below one folder that may be copied."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from agent.card import ModelCard, Preprocess, Target
from agent.keys import DeviceIdentity, create_identity, load_identity
from agent.repository import Publisher
from agent.repository_folder import SignedFolder
from agent.repository_keys import KeyRing
from agent.trust import ModelRepository

MODEL = bytes(range(256)) * 40
NAME = "net"


def now() -> datetime:
    return datetime.now(UTC)


def card(version: str, model: bytes = MODEL) -> ModelCard:
    digest = hashlib.sha256(model).hexdigest()
    rule = Preprocess(1 / 127.5, -1.0)
    return ModelCard(NAME, version, 0, "image-classification", rule, (3, 96, 96), digest, len(model))


class Publication:
    """`repository`, `keys`, `sticks/<n>` (root keys), `root.json` (pinned) and `board` below `folder`."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = now) -> None:
        self.folder, self.clock = folder, clock
        self.repository, self.keys, self.pinned = folder / "repository", folder / "keys", folder / "root.json"

    def create(self, sticks: int = 0, threshold: int = 1) -> Publisher:
        publisher = Publisher.create(self.repository, self.keys, self.clock, self.sticks(*range(sticks)), threshold)
        self.pinned.write_bytes(publisher.root_path.read_bytes())
        create_identity(self.folder / "board" / "keys", "press-07")
        return publisher

    def sticks(self, *numbers: int) -> list[Path]:
        return [self.folder / "sticks" / str(number) for number in numbers]

    def publisher(self) -> Publisher:
        return Publisher.open(self.repository, self.keys, self.clock)

    def signed(self, *sticks: int) -> SignedFolder:
        return SignedFolder(self.repository, KeyRing(self.keys, self.sticks(*sticks)), self.clock)

    @property
    def identity(self) -> DeviceIdentity:
        return load_identity(self.folder / "board" / "keys")

    def board_opens(self, state: str, *versions: str) -> list[Target]:
        """The board whose state lies in `state` refreshes, finds these versions and opens its grant of each."""
        with serving(self.repository) as url:
            board = ModelRepository(url, self.pinned, self.folder / "board" / state, pause=lambda _: None)
            board.refresh()
            found = []
            for version in versions:
                target = board.find(NAME, version)
                board.grant(self.identity, target)
                found += [target]
            return found


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a static web server for `folder` on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.005))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
