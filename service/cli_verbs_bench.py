"""The parser of `temperd bench`."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_group, add_verb
from service.cli_verbs_ingest import link_benches

_TEXT = """Figures measured on this machine, side by side in one run, as medians and ratios.
examples:
  temperd bench train --model mobilenetv2.onnx
  temperd bench train --batch 8 --size 224 --vs torch,ort-training --chart train.svg
  temperd bench freeze --data flowers.npz signs/ --chart freeze.svg
  temperd bench seal --mib 1024
  temperd bench board
  temperd bench govern --chart govern.svg
  temperd bench ingest --consumers 2
  temperd bench console --devices 10000
  temperd bench link"""


def bench_verbs(verbs: Verbs) -> None:
    """Add `bench` and its verbs."""
    kinds = add_group(verbs, "bench", "figures, measured here", _TEXT)
    train = add_verb(kinds, "train", "bench:train", "Speed and memory of training, peers beside it.", config=False)
    train.add_argument("--model", nargs="+", default=["efficientnet-lite0"], help="ONNX files, or efficientnet-lite0")
    train.add_argument("--vs", default="", metavar="PEERS", help="torch, ort-training, or both with a comma (none)")
    train.add_argument("--environments", metavar="DIR", default=".", help="where `make bench` made the peers' (.)")
    train.add_argument("--depths", default="0,50,75", metavar="PERCENT", help="layers frozen, in percent (0,50,75)")
    train.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="sgd has a momentum of 0.9")
    train.add_argument("--rounds", type=int, default=4, metavar="N", help="turns of five counted steps each (4)")
    train.add_argument("--linearity", action="store_true", help="also time against samples and layers")
    freeze = add_verb(kinds, "freeze", "bench:freeze", "What freezing saves, and what it costs.", config=False)
    freeze.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    freeze.add_argument("--data", nargs="+", required=True, metavar="PATH", help="image folders or .npz files")
    freeze.add_argument("--seeds", default="0,1,2", help="one training each, with commas (0,1,2)")
    freeze.add_argument("--epochs", type=int, default=8)
    freeze.add_argument("--learning-rate", type=float, default=0.001, help="highest rate (0.001)")
    seal = add_verb(kinds, "seal", "bench:seal", "Sealing and unsealing, the primitives beside it.", config=False)
    seal.add_argument("--mib", type=int, default=64, metavar="N", help="size of the file, in MiB (64)")
    board = add_verb(kinds, "board", "bench:board", "What a reading of this board's sensors costs.", config=False)
    board.add_argument("--readings", type=int, default=1000, metavar="N", help="of each board (1000)")
    board.add_argument("--tree", nargs="+", default=[], metavar="DIR", help="also trees of files: sys and proc in each")
    govern = add_verb(kinds, "govern", "bench:govern", "One job under three governors, simulated.", config=False)
    govern.add_argument("--model", default="efficientnet-lite0", help="ONNX file, or efficientnet-lite0")
    govern.add_argument("--data", default="", metavar="DATA", help="as a job's (scanned digits)")
    govern.add_argument("--depths", default="0,50", metavar="PERCENT", help="planned freeze depths (0,50)")
    govern.add_argument("--boards", default="", metavar="NAMES", help="with commas (all that are simulated)")
    govern.add_argument("--epochs", type=int, default=12, metavar="N", help="epochs of the job (12)")
    govern.add_argument("--learning-rate", type=float, default=0.001, help="highest rate (0.001)")
    govern.add_argument("--learnt", default="", metavar="DIR", help="keep what was trained, for another run (nowhere)")
    govern.add_argument("--seeds", default="0,1", metavar="N", help="of head and order; accuracies are means (0,1)")
    figures = add_verb(
        kinds, "figures", "cli_figures:figures", "The reference figures beside ours, as a page.", config=False
    )
    figures.add_argument("--from", dest="results", default="docs/figures", metavar="DIR", help="results (docs/figures)")
    figures.add_argument("--run", action="store_true", help="measure the quick ones first, into DIR/quick.json")
    figures.add_argument("--out", metavar="FILE.md", help="write the page there (default: print it)")
    figures.add_argument("--model", default="efficientnet-lite0", help="for --run: ONNX file, or efficientnet-lite0")
    figures.add_argument("--threads", type=int, default=2, help="for --run (2)")
    link_benches(kinds)
    for verb in (train, freeze, govern):
        side = 48 if verb is govern else 96
        verb.add_argument("--batch", type=int, default=16, help="samples a step (16)")
        verb.add_argument("--size", type=int, default=side, help=f"side of the images, in pixels ({side})")
        verb.add_argument("--chart", metavar="FILE.svg", help="also draw the figures")
    for verb in (train, freeze):
        verb.add_argument("--threads", type=int, default=2, help="threads a side (2)")
