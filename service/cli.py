"""The command line: the parser that teaches, and what every verb has in common. The verbs stand in `cli_*`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from agent import __version__
from agent.errors import ConfigError, TemperdError

DEFAULT_CONFIG = "/etc/temperd/temperd.toml"
EXIT_CONFIG = 78  # EX_CONFIG: systemd must not restart a daemon that cannot start

_SENT = ("fine-tune", "cancel", "pause", "resume", "scrub", "set-policy", "qualify")
_EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage or bad input, 3 refused (not trusted), 78 the daemon's configuration is wrong
first steps on a new machine:
  temperd demo                       see the whole story: publish, pull, fine-tune, promote, on an emulated board
  temperd keys init my-board         make this board's identity; give my-board.device.json to the publisher
  temperd publish MODEL --repo DIR   seal and sign a model for boards (on a laptop)
"""
_EXAMPLES = {
    "run": """The daemon. Under systemd it reports readiness and feeds the watchdog.
example: temperd run --config /etc/temperd/temperd.toml""",
    "fine-tune": """Run one job now, without a broker.
SPEC is a TOML file:
  model = "efficientnet-lite0"
  data = "/srv/images"   # one folder of images a class, or an .npz file
  epochs = 4
example: temperd fine-tune job.toml""",
    "status": """What the daemon on this board is doing.
example: temperd status --watch""",
    "predict": """Ask the tuned model in the active slot: classes of images, anomalies in rows, a forecast of rows.
examples:
  temperd predict photo.jpg
  temperd predict today.csv""",
    "scrub": """Read and hash again what this board keeps, and mend what is damaged.
Exit code 0: all is whole, or whole again; 1: something was lost. Ask a running daemon with `temperd fleet send`.
example: temperd scrub --json""",
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
  temperd keys trust alice.pub.json      on the board: obey this console
  temperd keys                           fingerprints of all of them
docs/keys.md has the recipes: rotation, systemd credentials, a lost board.""",
    "publish": """Seal a model, sign it into a repository folder and grant it to devices.
Serve the folder with any web server. MODEL may be the word efficientnet-lite0: its pretrained weights come from a
package (extra `demo`).
example: temperd publish model.onnx --repo ./repo --keys ./keys --name mobilenetv2 --version 1.0 \\
                 --for my-board.device.json""",
    "repo": """Keys, dates and health of a model repository. docs/publish.md has the recipes.
examples:
  temperd repo init --repo ./repo --keys ./keys --root-key-dir /media/a/temperd --root-key-dir /media/b/temperd
  temperd repo refresh --repo ./repo --keys ./keys       every day, from cron
  temperd repo verify --url https://models.example --root ./root.json
  temperd repo rotate timestamp --repo ./repo --keys ./keys --root-key-dir /media/a/temperd""",
    "make-base": """Make a small base model from data and train it: a dense autoencoder that finds anomalies, or a
forecaster of dilated convolutions. Its last fifth of the rows is held out.
examples:
  temperd make-base anomaly pump.csv --window 32 --out pump.onnx
  temperd make-base forecast air.csv --target pm2.5 --window 168 --horizon 24 --season 24 --out air.onnx""",
    "fleet": """Commands to boards over MQTT, signed with a console key.
example: temperd fleet send my-board fine-tune job.toml --key alice.key --broker broker.local --watch""",
    "bench": """Figures measured on this machine, side by side in one run, as medians and ratios.
examples:
  temperd bench train --model mobilenetv2.onnx
  temperd bench train --batch 8 --size 224 --vs torch,ort-training --chart train.svg
  temperd bench freeze --data flowers.npz signs/ --chart freeze.svg
  temperd bench seal --mib 1024
  temperd bench board
  temperd bench govern --chart govern.svg""",
    "demo": """The whole story on this machine: broker, repository, emulated board, real model, real images, heat.
example: temperd demo --images ./my-images""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `temperd`."""
    options = _parser().parse_args(argv)
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
    return EXIT_CONFIG if isinstance(error, ConfigError) and options.command == "run" else error.exit_code


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="temperd",
        description="Fine-tunes sealed models on small boards and keeps inside their heat, battery and memory.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"temperd {__version__}")
    verbs = parser.add_subparsers(dest="command", metavar="VERB", required=True)
    _board_verbs(verbs)
    _laptop_verbs(verbs)
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - argparse has no public name


def _verb(verbs: Verbs, name: str, code: str, *, config: bool = True, text: str = "") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=(text or _EXAMPLES[name]).splitlines()[0],
        description=text or _EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(verb=code)
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    if config:
        parser.add_argument("--config", metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG})")
    return parser


def _group(verbs: Verbs, name: str, summary: str) -> Verbs:
    """A verb that has verbs of its own."""
    parser = verbs.add_parser(
        name, help=summary, description=_EXAMPLES[name], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.add_subparsers(dest="kind", metavar="WHAT", required=True)


def _board_verbs(verbs: Verbs) -> None:
    run = _verb(verbs, "run", "cli_board:run")
    run.add_argument("--example", action="store_true", help="print the commented example configuration and exit")
    tune = _verb(verbs, "fine-tune", "cli_board:fine_tune")
    tune.add_argument("spec", metavar="SPEC", help="TOML file with the job; docs/first-job.md lists every key")
    status = _verb(verbs, "status", "cli_board:status")
    status.add_argument("--watch", action="store_true", help="keep showing until interrupted")
    predict = _verb(verbs, "predict", "cli_board:predict")
    predict.add_argument("files", metavar="FILE", nargs="+", help="images, or .csv files of rows, by the model's task")
    predict.add_argument("--columns", metavar="NAME", nargs="+", default=[], help="columns of the .csv (the model's)")
    predict.add_argument("--missing", choices=("skip", "fill"), default="skip", help="bad rows: left out, or filled")
    _keys_verbs(verbs)


def _policy_verbs(kinds: Verbs) -> None:
    check = _verb(
        kinds, "check", "cli_policy:check", config=False, text="Whether a file is a policy; 2 and the key if not."
    )
    check.add_argument("policy", metavar="FILE|NAME", help="a policy file, or the name of one that ships")
    check.add_argument(
        "--board", metavar="NAME", default="", help="also say what its clocks come to on this board profile"
    )
    show = _verb(kinds, "show", "cli_policy:show", text="What is in force on this board, and where it comes from.")
    show.add_argument("--toml", action="store_true", help="the whole policy as it was given")
    show.add_argument("--state", metavar="DIR", help="state folder (default: from the configuration)")


def _keys_verbs(verbs: Verbs) -> None:
    _verb(verbs, "scrub", "cli_scrub:scrub")
    stress = _verb(verbs, "qualify", "cli_qualify:qualify")
    stress.add_argument("--minutes", type=int, default=10, metavar="N", help="length of the run, 1 to 60 (10)")
    stress.add_argument("--chart", metavar="FILE.svg", help="also draw the run")
    stress.add_argument("--last", action="store_true", help="only show how the last run ended; also beside a daemon")
    _policy_verbs(_group(verbs, "policy", "thresholds: check a file, show what is in force"))
    kinds = _group(verbs, "keys", "identities and trust")
    kinds.required = False
    verbs.choices["keys"].set_defaults(verb="cli_keys:show", json=False, config=None, state=None)
    init = _verb(kinds, "init", "cli_keys:init", text="Make this board's identity (once).")
    init.add_argument("name", nargs="?", help="the board's name: a-z, 0-9, dash (default: from the configuration)")
    show = _verb(kinds, "show", "cli_keys:show", text="Fingerprints of this board's keys and of everybody it trusts.")
    rotate = _verb(kinds, "rotate", "cli_keys_rotation:rotate", text="Make new keys; those before stay live.")
    retire = _verb(kinds, "retire", "cli_keys_rotation:retire", text="Drop the keys before the last rotation.")
    retire.add_argument("--offline", action="store_true", help="do not ask the repository whether grants need them")
    export = _verb(
        kinds, "export-credential", "cli_keys:export_credential", text="The identity as a file for systemd-creds."
    )
    export.add_argument("credential", metavar="FILE", help="file to make, mode 0600; holds private keys in plain")
    for verb in (init, rotate, retire):
        verb.add_argument("--credential", metavar="FILE", default="", help="write the keys there, for systemd-creds")
    for verb in (init, show, rotate, retire, export):
        verb.add_argument("--state", metavar="DIR", help="state folder (default: from the configuration)")
    console = _verb(
        kinds, "console", "cli_keys:console", config=False, text="Make a console key (on the operator's machine)."
    )
    console.add_argument("name", help="whose key: a-z, 0-9, dash")
    console.add_argument("--out", metavar="DIR", default=".", help="folder for NAME.key (secret) and NAME.pub.json")
    trust = _verb(kinds, "trust", "cli_keys:trust", text="Obey commands signed by this console.")
    trust.add_argument("document", metavar="FILE", help="the console's public NAME.pub.json")
    distrust = _verb(kinds, "distrust", "cli_keys:distrust", text="Obey this console no more.")
    distrust.add_argument("keyid", metavar="KEYID", nargs="+", help="its key id, or the first 8 digits or more")
    pin = _verb(kinds, "trust-repository", "cli_keys:trust_repository", text="Pin a repository's root document.")
    pin.add_argument("document", metavar="FILE", help="the publisher's 1.root.json")
    pin.add_argument("--replace", action="store_true", help="also where another root is pinned")


def _laptop_verbs(verbs: Verbs) -> None:
    publish = _verb(verbs, "publish", "cli_publisher:publish", config=False)
    publish.add_argument("model", metavar="MODEL", help="ONNX file, or efficientnet-lite0")
    publish.add_argument("--repo", metavar="DIR", required=True, help="repository folder; made when missing")
    publish.add_argument("--keys", metavar="DIR", required=True, help="folder of the repository's private keys")
    publish.add_argument("--name", help="model name (default: the file's)")
    publish.add_argument("--version", dest="model_version", default="1.0", help="version, e.g. 1.2 (default: 1.0)")
    publish.add_argument("--labels", metavar="FILE", help="one label a line, in output order")
    publish.add_argument("--card", metavar="FILE", help="card of a model of windows, written by make-base")
    publish.add_argument("--scale", type=float, default=1 / 127.5, help="input = pixel * scale + offset (1/127.5)")
    publish.add_argument("--offset", type=float, default=-1.0, help="see --scale (-1)")
    publish.add_argument("--source-images", metavar="DIR", default="", help="images the model was trained on, for R2")
    publish.add_argument("--security-floor", type=int, default=0, help="withdraw versions with a lower floor")
    publish.add_argument("--boards", metavar="PROFILE", nargs="+", default=[], help="board profiles it is for (any)")
    publish.add_argument("--for", dest="devices", metavar="FILE", nargs="+", default=[], help="device documents")
    _repo_verbs(_group(verbs, "repo", "a model repository: keys, dates, health"))
    _base_verb(verbs)
    kinds = _group(verbs, "fleet", "signed commands to boards")
    send = _verb(kinds, "send", "cli_fleet:send", config=False, text="Sign a command and send it to one board.")
    send.add_argument("device", help="the board's name")
    send.add_argument("type", choices=_SENT, help="what to do")
    text = "TOML file of a job; a job's id; minutes to qualify; a policy: file, one that ships, or reset"
    send.add_argument("argument", metavar="SPEC|JOB|POLICY|MINUTES", nargs="?", default="", help=text)
    send.add_argument("--key", metavar="FILE", required=True, help="console key, NAME.key")
    send.add_argument("--broker", default="localhost", metavar="HOST[:PORT]", help="MQTT broker (localhost:1883)")
    send.add_argument("--tenant", default="default")
    send.add_argument("--valid", type=int, default=3600, metavar="SECONDS", help="the command expires after (3600)")
    send.add_argument("--watch", action="store_true", help="follow until the job ends; the exit code is its outcome")
    _bench_verbs(_group(verbs, "bench", "figures, measured here"))
    demo = _verb(verbs, "demo", "demo:main", config=False)
    demo.add_argument("--images", metavar="DIR", help="your images: one folder a class (default: scanned digits)")
    demo.add_argument("--out", metavar="DIR", default="temperd-demo", help="where everything is kept (./temperd-demo)")
    demo.add_argument("--keep", action="store_true", help="leave board, broker and repository running until Ctrl-C")
    demo.add_argument("--epochs", type=int, default=0, help="epochs (default: chosen so that the demo ends in time)")
    demo.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    demo.add_argument("--engine", choices=("auto", "graph", "ort-training"), default="auto", help="training engine")


def _repo_verbs(kinds: Verbs) -> None:
    init = _verb(kinds, "init", "cli_repo:init", config=False, text="Make keys and an empty repository.")
    init.add_argument("--root-threshold", type=int, default=0, metavar="M", help="root keys that sign (all but one)")
    grant = _verb(kinds, "grant", "cli_repo:grant", config=False, text="Let boards open a published version.")
    grant.add_argument("name", metavar="MODEL", help="name of the model")
    grant.add_argument("model_version", metavar="VERSION")
    grant.add_argument("--for", dest="devices", metavar="FILE", nargs="+", required=True, help="device documents")
    rotate = _verb(kinds, "rotate", "cli_repo:rotate", config=False, text="New keys for a role.")
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp", "grants"))
    rotate.add_argument("--replace", default="", metavar="KEYID", help="only this root key (default: all at hand)")
    rotate.add_argument("--into", default="", metavar="DIR", help="folder for the new root key (that of the old one)")
    sign = _verb(kinds, "sign", "cli_repo:sign", config=False, text="Sign a root document that waits for root keys.")
    refresh = _verb(kinds, "refresh", "cli_repo:refresh", config=False, text="Sign anew what is about to expire.")
    verify = _verb(kinds, "verify", "cli_repo:verify", config=False, text="Check all of it from a pinned root.")
    where = verify.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", default="", help="what boards are given as repository.url")
    where.add_argument("--repo", metavar="DIR", help="repository folder")
    verify.add_argument("--root", metavar="FILE", required=True, help="the root document that boards have pinned")
    for verb in (init, grant, rotate, sign, refresh):
        verb.add_argument("--repo", metavar="DIR", required=True, help="repository folder")
        verb.add_argument("--keys", metavar="DIR", required=True, help="folder of the repository's private keys")
    for verb in (init, rotate, sign, refresh):
        text = "a folder with a root key, e.g. on a USB stick; repeat it for each"
        verb.add_argument("--root-key-dir", dest="root_key_dirs", action="append", default=[], metavar="DIR", help=text)


def _base_verb(verbs: Verbs) -> None:
    base = _verb(verbs, "make-base", "cli_publisher:make_base", config=False)
    base.add_argument("kind_of_base", metavar="KIND", choices=("anomaly", "forecast"), help="anomaly or forecast")
    base.add_argument("data", metavar="DATA", help=".csv file with a header, or .npz file with x [R, F] and columns")
    base.add_argument("--out", metavar="FILE", required=True, help="the model; its card is written beside it")
    base.add_argument("--columns", metavar="NAME", nargs="+", default=[], help="features, in order (all but the label)")
    base.add_argument("--label", metavar="NAME", default="label", help="column with 1 for anomalous rows (label)")
    base.add_argument("--missing", choices=("skip", "fill"), default="skip", help="bad rows: left out, or filled")
    base.add_argument("--window", type=int, default=32, metavar="ROWS", help="rows the model sees (32)")
    base.add_argument("--horizon", type=int, default=1, metavar="ROWS", help="rows forecast (1)")
    base.add_argument("--target", metavar="NAME", default="", help="column forecast (the first)")
    base.add_argument("--season", type=int, default=0, metavar="ROWS", help="rows of one season, e.g. 24 for hours")
    base.add_argument("--epochs", type=int, default=20, metavar="N")
    base.add_argument("--seed", type=int, default=0)
    base.add_argument("--threads", type=int, default=2)


def _bench_verbs(kinds: Verbs) -> None:
    train = _verb(kinds, "train", "bench:train", config=False, text="Speed and memory of training, peers beside it.")
    train.add_argument("--model", nargs="+", default=["efficientnet-lite0"], help="ONNX files, or efficientnet-lite0")
    train.add_argument("--vs", default="", metavar="PEERS", help="torch, ort-training, or both with a comma (none)")
    train.add_argument("--environments", metavar="DIR", default=".", help="where `make bench` made the peers' (.)")
    train.add_argument("--depths", default="0,50,75", metavar="PERCENT", help="layers frozen, in percent (0,50,75)")
    train.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd has a momentum of 0.9")
    train.add_argument("--rounds", type=int, default=4, metavar="N", help="turns of five counted steps each (4)")
    train.add_argument("--linearity", action="store_true", help="also time against samples and layers")
    freeze = _verb(kinds, "freeze", "bench:freeze", config=False, text="What freezing saves, and what it costs.")
    freeze.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    freeze.add_argument("--data", nargs="+", required=True, metavar="PATH", help="image folders or .npz files")
    freeze.add_argument("--seeds", default="0,1,2", help="one training each, with commas (0,1,2)")
    freeze.add_argument("--epochs", type=int, default=8)
    freeze.add_argument("--learning-rate", type=float, default=0.001, help="highest rate (0.001)")
    seal = _verb(kinds, "seal", "bench:seal", config=False, text="Sealing and unsealing, the primitives beside it.")
    seal.add_argument("--mib", type=int, default=64, metavar="N", help="size of the file, in MiB (64)")
    board = _verb(kinds, "board", "bench:board", config=False, text="What a reading of this board's sensors costs.")
    board.add_argument("--readings", type=int, default=1000, metavar="N", help="of each board (1000)")
    board.add_argument("--tree", nargs="+", default=[], metavar="DIR", help="also trees of files: sys and proc in each")
    govern = _verb(kinds, "govern", "bench:govern", config=False, text="One job under three governors, simulated.")
    govern.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    govern.add_argument("--data", default="", metavar="DATA", help="as a job's (scanned digits)")
    govern.add_argument("--depths", default="0,50", metavar="PERCENT", help="planned freeze depths (0,50)")
    govern.add_argument("--boards", default="", metavar="NAMES", help="with commas (all that are simulated)")
    govern.add_argument("--epochs", type=int, default=12, metavar="N", help="epochs of the job (12)")
    govern.add_argument("--learning-rate", type=float, default=0.001, help="highest rate (0.001)")
    govern.add_argument("--learnt", default="", metavar="DIR", help="keep what was trained, for another run (nowhere)")
    govern.add_argument("--seeds", default="0,1", metavar="N", help="of head and order; accuracies are means (0,1)")
    figures = _verb(
        kinds, "figures", "cli_figures:figures", config=False, text="The reference figures beside ours, as a page."
    )
    figures.add_argument("--from", dest="results", default="docs/figures", metavar="DIR", help="results (docs/figures)")
    figures.add_argument("--run", action="store_true", help="measure the quick ones first, into DIR/quick.json")
    figures.add_argument("--out", metavar="FILE.md", help="write the page there (default: print it)")
    figures.add_argument("--model", default="efficientnet-lite0", help="for --run: ONNX file, or efficientnet-lite0")
    figures.add_argument("--threads", type=int, default=2, help="for --run (2)")
    for verb in (train, freeze, govern):
        side = 48 if verb is govern else 96
        verb.add_argument("--batch", type=int, default=16, help="samples a step (16)")
        verb.add_argument("--size", type=int, default=side, help=f"side of the images, in pixels ({side})")
        verb.add_argument("--chart", metavar="FILE.svg", help="also draw the figures")
    for verb in (train, freeze):
        verb.add_argument("--threads", type=int, default=2, help="threads a side (2)")


if __name__ == "__main__":
    sys.exit(main())
