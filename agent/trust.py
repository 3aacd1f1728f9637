"""The board's side of the model repository: what the pinned root of trust vouches for, and nothing else.

Metadata is judged by python-tuf's client (rollback, freeze, mix-and-match, thresholds); this room bounds what is read,
keeps the files, and says in temperd's errors what went wrong.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import urllib3
from tuf.api import exceptions
from tuf.api.metadata import Metadata, TargetFile, Targets  # public, without __all__
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from agent.card import Target, grant_path, parse, target_path, version_key
from agent.download import OK, Downloads, Signed
from agent.durable import disk_error, make_folder, read_bounded
from agent.errors import (
    ConfigError,
    GrantError,
    NetworkError,
    SealedFileError,
    SpecError,
    TemperdError,
    TrustError,
)
from agent.keys import MAX_GRANT_BYTES, DeviceIdentity, open_grant
from agent.sealed import sealed_length
from agent.web import SlowPeerError, Web, network_error

MAX_ROOT_BYTES = 64 << 10  # four keys and their signatures have 3 KB
MAX_TIMESTAMP_BYTES = 16 << 10  # one entry has 500 bytes
MAX_SNAPSHOT_BYTES = 64 << 10  # one entry has 500 bytes; room for delegations
MAX_TARGETS_BYTES = 5_000_000  # a card with a feature vector has 30 KB: some 150 models
MAX_ROOT_ROTATIONS = 32  # a rotation a year outlives the board


class ModelRepository:
    """Verified models from one repository.

    Args:
        url: of the folder that holds metadata/ and targets/, http or https.
        pinned_root: the root document put on the board when it was set up.
        state_dir: kept here: metadata/ (which metadata was seen) and bases/ (sealed models).
        monotonic: clock for download deadlines, in seconds.
        pause: sleeps between two attempts at a download, seconds.

    Raises:
        ConfigError: the address, or that of the proxy, is not http or https, or the pinned root is missing.
        TrustError: the pinned root is broken.
        BoardError: the disk fails.
    """

    def __init__(
        self,
        url: str,
        pinned_root: Path,
        state_dir: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigError("repository address is not http or https", where=url)
        self._url = url.rstrip("/")
        self._metadata, self._bases = state_dir / "metadata", state_dir / "bases"
        for folder in (self._metadata, self._bases):
            make_folder(folder)
        try:
            self._root = read_bounded(pinned_root, MAX_ROOT_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(
                "pinned root of the repository is missing",
                where=str(pinned_root),
                fix="Copy the publisher's metadata/1.root.json there",
            ) from error
        web = Web(self._url, monotonic)
        self._fetcher, self._downloads = _Fetcher(state_dir, web), Downloads(self._bases, web, pause)
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and verify the present metadata.

        Raises:
            NetworkError: unreachable, an HTTP error, or too slow.
            TrustError: `metadata-expired`, `metadata-rollback`, `metadata-unsigned`, `too-long`, or another refusal.
            BoardError: the disk fails.
        """
        config = UpdaterConfig(
            max_root_rotations=MAX_ROOT_ROTATIONS,
            root_max_length=MAX_ROOT_BYTES,
            timestamp_max_length=MAX_TIMESTAMP_BYTES,
            snapshot_max_length=MAX_SNAPSHOT_BYTES,
            targets_max_length=MAX_TARGETS_BYTES,
        )
        with self._judged("metadata"):
            updater = Updater(
                str(self._metadata),
                f"{self._url}/metadata/",
                str(self._bases),
                f"{self._url}/targets/",
                self._fetcher,
                config,
                bootstrap=self._root,
            )
            updater.refresh()
        self._updater = updater

    def find(self, name: str, version: str = "latest", board: str = "") -> Target:
        """The published model; `latest` is the highest by `card.version_key` among those for `board`.

        Withdrawn versions (security floor below the highest published for the name) do not count.

        Args:
            name: of the model.
            version: a version, or `latest`.
            board: name of the board's profile; empty: not asked.

        Raises:
            SpecError: `unknown-model` with the nearest names, `unknown-version` with the versions there are,
                `other-board`.
            TrustError: `below-security-floor`, a card that is wrong, or see `refresh`, which is done where it was not.
            NetworkError, BoardError: see `refresh`.
        """
        versions = self._versions(name)
        if version == "latest":
            return self._latest(name, versions, board)
        target = versions.get(version)
        if target is None:
            there = ", ".join(sorted(versions, key=version_key, reverse=True))
            raise SpecError(f"{name} has no version {version!r}; there is {there}", reason="unknown-version")
        if target.card.security_floor < _floor(versions):
            raise TrustError(
                f"{name} {version} is withdrawn: its security floor is below {_floor(versions)}",
                fix="Use a newer version",
                reason="below-security-floor",
            )
        if not _fits(target, board):
            boards = ", ".join(target.card.boards)
            raise SpecError(f"{name} {version} is for {boards}, not for {board}", reason="other-board")
        return target

    def fetch(self, target: Target) -> Path:
        """The sealed model on disk, verified against the signed hash now; downloaded only where it has to be.

        Raises:
            NetworkError: unreachable, an HTTP error, cut off, or too slow; the next call goes on from there.
            TrustError: `target-hash` or `too-long`: what came is not what was signed.
            BoardError: `no-space`, `disk` or `busy`; an older file of this version is as it was.
        """
        path = self._bases / f"{target.name}-{target.version}.sealed"
        info = self._signed(target.path)
        with self._judged(target.path):
            if self._current().find_cached_target(info, str(path)) is None:
                self._download(info, path)
        verify_sealed(path, target)
        return path

    def grant(self, identity: DeviceIdentity, target: Target) -> bytes:
        """The data key of `target`, 32 bytes, from this board's grant.

        Raises:
            GrantError: `grant-missing`, or a code of `agent.keys.open_grant`.
            NetworkError, TrustError, BoardError: see `fetch`.
        """
        path = grant_path(identity.device, target.name, target.version)
        with self._judged(path):
            info = self._current().get_targetinfo(path)
        if info is None or info.length > MAX_GRANT_BYTES:
            raise GrantError(
                f"no grant of {target.name} {target.version} for device {identity.device}",
                fix=f"Publish it again: temperd publish ... --for {identity.device}.device.json",
                reason="grant-missing",
            )
        with self._judged(path), tempfile.TemporaryDirectory(dir=self._bases) as scratch:
            wrapped = Path(self._current().download_target(info, str(Path(scratch, "grant")))).read_bytes()
        return open_grant(identity, wrapped, target.sealed_sha256)

    def _current(self) -> Updater:
        if self._updater is None:
            self.refresh()
        assert self._updater is not None  # refresh sets it or raises
        return self._updater

    def _versions(self, name: str) -> dict[str, Target]:
        updater = self._current()
        with self._judged("metadata"):
            # The client lists no targets: names come from the file it keeps, all that counts from the client itself.
            listed: Metadata[Targets] = Metadata.from_file(str(self._metadata / "targets.json"))
            paths = [path.split("/") for path in listed.signed.targets]
            names = {parts[1] for parts in paths if parts[0] == "models" and len(parts) == 3}  # noqa: PLR2004 - models/name/file
            own = [parts[2].removesuffix(".sealed") for parts in paths if parts[:2] == ["models", name]]
            signed = {version: updater.get_targetinfo(target_path(name, version)) for version in own}
        found = {version: _target(info, name, version) for version, info in signed.items() if info is not None}
        if not found:
            near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5) or sorted(names)[:10]
            there = ", ".join(near) or "no model at all"
            raise SpecError(f"the repository has no model {name[:64]!r}; there is {there}", reason="unknown-model")
        return found

    def _latest(self, name: str, versions: Mapping[str, Target], board: str) -> Target:
        floor = _floor(versions)
        usable = [item for item in versions.values() if item.card.security_floor >= floor and _fits(item, board)]
        if not usable:
            raise SpecError(f"no version of {name} is for {board}", reason="other-board")
        return max(usable, key=lambda item: version_key(item.version))

    def _signed(self, path: str) -> TargetFile:
        with self._judged(path):
            info = self._current().get_targetinfo(path)
        if info is None:
            raise TrustError("the repository no longer vouches for this file", where=path)
        return info

    def _download(self, info: TargetFile, path: Path) -> None:
        # The client's own `download_target` begins anew each time; address and name are its, for consistent snapshots.
        folder, _, name = info.path.rpartition("/")
        digest = info.hashes.get("sha256", "")
        url = f"{self._url}/targets/{folder}/{digest}.{name}"
        self._downloads.fetch(Signed(url, info.length, digest), path)

    @contextlib.contextmanager
    def _judged(self, what: str) -> Iterator[None]:
        """The one seam where exceptions of TUF, HTTP and the disk become temperd's."""
        try:
            yield
        except TemperdError:
            raise
        except exceptions.DownloadLengthMismatchError as error:
            raise TrustError("the server sends more than was signed", where=what, reason="too-long") from error
        except exceptions.DownloadHTTPError as error:
            status = f"repository answers with HTTP status {error.status_code}"
            raise NetworkError(status, where=f"{self._url} {what}") from error
        except (SlowPeerError, exceptions.DownloadError, urllib3.exceptions.HTTPError) as error:
            raise network_error(error, f"{self._url} {what}") from error
        except exceptions.RepositoryError as error:
            raise _trust_error(error, what) from error
        except OSError as error:
            raise disk_error(error, error.filename or self._bases) from error


def verify_sealed(path: Path, target: Target) -> None:
    """Check the file on disk against the signed length and hash; to be done before each use.

    Raises:
        SealedFileError: `sealed-hash`.
        BoardError: the disk fails or the file is gone.
    """
    try:
        with path.open("rb") as stream:
            length = os.fstat(stream.fileno()).st_size
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise disk_error(error, path) from error
    if length != target.sealed_length or digest != target.sealed_sha256:
        raise SealedFileError(
            "sealed file is not the one the repository signed",
            where=str(path),
            fix="It is downloaded again at the next job",
            reason="sealed-hash",
        )


class _Fetcher(FetcherInterface):
    """Metadata and grants, spooled beside the state: the system's folder for temporary files may be memory."""

    def __init__(self, spool: Path, web: Web) -> None:
        self._spool, self._web = spool, web

    def _fetch(self, url: str) -> Iterator[bytes]:
        """Chunks of the body as they arrive, so that a trickle is noticed."""
        with self._web.get(url) as response:
            if response.status != OK:
                raise exceptions.DownloadHTTPError(f"HTTP status {response.status}", response.status)
            yield from self._web.chunks(response)

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """See FetcherInterface: the body of at most `max_length` bytes as a temporary file."""
        with tempfile.TemporaryFile(dir=self._spool) as body:
            received = 0
            for chunk in self._fetch(url):
                received += len(chunk)
                if received > max_length:
                    raise exceptions.DownloadLengthMismatchError(f"more than {max_length} bytes")
                body.write(chunk)
            body.seek(0)
            yield body


_TRUST_CODES: tuple[tuple[type[Exception], str, str], ...] = (
    (exceptions.ExpiredMetadataError, "metadata-expired", "metadata is expired: an old repository, or a wrong clock"),
    (exceptions.BadVersionNumberError, "metadata-rollback", "metadata is older than what was seen before"),
    (exceptions.UnsignedMetadataError, "metadata-unsigned", "metadata is not signed by the keys the root names"),
    (exceptions.LengthOrHashMismatchError, "target-hash", "what came is not what was signed"),
)


def _trust_error(error: Exception, where: str) -> TrustError:
    for kind, code, what in _TRUST_CODES:
        if isinstance(error, kind):
            return TrustError(what, where=f"{where}: {error}", reason=code)
    return TrustError("repository is refused", where=f"{where}: {error}")


def _target(info: TargetFile, name: str, version: str) -> Target:
    if not isinstance(info.custom, Mapping):
        raise TrustError("a model without a card", where=info.path)
    card = parse(info.custom)
    if (card.name, card.version) != (name, version):
        raise TrustError(f"card of {card.name} {card.version} under another path", where=info.path)
    digest = info.hashes.get("sha256", "")
    if info.length != sealed_length(card.plaintext_length) or not digest:
        raise TrustError("length or hash of the sealed file does not fit the card", where=info.path)
    return Target(name, version, info.path, digest, info.length, card)


def _floor(versions: Mapping[str, Target]) -> int:
    return max(item.card.security_floor for item in versions.values())


def _fits(target: Target, board: str) -> bool:
    return not board or not target.card.boards or board in target.card.boards
