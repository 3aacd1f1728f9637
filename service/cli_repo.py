"""`temperd repo`: keys, dates and health of a model repository; the publisher's verbs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.durable import read_bounded
from agent.errors import SpecError, TemperdError
from service.cli import say_json

if TYPE_CHECKING:
    from agent.repository_check import Report
    from agent.repository_folder import RoleState, SignedFolder
    from agent.repository_root import RootState

WRONG = 1  # exit code: something needs the publisher
MAX_SHOWN_ORPHANS = 20  # lines for people; --json has all


def init(options: argparse.Namespace) -> int:
    """Make keys and an empty repository."""
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - cryptography, which other verbs must not load

    folders = [Path(name) for name in options.root_key_dirs]
    # One lost root key must not be the end of a repository, so by default all but one have to sign.
    threshold = options.root_threshold or max(1, len(folders) - 1)
    publisher = Publisher.create(Path(options.repo), Path(options.keys), utc_now, folders, threshold)
    root = publisher.signed.release.root.signed.roles["root"]
    if options.json:
        table = {"root": str(publisher.root_path), "root_keys": root.keyids, "root_threshold": threshold}
        say_json(table)
    else:
        print(f"repository {options.repo} made; {threshold} of {len(root.keyids)} root keys change keys")
        for place in folders:
            print(f"root key in {place}: keep it offline")
        print(f"pin {publisher.root_path} on every board; publish with --keys {options.keys}")
    return 0


def grant(options: argparse.Namespace) -> int:
    """Let boards open a published version; needs no targets key."""
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - same
    from agent.repository_keys import KeyRing  # noqa: PLC0415 - same
    from service.cli_publisher import read_device  # noqa: PLC0415 - same

    devices = [read_device(Path(name)) for name in options.devices]
    with KeyRing(Path(options.keys)).lock():
        publisher = Publisher.open(Path(options.repo), Path(options.keys), utc_now)
        paths = [publisher.grant(device, options.name, options.model_version) for device in devices]
    if options.json:
        say_json({"grants": paths})
    else:
        for device in devices:
            print(f"granted to {device.device}, fingerprint {device.fingerprint}")
    return 0


def rotate(options: argparse.Namespace) -> int:
    """New keys for a role."""
    from agent.repository_root import rotate as rotate_role  # noqa: PLC0415 - same

    if options.role != "root" and (options.replace or options.into):
        raise SpecError("--replace and --into are for root keys only")
    signed = _signed(options)
    with signed.keys.lock():
        signed.load()
        state = rotate_role(signed, options.role, options.replace, Path(options.into) if options.into else None)
    return _tell_root(options, state, f"the {options.role} role has new keys")


def sign(options: argparse.Namespace) -> int:
    """Sign a root document that waits."""
    from agent.repository_root import sign as sign_root  # noqa: PLC0415 - same

    signed = _signed(options)
    with signed.keys.lock():
        signed.load()
        state = sign_root(signed)
    return _tell_root(options, state, "the change is in force")


def refresh(options: argparse.Namespace) -> int:
    """Sign anew what is due; 1 when something urgent could not be."""
    from agent.repository_root import refresh as refresh_all  # noqa: PLC0415 - same

    signed = _signed(options)
    with signed.keys.lock():
        signed.load()
        states = refresh_all(signed)
    if options.json:
        say_json([_role_table(state) for state in states])
    else:
        for state in states:
            what = "renewed, " if state.renewed else ""
            problem = f"; {state.problem}" if state.problem else ""
            print(f"{state.role} {state.version}: {what}until {state.expires:%Y-%m-%d %H:%M} UTC{problem}")
    return WRONG if any(state.urgent for state in states) else 0


def verify(options: argparse.Namespace) -> int:
    """Check a repository as boards do, from a pinned root; 1 when something is wrong."""
    from agent.repository import utc_now  # noqa: PLC0415 - same
    from agent.repository_check import check_repository  # noqa: PLC0415 - same
    from agent.repository_release import READ_BYTES  # noqa: PLC0415 - same
    from agent.repository_source import FolderSource, WebSource  # noqa: PLC0415 - same

    try:
        pinned = read_bounded(Path(options.root), READ_BYTES["root"])
    except FileNotFoundError as error:
        raise SpecError("there is no root document", where=options.root) from error
    source = WebSource(options.url) if options.url else FolderSource(Path(options.repo))
    report = check_repository(source, pinned, utc_now())
    if options.url:
        _ask_a_board(options, report)
    if options.json:
        say_json(_report_table(report))
    else:
        print("\n".join(_report_lines(report)))
    return WRONG if report.findings else 0


def _ask_a_board(options: argparse.Namespace, report: Report) -> None:
    """The client that runs on boards has the last word."""
    from agent.trust import ModelRepository  # noqa: PLC0415 - same

    with tempfile.TemporaryDirectory(prefix="temperd-verify-") as state:
        try:
            ModelRepository(options.url, Path(options.root), Path(state)).refresh()
        except TemperdError as error:
            report.add(error.code, options.url, f"a board refuses it: {error}")


def _signed(options: argparse.Namespace) -> SignedFolder:
    from agent.repository import utc_now  # noqa: PLC0415 - same
    from agent.repository_folder import SignedFolder  # noqa: PLC0415 - same
    from agent.repository_keys import KeyRing  # noqa: PLC0415 - same

    keys = KeyRing(Path(options.keys), [Path(name) for name in options.root_key_dirs])
    return SignedFolder(Path(options.repo), keys, utc_now)


def _tell_root(options: argparse.Namespace, state: RootState, done: str) -> int:
    if options.json:
        say_json({"root_version": state.version, "in_force": state.in_force, "missing": state.missing})
    elif state.in_force:
        print(f"{done}; root version {state.version}. Keys no longer named lie in retired/")
    else:
        print("a new root waits for signatures and is not served:")
        for line in state.missing:
            print(f"  {line}")
        print("where those keys are: temperd repo sign --repo ... --keys ... --root-key-dir DIR")
    return 0


def _role_table(state: RoleState) -> dict[str, object]:
    return {
        "role": state.role,
        "version": state.version,
        "expires": state.expires.isoformat(),
        "renewed": state.renewed,
        "problem": state.problem,
        "urgent": state.urgent,
    }


def _report_table(report: Report) -> dict[str, object]:
    return {
        "right": not report.findings,
        "findings": [{"code": item.code, "where": item.where, "what": item.what} for item in report.findings],
        "expires": {role: expires.isoformat() for role, expires in report.expires.items()},
        "models": report.models,
        "releases": report.releases,
        "grants": report.grants,
        "orphans": report.orphans,
    }


def _report_lines(report: Report) -> Sequence[str]:
    lines = [f"{role}: until {expires:%Y-%m-%d %H:%M} UTC" for role, expires in report.expires.items()]
    lines += [f"{len(report.models)} models and {report.grants} grants are right"]
    lines += [f"  {name}" for name in (*report.models, *report.releases)]
    if report.orphans:
        lines += [f"{len(report.orphans)} files that no document names (harmless):"]
        lines += [f"  {path}" for path in report.orphans[:MAX_SHOWN_ORPHANS]]
    lines += [f"WRONG {item.code}: {item.where}: {item.what}" for item in report.findings]
    return [*lines, "wrong" if report.findings else "all is right"]
