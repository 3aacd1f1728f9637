"""`temperd publish` and `make-base`: the publisher's verbs."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent import strict_json
from agent.card import IMAGE_CLASSIFICATION
from agent.errors import SpecError
from agent.keys import PublicDocument, parse_public_document
from service.cli import say_json

MAX_DOCUMENT_BYTES = 4096  # a public document has 200 bytes


def publish(options: argparse.Namespace) -> int:
    """Seal, sign and grant."""
    from agent import publish as publishing  # noqa: PLC0415 - needs the numeric stack, which other verbs must not load
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - same
    from agent.repository_keys import KeyRing  # noqa: PLC0415 - same

    devices = [read_device(Path(name)) for name in options.devices]
    repo, keys = Path(options.repo), Path(options.keys)
    task, windows = publishing.read_windows_card(Path(options.card)) if options.card else (IMAGE_CLASSIFICATION, None)
    about = publishing.Description(
        name=options.name or Path(options.model).stem.lower(),
        version=options.model_version,
        labels=publishing.read_labels(Path(options.labels)) if options.labels else (),
        scale=options.scale,
        offset=options.offset,
        security_floor=options.security_floor,
        boards=tuple(options.boards),
        task=task,
        windows=windows,
        source_images=options.source_images,
    )
    fresh = not any((repo / "metadata").glob("*.root.json"))
    make = Publisher.create if fresh else Publisher.open
    with KeyRing(keys).lock():
        publisher = make(repo, keys, utc_now)
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


def make_base(options: argparse.Namespace) -> int:
    """Make and train a base for anomalies or forecasts."""
    from agent.make_base import BaseRequest, make_base  # noqa: PLC0415 - needs the numeric stack

    request = BaseRequest(
        kind=options.kind_of_base,
        data=options.data,
        columns=tuple(options.columns),
        label=options.label,
        missing=options.missing,
        window=options.window,
        horizon=options.horizon,
        target=options.target,
        season=options.season,
        epochs=options.epochs,
        seed=options.seed,
        threads=options.threads,
    )
    out = Path(options.out)
    made = make_base(request, out)
    if options.json:
        say_json({**made, "model": str(out), "card": str(out.with_suffix(".card.json"))})
        return 0
    print(f"{out}: {made['parameters']} parameters, {made['train_samples']} windows, {made['epochs']} epochs")
    print(f"held-out {made['metric']} {made['value']:.4g}; without a model: {made['baselines']}")
    print(f"publish it: temperd publish {out} --card {out.with_suffix('.card.json')} --repo DIR --keys DIR")
    return 0


def read_device(path: Path) -> PublicDocument:
    """A board's public document.

    Raises:
        SpecError: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise SpecError("the device document cannot be read", where=str(path)) from error
    table = strict_json.loads(data, what="device document", max_bytes=MAX_DOCUMENT_BYTES, error=SpecError)
    return parse_public_document(table)
