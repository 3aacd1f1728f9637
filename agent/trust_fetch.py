"""How the repository's metadata comes to the board: patiently over the web, durably to the disk, or from what is kept.

python-tuf judges; here is what it leaves to others: attempts at a download, synced writes, one writer at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from tuf.api import exceptions
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater
from urllib3.exceptions import HTTPError

from agent.durable import disk_errors, remove_partials, write_atomic
from agent.errors import NetworkError, TrustError
from agent.repository_bounds import (
    MAX_DELEGATIONS,
    MAX_ROOT_BYTES,
    MAX_ROOT_ROTATIONS,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
)
from agent.web import BrokenOffError, Patience, SlowPeerError, Web, check_status

NOT_FOUND = 404
_BOUNDS = UpdaterConfig(
    max_root_rotations=MAX_ROOT_ROTATIONS,
    max_delegations=MAX_DELEGATIONS,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_TARGETS_BYTES,
)


class DurableUpdater(Updater):
    """python-tuf's client, whose files are whole and synced before the next one is asked for.

    A file that was damaged since does not verify and counts as missing: the client fetches it again. What the others
    still prove, such as the version of the targets in a kept snapshot, is not rolled back then.

    Args:
        url: of the folder that holds metadata/ and targets/.
        metadata: where the client keeps what it has seen.
        root: the pinned root document.
        fetcher: where documents come from.
        now: seconds since 1970; what is valid until before then is expired.
    """

    def __init__(self, url: str, metadata: Path, root: bytes, fetcher: FetcherInterface, now: float) -> None:
        where = (str(metadata), f"{url}/metadata/", None, f"{url}/targets/")
        super().__init__(*where, fetcher, _BOUNDS, bootstrap=root)
        self._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)

    def _persist_file(self, filename: str, data: bytes) -> None:
        write_atomic(Path(filename), data)


@contextlib.contextmanager
def only_writer(metadata: Path) -> Iterator[None]:
    """The folder of metadata for one process alone; the others wait for it, which bounds on downloads bound.

    What writers killed in it left behind is removed.

    Raises:
        BoardError: `disk`.
    """
    with disk_errors(metadata):
        descriptor = os.open(metadata, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with disk_errors(metadata):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for folder in (metadata, metadata / "root_history"):
            remove_partials(folder)
        yield
    finally:
        os.close(descriptor)


class WebFetcher(FetcherInterface):
    """Metadata and grants, spooled beside the state: the system's folder for temporary files may be memory.

    Args:
        spool: folder for files without a name.
        web: where requests go.
        pause: sleeps for so many seconds.
    """

    def __init__(self, spool: Path, web: Web, pause: Callable[[float], None]) -> None:
        self._spool, self._web, self._pause = spool, web, pause

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Chunks of the body as they arrive, so that a trickle is noticed."""
        with self._web.get(url) as response:
            if response.status in {403, NOT_FOUND}:  # how the client learns that there is no newer root
                raise exceptions.DownloadHTTPError(f"HTTP status {response.status}", response.status)
            check_status(response, url)
            yield from self._web.chunks(response)

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """See FetcherInterface: the body of at most `max_length` bytes as a temporary file, after some attempts."""
        patience = Patience(self._pause)
        with tempfile.TemporaryFile(dir=self._spool) as body:
            while True:
                try:
                    self._receive(url, max_length, body)
                    break
                except (HTTPError, SlowPeerError, BrokenOffError) as error:
                    patience.failed(error, url)
            body.seek(0)
            yield body

    def _receive(self, url: str, max_length: int, body: IO[bytes]) -> None:
        body.seek(0)
        body.truncate()
        received = 0
        for chunk in self._fetch(url):
            received += len(chunk)
            if received > max_length:
                raise exceptions.DownloadLengthMismatchError(f"more than {max_length} bytes")
            body.write(chunk)


class KeptFetcher(FetcherInterface):
    """Answers from the metadata kept on the board, as a server would that has nothing newer.

    The client judges it as if it came over the network, so that what is expired or damaged is refused all the same.

    Args:
        metadata: where the client keeps what it has seen.
        unreachable: what is raised for a document that is not kept.
    """

    def __init__(self, metadata: Path, unreachable: NetworkError) -> None:
        self._metadata, self._unreachable = metadata, unreachable

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name.endswith("root.json"):
            raise exceptions.DownloadHTTPError("no newer root is kept", NOT_FOUND)
        path = self._metadata / re.sub(r"^[0-9]+\.", "", name)
        try:
            stream = path.open("rb")
        except OSError as error:
            raise self._unreachable from error
        with stream:
            yield stream.read(MAX_TARGETS_BYTES)


_TRUST_CODES: tuple[tuple[type[Exception], str, str], ...] = (
    (exceptions.ExpiredMetadataError, "metadata-expired", "metadata is expired: an old repository, or a wrong clock"),
    (exceptions.BadVersionNumberError, "metadata-rollback", "metadata is older than what was seen before"),
    (exceptions.UnsignedMetadataError, "metadata-unsigned", "metadata is not signed by the keys the root names"),
    (exceptions.LengthOrHashMismatchError, "target-hash", "what came is not what was signed"),
)


def trust_error(error: Exception, where: str) -> TrustError:
    """A refusal by TUF in temperd's words."""
    for kind, code, what in _TRUST_CODES:
        if isinstance(error, kind):
            return TrustError(what, where=f"{where}: {error}", reason=code)
    return TrustError("repository is refused", where=f"{where}: {error}")
