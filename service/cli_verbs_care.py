"""The parser of the verbs that look after a board: doctor, log level, back-up."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_verb

_TEXTS = {
    "doctor": """What this board has and lacks, why it matters, and the command that mends it.
It changes nothing, and runs beside the daemon or without it. As root it looks with the eyes of the daemon's user.
Exit code 0: nothing is bad; 1: something is.
example: temperd doctor""",
    "log-level": """Another log level for the daemon that runs, without a restart; it goes back by itself.
A restart of the daemon ends it too: what stays belongs into [log] of the configuration.
examples:
  temperd log-level debug --for 10m
  temperd log-level configured                  back at once""",
    "backup": """Keep this board's state in one file, also beside the running daemon.
That is the journal, the tuned models, what was learnt of the board, a policy set by command.
Private keys come along with --with-keys only, encrypted with a passphrase.
examples:
  sudo temperd backup --out - > board-1.backup
  sudo temperd backup --out - --with-keys > board-1.backup""",
    "restore": """Put a back-up into the state folder, while no daemon runs; what was there is set aside, not lost.
Commands sent before are not run again, and jobs that had not ended are canceled.
examples:
  sudo temperd restore - --replace < board-1.backup
  sudo temperd restore - --with-keys < board-1.backup""",
}


def care_verbs(verbs: Verbs) -> None:
    """Add them."""
    add_verb(verbs, "doctor", "cli_doctor:doctor", _TEXTS["doctor"])
    level = add_verb(verbs, "log-level", "cli_log_level:log_level", _TEXTS["log-level"])
    level.add_argument("level", choices=("debug", "info", "warning", "error", "configured"))
    level.add_argument("--for", dest="duration", metavar="TIME", default="10m", help="30s, 10m, 2h; at most 24h (10m)")
    backup = add_verb(verbs, "backup", "cli_backup:backup", _TEXTS["backup"])
    backup.add_argument(
        "--out", metavar="FILE", required=True, help="file to make; there must be none; -: standard output"
    )
    backup.add_argument("--with-keys", action="store_true", help="the board's private keys too, encrypted")
    restore = add_verb(verbs, "restore", "cli_backup:restore", _TEXTS["restore"])
    restore.add_argument("file", metavar="FILE", help="made by `temperd backup`; -: standard input")
    restore.add_argument("--replace", action="store_true", help="also where a state is: it is set aside")
    restore.add_argument("--with-keys", action="store_true", help="the private keys in it too")
    for verb in (backup, restore):
        verb.add_argument("--passphrase-file", metavar="FILE", default="", help="its first line (else: asked for)")
