"""The parser of the verbs of a laptop: publishing, repositories, the demo."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_group, add_verb

_TEXTS = {
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
    "demo": """The whole story on this machine: broker, repository, emulated board, real model, real images, heat.
example: temperd demo --images ./my-images""",
}


def laptop_verbs(verbs: Verbs) -> None:
    """Add the verbs of a laptop."""
    publish = add_verb(verbs, "publish", "cli_publisher:publish", _TEXTS["publish"], config=False)
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
    publish.add_argument(
        "--for", dest="devices", metavar="FILE", nargs="+", action="extend", default=[], help="device documents"
    )
    _repo_verbs(add_group(verbs, "repo", "a model repository: keys, dates, health", _TEXTS["repo"]))
    _base_verb(verbs)
    demo = add_verb(verbs, "demo", "demo:main", _TEXTS["demo"], config=False)
    demo.add_argument("--images", metavar="DIR", help="your images: one folder a class (default: scanned digits)")
    demo.add_argument("--out", metavar="DIR", default="temperd-demo", help="where everything is kept (./temperd-demo)")
    demo.add_argument("--keep", action="store_true", help="leave board, broker and repository running until Ctrl-C")
    demo.add_argument("--console", action="store_true", help="then the console in a browser, until Ctrl-C")
    demo.add_argument("--epochs", type=int, default=0, help="epochs (default: chosen so that the demo ends in time)")
    demo.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    demo.add_argument("--engine", choices=("auto", "graph", "ort-training"), default="auto", help="training engine")


def _repo_verbs(kinds: Verbs) -> None:
    init = add_verb(kinds, "init", "cli_repo:init", "Make keys and an empty repository.", config=False)
    init.add_argument("--root-threshold", type=int, default=0, metavar="M", help="root keys that sign (all but one)")
    grant = add_verb(kinds, "grant", "cli_repo:grant", "Let boards open a published version.", config=False)
    grant.add_argument("name", metavar="MODEL", help="name of the model")
    grant.add_argument("model_version", metavar="VERSION")
    grant.add_argument(
        "--for", dest="devices", metavar="FILE", nargs="+", action="extend", required=True, help="device documents"
    )
    rotate = add_verb(kinds, "rotate", "cli_repo:rotate", "New keys for a role.", config=False)
    rotate.add_argument("role", choices=("root", "targets", "snapshot", "timestamp", "grants"))
    rotate.add_argument("--replace", default="", metavar="KEYID", help="only this root key (default: all at hand)")
    rotate.add_argument("--into", default="", metavar="DIR", help="folder for the new root key (that of the old one)")
    sign = add_verb(kinds, "sign", "cli_repo:sign", "Sign a root document that waits for root keys.", config=False)
    refresh = add_verb(kinds, "refresh", "cli_repo:refresh", "Sign anew what is about to expire.", config=False)
    verify = add_verb(kinds, "verify", "cli_repo:verify", "Check all of it from a pinned root.", config=False)
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
    base = add_verb(verbs, "make-base", "cli_publisher:make_base", _TEXTS["make-base"], config=False)
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
