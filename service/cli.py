"""The command line: the parser that teaches, and what every verb has in common. The verbs stand in `cli_*`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import __version__
from agent.errors import ConfigError, TemperdError
from service.cli_verbs import Help
from service.cli_verbs_run import run_verb
from service.launched import DEFAULT_CONFIG, Launched

_ROOMS = ("board", "care", "laptop", "release", "fleet", "ingest", "console", "bench")  # in the order of the help
EXIT_CONFIG = 78  # EX_CONFIG: systemd must not restart a daemon that cannot start

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage or bad input, 3 refused (not trusted), 78 the daemon's configuration is wrong
first steps on a new machine:
  temperd demo                       see the whole story: publish, pull, fine-tune, promote, on an emulated board
  temperd keys init my-board         make this board's identity; give my-board.device.json to the publisher
  temperd publish MODEL --repo DIR   seal and sign a model for boards (on a laptop)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `temperd`."""
    words = sys.argv[1:] if argv is None else argv
    options = _parser(only_run=words[:1] == ["run"]).parse_args(words)
    module, _, function = options.verb.partition(":")
    try:
        verb = getattr(importlib.import_module(f"service.{module}"), function)
        return int(verb(options))
    except TemperdError as error:
        return _fail(options, error)
    except BaseExceptionGroup as group:  # what a task of the daemon raised
        expected, rest = group.split(TemperdError)
        if expected is None or rest is not None:
            raise
        return _fail(options, _first(expected))
    except KeyboardInterrupt:
        return 130


def _first(group: BaseExceptionGroup[TemperdError]) -> TemperdError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _fail(options: argparse.Namespace, error: TemperdError) -> int:
    tell(options, error)
    if not (isinstance(error, ConfigError) and options.command == "run"):
        return error.exit_code
    # The release before ran with this configuration: one on trial that cannot is to be left, so it must come back.
    return 1 if Launched.of().on_trial else EXIT_CONFIG


def tell(options: argparse.Namespace, error: TemperdError) -> None:
    """Say what went wrong: a line for people, or JSON when that was asked for."""
    if getattr(options, "json", False):
        say_json({"error": error.code, "message": str(error)})
    else:
        print(f"temperd: {error}", file=sys.stderr)


def say_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, default=str))


def config_path(options: argparse.Namespace) -> Path:
    """The configuration file: `--config`, else TEMPERD_CONFIG, else /etc/temperd/temperd.toml."""
    return Path(options.config or os.environ.get("TEMPERD_CONFIG", "") or DEFAULT_CONFIG)


def _parser(*, only_run: bool = False) -> argparse.ArgumentParser:
    """The parser of all verbs, or that of the daemon, which keeps for months what it loads."""
    parser = argparse.ArgumentParser(
        prog="temperd",
        description="Fine-tunes sealed models on small boards and keeps inside their heat, battery and memory.",
        epilog=_EPILOG,
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"temperd {__version__}")
    verbs = parser.add_subparsers(dest="command", metavar="VERB", required=True)
    run_verb(verbs)
    for room in () if only_run else _ROOMS:
        getattr(importlib.import_module(f"service.cli_verbs_{room}"), f"{room}_verbs")(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
