"""`temperd bench figures`: the page of reference figures, from results of the benches."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from agent import strict_json
from agent.durable import read_bounded
from agent.errors import ArtifactError, BoardError, SpecError
from service.bench import check_bounds, machine, say_progress
from service.cli import say_json
from service.reference_figures import page, table

MAX_RESULT_BYTES = 8 << 20  # the longest, of `bench govern`, has some 100 KB
MAX_RESULTS = 32
QUICK = "quick"


def figures(options: argparse.Namespace) -> int:
    """Read the results, measure the quick ones first if asked, write or print the page."""
    check_bounds(options)
    folder = Path(options.results)
    if not folder.is_dir():
        fix = "Name a folder of results: temperd bench seal --json > DIR/seal.json"
        raise SpecError("no such folder", where=f"--from {folder}", fix=fix)
    if options.run:
        _write(folder / f"{QUICK}.json", json.dumps(_measured(options), indent=1) + "\n")
    results = read_results(folder)
    if options.json:
        say_json(table(results))
    elif options.out:
        _write(Path(options.out), page(results))
    else:
        print(page(results), end="")
    return 0


def read_results(folder: Path) -> dict[str, dict[str, object]]:
    """Every result in `folder`, by its bench's name.

    Raises:
        ArtifactError: a file is too long, no JSON object, or not named after its bench.
        BoardError: the disk fails.
    """
    paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_RESULTS:
        raise ArtifactError(f"{len(paths)} results are more than {MAX_RESULTS}", where=str(folder))
    found: dict[str, dict[str, object]] = {}
    for path in paths:
        body = strict_json.loads(read_bounded(path, MAX_RESULT_BYTES), what=path.name, max_bytes=MAX_RESULT_BYTES)
        name = body.get("bench", path.stem) if isinstance(body, dict) else None
        if not isinstance(body, dict) or name != path.stem:
            fix = "Name each file after its bench: temperd bench seal --json > seal.json"
            raise ArtifactError("no result of that bench", where=str(path), fix=fix)
        found[path.stem] = body
    return found


def _measured(options: argparse.Namespace) -> dict[str, object]:
    from service import reference_figures_measured, reference_figures_modelled  # noqa: PLC0415 - need the numeric stack

    measured = reference_figures_measured.measure(options.model, options.threads, say_progress)
    say_progress("simulated boards")
    modelled = reference_figures_modelled.measure(reference_figures_measured.step_work(options.model))
    return {"bench": QUICK, "machine": machine(), **measured, **modelled}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BoardError(f"cannot be written: {error.strerror}", where=str(path), reason="disk") from error
