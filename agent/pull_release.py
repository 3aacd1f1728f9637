"""From a version's name to a release on this board's disk: metadata, archive, files; and into a slot.

A slot is touched only after every file was unpacked beside it and is the one that was signed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from agent.agent_archive import Entry, broken, entries
from agent.agent_release import FOLDER, AgentRelease, Here, choose, package_name, parse_release
from agent.agent_slots import MAX_RELEASE_BYTES, RELEASE, FileFacts, agent_folder, fill_slot, stage_folder
from agent.agent_slots import parse_release as parse_list
from agent.agent_stage import ARCHIVE, clear_stage
from agent.download import PART
from agent.durable import disk_errors, make_folder, remove
from agent.errors import ArtifactError, BoardError, NetworkError, TrustError
from agent.messages import METERED
from agent.trust import ModelRepository

RESERVE_BYTES = 32 << 20  # stays free: the journal, the outbox and a checkpoint go on while an update comes
BYTE_CODE = 2  # what a slot takes of the disk beside what was signed: byte code is about as long as its source
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Ask = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an update asks for.

    Attributes:
        version: of temperd, or `latest`.
        allow_downgrade: see `agent.agent_release.choose`.
        slot: where it is to go.
        metered: bytes cost money here: nothing is downloaded.
    """

    version: str
    allow_downgrade: bool
    slot: str
    metered: bool


def pull_release(
    repository: ModelRepository, state: Path, wanted: Wanted, here: Here, ask: Ask, warn: Callable[[str], None]
) -> AgentRelease | None:
    """Bring a release into a slot; `None`: what is wanted runs already.

    Args:
        repository: where it comes from.
        state: the daemon's state folder.
        wanted: see `Wanted`.
        here: this board.
        ask: is asked before each stage: PULLING, and INSTALLING, before which the slot is as it was.
        warn: is told what is not as it should be and does not end the update.

    Raises:
        NetworkError: `network`, `metered-link` or `clock-wrong`: the same may work later; what has come is kept.
        TrustError, SpecError, ArtifactError: see `agent.agent_release.choose`; `metadata-*`, `target-hash`,
            `release-broken`. Nothing of it is used.
        BoardError: `no-space`, said before a byte is asked for; `disk`.
    """
    ask("PULLING", wanted.version)
    repository.refresh()
    release = choose(_published(repository, warn), wanted.version, here, allow_downgrade=wanted.allow_downgrade)
    if release is None:
        return None
    make_folder(agent_folder(state))
    clear_stage(state)
    archive = _downloaded(repository, state, release, metered=wanted.metered)
    _unpack(archive, state, release)
    ask("INSTALLING", release.version)
    fill_slot(state, wanted.slot, release.files_sha256)
    remove(archive)
    return release


def board_here(version: str, digest: str, refused: frozenset[str]) -> Here:
    """This board; packages are those of the installed environment, whatever slot runs."""
    folders = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    packages = metadata.distributions(path=folders)
    installed = {package_name(found): package.version for package in packages if (found := package.metadata["Name"])}
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Here(version, digest, platform.machine(), python, installed, refused)


def _published(repository: ModelRepository, warn: Callable[[str], None]) -> Iterator[AgentRelease]:
    for path in repository.paths(FOLDER):
        info = repository.signed(path)
        try:
            yield parse_release(info.custom, path, info.length)
        except TrustError as error:  # one that a later publisher describes otherwise must not hide the others
            warn(f"{error}: not looked at")


def _downloaded(repository: ModelRepository, state: Path, release: AgentRelease, *, metered: bool) -> Path:
    """The archive, with the signed hash."""
    info = repository.signed(release.path)
    path = agent_folder(state) / ARCHIVE
    part = path.with_name(f"{info.hashes.get('sha256', '')}{PART}")
    with disk_errors(path):
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == info.hashes.get("sha256"):
            return path
        path.unlink(missing_ok=True)
        here = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(path.parent).free
    if metered and here < info.length:
        what = f"temperd {release.version}, {info.length / 1e6:.1f} MB, is not on the board and this link is metered"
        fix = 'Set metered = "allow" in [repository] and restart the daemon, or cancel the command'
        raise NetworkError(what, fix=fix, reason=METERED)
    needed = info.length - here + BYTE_CODE * release.unpacked_length + RESERVE_BYTES
    if free < needed:
        what = f"the slot needs {needed / 1e6:.0f} MB with what must stay free, {free / 1e6:.0f} MB are"
        raise BoardError(what, where=str(path.parent), fix="Make room on this disk", reason="no-space")
    repository.download_signed(info, path)
    return path


def _unpack(archive: Path, state: Path, release: AgentRelease) -> None:
    """The release's files below `stage/`, each as its list has it; else nothing.

    Raises:
        ArtifactError: `release-broken`.
        BoardError: the disk fails.
    """
    stage = stage_folder(state)
    try:
        with disk_errors(archive), archive.open("rb") as stream:
            unpack(entries(stream), stage, release)
    except BaseException:
        clear_stage(state)
        if archive.exists():
            archive.unlink()  # it is what was signed, so that nothing but another release mends it
        raise


def unpack(found: Iterator[Entry], stage: Path, release: AgentRelease) -> None:
    """Write the files of an archive below `stage`, which must not exist.

    Raises:
        ArtifactError: `release-broken`: another list than the signed one, or a file that is not as it says.
        OSError: the disk fails.
    """
    first = next(found, None)
    if first is None or first.path != RELEASE:
        raise broken(f"{RELEASE} is not the first file")
    data = first.whole(MAX_RELEASE_BYTES)
    if hashlib.sha256(data).hexdigest() != release.files_sha256:
        raise broken(f"{RELEASE} is not the one that was signed")
    listed = parse_list(data)
    if (listed.version, listed.unpacked_length) != (release.version, release.unpacked_length):
        raise broken(f"{RELEASE} says other things than what was signed")
    left = dict(listed.files)
    stage.mkdir(mode=0o700)
    for entry in found:
        facts = left.pop(entry.path, None)
        if facts is None or facts != _written(entry, stage / entry.path):
            raise ArtifactError("is not the file of the list", where=entry.path, reason="release-broken")
    if left:
        raise ArtifactError("is missing", where=min(left), reason="release-broken")
    with os.fdopen(os.open(stage / RELEASE, _NEW, 0o600), "wb") as stream:
        stream.write(data)


def _written(entry: Entry, path: Path) -> FileFacts:
    """Write a file that was not there; what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, _NEW, 0o644), "wb") as stream:
        for piece in entry.pieces:
            digest.update(piece)
            stream.write(piece)
    return FileFacts(entry.length, digest.hexdigest())
