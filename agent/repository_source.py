"""Where the check of a repository reads: a folder, or a web server as boards meet it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlsplit

from urllib3.exceptions import HTTPError

from agent.durable import disk_errors
from agent.errors import ArtifactError, NetworkError, SpecError
from agent.web import SlowPeerError, Web, network_error

ABSENT = frozenset(
    {HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND}
)  # a bucket that may not be listed says 403 of what it does not hold
READ_BYTES = 1 << 20


class FolderSource:
    """The folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """See `agent.repository_check.Source`."""
        pieces = self._pieces(path, max_bytes)
        return None if pieces is None else b"".join(pieces)

    def digest(self, path: str, max_bytes: int) -> tuple[int, str] | None:
        """See `agent.repository_check.Source`."""
        pieces = self._pieces(path, max_bytes)
        return None if pieces is None else _digest(pieces)

    def files(self) -> list[str]:
        """See `agent.repository_check.Source`."""
        with disk_errors(self._folder):
            return [p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if not p.is_dir()]

    def _pieces(self, path: str, max_bytes: int) -> Iterator[bytes] | None:
        file = self._folder / path
        with disk_errors(file):
            try:
                found = file.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not stat.S_ISREG(found.st_mode):
            raise ArtifactError("not a file", where=path, reason="not-a-file")
        return _bounded(_read(file), max_bytes, path)


class WebSource:
    """A web server or bucket.

    Raises:
        SpecError: the address is not http or https.
        ConfigError: that of the proxy is not.
    """

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise SpecError("repository address is not http or https", where=url)
        self._url = url.rstrip("/")
        self._web = Web(self._url)

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """See `agent.repository_check.Source`; NetworkError: unreachable, an HTTP error, or too slow."""
        pieces = self._pieces(path, max_bytes)
        first = next(pieces)
        return None if first is None else b"".join(piece for piece in pieces if piece is not None)

    def digest(self, path: str, max_bytes: int) -> tuple[int, str] | None:
        """Like `read`."""
        pieces = self._pieces(path, max_bytes)
        first = next(pieces)
        return None if first is None else _digest(piece for piece in pieces if piece is not None)

    def files(self) -> list[str]:
        """None: web servers do not list."""
        return []

    def _pieces(self, path: str, max_bytes: int) -> Iterator[bytes | None]:
        """First nothing for an absent file or no bytes for one that is there, then its bytes."""
        url = f"{self._url}/{quote(path)}"
        try:
            with self._web.get(url) as response:
                if response.status in ABSENT:
                    yield None
                    return
                if response.status != HTTPStatus.OK:
                    raise NetworkError(f"the server says HTTP status {response.status}", where=url)
                yield b""
                yield from _bounded(self._web.chunks(response), max_bytes, path)
        except (HTTPError, SlowPeerError) as error:
            raise network_error(error, url) from error


def _read(file: Path) -> Iterator[bytes]:
    with disk_errors(file), file.open("rb") as stream:
        while piece := stream.read(READ_BYTES):
            yield piece


def _bounded(pieces: Iterator[bytes], max_bytes: int, path: str) -> Iterator[bytes]:
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > max_bytes:
            raise ArtifactError(f"longer than {max_bytes} bytes", where=path, reason="too-long")
        yield piece


def _digest(pieces: Iterator[bytes]) -> tuple[int, str]:
    length, whole = 0, hashlib.sha256()
    for piece in pieces:
        length += len(piece)
        whole.update(piece)
    return length, whole.hexdigest()
