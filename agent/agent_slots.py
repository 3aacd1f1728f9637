"""Releases of temperd on the disk: two slots of whole files, and what is known of them between starts.

    <state>/agent/standing.json     policies.trial_standing
    <state>/agent/a/release.json    what was signed: the facts, and length and SHA-256 of every file
    <state>/agent/a/compiled.json   the same of the byte code that this board made of them
    <state>/agent/a/site/           goes in front of the installed packages
    <state>/agent/b/...
    <state>/agent/stage/            a release on its way into a slot

A slot is put in place by one rename. It lies with the state of the daemon, so it is exactly as trusted as the daemon's
own user: hashes are checked at each start against flash that forgets; what a release may be, the repository's
signatures have decided before it gets here.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.durable import disk_errors, make_folder, read_bounded, sync_folder, write_atomic
from agent.errors import ArtifactError
from agent.strict_json import loads
from policies.strict import TableError, build, limits
from policies.trial_standing import SLOTS, Standing, standing_of, table_of

FOLDER, STANDING, RELEASE, COMPILED, SITE, STAGE = (
    "agent", "standing.json", "release.json", "compiled.json", "site", "stage",
)  # fmt: skip
MAX_STANDING_BYTES = 256 << 10  # 32 refused releases, 16 starts, one trial with its baseline: 20 KB
MAX_RELEASE_BYTES = 1 << 20  # 4,000 files of 200 characters
MAX_FILES = 4_000  # temperd has some 300, numpy some 900
MAX_SITE_BYTES = 256 << 20
MAX_PATH = 240  # characters of a path that are said
SLOT_DAMAGED = "slot-damaged"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file."""

    length: int = field(metadata=limits(0, MAX_SITE_BYTES))
    sha256: str = field(metadata=limits(longest=64))


@dataclass(frozen=True, slots=True)
class SlotRelease:
    """`release.json`, see docs/updates.md.

    Attributes:
        version: of temperd.
        arch: `aarch64`, `x86_64` or `any`.
        python: the version it is for, as `3.11`.
        security_floor: releases below it are withdrawn.
        needs: exact versions of packages that the board must have, by name.
        bundled: versions of packages that it brings, by name.
        unpacked_length: bytes of all files.
        files: every file by its path in the slot, which begins with `site/`.
    """

    kind: str = field(metadata=limits(choices=("agent",)))
    version: str = field(metadata=limits(longest=64))
    arch: str = field(metadata=limits(longest=32))
    python: str = field(metadata=limits(longest=16))
    unpacked_length: int = field(metadata=limits(0, MAX_SITE_BYTES))
    files: dict[str, FileFacts]
    security_floor: int = field(default=0, metadata=limits(0))
    needs: dict[str, str] = field(default_factory=dict)
    bundled: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse files elsewhere."""
        for path in self.files:
            if not path.startswith(f"{SITE}/"):
                raise TableError("files", f"{path[:MAX_PATH]!r} lies outside of {SITE}/")


def parse_release(data: bytes) -> SlotRelease:
    """Read `release.json`; keys of a later version are passed over, as an older launcher reads it too.

    Raises:
        ArtifactError: `release-broken`.
    """
    try:
        table = _as_table(loads(data, what=RELEASE, max_bytes=MAX_RELEASE_BYTES))
        known = {item.name for item in dataclasses.fields(SlotRelease)} - {"files"}
        files = _files_of(table.get("files"))
        return dataclasses.replace(
            build(SlotRelease, {**{key: table[key] for key in known & table.keys()}, "files": {}}), files=files
        )
    except TableError as error:
        raise ArtifactError(f"{RELEASE} cannot be used: {error}", reason="release-broken") from error


def agent_folder(state: Path) -> Path:
    """Where a state folder keeps releases."""
    return state / FOLDER


def stage_folder(state: Path) -> Path:
    """Where a release is unpacked."""
    return state / FOLDER / STAGE


def site_of(state: Path, slot: str) -> Path:
    """The folder that a slot puts in front of the installed packages."""
    return state / FOLDER / slot / SITE


# --- what is known between starts ------------------------------------------------------------------------------------


def read_standing(state: Path) -> tuple[Standing, str]:
    """The standing, and what is wrong with the file; a broken one counts as that of a board that was never updated.

    Raises:
        BoardError: the disk fails.
    """
    path = state / FOLDER / STANDING
    try:
        data = read_bounded(path, MAX_STANDING_BYTES)
        return standing_of(_as_table(loads(data, what=STANDING, max_bytes=MAX_STANDING_BYTES))), ""
    except FileNotFoundError:
        return Standing(), ""
    except (ArtifactError, TableError) as error:
        return Standing(), str(error)


class KeptStanding:
    """The standing for who asks each second: read again only where it was written, by whatever process.

    Args:
        state: the daemon's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._state, self._seen, self._standing = state, 0, Standing()

    def read(self) -> Standing:
        """As it is on the disk.

        Raises:
            BoardError: the disk fails.
        """
        found = self._stamp()
        if found != self._seen:
            self._standing, self._seen = read_standing(self._state)[0], found
        return self._standing

    def _stamp(self) -> int:
        """Another number whenever the file was written; 0 where there is none."""
        try:
            found = (self._state / FOLDER / STANDING).stat()
        except OSError:
            return 0
        return found.st_mtime_ns ^ found.st_ino


def write_standing(state: Path, standing: Standing) -> None:
    """Keep the standing: whole, or the one before stays.

    Raises:
        BoardError: the disk refuses.
    """
    make_folder(state / FOLDER)
    data = json.dumps(table_of(standing), indent=1, allow_nan=False).encode()
    write_atomic(state / FOLDER / STANDING, data)


# --- filling a slot --------------------------------------------------------------------------------------------------


def fill_slot(state: Path, slot: str, digest: str) -> SlotRelease:
    """Put the staged release into a slot; call `policies.trial.emptied` and keep the standing before.

    Byte code is made of it first, so that starts are fast: that takes seconds of one core.

    Args:
        state: the daemon's state folder.
        slot: `a` or `b`.
        digest: SHA-256 of the release's `release.json`, as signed.

    Raises:
        ArtifactError: `slot-damaged`: a file is missing, too much or another one. The slot is as it was.
        BoardError: the disk refuses: the slot is as it was, or empty.
    """
    if slot not in SLOTS:
        raise ValueError(slot)
    stage, folder = stage_folder(state), state / FOLDER / slot
    release = _verified(stage, digest, {})
    compiled = _compile(stage, release.files)
    table = {path: {"length": facts.length, "sha256": facts.sha256} for path, facts in compiled.items()}
    write_atomic(stage / COMPILED, json.dumps(table).encode())
    _sync_tree(stage)
    with disk_errors(folder):
        clear(folder)
        stage.rename(folder)
        sync_folder(folder.parent)
    return release


def clear(place: Path) -> None:
    """Remove whatever lies there: a release that was taken over may have left a link or a file in a folder's place.

    Raises:
        OSError: the disk refuses.
    """
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.exists():
        import shutil  # noqa: PLC0415 - loads two compressors, which a daemon that idles and the launcher do without

        shutil.rmtree(place)


def _compile(stage: Path, files: Mapping[str, FileFacts]) -> dict[str, FileFacts]:
    """Byte code beside each source, without its time: what is checked at a start is the file's hash."""
    import compileall  # noqa: PLC0415 - the launcher never makes byte code
    import py_compile  # noqa: PLC0415 - the same

    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(stage / SITE, quiet=2, maxlevels=20, stripdir=str(stage / SITE), invalidation_mode=mode)
    return {name: _facts_of(f"{stage}/{name}") for name in sorted(_names_in(stage)) if name not in files}


def _sync_tree(root: Path) -> None:
    with disk_errors(root):
        for folder, _, names in os.walk(root):
            for name in names:
                descriptor = os.open(Path(folder, name), os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            sync_folder(Path(folder))


# --- reading a slot --------------------------------------------------------------------------------------------------


def verify_slot(state: Path, slot: str, digest: str) -> SlotRelease:
    """Read every file of a slot and compare it with what was signed.

    Args:
        state: the daemon's state folder.
        slot: `a` or `b`.
        digest: SHA-256 of the `release.json` that the slot should hold.

    Raises:
        ArtifactError: `slot-damaged`: another release, or a file is missing, too much or another one.
        BoardError: the disk fails.
    """
    folder = state / FOLDER / slot
    return _verified(folder, digest, _read_compiled(folder / COMPILED))


def _verified(folder: Path, digest: str, compiled: Mapping[str, FileFacts]) -> SlotRelease:
    try:
        data = read_bounded(folder / RELEASE, MAX_RELEASE_BYTES)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged("is another release", folder)
        release = parse_release(data)
    except FileNotFoundError as error:
        raise _damaged("holds no release", folder) from error
    except ArtifactError as error:
        raise _damaged(error.what, folder) from error
    _check(folder, {**release.files, **compiled})
    return release


def _read_compiled(path: Path) -> dict[str, FileFacts]:
    try:
        data = read_bounded(path, MAX_RELEASE_BYTES)
        return _files_of(loads(data, what=path.name, max_bytes=MAX_RELEASE_BYTES))
    except (FileNotFoundError, ArtifactError, TableError) as error:
        raise _damaged(f"cannot be read: {error}", path) from error


def _files_of(value: object) -> dict[str, FileFacts]:
    """Read by hand: at each start, and the general reader takes a second of a small board for a thousand files.

    Raises:
        TableError: too many files, or one is not described as it must be.
    """
    table = _as_table(value)
    if len(table) > MAX_FILES:
        raise TableError("files", f"has {len(table)} entries, at most {MAX_FILES} are taken")
    files: dict[str, FileFacts] = {}
    for path, facts in table.items():
        match facts:
            case {"length": int(length), "sha256": str(digest)} if 0 <= length <= MAX_SITE_BYTES:
                files[path] = FileFacts(length, digest)
            case _:
                raise TableError(f"files.{path[:MAX_PATH]}", "must have a length and a sha256")
    return files


def _as_table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TableError("", "must be a table")
    return value


def _check(folder: Path, files: Mapping[str, FileFacts]) -> None:
    found = set(_names_in(folder))
    if found != files.keys():
        name = min(found ^ files.keys())
        raise _damaged("is missing" if name in files else "is not part of the release", folder / name)
    for name, facts in files.items():
        if _facts_of(f"{folder}/{name}") != facts:
            raise _damaged("is not the file that was signed", folder / name)


def _names_in(folder: Path) -> Iterator[str]:
    """Everything below `site` that is no folder; a link is one of them, whatever it points at."""
    cut = len(str(folder)) + 1
    with disk_errors(folder):
        for at, folders, names in os.walk(folder / SITE):
            links = [name for name in folders if os.path.islink(f"{at}/{name}")]  # noqa: PTH114 - thousands, at each start
            for name in (*names, *links):
                yield f"{at}/{name}"[cut:]


def _facts_of(path: str) -> FileFacts:
    """Raises ArtifactError for what is no regular file."""
    with disk_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise _damaged("is no regular file", Path(path)) from error
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - of a descriptor, which follows no link
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _damaged("is no regular file", Path(path))
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileFacts(stream.tell(), digest)


def _damaged(what: str, path: Path) -> ArtifactError:
    return ArtifactError(what, where=str(path), reason=SLOT_DAMAGED)
