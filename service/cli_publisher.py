"""`temperd publish`: the publisher's verb."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent import strict_json
from agent.errors import SpecError
from agent.keys import PublicDocument, parse_public_document
from service.cli import say_json

MAX_DOCUMENT_BYTES = 4096  # a public document has 200 bytes


def publish(options: argparse.Namespace) -> int:
    """Seal, sign and grant."""
    from agent import publish as publishing  # noqa: PLC0415 - needs the numeric stack, which other verbs must not load
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - same

    devices = [_document(Path(name)) for name in options.devices]
    repo, keys = Path(options.repo), Path(options.keys)
    about = publishing.Description(
        name=options.name or Path(options.model).stem.lower(),
        version=options.model_version,
        labels=publishing.read_labels(Path(options.labels)) if options.labels else (),
        scale=options.scale,
        offset=options.offset,
        security_floor=options.security_floor,
        boards=tuple(options.boards),
        source_images=options.source_images,
    )
    fresh = not (repo / "metadata").exists()
    publisher = (Publisher.create if fresh else Publisher.open)(repo, keys, utc_now)
    target = publishing.publish(publisher, options.model, about, devices)
    origin = target.card.signature_origin or "unknown (give --source-images)"
    if options.json:
        table = {"name": target.name, "version": target.version, "sealed_sha256": target.sealed_sha256}
        say_json({**table, "length": target.sealed_length, "root": str(publisher.root_path), "signature": origin})
    else:
        print(f"published {target.name} {target.version}: {target.sealed_length} bytes, sha256 {target.sealed_sha256}")
        print(f"source signature from {origin}")
        for device in devices:
            print(f"granted to {device.device}, fingerprint {device.fingerprint}")
        print(f"pin {publisher.root_path} on every board; serve {repo} with any web server")
    return 0


def _document(path: Path) -> PublicDocument:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise SpecError("the device document cannot be read", where=str(path)) from error
    table = strict_json.loads(data, what="device document", max_bytes=MAX_DOCUMENT_BYTES, error=SpecError)
    return parse_public_document(table)
