"""What the parser's verbs have in common. Their arguments stand in `cli_verbs_*`, what they do in `cli_*`."""

from __future__ import annotations

import argparse
from typing import TypeAlias

DEFAULT_CONFIG = "/etc/temperd/temperd.toml"

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no public name


def add_verb(verbs: Verbs, name: str, code: str, text: str, *, config: bool = True) -> argparse.ArgumentParser:
    """A verb.

    Args:
        verbs: where it is added.
        name: what is typed.
        code: `module:function` below `service` that carries it out; imported only then.
        text: its help; the first line also stands in the list of verbs.
        config: whether it reads the daemon's configuration.
    """
    parser = verbs.add_parser(
        name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(verb=code)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    if config:
        parser.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG})")
    return parser


def add_group(verbs: Verbs, name: str, summary: str, text: str) -> Verbs:
    """A verb that has verbs of its own."""
    parser = verbs.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.add_subparsers(dest="kind", metavar="WHAT", required=True)
