"""Writes what a rehearsal learns from and with: pretrained EfficientNet-Lite0 as ONNX, and scanned digits as images.

python rehearsal_files.py FOLDER
"""

# ruff: noqa: INP001 - runs while an image is built, in no package

from __future__ import annotations

import sys
from pathlib import Path

from agent.engine.efficientnet import imagenet_labels, load_pretrained
from agent.engine.ir import serialize
from service.demo_setup import scanned_digits


def main(folder: Path) -> None:
    """Write `efficientnet-lite0.onnx`, `labels.txt` (one a line), `digits.npz` and one held-out digit."""
    folder.mkdir(parents=True)
    (folder / "efficientnet-lite0.onnx").write_bytes(serialize(load_pretrained()))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in imagenet_labels()), encoding="utf-8")
    scanned_digits(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
