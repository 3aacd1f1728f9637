"""`temperd keys`: identities and whom a board trusts. Rotation stands in `cli_keys_rotation`."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent import strict_json
from agent.durable import make_folder, read_bounded, write_atomic
from agent.errors import SpecError, TemperdError
from agent.keys_consoles import (
    Role,
    TrustedConsole,
    console_document,
    create_console_key,
    distrust_console,
    load_trusted_consoles,
    trusted_consoles,
)
from agent.keys_files import spoken
from agent.keys_identity import DeviceIdentity, PublicDocument, as_identity, create_identity, new_identity
from agent.keys_root import PinnedRoot, parse_root, read_root
from agent.keys_stored import IDENTITY_FILE, Found, find_identity, write_credential
from agent.repository_bounds import MAX_ROOT_BYTES
from service.cli import config_path, say_json
from service.config import load_config
from service.state_owner import as_owner, make_state

MAX_DOCUMENT_BYTES = 4096  # a public document has 200 bytes
ENCRYPT = "systemd-creds encrypt --name=temperd-identity {} /etc/credstore.encrypted/temperd-identity"


def init(options: argparse.Namespace) -> int:
    """Make the board's identity and write its public document to the working folder.

    For root the identity becomes the daemon's, and the document root's: the working folder may be closed to the daemon.
    """
    name = options.name or load_config(config_path(options)).device.name
    if options.credential:
        stored = new_identity(name)
        write_credential(Path(options.credential), stored)
        identity = as_identity(stored)
    else:
        state = state_folder(options)
        make_state(state)
        with as_owner(state):
            identity = create_identity(keys_folder(options), name)
    document = write_document(identity.public)
    if options.json:
        say_json({"device": name, "fingerprint": identity.public.fingerprint, "document": str(document)})
    else:
        print(f"identity of {name} made, fingerprint {spoken(identity.public.fingerprint)}")
        if options.credential:
            tell_credential(options.credential)
        print(f"give {document} to whoever publishes models: temperd publish ... --for {document}")
    return 0


def export_credential(options: argparse.Namespace) -> int:
    """Write the identity as a plain credential for systemd to encrypt."""
    found = find_identity(keys_folder(options))
    path = Path(options.credential)
    write_credential(path, found.stored)
    if options.json:
        say_json({"device": found.stored.device, "credential": str(path), "read_from": str(found.path)})
    else:
        tell_credential(options.credential)
        if found.origin == "file":
            print(f"and remove {found.path} once the daemon has started with it: a copy there defeats the purpose")
    return 0


def show(options: argparse.Namespace) -> int:
    """Fingerprints of everything trusted on this board and of everything others trust of it."""
    found = find_identity(keys_folder(options))
    identity = as_identity(found.stored)
    consoles: tuple[TrustedConsole, ...] = ()
    root: PinnedRoot | TemperdError | None = None
    if not options.state:
        config = load_config(config_path(options))
        consoles = trusted_consoles(Path(config.commands.trusted_consoles))
        root = _root(Path(config.repository.root))
    if options.json:
        say_json(_table(found, identity, consoles, root))
    else:
        print("\n".join(_lines(found, identity, consoles, root)))
        if found.origin == "credential" and (keys_folder(options) / IDENTITY_FILE).exists():
            print(f"warning: keys also lie in {keys_folder(options) / IDENTITY_FILE}; remove it if they are the same")
    return 0


def console(options: argparse.Namespace) -> int:
    """Make a console key pair."""
    public = create_console_key(Path(options.out), options.name)
    if options.json:
        say_json({"console": options.name, "public": str(public)})
    else:
        print(f"console key of {options.name} made; on each board: temperd keys trust {public}")
    return 0


def trust(options: argparse.Namespace) -> int:
    """Copy a console's public document with the role it is given into the folder of trusted ones."""
    source = Path(options.document)
    data = console_document(_given(source, MAX_DOCUMENT_BYTES), source, Role(options.role))
    folder = Path(load_config(config_path(options)).commands.trusted_consoles)
    make_folder(folder, 0o755)
    target = folder / (source.name if source.suffix == ".json" else f"{source.name}.json")
    before = target.read_bytes() if target.exists() else None
    write_atomic(target, data, 0o644)
    try:
        trusted = load_trusted_consoles(folder)
    except Exception:
        if before is None:
            target.unlink()
        else:
            write_atomic(target, before, 0o644)
        raise
    if options.json:
        say_json({"role": options.role, "trusted_consoles": sorted(trusted)})
    else:
        print(f"trusted as {options.role}; {len(trusted)} console(s) in all, read by the daemon at each command")
    return 0


def distrust(options: argparse.Namespace) -> int:
    """Obey a console no more."""
    folder = Path(load_config(config_path(options)).commands.trusted_consoles)
    gone = distrust_console(folder, "".join(options.keyid))
    left = sorted(load_trusted_consoles(folder))
    if options.json:
        say_json({"distrusted": gone[0].keyid, "files": [str(item.path) for item in gone], "trusted_consoles": left})
    else:
        for item in gone:
            print(f"{item.name} is obeyed no more from the next command on; {item.path} is removed")
        print(f"{len(left)} console(s) trusted")
    return 0


def trust_repository(options: argparse.Namespace) -> int:
    """Pin a repository's root document, once it reads as one."""
    data = _given(Path(options.document), MAX_ROOT_BYTES)
    root = parse_root(data, options.document)
    target = Path(load_config(config_path(options)).repository.root)
    if target.exists() and target.read_bytes() != data and not options.replace:
        raise SpecError(
            "another root is pinned",
            where=str(target),
            fix="Compare fingerprints (temperd keys show); --replace takes the new one",
            reason="root-pinned",
        )
    make_folder(target.parent, 0o755)
    write_atomic(target, data, 0o644)
    if options.json:
        say_json({"pinned": str(target), "repository_root": _root_table(root)})
    else:
        print("\n".join([f"pinned in {target}; compare with the publisher:", *_root_lines(root)]))
    return 0


def keys_folder(options: argparse.Namespace) -> Path:
    """Where the board's identity lies when it is a file."""
    return state_folder(options) / "keys"


def state_folder(options: argparse.Namespace) -> Path:
    """The state folder: `--state`, else the configuration's."""
    return Path(options.state or load_config(config_path(options)).device.state_dir)


def write_document(public: PublicDocument) -> Path:
    """Write a public document to the working folder."""
    document = Path(f"{public.device}.device.json")
    write_atomic(document, strict_json.canonical(public.to_table()) + b"\n", 0o644)
    return document


def tell_credential(path: str) -> None:
    """Say what to do with a plain credential."""
    print(f"{path} holds private keys in plain: encrypt it, then remove it")
    print(f"  {ENCRYPT.format(path)} && rm {path}")


def _given(path: Path, max_bytes: int) -> bytes:
    try:
        return read_bounded(path, max_bytes)
    except FileNotFoundError as error:
        raise SpecError("the document cannot be read: there is none", where=str(path)) from error


def _root(path: Path) -> PinnedRoot | TemperdError:
    """The pinned root, or why there is none: the rest is still worth showing."""
    try:
        return read_root(path)
    except TemperdError as error:
        return error


def _table(
    found: Found, identity: DeviceIdentity, consoles: tuple[TrustedConsole, ...], root: PinnedRoot | TemperdError | None
) -> dict[str, object]:
    live = [
        {"fingerprint": public.fingerprint, "document": public.to_table(), "storage_key_id": keys.storage_key_id}
        for public, keys in zip(identity.documents, identity.live, strict=True)
    ]
    return {
        "device": identity.device,
        "read_from": {"origin": found.origin, "path": str(found.path)},
        **live[0],
        "previous": live[1] if len(live) > 1 else None,
        "consoles": [
            {"name": item.name, "role": item.role, "keyid": item.keyid, "file": str(item.path)} for item in consoles
        ],
        "repository_root": {"error": root.code, "message": str(root)}
        if isinstance(root, TemperdError)
        else root and _root_table(root),
    }


def _root_table(root: PinnedRoot) -> dict[str, object]:
    return {
        "sha256": root.sha256,
        "version": root.version,
        "expires": root.expires.isoformat(),
        "threshold": root.threshold,
        "keyids": list(root.keyids),
    }


def _lines(
    found: Found, identity: DeviceIdentity, consoles: tuple[TrustedConsole, ...], root: PinnedRoot | TemperdError | None
) -> list[str]:
    lines = [f"device {identity.device}, read from {found.origin} {found.path}"]
    ages = ("current", "previous")
    for age, public, keys in zip(ages, identity.documents, identity.live, strict=False):
        lines += [f"  {age:8} identity   {spoken(public.fingerprint)}"]
        lines += [f"  {age:8} storage    {spoken(keys.storage_key_id)}"]
    for item in consoles:
        lines += [f"console {item.name}, {item.role}", f"  key                 {spoken(item.keyid)}"]
    if isinstance(root, TemperdError):
        lines += [f"repository: {root}"]
    elif root is not None:
        lines += _root_lines(root)
    return lines


def _root_lines(root: PinnedRoot) -> list[str]:
    head = f"repository root version {root.version}, expires {root.expires:%Y-%m-%d}, {root.threshold} signature(s)"
    keys = [f"  key                 {spoken(keyid)}" for keyid in root.keyids]
    return [head, f"  file                {spoken(root.sha256)}", *keys]
