"""`temperd keys`: identities and whom a board trusts."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent import strict_json
from agent.durable import make_folder, write_atomic
from agent.errors import SpecError
from agent.keys import create_console_key, create_identity, load_identity, load_trusted_consoles
from service.cli import config_path, say_json
from service.config import load_config

MAX_DOCUMENT_BYTES = 4096  # a public document has 200 bytes


def init(options: argparse.Namespace) -> int:
    """Make the board's identity and write its public document to the working folder."""
    name = options.name or load_config(config_path(options)).device.name
    identity = create_identity(_state(options) / "keys", name)
    document = Path(f"{name}.device.json")
    write_atomic(document, strict_json.canonical(identity.public.to_table()) + b"\n", 0o644)
    if options.json:
        say_json({"device": name, "fingerprint": identity.public.fingerprint, "document": str(document)})
    else:
        print(f"identity of {name} made, fingerprint {identity.public.fingerprint}")
        print(f"give {document} to whoever publishes models: temperd publish ... --for {document}")
    return 0


def show(options: argparse.Namespace) -> int:
    """Fingerprints."""
    public = load_identity(_state(options) / "keys").public
    trusted: list[str] = []
    if not options.state:
        trusted = sorted(load_trusted_consoles(Path(load_config(config_path(options)).commands.trusted_consoles)))
    if options.json:
        table = {"device": public.device, "fingerprint": public.fingerprint, "document": public.to_table()}
        say_json({**table, "trusted_consoles": trusted})
    else:
        print(f"device   {public.device}\nidentity {public.fingerprint}")
        for keyid in trusted:
            print(f"trusts   {keyid}")
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
    """Copy a console's public document into the folder of trusted ones, once it reads as one."""
    source = Path(options.document)
    try:
        with source.open("rb") as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise SpecError("the document cannot be read", where=str(source)) from error
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
        say_json({"trusted_consoles": sorted(trusted)})
    else:
        print(f"{len(trusted)} console(s) trusted; the daemon reads them at each command")
    return 0


def _state(options: argparse.Namespace) -> Path:
    return Path(options.state or load_config(config_path(options)).device.state_dir)
