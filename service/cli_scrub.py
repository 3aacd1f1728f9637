"""`temperd scrub`: read and hash again what this board keeps, and mend it."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from service.cli import config_path, say_json
from service.config import load_config

DAMAGE_LEFT = 1


def scrub(options: argparse.Namespace) -> int:
    """One scrub, now; 1 when something was lost."""
    config = load_config(config_path(options))
    from service import logs  # noqa: PLC0415 - the daemon's modules log from their import on

    logs.configure("warning" if not options.json else "error", config.log.format)
    from service.daemon import Daemon  # noqa: PLC0415 - same

    result = asyncio.run(Daemon(config).one_scrub())
    if options.json:
        say_json(result)
    else:
        print("\n".join(lines(result, Path(config.device.state_dir))))
    return DAMAGE_LEFT if result["unrepairable"] else 0


def lines(result: dict[str, object], state: Path) -> list[str]:
    """A result for people."""
    megabytes = float(str(result["bytes"])) / 1e6
    told = [f"{result['files']} files, {megabytes:.1f} MB in {float(str(result['duration_s'])):.1f} s below {state}"]
    damaged = result["damaged"]
    if not damaged:
        told.append("all are whole")
    else:
        told.append(f"{damaged} damaged: {result['repaired']} repaired, {result['unrepairable']} lost")
    told += [f"  {found['path']}: {found['action']}, {found['told']}" for found in _tables(result["findings"])]
    if result["memory_errors"]:
        told.append(f"{result['memory_errors']} read wrong once and right the second time: watch the board's memory")
    if result["unjudged"]:
        told.append(f"{result['unjudged']} that nobody vouches for were not judged")
    if result["edac_uncorrected"]:
        told.append(f"the memory controller counts {result['edac_uncorrected']} errors that it could not correct")
    notes = result["notes"]
    told += [f"  {note}" for note in notes] if isinstance(notes, list) else []
    return told


def _tables(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []
