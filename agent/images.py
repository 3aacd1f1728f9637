"""Labelled images: a folder with one folder a class, or an .npz file; a seeded split; bad samples counted and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from agent.card import Preprocess
from agent.dataset import MAX_DATA_BYTES, MAX_NAME, NAMED_BAD, read_arrays, reason
from agent.engine.base import Float32, Int64
from agent.errors import DataError

Pixels = npt.NDArray[np.uint8]

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")  # by content: Pillow would start an interpreter for a PostScript file
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"})
MAX_PIXELS = 50_000_000  # a larger picture is a mistake or a decompression bomb
MAX_CLASSES = 1000
NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test", "classes")
LEAST_A_CLASS = 2  # one to learn from and one to test on


@dataclass(frozen=True, slots=True)
class Images:
    """Decoded samples, split once.

    Attributes:
        x_train: pixels [N, S, S, 3].
        y_train: labels [N].
        x_test: held-out pixels [M, S, S, 3].
        y_test: held-out labels [M].
        classes: class names; a label is an index into them.
        skipped: how many samples could not be read.
        skipped_names: the first of their names, each with the reason.
    """

    x_train: Pixels
    y_train: Int64
    x_test: Pixels
    y_test: Int64
    classes: tuple[str, ...]
    skipped: int = 0
    skipped_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Samples:
    pixels: Pixels
    labels: Int64
    classes: tuple[str, ...]
    skipped: tuple[str, ...]


def load(
    path: str, size: int, held_out: float, seed: int, most_samples: int, obey: Callable[[], object] = lambda: None
) -> Images:
    """Read, decode to size x size RGB and split.

    Args:
        path: a folder with one folder a class, or an .npz file with x_train [N, H, W] or [N, H, W, C] uint8, y_train
            [N], optional x_test, y_test and classes.
        size: side of the square samples, in pixels.
        held_out: share kept apart of every class where the data has no test part.
        seed: of the split.
        most_samples: bound; more is refused, not silently cut.
        obey: called before each picture of a folder; may wait, and may raise what ends the reading.

    Raises:
        DataError: no such path, no images, one class only, a class with a single sample, labels outside the classes.
    """
    source = Path(path)
    try:
        if source.is_dir():
            samples = _read_folder(source, size, most_samples, obey)
            return _split(samples, held_out, seed, path)
        if source.suffix == ".npz" and source.is_file():
            return _read_npz(source, size, held_out, seed, most_samples)
    except OSError as error:  # a name too long, a folder that may not be listed
        raise DataError("the data cannot be read", where=f"{path}: {error.strerror}") from error
    raise DataError(
        "no such data",
        where=path,
        fix="Give a folder with one folder of images a class, or an .npz file; see docs/first-job.md",
    )


def _read_folder(root: Path, size: int, most: int, obey: Callable[[], object]) -> _Samples:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) > MAX_CLASSES:
        raise DataError(f"more than {MAX_CLASSES} classes", where=str(root))
    listed = {
        folder.name: sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        for folder in folders
    }
    listed = {name: files for name, files in listed.items() if files}
    if not listed:
        raise DataError(
            "the folder holds no images in class folders",
            where=str(root),
            fix=f"Put images ({', '.join(sorted(SUFFIXES))}) in one folder a class: {root}/CLASS/IMAGE.jpg",
        )
    _bound(sum(map(len, listed.values())), len(listed), size, most, str(root))
    pixels: list[Pixels] = []
    labels: list[int] = []
    skipped: list[str] = []
    for label, files in enumerate(listed.values()):
        for file in files:
            obey()
            try:
                pixels.append(decode_one(file, size))
                labels.append(label)
            except DataError as error:
                name = str(file.relative_to(root))
                skipped.append(f"{name if len(name) <= MAX_NAME else f'…{name[1 - MAX_NAME :]}'}: {error.what}")
    if not pixels:
        raise DataError("none of the images can be read", where=skipped[0])
    return _Samples(np.stack(pixels), np.asarray(labels, np.int64), tuple(listed), tuple(skipped))


def _decode(file: Path, size: int) -> Pixels:
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
        if image.mode.startswith(("I", "F")):  # Pillow would cut all above 255 to white
            raise ValueError(f"pixels of mode {image.mode} are not 8 bits deep")
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)  # cameras store how they were held beside the pixels
        small = upright.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        return np.asarray(small, np.uint8)


def decode_one(file: Path, size: int) -> Pixels:
    """One image as [S, S, 3].

    Raises:
        DataError: it cannot be read; `what` says why.
    """
    try:
        return _decode(file, size)
    except Exception as error:  # Pillow's plugins raise many unrelated types on broken files
        why = "not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise DataError(why, where=str(file)) from error


def _read_npz(file: Path, size: int, held_out: float, seed: int, most: int) -> Images:
    arrays = read_arrays(file, NPZ_KEYS)
    if "x_train" not in arrays or "y_train" not in arrays:
        raise DataError("the .npz file needs the arrays x_train and y_train", where=str(file))
    classes = _npz_classes(file, arrays)
    train = _npz_part(file, arrays, "train", classes, size, most)
    if "x_test" not in arrays or "y_test" not in arrays:
        return _split(train, held_out, seed, str(file))
    _check_counts(train.labels, classes, 1, str(file))
    test = _npz_part(file, arrays, "test", classes, size, most)
    return Images(train.pixels, train.labels, test.pixels, test.labels, classes)


def _npz_classes(file: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> tuple[str, ...]:
    if "classes" not in arrays:
        labels = arrays["y_train"]
        if labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
            raise DataError("labels do not fit the samples", where=f"{file}: y_train")
        return tuple(map(str, range(min(int(labels.max()), MAX_CLASSES) + 1)))
    classes = arrays["classes"]
    names = tuple(map(str, classes[: MAX_CLASSES + 1])) if classes.ndim == 1 else ()
    if not names or len(set(names)) < len(names):
        raise DataError("the classes are not a list of different names", where=f"{file}: classes")
    return names


def _npz_part(
    file: Path, arrays: dict[str, npt.NDArray[np.generic]], part: str, classes: tuple[str, ...], size: int, most: int
) -> _Samples:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    where = f"{file}: x_{part}"
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape[1:]:  # noqa: PLR2004 - [N, H, W(, C)]
        raise DataError(f"{x.dtype} of shape {x.shape} is not uint8 [N, H, W] or [N, H, W, 3]", where=where)
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or len(y) == 0:
        raise DataError("labels do not fit the samples", where=f"{file}: y_{part}")
    if int(y.min()) < 0 or int(y.max()) >= len(classes):
        raise DataError(
            f"label {int(y.max() if y.min() >= 0 else y.min())} is outside the {len(classes)} classes",
            where=f"{file}: y_{part}",
        )
    _bound(len(x), len(classes), size, most, str(file))
    pixels = np.stack([_resized(sample, size) for sample in x.reshape(*x.shape[:3], -1)])
    return _Samples(pixels, y.astype(np.int64), classes, ())


def _resized(sample: npt.NDArray[np.generic], size: int) -> Pixels:
    plane = sample[:, :, 0] if sample.shape[2] == 1 else sample
    image = Image.fromarray(np.ascontiguousarray(plane)).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.uint8)


def _bound(samples: int, classes: int, size: int, most: int, where: str) -> None:
    if samples > most:
        raise DataError(f"{samples} samples are more than most_samples = {most}", where=where, fix="Raise most_samples")
    if samples * size * size * 3 > MAX_DATA_BYTES:
        raise DataError(
            f"{samples} samples of {size}x{size} take more than {MAX_DATA_BYTES >> 20} MiB",
            where=where,
            fix="Lower image_size",
        )
    if classes > MAX_CLASSES:
        raise DataError(f"more than {MAX_CLASSES} classes", where=where)


def _check_counts(labels: Int64, classes: tuple[str, ...], least: int, where: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2:  # noqa: PLR2004 - nothing to tell apart
        raise DataError(f"only one class ({classes[0]}): nothing to tell apart", where=where)
    for name, count in zip(classes, counts.tolist(), strict=True):
        if count < least:
            raise DataError(
                f"class {name!r} has {count} usable sample{'s' * (count != 1)}, at least {least} are needed",
                where=where,
                fix="Add samples (one learns, one is held out) or remove the class",
            )


def _split(samples: _Samples, held_out: float, seed: int, where: str) -> Images:
    """Keep a share of every class apart, chosen by the seed."""
    _check_counts(samples.labels, samples.classes, LEAST_A_CLASS, where)
    rng = np.random.default_rng(seed)
    test = np.zeros(len(samples.labels), bool)
    for label in range(len(samples.classes)):
        members = rng.permutation(np.flatnonzero(samples.labels == label))
        count = min(max(1, round(len(members) * held_out)), len(members) - 1)
        test[members[:count]] = True
    return Images(
        samples.pixels[~test],
        samples.labels[~test],
        samples.pixels[test],
        samples.labels[test],
        samples.classes,
        len(samples.skipped),
        samples.skipped[:NAMED_BAD],
    )


def fingerprint(data: Images) -> str:
    """SHA-256 over classes, labels and pixels as split, in hexadecimal."""
    digest = hashlib.sha256("\0".join(data.classes).encode())
    for array in (data.y_train, data.y_test, data.x_train, data.x_test):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def preprocessed(pixels: Pixels, rule: Preprocess) -> Float32:
    """Pixels [N, S, S, 3] as the model's input [N, 3, S, S]: x scale + offset."""
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
    planes *= np.float32(rule.scale)
    planes += np.float32(rule.offset)
    return planes
