"""`temperd rollback`: the model before the active one again, without a broker."""

from __future__ import annotations

import argparse
import asyncio

from agent.errors import SpecError
from policies.strict import TableError, build
from service.cli import config_path, say_json
from service.config import load_config


def rollback(options: argparse.Namespace) -> int:
    """Go back, now."""
    config = load_config(config_path(options))
    from service import logs  # noqa: PLC0415 - the daemon's modules log from their import on

    logs.configure("warning" if not options.json else "error", config.log.format)
    from service.commands import RollbackArguments  # noqa: PLC0415 - same
    from service.daemon import Daemon  # noqa: PLC0415 - same

    try:
        to = build(RollbackArguments, {"to": options.to}).to
    except TableError as error:
        raise SpecError(f"{options.to[:80]!r} {error.what}", where="--to") from error
    result = asyncio.run(Daemon(config).one_rollback(to))
    if options.json:
        say_json(result)
    else:
        print(f"{_named(result['to'])} is active, {_named(result['from'])} is left")
    return 0


def _named(sha256: object) -> str:
    """A model by the first digits of its hash."""
    if sha256 is None:
        return "a broken model"
    return f"model {str(sha256)[:16]}" if sha256 else "the base"
