"""A few fixed views of each picture: enough variety to learn from, few enough to be cached.

Views are drawn once: mirror and shift depend on the seed of the job, the picture and the number of the view alone, so
a view is the same in every epoch, every attempt and on every board.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

SHIFT_SHARE = 1 / 8  # of the side: 4 pixels of 32, the usual range of random crops (He et al. 2016, section 4.2)
_DIGEST_BYTES = 8  # of a picture's digest that take part in the draw


def augmented(pixels: Pixels, view: int, seed: int) -> Pixels:
    """View number `view` of pictures [N, H, W, C].

    View 0 is the picture itself. The others are mirrored left to right with probability 1/2 and shifted by up to
    `SHIFT_SHARE` of the sides in whole pixels; what a shift uncovers repeats the border.

    Args:
        pixels: the pictures.
        view: number of the view, from 0.
        seed: of the job.
    """
    if view == 0:
        return pixels
    return np.stack([_one(picture, view, seed) for picture in pixels])


def _one(picture: Pixels, view: int, seed: int) -> Pixels:
    digest = hashlib.sha256(np.ascontiguousarray(picture).data).digest()  # not its place in the data, which may change
    rng = np.random.default_rng((seed, view, int.from_bytes(digest[:_DIGEST_BYTES], "big")))
    mirrored = picture[:, ::-1] if rng.random() < 0.5 else picture  # noqa: PLR2004 - a fair coin
    rows, columns = (_shifted(side, rng) for side in picture.shape[:2])
    moved: Pixels = mirrored[rows][:, columns]
    return moved


def _shifted(side: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Which old row (or column) each new one shows."""
    most = int(side * SHIFT_SHARE)
    shift = int(rng.integers(-most, most, endpoint=True))
    return np.arange(shift, shift + side, dtype=np.int64).clip(0, side - 1)
