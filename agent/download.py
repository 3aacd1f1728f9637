"""One signed file over HTTP that survives broken connections and killed processes.

Bytes go to `<sha256>.part` as they come; the part's length is where the next request goes on. No ETag is asked for:
the name of the part says which whole is meant, and the hash of the whole decides at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

from agent.durable import disk_errors, sync_folder
from agent.errors import BoardError, NetworkError, TrustError
from agent.web import OK, BrokenOffError, Patience, SlowPeerError, Web, check_status

PART = ".part"
PROGRESS_BYTES = 1 << 20  # so many new bytes end a row of failures: a file's length bounds its requests
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


@dataclass(frozen=True, slots=True)
class Signed:
    """What the repository vouches for: `length` bytes with this hash, to be had at `url`."""

    url: str
    length: int
    sha256: str


class Downloads:
    """Signed files fetched into one folder; one process at a time fetches the same file.

    Args:
        folder: holds the parts; on the same file system as the destinations.
        web: where requests go.
        pause: sleeps for so many seconds.
    """

    def __init__(self, folder: Path, web: Web, pause: Callable[[float], None] = time.sleep) -> None:
        self._folder, self._web, self._pause = folder, web, pause

    def fetch(self, signed: Signed, path: Path) -> None:
        """Put the file at `path`, on the disk for good, going on where an earlier call was broken off.

        Parts of other files, left by calls that nobody repeated, are removed.

        Raises:
            NetworkError: unreachable, an HTTP error, cut off or too slow; what has come is kept for the next call.
            TrustError: `too-long` or `target-hash`; nothing of it is kept.
            BoardError: `no-space` or `disk`, and the part makes room; `busy`: another process fetches this file.
        """
        if not re.fullmatch("[0-9a-f]{64}", signed.sha256):  # becomes a file name
            raise TrustError("signed hash is not a SHA-256", where=signed.url)
        part = self._folder / f"{signed.sha256}{PART}"
        with disk_errors(part), _locked(part) as stream:
            try:
                self._complete(signed, stream)
                os.fsync(stream.fileno())
                part.replace(path)
            except BaseException as error:
                if isinstance(error, TrustError | OSError) or not os.fstat(stream.fileno()).st_size:
                    part.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)
            self._remove_stale()

    def _complete(self, signed: Signed, stream: io.FileIO) -> None:
        inherited = stream.seek(0, os.SEEK_END) > 0
        self._receive(signed, stream)
        if _is(signed, stream):
            return
        if inherited:  # a power cut leaves zeros in a part: once more, all of it
            stream.truncate(0)
            self._receive(signed, stream)
            if _is(signed, stream):
                return
        raise TrustError("what came is not what was signed", where=signed.url, reason="target-hash")

    def _receive(self, signed: Signed, stream: io.FileIO) -> None:
        """Ask until `signed.length` bytes are there."""
        patience, farthest = Patience(self._pause), stream.seek(0, os.SEEK_END)
        while True:
            try:
                self._ask(signed, stream)
            except (HTTPError, SlowPeerError, BrokenOffError) as error:
                length = stream.seek(0, os.SEEK_END)
                if length >= farthest + PROGRESS_BYTES:  # farther than ever: starting over again is no progress
                    patience.renew()
                    farthest = length
                patience.failed(error, signed.url)
            else:
                return

    def _ask(self, signed: Signed, stream: io.FileIO) -> None:
        """One request for what is missing."""
        offset = stream.seek(0, os.SEEK_END)
        if offset > signed.length:
            stream.truncate(0)
            offset = 0
        if offset == signed.length:
            return
        with self._web.get(signed.url, offset) as response:
            start = _start(response, offset, signed)
            if start != offset:
                stream.truncate(0)
            if start is None:
                raise BrokenOffError("repository does not go on where it was asked to")
            self._append(self._web.chunks(response), signed, stream)

    def _append(self, chunks: Iterator[bytes], signed: Signed, stream: io.FileIO) -> None:
        length = stream.seek(0, os.SEEK_END)
        for chunk in chunks:
            length += len(chunk)
            if length > signed.length:
                raise TrustError("the server sends more than was signed", where=signed.url, reason="too-long")
            rest = memoryview(chunk)
            while rest:
                rest = rest[stream.write(rest) or 0 :]
        if length < signed.length:
            raise BrokenOffError("connection to the repository was cut off")

    def _remove_stale(self) -> None:
        for other in self._folder.glob(f"*{PART}"):
            with contextlib.suppress(BoardError, OSError), _locked(other):  # one that is being fetched stays
                other.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[io.FileIO]:
    """The part, made where it was missing, for one process alone."""
    if part.is_symlink():
        part.unlink()
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with io.FileIO(descriptor, "r+") as stream:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(descriptor), part.stat())  # the other may have just renamed it
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise BoardError(
                "another process downloads this file",
                where=str(part),
                fix="Try again when it is done",
                reason="busy",
            )
        yield stream


def _start(response: urllib3.BaseHTTPResponse, offset: int, signed: Signed) -> int | None:
    """Where in the file the body begins; None: not where it was asked to."""
    if response.status == OK:
        declared = re.fullmatch("[0-9]{1,19}", response.headers.get("Content-Length", ""))
        if declared and int(declared[0]) < signed.length:  # such as the log-in page of a hotel: keep the part
            what = f"server has a file of {declared[0]} bytes, {signed.length} were signed"
            raise NetworkError(what, where=signed.url)
        return 0
    if response.status == PARTIAL_CONTENT and offset:
        said = response.headers.get("Content-Range", "")
        span = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", said)
        if span and int(span[1]) == offset and int(span[2]) < signed.length and span[3] in {"*", str(signed.length)}:
            return offset
    if response.status in {PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE}:
        return None
    check_status(response, signed.url)
    return None


def _is(signed: Signed, stream: io.FileIO) -> bool:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").hexdigest() == signed.sha256
