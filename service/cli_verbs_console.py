"""The parser of `temperd console`."""

from __future__ import annotations

import argparse

from agent.keys_consoles import Role
from service.cli_verbs import Verbs, add_broker_options, add_verb

_TEXT = """The fleet in a browser: see boards, send them signed commands, roll out; users have roles. docs/console.md
It listens on this machine alone unless told otherwise. The first start prints a one-time link: it makes the owner.
examples:
  temperd console --demo
  temperd console --broker broker.local --key alice.key
  temperd console --listen 0.0.0.0:8750 --tls-cert cert.pem --tls-key key.pem --name console.example
  temperd console user add bob --role operator
  temperd console audit --verify"""
_PROTECT = """Write NAME.key.sealed: the key once more, protected by a passphrase of 12 characters or more.
A console that is started with it can send nothing until somebody unlocks it on the page of the key.
Keep NAME.key elsewhere, or remove it."""
_FORGOTTEN = """Set a user's password, or make a link by which the user sets it. All their sessions end."""
_AUDIT = """The audit trail, the oldest record first; with --json one record a line.
--verify holds each record against the chain of hashes, and prints the last number and hash. Note them elsewhere: only
--expect NUMBER:HASH finds out whether the whole chain was made anew, or its end cut off. Exit code 3: changed."""


def console_verbs(verbs: Verbs) -> None:
    """Add `console` and its verbs."""
    console = add_verb(verbs, "console", "cli_console:console", _TEXT, config=False)
    _serving(console)
    add_broker_options(console)
    kinds = console.add_subparsers(dest="kind", metavar="WHAT", required=False, title="users, audit trail, key")
    _user_verbs(kinds)
    audit = add_verb(kinds, "audit", "cli_console_admin:audit", _AUDIT, config=False)
    audit.add_argument("--verify", action="store_true", help="check the chain, and print no records")
    audit.add_argument("--expect", default="", metavar="NUMBER:HASH", help="a record that must be there")
    _state(audit)
    key = kinds.add_parser("key", help="a passphrase for the console key").add_subparsers(
        dest="key_kind", metavar="WHAT", required=True
    )
    protect = add_verb(key, "protect", "cli_console_admin:protect", _PROTECT, config=False)
    protect.add_argument("file", metavar="NAME.key", help="as `temperd keys console` made it")
    protect.add_argument("--passphrase-file", default="", metavar="FILE", help="its first line (else: asked)")


def _serving(console: argparse.ArgumentParser) -> None:
    add = console.add_argument
    add("--store", default="", metavar="PATH|URL", help="what boards said: file or postgresql:// URL (in --state)")
    add("--state", default="", metavar="DIR", help="users, audit trail (~/.local/state/temperd/console)")
    add("--fleet-state", default="", metavar="FILE", help="groups, roll-outs (~/.local/state/temperd/fleet.sqlite)")
    add("--key", default="", metavar="FILE", help="console key, NAME.key or NAME.key.sealed (profile; none: read only)")
    add("--listen", default="127.0.0.1:8750", metavar="ADDRESS:PORT", help="where (127.0.0.1:8750)")
    add("--tls-cert", default="", metavar="FILE", help="serve TLS: our certificate and its chain, PEM")
    add("--tls-key", default="", metavar="FILE", help="private key of --tls-cert")
    text = "name in browsers' addresses, repeatable; requests for others are refused (loopback names)"
    add("--name", action="append", default=[], dest="names", metavar="HOST", help=text)
    text = "a reverse proxy there speaks TLS for us and sets X-Forwarded-For (127.0.0.1)"
    add("--behind-proxy", nargs="?", const="127.0.0.1", default="", metavar="ADDRESS", help=text)
    add("--no-consume", action="store_true", help="write nothing into the store: `temperd ingest` does")
    add("--keep-days", type=float, default=90.0, metavar="N", help="forget older telemetry (90)")
    add("--keep-gib", type=float, default=50.0, metavar="N", help="forget the oldest beyond it (50)")
    add("--demo", action="store_true", help="three emulated boards and the console on them; needs the extra `demo`")
    add("--out", default="temperd-console-demo", metavar="DIR", help="with --demo: where all of it is kept")
    add("--model", default="efficientnet-lite0", help="with --demo: ONNX file, or efficientnet-lite0")


def _user_verbs(kinds: Verbs) -> None:
    users = kinds.add_parser("user", help="users and their roles").add_subparsers(
        dest="user_kind", metavar="WHAT", required=True
    )
    add = add_verb(users, "add", "cli_console_admin:user_add", "Add a user.", config=False)
    add.add_argument("--role", choices=tuple(map(str, Role)), required=True, help="what they may do")
    listed = add_verb(users, "list", "cli_console_admin:user_list", "All users.", config=False)
    remove = add_verb(users, "remove", "cli_console_admin:user_remove", "Remove a user; sessions end.", config=False)
    password = add_verb(users, "password", "cli_console_admin:user_password", _FORGOTTEN, config=False)
    text = "print a one-time link in place of asking; the console's address, as people reach it"
    password.add_argument("--link", nargs="?", const="http://127.0.0.1:8750", default="", metavar="URL", help=text)
    for verb in (add, remove, password):
        verb.add_argument("name", metavar="NAME", help="a-z, 0-9, dot, dash, underscore; at most 32")
    for verb in (add, password):
        verb.add_argument("--password-file", default="", metavar="FILE", help="its first line (else: asked)")
    for verb in (add, listed, remove, password):
        _state(verb)


def _state(verb: argparse.ArgumentParser) -> None:
    text = "the console's folder (~/.local/state/temperd/console)"
    verb.add_argument("--state", default=argparse.SUPPRESS, metavar="DIR", help=text)
