"""Putting a back-up into the state folder: unpacked and judged beside, then renamed; what was there is set aside.

    <state>/restoring/new/            unpacked, judged and synced
    <state>/restoring/decided.json    from here on it is done to its end, by whoever comes next: see `finish`
    <state>/before-restore-1/         what was there

Before `decided.json` a crash leaves the state as it was. After it the next `temperd restore` or `temperd run` does the
rest. Commands that were sent before the restore count as replays, and jobs that had not ended are canceled: the board
may have run them since, or another one with its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from agent.durable import disk_errors, make_folder, sync_folder, write_atomic
from agent.errors import ArtifactError, BoardError, SpecError
from agent.keys_stored import CREDENTIAL, IDENTITY_FILE, find_identity
from agent.strict_json import canonical
from service.backup import JOURNAL, machine_mark
from service.backup_format import Manifest, SealedKeys, broken, lies_at, read_archive
from service.journal_file import SCHEMA_VERSION
from service.kernel_clock import EARLIEST_TIME
from service.restore_finish import ASIDE, DECIDED, FOLDER, KEYS, MAX_ASIDE, finish
from service.restore_journal import settle_journal
from service.state_lock import state_lock

CLOCKS_DIFFER_S = 3600.0  # of two boards, one of which made the back-up
OpenKeys = Callable[[SealedKeys, bytes], bytes]
"""Decrypts the identity: the keys as the back-up has them, and the manifest that they are bound to."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done.

    Attributes:
        manifest: of the back-up.
        canceled: jobs that had not ended.
        aside: where the state before lies; empty: there was none.
        notes: what somebody has to know.
    """

    manifest: Manifest
    canceled: int
    aside: str
    notes: tuple[str, ...]


def restore(
    state: Path, source: BinaryIO, device: str, now: float, *, replace: bool = False, open_keys: OpenKeys | None = None
) -> Restored:
    """Put a back-up into the state folder.

    Args:
        state: the state folder; made where it is missing.
        source: the back-up.
        device: the configured name of this board.
        now: seconds since 1970.
        replace: also where a state is.
        open_keys: for the private keys in it; `None`: they are left out.

    Raises:
        SpecError: `state-exists`: there is a state, and `replace` was not given.
        ArtifactError: the back-up is broken, of a newer temperd, or another board's; the passphrase is wrong.
        BoardError: a daemon runs; the clock was never set; the disk fails. The state is as it was, all the same.
    """
    if now < EARLIEST_TIME:
        raise _clock_wrong("the clock was never set, and which commands are old")
    make_folder(state)
    with state_lock(state, "Stop the daemon first: sudo systemctl stop temperd"):
        finish(state)
        there = [JOURNAL] if open_keys is None else [JOURNAL, f"{KEYS}/{IDENTITY_FILE}"]
        if not replace and any((state / name).exists() for name in there):
            fix = "--replace sets it aside first"
            raise SpecError("there is a state already", where=str(state), fix=fix, reason="state-exists")
        with _cleared(state):
            manifest = _unpacked(state, source, device, open_keys)
            if manifest.made_at > now + CLOCKS_DIFFER_S:
                raise _clock_wrong("the back-up was made later than this clock says it is, and which commands are old")
            canceled = settle_journal(state / FOLDER / "new" / JOURNAL, now)
            aside = _decide(state)
        finish(state)
    aside = aside if (state / aside).exists() else ""
    return Restored(manifest, canceled, aside, _notes(state, manifest, with_keys=open_keys is not None))


def _clock_wrong(what: str) -> BoardError:
    return BoardError(f"{what} cannot be told", fix="Set it: timedatectl", reason="clock-wrong")


@contextlib.contextmanager
def _cleared(state: Path) -> Iterator[None]:
    """An empty folder to unpack into; gone again where the body fails."""
    make_folder(state / FOLDER / "new")
    try:
        yield
    except BaseException:
        shutil.rmtree(state / FOLDER, ignore_errors=True)
        raise


def _unpacked(state: Path, source: BinaryIO, device: str, open_keys: OpenKeys | None) -> Manifest:
    new = state / FOLDER / "new"

    def make(name: str) -> BinaryIO:
        path = lies_at(new, name)
        make_folder(path.parent)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    with disk_errors(new):
        manifest = read_archive(source, make)
        if manifest.device != device:
            what = f"the back-up is that of {manifest.device!r}, the configuration names {device!r}"
            fix = "Set device.name to it where this board takes its place"
            raise ArtifactError(what, fix=fix, reason="backup-foreign")
        if manifest.journal_schema > SCHEMA_VERSION:
            fix = "Install that version here first"
            raise ArtifactError("the back-up was made by a newer temperd", fix=fix, reason="backup-newer")
        if JOURNAL not in manifest.files:
            raise broken("it has no journal")
        if open_keys is not None:
            _put_keys(new / KEYS, manifest, open_keys)
    return manifest


def _put_keys(folder: Path, manifest: Manifest, open_keys: OpenKeys) -> None:
    if manifest.keys is None:
        raise SpecError("there are no keys in this back-up", fix="Restore it without --with-keys", reason="no-keys")
    data = open_keys(manifest.keys, manifest.bound())
    make_folder(folder)
    write_atomic(folder / IDENTITY_FILE, data)
    if find_identity(folder, {}).stored.device != manifest.device:
        raise broken("its keys are another board's")


def _decide(state: Path) -> str:
    """Make the decision last, and name where the state before goes."""
    numbers = range(1, MAX_ASIDE + 1)
    aside = next((name for name in map(ASIDE.format, numbers) if not (state / name).exists()), None)
    if aside is None:
        raise BoardError("too many states were set aside", where=str(state), fix="Remove before-restore-*")
    new = state / FOLDER / "new"
    with disk_errors(new):
        for path in sorted(new.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            else:
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
        sync_folder(new)
        names = sorted(path.name for path in new.iterdir())
    write_atomic(state / FOLDER / DECIDED, canonical({"aside": aside, "names": names}))
    return aside


def _notes(state: Path, manifest: Manifest, *, with_keys: bool) -> tuple[str, ...]:
    notes = []
    mark = machine_mark()
    if with_keys and manifest.machine and mark != manifest.machine:
        notes.append(
            f"the back-up was made on another machine: two boards with the identity of {manifest.device} throw each "
            "other out (alarm taken-over), and each opens what is sealed for the other. Never start that one again"
        )
    if not with_keys and not (state / "keys" / IDENTITY_FILE).exists():
        held = "--with-keys restores the one in the back-up" if manifest.keys else f"put keys/{IDENTITY_FILE} back"
        notes.append(
            f"there is no identity: {held}, or hand the credential {CREDENTIAL} over; with a new one the tuned models "
            "do not open"
        )
    return tuple(notes)
