"""`temperd doctor`: what this board has and lacks, and what to do."""

from __future__ import annotations

import argparse
import os
import pwd
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agent.board.files import BoardRoots
from agent.errors import BoardError, ConfigError
from agent.keys_stored import CREDENTIAL
from service import doctor_board, doctor_service, doctor_trust
from service.cli import config_path, say_json
from service.config import Config, load_config
from service.doctor import Check, Finding, Grade, Scene, examine, lines, ok, refused, table, worst
from service.doctor_outside import begin, collect, systemd
from service.live import live_folder, read_live
from service.state_owner import become_owner

AS_ROOT = "sudo temperd doctor"
_CREDENTIAL_STORES = tuple(  # systemd.exec(5), LoadCredential=
    f"{top}/{store}" for top in ("/etc", "/run", "/usr/lib") for store in ("credstore", "credstore.encrypted")
)

CHECKS: Mapping[str, Check] = {
    "daemon": doctor_service.daemon,
    "systemd": doctor_service.unit,
    "identity": doctor_trust.identity,
    "root": doctor_trust.repository_root,
    "consoles": doctor_trust.consoles,
    "state": doctor_trust.state_files,
    "clock": doctor_board.clock,
    "policy": doctor_board.policy,
    "board": doctor_board.board,
    "levers": doctor_board.control,
    "memory": doctor_board.memory,
    "disk": doctor_board.disk,
    "limits": doctor_service.limits,
    "updates": doctor_service.updates,
    "rauc": doctor_service.rauc,
}


def doctor(options: argparse.Namespace) -> int:
    """All findings; 1 where one is bad."""
    path = config_path(options).absolute()
    credential, as_root = _kept_credential(), os.geteuid() == 0
    try:
        become_owner(Path(load_config(path).device.state_dir))
        config = load_config(path)  # once more: the daemon's user must be able to read it
        _check_user(Path(config.device.state_dir))
    except ConfigError as error:
        why = "the daemon does not start (exit code 78), and nothing more can be looked at"
        found = refused("config", error, why)
        if isinstance(error.__cause__, PermissionError):
            mend = f"sudo chgrp {_name(os.geteuid())} {path}; sudo chmod 0640 {path}" if as_root else AS_ROOT
            found = replace(found, why=f"{_name(os.geteuid())} may not read it", mend=mend)
        findings = [found]
    else:
        findings = [ok("config", str(path)), *_findings(config, path, credential)]
    if options.json:
        say_json(table(findings))
    else:
        print("\n".join(lines(findings)))
    return 1 if worst(findings) is Grade.BAD else 0


def _findings(config: Config, path: Path, credential: bool) -> list[Finding]:  # noqa: FBT001 - private, one caller
    probes = begin(path)
    found = examine(_scene(config, path, credential), CHECKS)
    return [*found, *collect(probes, time.monotonic)]


def _check_user(state: Path) -> None:
    """Another user than the daemon's would see faults that are none.

    Raises:
        BoardError: we may not look into the state folder.
    """
    if state.is_dir() and not os.access(state, os.R_OK | os.X_OK, effective_ids=True):
        what = f"the state is {_name(state.stat().st_uid)}'s, and {_name(os.geteuid())} may not look into it"
        raise BoardError(what, where=str(state), fix=f"As root, or as its owner: {AS_ROOT}")


def _kept_credential() -> bool:
    """Whether one of the credential stores has the board's identity; while we may still look."""
    try:
        return any(Path(store, CREDENTIAL).exists() for store in _CREDENTIAL_STORES)
    except OSError:
        return False


def _scene(config: Config, path: Path, credential: bool) -> Scene:  # noqa: FBT001 - private, one caller
    folder = live_folder(Path(config.device.state_dir))
    try:
        live: Mapping[str, object] | None = read_live(folder, time.monotonic())
    except BoardError:
        live = None
    board = config.board
    roots: BoardRoots | None = BoardRoots(Path(board.sys_root), Path(board.proc_root))
    if board.emulated:
        roots = BoardRoots.of_tree(folder / "board") if live else None
    return Scene(
        config=config,
        config_path=path,
        roots=roots,
        emulated=bool(board.emulated),
        live=live,
        now=time.time(),
        mono_s=time.monotonic(),
        user=_name(os.geteuid()),
        credential=credential,
        unit=systemd(),
    )


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
