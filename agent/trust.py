"""The board's side of the model repository: what the pinned root of trust vouches for, and nothing else.

Metadata is judged by python-tuf's client (rollback, freeze, mix-and-match, thresholds); this room bounds what is read,
keeps the files, and says in temperd's errors what went wrong.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from tuf.api import exceptions
from tuf.api.metadata import Metadata, TargetFile, Targets  # public, without __all__
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from agent.card import Target, grant_path, parse, target_path, version_key
from agent.download import Downloads, Signed
from agent.durable import PARTIAL, disk_error, make_folder, read_bounded, write_atomic
from agent.errors import (
    ArtifactError,
    ConfigError,
    GrantError,
    NetworkError,
    SealedFileError,
    SpecError,
    TemperdError,
    TrustError,
)
from agent.keys import MAX_GRANT_BYTES, DeviceIdentity, open_grant
from agent.keys_root import parse_root
from agent.messages import CLOCK_WRONG
from agent.repository_bounds import MAX_ROOT_BYTES
from agent.sealed import sealed_length
from agent.trust_fetch import DurableUpdater, KeptFetcher, WebFetcher, only_writer, trust_error
from agent.web import SlowPeerError, Web, network_error

EARLIEST_CLOCK_S = 1_767_225_600  # 2026-01-01: before there was this program, so a clock that says so is wrong
GRANT = ".grant"  # ending of the kept grant of a model


class ModelRepository:
    """Verified models from one repository.

    Args:
        url: of the folder that holds metadata/ and targets/, http or https.
        pinned_root: the root document put on the board when it was set up.
        state_dir: kept here: metadata/ (which metadata was seen) and bases/ (sealed models).
        monotonic: clock for download deadlines, in seconds.
        pause: sleeps between two attempts at a download, seconds.
        wall: clock for dates of expiry, in seconds since 1970.

    Raises:
        ConfigError: the address, or that of the proxy, is not http or https, the pinned root is missing, or a folder of
            the state is a symbolic link.
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
        wall: Callable[[], float] = time.time,
        obey: Callable[[], float] = lambda: 0.0,
    ) -> None:
        if urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigError("repository address is not http or https", where=url)
        self._url = url.rstrip("/")
        self._metadata, self._bases = state_dir / "metadata", state_dir / "bases"
        for folder in (self._metadata, self._bases):
            if folder.is_symlink():
                fix = "Put a folder there; to keep models on another disk mount it there"
                raise ConfigError("folder of the state is a symbolic link", where=str(folder), fix=fix)
            make_folder(folder)
        try:
            self._pinned, self._root = pinned_root, read_bounded(pinned_root, MAX_ROOT_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(
                "pinned root of the repository is missing",
                where=str(pinned_root),
                fix="Copy the publisher's metadata/1.root.json there",
            ) from error
        self._web, self._pause = Web(self._url, monotonic, obey), pause
        self._fetcher = WebFetcher(state_dir, self._web, pause)
        self._downloads = Downloads(self._bases, self._web, pause)
        self._wall = wall
        self._updater: Updater | None = None

    def refresh(self) -> None:
        """Fetch and verify the present metadata.

        Raises:
            NetworkError: unreachable, an HTTP error, or too slow, each after some attempts; `clock-wrong`: the board's
                clock is before EARLIEST_CLOCK_S, so that nothing would ever be expired.
            TrustError: `metadata-expired`, `metadata-rollback`, `metadata-unsigned`, `too-long`, or another refusal.
            BoardError: the disk fails.
        """
        parse_root(self._root, str(self._pinned))  # names the file at fault, which the client's errors do not
        self._updater = self._judge(self._fetcher)
        with self._judged("metadata"):
            os.utime(self._metadata / "timestamp.json", (self._wall(), self._wall()))  # the last contact

    def use_kept(self, unreachable: NetworkError) -> float:
        """Verify the metadata kept on the board, for a time in which the repository does not answer.

        Args:
            unreachable: why it does not; raised again where the kept metadata does not suffice.

        Returns:
            Seconds since the last contact.

        Raises:
            NetworkError: nothing is kept, it is damaged, or it is expired, which the message says; `clock-wrong`.
            BoardError: the disk fails.
        """
        try:
            age = self._wall() - (self._metadata / "timestamp.json").stat().st_mtime
        except OSError:
            raise unreachable from None
        try:
            self._updater = self._judge(KeptFetcher(self._metadata, unreachable))
        except TrustError as error:
            what = f"{unreachable.what}, and the metadata kept on the board does not replace it: {error.what}"
            raise NetworkError(what, where=unreachable.where, fix=unreachable.fix) from error
        return max(0.0, age)

    def _judge(self, fetcher: FetcherInterface) -> Updater:
        now = self._wall()
        if now < EARLIEST_CLOCK_S:
            raise NetworkError(
                f"the board's clock says {time.strftime('%Y-%m-%d', time.gmtime(max(now, 0)))}: whether metadata is "
                "expired cannot be judged",
                fix="Set the clock, or wait until the time service has done it",
                reason=CLOCK_WRONG,
            )
        with self._judged("metadata"), only_writer(self._metadata):
            updater = DurableUpdater(self._url, self._metadata, self._root, fetcher, now)
            updater.refresh()
            # The role that grants are delegated to is not part of a refresh, but of being able to do without the next.
            updater.get_targetinfo(grant_path("none", "none", "0"))
        return updater

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
        path = self.stored(target)
        if path is not None:
            with contextlib.suppress(SealedFileError):
                verify_sealed(path, target)
                return path
        return self.download(target)

    def stored(self, target: Target) -> Path | None:
        """Where the sealed model lies, if a file of its length is there: who opens it verifies it."""
        path = self._path(target)
        with self._judged(target.path):
            there = path.is_file() and not path.is_symlink() and path.stat().st_size == target.sealed_length
        return path if there else None

    def download(self, target: Target) -> Path:
        """Fetch the sealed model in any case; it has the signed hash then.

        Raises:
            NetworkError, TrustError, BoardError: see `fetch`.
        """
        path = self._path(target)
        self.download_signed(self.signed(target.path), path, self._downloads)
        return path

    def grant(self, identity: DeviceIdentity, target: Target) -> bytes:
        """The data key of `target`, 32 bytes, from this board's grant.

        The grant, wrapped as it came, is kept beside the model.

        Raises:
            GrantError: `grant-missing`, or a code of `agent.keys.open_grant`.
            NetworkError, TrustError, BoardError: see `fetch`.
        """
        path = grant_path(identity.device, target.name, target.version)
        updater = self._current()
        with self._judged(path), only_writer(self._metadata):
            info = updater.get_targetinfo(path)
        if info is None or info.length > MAX_GRANT_BYTES:
            raise GrantError(
                f"no grant of {target.name} {target.version} for device {identity.device}",
                fix=f"Publish it again: temperd publish ... --for {identity.device}.device.json",
                reason="grant-missing",
            )
        return open_grant(identity, self._wrapped(info, self._path(target).with_suffix(GRANT)), target.sealed_sha256)

    def _wrapped(self, info: TargetFile, kept: Path) -> bytes:
        with self._judged(info.path), only_writer(self._metadata):
            for leftover in kept.parent.glob(f".{kept.name}.*{PARTIAL}"):  # of a writer that was killed
                leftover.unlink()
            with contextlib.suppress(OSError, ArtifactError, exceptions.RepositoryError):
                wrapped = read_bounded(kept, MAX_GRANT_BYTES)
                info.verify_length_and_hashes(wrapped)
                return wrapped
            wrapped = self._fetcher.download_bytes(self._address(info), info.length)
            info.verify_length_and_hashes(wrapped)
            write_atomic(kept, wrapped)
            return wrapped

    def _path(self, target: Target) -> Path:
        return self._bases / f"{target.name}-{target.version}.sealed"

    def _current(self) -> Updater:
        if self._updater is None:
            self.refresh()
        assert self._updater is not None  # refresh sets it or raises
        return self._updater

    def _versions(self, name: str) -> dict[str, Target]:
        updater = self._current()
        with self._judged("metadata"):
            paths = [path.split("/") for path in self._listed()]
            names = {parts[1] for parts in paths if parts[0] == "models" and len(parts) == 3}  # noqa: PLR2004 - models/name/file
            own = [parts[2].removesuffix(".sealed") for parts in paths if parts[:2] == ["models", name]]
            signed = {version: updater.get_targetinfo(target_path(name, version)) for version in own}
        found = {version: _target(info, name, version) for version, info in signed.items() if info is not None}
        if not found:
            near = difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5) or sorted(names)[:10]
            there = ", ".join(near) or "no model at all"
            raise SpecError(f"the repository has no model {name[:64]!r}; there is {there}", reason="unknown-model")
        return found

    def paths(self, folder: str) -> tuple[str, ...]:
        """Paths of all targets below `folder`; what is signed of each, `signed` says.

        Raises:
            NetworkError, TrustError, BoardError: see `refresh`, which is done where it was not.
        """
        self._current()
        with self._judged("metadata"):
            return tuple(path for path in self._listed() if path.startswith(f"{folder}/"))

    def _listed(self) -> tuple[str, ...]:
        """The client lists no targets: names come from the file it keeps, all that counts from the client itself."""
        listed: Metadata[Targets] = Metadata.from_file(str(self._metadata / "targets.json"))
        return tuple(listed.signed.targets)

    def _latest(self, name: str, versions: Mapping[str, Target], board: str) -> Target:
        floor = _floor(versions)
        usable = [item for item in versions.values() if item.card.security_floor >= floor and _fits(item, board)]
        if not usable:
            raise SpecError(f"no version of {name} is for {board}", reason="other-board")
        return max(usable, key=lambda item: version_key(item.version))

    def signed(self, path: str) -> TargetFile:
        """What the repository vouches for under `path`.

        Raises:
            TrustError: nothing.
            NetworkError, BoardError: see `refresh`, which is done where it was not.
        """
        with self._judged(path):
            info = self._current().get_targetinfo(path)
        if info is None:
            raise TrustError("the repository no longer vouches for this file", where=path)
        return info

    def download_signed(self, info: TargetFile, path: Path, downloads: Downloads | None = None) -> None:
        """Fetch any signed file to `path`, whose folder keeps the part; it has the signed hash then.

        Raises:
            NetworkError, TrustError, BoardError: see `fetch`.
        """
        # The client's own `download_target` begins anew each time.
        signed = Signed(self._address(info), info.length, info.hashes.get("sha256", ""))
        with self._judged(info.path):
            (downloads or Downloads(path.parent, self._web, self._pause)).fetch(signed, path)

    def _address(self, info: TargetFile) -> str:
        """As the client has it for consistent snapshots."""
        folder, _, name = info.path.rpartition("/")
        return f"{self._url}/targets/{folder}/{info.hashes.get('sha256', '')}.{name}"

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
            raise trust_error(error, what) from error
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
        raise not_signed(path)


def not_signed(path: Path) -> SealedFileError:
    """The file at `path` is another than the signed one."""
    return SealedFileError(
        "sealed file is not the one the repository signed",
        where=str(path),
        fix="It is downloaded again at the next job",
        reason="sealed-hash",
    )


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
