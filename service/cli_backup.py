"""`temperd backup` and `temperd restore`: a board's state in one file, and back."""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path

from agent.durable import disk_error, disk_errors, sync_folder
from agent.errors import SpecError
from agent.keys_files import OPEN_TO_ALL, check_mode
from service.backup import SealKeys, make_backup
from service.backup_format import SealedKeys
from service.cli import config_path, say_json
from service.config import load_config
from service.state_owner import as_owner, make_state

MAX_FILE_BYTES = 4096  # of a passphrase file


def backup(options: argparse.Namespace) -> int:
    """Write a back-up; a file that could not be finished is removed."""
    config = load_config(config_path(options))
    state, out = Path(config.device.state_dir), Path(options.out)
    seal = _sealer(options)
    partial = out.with_name(f".{out.name}.partial")
    if out.exists():
        raise SpecError("this file exists", where=str(out), fix="Name another one")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            with as_owner(state):
                made = make_backup(state, stream, config.device.name, time.time(), seal)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(out)
        sync_folder(out.absolute().parent)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)
    keys = "encrypted" if made.manifest.keys else "left out"
    if options.json:
        files = len(made.manifest.files)
        say_json({"file": str(out), "bytes": made.bytes, "device": made.manifest.device, "files": files, "keys": keys})
    else:
        print(
            f"{out}: {made.bytes / 1e6:.1f} MB, {len(made.manifest.files)} files of {made.manifest.device}, keys {keys}"
        )
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

    with disk_errors(path):
        source = path.open("rb")
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
    if not os.isatty(0):
        raise SpecError("no terminal to ask for the passphrase", fix="Give --passphrase-file")
    text = getpass.getpass("passphrase: ")
    if new and getpass.getpass("once more: ") != text:
        raise SpecError("these are two passphrases")
    return text
