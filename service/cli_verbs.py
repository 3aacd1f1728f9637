"""What the parser's verbs have in common. Their arguments stand in `cli_verbs_*`, what they do in `cli_*`."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from service.launched import DEFAULT_CONFIG

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no public name

COLUMNS = 80  # where nobody says how wide the terminal is


class Help(argparse.RawDescriptionHelpFormatter):
    """The layout of help. It finds the width itself: argparse loads two compressors for that, 0.7 MB in a daemon."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """As the environment has it, else the terminal."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdigit() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(1).columns or COLUMNS
    except OSError:  # no terminal
        return COLUMNS


def add_verb(verbs: Verbs, name: str, code: str, text: str, *, config: bool = True) -> argparse.ArgumentParser:
    """A verb.

    Args:
        verbs: where it is added.
        name: what is typed.
        code: `module:function` below `service` that carries it out; imported only then.
        text: its help; the first line also stands in the list of verbs.
        config: whether it reads the daemon's configuration.
    """
    parser = verbs.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=Help)
    parser.set_defaults(verb=code)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    if config:
        parser.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG})")
    return parser


def add_group(verbs: Verbs, name: str, summary: str, text: str) -> Verbs:
    """A verb that has verbs of its own."""
    parser = verbs.add_parser(name, help=summary, description=text, formatter_class=Help)
    return parser.add_subparsers(dest="kind", metavar="WHAT", required=True)


def add_broker_options(parser: argparse.ArgumentParser) -> None:
    """How a verb of a laptop or a server reaches the broker; `service.fleet.access` reads them."""
    broker = parser.add_argument_group("broker (else TEMPERD_BROKER, else the profile)")
    text = "MQTT broker (localhost; port 1883, with TLS 8883, with websockets 80 or 443)"
    broker.add_argument("--broker", default="", metavar="HOST[:PORT]", help=text)
    broker.add_argument("--tenant", default="", help="whose boards (default)")
    broker.add_argument("--tls", action="store_true", help="TLS, checked against the system's authorities")
    broker.add_argument("--ca", default="", metavar="FILE", help="TLS, checked against this authority")
    broker.add_argument("--cert", default="", metavar="FILE", help="our certificate")
    broker.add_argument("--key-file", default="", metavar="FILE", help="private key of --cert")
    broker.add_argument("--user", default="", metavar="NAME", help="user name at the broker")
    broker.add_argument("--password-file", default="", metavar="FILE", help="its password, in the first line")
    broker.add_argument("--websockets", action="store_true", help="MQTT over websockets")
    text = "TOML with tenant, key, state and [mqtt] (TEMPERD_PROFILE, else ~/.config/temperd/fleet.toml)"
    broker.add_argument("--profile", default="", metavar="FILE", help=text)
