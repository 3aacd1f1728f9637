"""The parser of the daemon, apart from the others: it keeps what it loads."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_verb

_TEXT = """The daemon. Under systemd it reports readiness and feeds the watchdog.
example: temperd run --config /etc/temperd/temperd.toml"""


def run_verb(verbs: Verbs) -> None:
    """Add `temperd run`."""
    run = add_verb(verbs, "run", "cli_board:run", _TEXT)
    run.add_argument("--example", action="store_true", help="print the commented example configuration and exit")
