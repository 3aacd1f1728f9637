"""`temperd backup` and `temperd restore`: a board's state in one file, and back."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from agent.durable import atomic_writer, disk_error, disk_errors
from agent.errors import BoardError, SpecError
from agent.keys_files import OPEN_TO_ALL, check_mode
from service.backup import Made, SealKeys, make_backup
from service.backup_format import SealedKeys
from service.cli import config_path, say_json
from service.config import load_config
from service.state_owner import as_owner, make_state
from service.terminal import has_terminal

PIPE = "-"  # standard output, or input
MAX_FILE_BYTES = 4096  # of a passphrase file


def backup(options: argparse.Namespace) -> int:
    """Write a back-up; a file that could not be finished is removed."""
    config = load_config(config_path(options))
    state, seal = Path(config.device.state_dir), _sealer(options)

    def write(stream: BinaryIO) -> Made:
        with as_owner(state):
            return make_backup(state, stream, config.device.name, time.time(), seal)

    made = _to_output(write) if options.out == PIPE else _to_file(Path(options.out), write)
    keys, files = "encrypted" if made.manifest.keys else "left out", len(made.manifest.files)
    device = made.manifest.device
    if options.json and options.out != PIPE:
        say_json({"file": options.out, "bytes": made.bytes, "device": device, "files": files, "keys": keys})
        return 0
    told = f"{options.out}: {made.bytes / 1e6:.1f} MB, {files} files of {device}, keys {keys}"
    print(told, file=sys.stderr if options.out == PIPE else sys.stdout)
    return 0


def restore(options: argparse.Namespace) -> int:
    """Put a back-up into the state folder."""
    from service import logs  # noqa: PLC0415 - the journal logs

    config = load_config(config_path(options))
    logs.configure("error", config.log.format)
    from service.restore import restore as put_back  # noqa: PLC0415 - after the log is set up

    state, path = Path(config.device.state_dir), Path(options.file)
    opener = None
    if options.with_keys:
        from service.backup_keys import open_keys  # noqa: PLC0415 - loads cryptography

        passphrase = _passphrase(options, new=False)

        def opener(keys: SealedKeys, bound: bytes) -> bytes:
            return open_keys(keys, passphrase, bound)

    with _reachable(path):
        source = sys.stdin.buffer if options.file == PIPE else path.open("rb")
    make_state(state)
    with source, as_owner(state):
        done = put_back(state, source, config.device.name, time.time(), replace=options.replace, open_keys=opener)
    made = datetime.fromtimestamp(done.manifest.made_at, UTC).isoformat(timespec="seconds")
    if options.json:
        told = {"device": done.manifest.device, "made": made, "canceled": done.canceled, "aside": done.aside}
        say_json({**told, "notes": list(done.notes)})
        return 0
    print(f"{done.manifest.device} is as it was at {made}; {done.canceled} jobs that had not ended are canceled")
    if done.aside:
        print(f"what was there before: {state / done.aside}")
    for note in done.notes:
        print(f"NOTE: {note}")
    return 0


def _to_output(write: Callable[[BinaryIO], Made]) -> Made:
    """Whole first, for a pipe takes nothing back."""
    with tempfile.TemporaryFile() as stream:
        made = write(stream)
        stream.seek(0)
        shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return made


def _to_file(out: Path, write: Callable[[BinaryIO], Made]) -> Made:
    with _reachable(out):
        if out.exists():
            raise SpecError("this file exists", where=str(out), fix="Name another one")
    try:
        with atomic_writer(out) as stream:
            return write(stream)
    except BoardError as error:
        if isinstance(error.__cause__, PermissionError):
            raise _not_allowed(out) from error
        raise


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[None]:
    """The installed program becomes the daemon's user first: it cannot reach what is root's alone."""
    try:
        yield
    except PermissionError as error:
        raise _not_allowed(path) from error
    except OSError as error:
        raise disk_error(error, path) from error


def _not_allowed(path: Path) -> BoardError:
    fix = "Let the shell open the file: temperd backup --out - > FILE, temperd restore - < FILE"
    return BoardError("this user may not", where=str(path), fix=fix, reason="disk")


def _sealer(options: argparse.Namespace) -> SealKeys | None:
    if not options.with_keys:
        return None
    from service.backup_keys import check_passphrase, seal_keys  # noqa: PLC0415 - loads cryptography

    passphrase = _passphrase(options, new=True)
    check_passphrase(passphrase)
    return lambda identity, bound: seal_keys(identity, passphrase, bound, secrets.token_bytes)


def _passphrase(options: argparse.Namespace, *, new: bool) -> str:
    """From the file, else from the terminal; a new one twice.

    Raises:
        SpecError: no file and no terminal, or two different ones.
        BoardError: others may read the file; it cannot be read.
    """
    if options.passphrase_file:
        path = Path(options.passphrase_file)
        with disk_errors(path), path.open("rb") as source:
            check_mode(path, OPEN_TO_ALL)
            lines = source.read(MAX_FILE_BYTES).decode("utf-8", "replace").splitlines()
        return lines[0] if lines else ""
    if not has_terminal():
        raise SpecError("no terminal to ask for the passphrase", fix="Give --passphrase-file")
    text = getpass.getpass("passphrase: ")
    if new and getpass.getpass("once more: ") != text:
        raise SpecError("these are two passphrases")
    return text
