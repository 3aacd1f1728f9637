"""The parser of the verbs of a board."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_group, add_verb

_TEXTS = {
    "fine-tune": """Run one job now, without a broker.
SPEC is a TOML file:
  model = "efficientnet-lite0"
  data = "/srv/images"   # one folder of images a class, or an .npz file
  epochs = 4
example: temperd fine-tune job.toml""",
    "status": """What the daemon on this board is doing.
example: temperd status --watch""",
    "launch": """Which release of temperd starts next, and how the last trial ended.
example: temperd launch --leave-safe-mode""",
    "report": """What this board is and how it fares, for somebody far away: JSON of at most 96 KiB, without secrets.
With the log of the daemon it comes by `temperd fleet send BOARD collect-report`.
A FILE that ends in .tar.gz is a bundle for support: the report, what the doctor finds, the log and the unit.
examples:
  temperd report --out report.json
  sudo /opt/temperd/bin/temperd report --out board-1.tar.gz""",
    "predict": """Ask the tuned model in the active slot: classes of images, anomalies in rows, a forecast of rows.
examples:
  temperd predict photo.jpg
  temperd predict today.csv""",
    "scrub": """Read and hash again what this board keeps, and mend what is damaged.
Exit code 0: all is whole, or whole again; 1: something was lost. Ask a running daemon with `temperd fleet send`.
example: temperd scrub --json""",
    "rollback": """Make the model before the active one active again, or the base; for a daemon that does not run.
Exit code 0: done; 1: it failed and nothing changed; 3: there is nothing to go back to.
The model that was left last can be gone back to with --to until a job needs its slot.
Ask a running daemon with `temperd fleet send BOARD rollback`.
example: temperd rollback --json""",
    "qualify": """Stress this board for ten minutes, measure its delta-T, learn its heat and its power, keep the record.
All cores are busy and the clock and the fan are moved; a thermal trip that pauses training ends it. Ctrl-C puts the
limits back. Exit code 0: passed, 1: not. Ask a running daemon with `temperd fleet send BOARD qualify`.
example: temperd qualify --chart board.svg""",
    "policy": """Thresholds for heat, battery, clock and freeze depth; docs/policy.md lists every key.
examples:
  temperd policy check mine.toml --board raspberry-pi-4
  temperd policy check raspberry-pi-5 --board raspberry-pi-5     one that ships
  temperd policy show                                            what is in force on this board
  temperd fleet send my-board set-policy mine.toml --key alice.key""",
    "keys": """Identities. Private keys stay where they are made; fingerprints are for people to compare.
examples:
  temperd keys init my-board             on the board
  temperd keys console alice --out .     on the operator's machine
  temperd keys trust alice.pub.json      on the board: obey this console (--role viewer|operator|owner)
  temperd keys                           fingerprints of all of them
docs/keys.md has the recipes: rotation, systemd credentials, a lost board.""",
}


def board_verbs(verbs: Verbs) -> None:
    """Add the verbs of a board, but for the daemon."""
    tune = add_verb(verbs, "fine-tune", "cli_board:fine_tune", _TEXTS["fine-tune"])
    tune.add_argument("spec", metavar="SPEC", help="TOML file with the job; docs/first-job.md lists every key")
    status = add_verb(verbs, "status", "cli_board:status", _TEXTS["status"])
    status.add_argument("--watch", action="store_true", help="keep showing until interrupted")
    report = add_verb(verbs, "report", "cli_report:report", _TEXTS["report"])
    report.add_argument("--out", metavar="FILE", default="", help="write it there (default: print it)")
    predict = add_verb(verbs, "predict", "cli_board:predict", _TEXTS["predict"])
    predict.add_argument("files", metavar="FILE", nargs="+", help="images, or .csv files of rows, by the model's task")
    predict.add_argument("--columns", metavar="NAME", nargs="+", default=[], help="columns of the .csv (the model's)")
    predict.add_argument("--missing", choices=("skip", "fill"), default="skip", help="bad rows: left out, or filled")
    start = add_verb(verbs, "launch", "cli_launch:launch", _TEXTS["launch"])
    start.add_argument("--leave-safe-mode", action="store_true", help="work again: what ended temperd is mended")
    _keys_verbs(verbs)


def _keys_verbs(verbs: Verbs) -> None:
    add_verb(verbs, "scrub", "cli_scrub:scrub", _TEXTS["scrub"])
    back = add_verb(verbs, "rollback", "cli_rollback:rollback", _TEXTS["rollback"])
    back.add_argument("--to", metavar="SHA256|base", default="", help="a model that ran before (the one before)")
    stress = add_verb(verbs, "qualify", "cli_qualify:qualify", _TEXTS["qualify"])
    stress.add_argument("--minutes", type=int, default=10, metavar="N", help="length of the run, 1 to 60 (10)")
    stress.add_argument("--chart", metavar="FILE.svg", help="also draw the run")
    stress.add_argument("--last", action="store_true", help="only show how the last run ended; also beside a daemon")
    _policy_verbs(add_group(verbs, "policy", "thresholds: check a file, show what is in force", _TEXTS["policy"]))
    kinds = add_group(verbs, "keys", "identities and trust", _TEXTS["keys"])
    kinds.required = False
    verbs.choices["keys"].set_defaults(verb="cli_keys:show", json=False, config=None, state=None)
    init = add_verb(kinds, "init", "cli_keys:init", "Make this board's identity (once).")
    init.add_argument("name", nargs="?", help="the board's name: a-z, 0-9, dash (default: from the configuration)")
    show = add_verb(kinds, "show", "cli_keys:show", "Fingerprints of this board's keys and of everybody it trusts.")
    rotate = add_verb(kinds, "rotate", "cli_keys_rotation:rotate", "Make new keys; those before stay live.")
    retire = add_verb(kinds, "retire", "cli_keys_rotation:retire", "Drop the keys before the last rotation.")
    retire.add_argument("--offline", action="store_true", help="do not ask the repository whether grants need them")
    export = add_verb(
        kinds, "export-credential", "cli_keys:export_credential", "The identity as a file for systemd-creds."
    )
    export.add_argument("credential", metavar="FILE", help="file to make, mode 0600; holds private keys in plain")
    for verb in (init, rotate, retire):
        verb.add_argument("--credential", metavar="FILE", default="", help="write the keys there, for systemd-creds")
    for verb in (init, show, rotate, retire, export):
        verb.add_argument("--state", metavar="DIR", help="state folder (default: from the configuration)")
    console = add_verb(
        kinds, "console", "cli_keys:console", "Make a console key (on the operator's machine).", config=False
    )
    console.add_argument("name", help="whose key: a-z, 0-9, dash")
    console.add_argument("--out", metavar="DIR", default=".", help="folder for NAME.key (secret) and NAME.pub.json")
    trust = add_verb(kinds, "trust", "cli_keys:trust", "Obey commands signed by this console.")
    trust.add_argument("document", metavar="FILE", help="the console's public NAME.pub.json")
    trust.add_argument(
        "--role", choices=("viewer", "operator", "owner"), default="owner", help="what it may do (owner: everything)"
    )
    distrust = add_verb(kinds, "distrust", "cli_keys:distrust", "Obey this console no more.")
    distrust.add_argument("keyid", metavar="KEYID", nargs="+", help="its key id, or the first 8 digits or more")
    pin = add_verb(kinds, "trust-repository", "cli_keys:trust_repository", "Pin a repository's root document.")
    pin.add_argument("document", metavar="FILE", help="the publisher's 1.root.json")
    pin.add_argument("--replace", action="store_true", help="also where another root is pinned")


def _policy_verbs(kinds: Verbs) -> None:
    check = add_verb(
        kinds, "check", "cli_policy:check", "Whether a file is a policy; 2 and the key if not.", config=False
    )
    check.add_argument("policy", metavar="FILE|NAME", help="a policy file, or the name of one that ships")
    check.add_argument(
        "--board", metavar="NAME", default="", help="also say what its clocks come to on this board profile"
    )
    show = add_verb(kinds, "show", "cli_policy:show", "What is in force on this board, and where it comes from.")
    show.add_argument("--toml", action="store_true", help="the whole policy as it was given")
    show.add_argument("--state", metavar="DIR", help="state folder (default: from the configuration)")
