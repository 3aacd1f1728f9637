"""Releases of temperd on the disk: two slots of whole files, and what is known of them between starts.

    <state>/agent/standing.json     policies.trial_standing
    <state>/agent/a/release.json    the signed facts, and length and SHA-256 of every file below site/
    <state>/agent/a/site/           goes in front of the installed packages
    <state>/agent/b/...

`release.json` is written last and removed first: a slot that has it is whole. It lies with the state of the daemon, so
a slot is exactly as trusted as the daemon's own user: hashes are checked at each start against flash that forgets, what
a release may be is decided by the repository's signatures before it gets here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.durable import disk_errors, make_folder, read_bounded, remove, sync_folder, write_atomic
from agent.errors import ArtifactError
from agent.strict_json import canonical, loads
from policies.strict import TableError, build, limits
from policies.trial_standing import SLOTS, Standing, standing_of, table_of

FOLDER, STANDING, RELEASE, SITE = "agent", "standing.json", "release.json", "site"
MAX_STANDING_BYTES = 256 << 10  # 32 refused releases, 16 starts, one trial with its baseline: 20 KB
MAX_RELEASE_BYTES = 8 << 20  # 20,000 files of 300 characters
MAX_FILES = 20_000  # temperd has 300 files; with onnxruntime and numpy 3,000
MAX_SITE_BYTES = 1 << 30  # the whole environment has 350 MB
MAX_PATH = 240  # characters, in parts that any file system takes
SLOT_DAMAGED = "slot-damaged"

FileFacts = tuple[int, str]
"""Length in bytes and SHA-256 in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Release:
    """What a slot holds.

    Attributes:
        facts: what was signed of the release, as the repository has it; `version` and `files_sha256` are among it.
        files: every file of the release below `site/`, by its path.
        compiled: files that this board made of them, the same way.
    """

    facts: dict[str, object]
    files: dict[str, FileFacts] = field(metadata=limits(longest=MAX_FILES))
    compiled: dict[str, FileFacts] = field(default_factory=dict, metadata=limits(longest=MAX_FILES))

    @property
    def version(self) -> str:
        """Of temperd."""
        return str(self.facts.get("version", ""))

    @property
    def digest(self) -> str:
        """What the release is known by: the hash of its list of files."""
        return files_digest(self.files)


def files_digest(files: Mapping[str, FileFacts]) -> str:
    """SHA-256 of the list of files in its canonical form, `{path: [length, sha256]}`: `files_sha256` of the facts."""
    return hashlib.sha256(canonical({path: list(one) for path, one in files.items()})).hexdigest()


def agent_folder(state: Path) -> Path:
    """Where a state folder keeps releases."""
    return state / FOLDER


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
        table = loads(data, what="the standing", max_bytes=MAX_STANDING_BYTES)
        if not isinstance(table, dict):
            return Standing(), "it is no table"
        return standing_of(table), ""
    except FileNotFoundError:
        return Standing(), ""
    except (ArtifactError, TableError) as error:
        return Standing(), str(error)


def write_standing(state: Path, standing: Standing) -> None:
    """Keep the standing: whole, or the one before stays.

    Raises:
        BoardError: the disk refuses.
    """
    make_folder(state / FOLDER)
    data = json.dumps(table_of(standing), indent=1, allow_nan=False).encode()
    write_atomic(state / FOLDER / STANDING, data)


# --- filling a slot --------------------------------------------------------------------------------------------------


def begin_slot(state: Path, slot: str) -> Path:
    """An empty `site` folder for a release; call `policies.trial.emptied` and keep the standing before.

    Raises:
        BoardError: the disk refuses; the slot is empty or as it was.
    """
    _known_slot(slot)
    folder = state / FOLDER / slot
    make_folder(folder)
    remove(folder / RELEASE)
    with disk_errors(folder):
        if (folder / SITE).exists():
            shutil.rmtree(folder / SITE)
        (folder / SITE).mkdir(mode=0o700)
        sync_folder(folder)
    return folder / SITE


def finish_slot(
    state: Path, slot: str, facts: Mapping[str, object], files: Mapping[str, FileFacts], *, compiles: bool = True
) -> Release:
    """Declare a filled slot whole, once every file was read back and is the one that was signed.

    Args:
        state: the daemon's state folder.
        slot: `a` or `b`.
        facts: what was signed of the release.
        files: length and SHA-256 by path.
        compiles: make byte code too, so that starts are fast; this takes seconds of one core.

    Raises:
        ArtifactError: `slot-damaged`: a file is missing, too much or another one.
        BoardError: the disk refuses.
    """
    _known_slot(slot)
    site = site_of(state, slot)
    _check(site, files)
    compiled = _compile(site, files) if compiles else {}
    release = Release(dict(facts), dict(files), compiled)
    _sync_tree(site)
    table = {"facts": release.facts, "files": release.files, "compiled": release.compiled}
    write_atomic(state / FOLDER / slot / RELEASE, json.dumps(table, allow_nan=False).encode())
    return release


def _known_slot(slot: str) -> None:
    if slot not in SLOTS:
        raise ValueError(slot)


def _compile(site: Path, files: Mapping[str, FileFacts]) -> dict[str, FileFacts]:
    """Byte code beside each source, without its time: what is checked at a start is the file's hash."""
    import compileall  # noqa: PLC0415 - the launcher never makes byte code
    import py_compile  # noqa: PLC0415 - the same

    compileall.compile_dir(site, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    made = (path.relative_to(site).as_posix() for path in _files_below(site))
    return {name: _facts_of(site / name) for name in sorted(made) if name not in files}


def _sync_tree(site: Path) -> None:
    with disk_errors(site):
        for path in _files_below(site):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for folder, _, _ in os.walk(site):
            sync_folder(Path(folder))


# --- reading a slot --------------------------------------------------------------------------------------------------


def read_release(state: Path, slot: str) -> Release:
    """What `release.json` says; files are not looked at.

    Raises:
        ArtifactError: `slot-damaged`: there is none, or it cannot be read.
        BoardError: the disk fails.
    """
    path = state / FOLDER / slot / RELEASE
    try:
        data = read_bounded(path, MAX_RELEASE_BYTES)
        table = loads(data, what="the release", max_bytes=MAX_RELEASE_BYTES)
        return _release(table)
    except FileNotFoundError as error:
        raise _damaged("the slot is empty", path) from error
    except (ArtifactError, TableError) as error:
        raise _damaged(f"cannot be read: {error}", path) from error


def verify_slot(state: Path, slot: str, digest: str) -> Release:
    """Read every file of a slot and compare it with what was signed.

    Args:
        state: the daemon's state folder.
        slot: `a` or `b`.
        digest: of the release that the slot should hold.

    Raises:
        ArtifactError: `slot-damaged`: another release, or a file is missing, too much or another one.
        BoardError: the disk fails.
    """
    release = read_release(state, slot)
    if release.digest != digest:
        raise _damaged("holds another release", state / FOLDER / slot)
    _check(site_of(state, slot), {**release.files, **release.compiled})
    return release


def _release(table: object) -> Release:
    if not isinstance(table, dict):
        raise TableError("", "must be a table")
    lists = {name: _file_list(table.get(name, {}), name) for name in ("files", "compiled")}
    facts = build(Release, {"facts": table.get("facts"), "files": {}}).facts
    return Release(facts, lists["files"], lists["compiled"])


def _file_list(table: object, key: str) -> dict[str, FileFacts]:
    if not isinstance(table, dict) or len(table) > MAX_FILES:
        raise TableError(key, f"must be a table of at most {MAX_FILES} files")
    files: dict[str, FileFacts] = {}
    for path, facts in table.items():
        match facts:
            case [int(length), str(digest)] if 0 <= length <= MAX_SITE_BYTES:
                files[path] = (length, digest)
            case _:
                raise TableError(f"{key}.{path}"[:MAX_PATH], "must be a length and a hash")
    return files


def _check(site: Path, files: Mapping[str, FileFacts]) -> None:
    found = {path.relative_to(site).as_posix() for path in _files_below(site)}
    if found != files.keys():
        name = min(found ^ files.keys())
        raise _damaged("is missing" if name in files else "is not part of the release", site / name)
    for name, facts in files.items():
        if _facts_of(site / name) != facts:
            raise _damaged("is not the file that was signed", site / name)


def _files_below(site: Path) -> Iterator[Path]:
    """Everything that is no folder; a link is one of them, whatever it points at."""
    with disk_errors(site):
        for folder, folders, names in os.walk(site):
            links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118 - thousands of files, at each start
            yield from (Path(folder, name) for name in (*names, *links))


def _facts_of(path: Path) -> FileFacts:
    """Raises ArtifactError for what is no regular file."""
    with disk_errors(path):
        if path.is_symlink() or not path.is_file():
            raise _damaged("is no regular file", path)
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return stream.tell(), digest


def _damaged(what: str, path: Path) -> ArtifactError:
    return ArtifactError(what, where=str(path), reason=SLOT_DAMAGED)
