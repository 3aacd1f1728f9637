from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from agent import dataset
from agent.card import Preprocess
from agent.dataset import epoch_batches
from agent.errors import DataError
from agent.images import MAX_CLASSES, Images, decode_one, load, preprocessed

steady = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIZE = 8


def solid(path: Path, color: object = (200, 100, 50), mode: str = "RGB", side: int = 12, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), color).save(path, **options)  # type: ignore[arg-type]
    return path


def two_classes(root: Path, each: int = 4) -> Path:
    for i in range(each):
        solid(root / "cats" / f"{i}.png", (10 + i, 0, 0))
        solid(root / "dogs" / f"{i}.png", (0, 0, 10 + i))
    return root


def read(path: Path, *, held_out: float = 0.25, seed: int = 0, most: int = 1000, size: int = SIZE) -> Images:
    return load(str(path), size, held_out, seed, most)


def refused(path: Path, says: str, **options: Any) -> DataError:
    with pytest.raises(DataError, match=says) as caught:
        read(path, **options)
    assert caught.value.code == "bad-data"
    return caught.value


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_folder_a_class(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("no image by its name")
    solid(tmp_path / "dogs" / "summer" / "LAST.JPEG")
    data = read(tmp_path)
    assert data.classes == ("cats", "dogs")
    assert (len(data.y_train), len(data.y_test), data.skipped) == (7, 2, 0)
    assert data.x_train.shape == (7, SIZE, SIZE, 3)
    assert data.x_train.dtype == np.uint8
    assert data.y_train.dtype == np.int64
    for pixels, label in zip(data.x_train, data.y_train, strict=True):
        assert (pixels[0, 0, 0] < pixels[0, 0, 2] or pixels[0, 0, 0] > 100) == (label == 1)


@pytest.mark.parametrize(
    ("name", "mode", "color", "expected", "options"),
    [
        ("grey.png", "L", 77, (77, 77, 77), {}),
        ("grey-alpha.png", "LA", (77, 30), (77, 77, 77), {}),
        ("rgba.png", "RGBA", (200, 100, 50, 128), (200, 100, 50), {}),
        ("palette.png", "P", 0, (0, 0, 0), {}),
        ("bits.png", "1", 1, (255, 255, 255), {}),
        ("cmyk.jpg", "CMYK", (0, 255, 255, 0), (254, 0, 0), {}),
        ("rgb.bmp", "RGB", (1, 2, 3), (1, 2, 3), {}),
        ("rgb.ppm", "RGB", (1, 2, 3), (1, 2, 3), {}),
        ("rgb.webp", "RGB", (9, 9, 9), (9, 9, 9), {"lossless": True}),
    ],
)
def test_every_colour_mode_becomes_rgb(
    tmp_path: Path, name: str, mode: str, color: object, expected: tuple[int, ...], options: dict[str, Any]
) -> None:
    pixels = decode_one(solid(tmp_path / name, color, mode, **options), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=3)


def test_a_palette_keeps_its_colours(tmp_path: Path) -> None:
    palette = Image.new("RGB", (12, 12), (12, 200, 34)).quantize(4)
    assert palette.mode == "P"
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(decode_one(tmp_path / "p.png", SIZE)[3, 3], (12, 200, 34))


def test_deeper_pixels_are_refused_instead_of_cut_to_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="mode I;16 are not 8 bits deep"):
        decode_one(tmp_path / "deep.png", SIZE)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 3)])
def test_any_shape_becomes_the_square_asked_for(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.new("RGB", shape, (5, 6, 7)).save(tmp_path / "thin.png")
    np.testing.assert_array_equal(decode_one(tmp_path / "thin.png", SIZE), np.full((SIZE, SIZE, 3), (5, 6, 7)))


def truncated(path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "JPEG")
    path.write_bytes(whole.getvalue()[:900])


def test_unreadable_images_are_counted_named_and_skipped(tmp_path: Path) -> None:
    two_classes(tmp_path)
    (tmp_path / "cats" / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "cats" / "empty.jpg").touch()
    truncated(tmp_path / "dogs" / "half.jpg")
    (tmp_path / "dogs" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    data = read(tmp_path)
    assert len(data.y_train) + len(data.y_test) == 8
    assert data.skipped == 4
    assert [name.partition(":")[0] for name in data.skipped_names] == [
        "cats/broken.png", "cats/empty.jpg", "dogs/half.jpg", "dogs/script.png",
    ]  # fmt: skip
    assert data.skipped_names[0] == "cats/broken.png: not an image"
    assert "truncated" in data.skipped_names[2]
    assert data.skipped_names[3].endswith(": not an image")  # PostScript is a program: it is not run


def test_of_many_unreadable_images_the_first_are_named_shortly(tmp_path: Path) -> None:
    """All the names together travel in one message of at most 4096 characters."""
    two_classes(tmp_path)
    for i in range(30):
        (tmp_path / "cats" / f"{i:02}{'x' * 200}.png").write_bytes(b"?")
    data = read(tmp_path)
    assert data.skipped == 30
    assert len(data.skipped_names) == dataset.NAMED_BAD
    assert all(name.startswith("…x") and name.endswith("x.png: not an image") for name in data.skipped_names)
    assert len("; ".join(data.skipped_names)) < 4000


def png_header(width: int, height: int) -> bytes:
    """A picture that claims a size and holds one row."""
    parts = [(b"IHDR", width.to_bytes(4) + height.to_bytes(4) + b"\x08\x02\0\0\0"), (b"IDAT", zlib.compress(b"\0"))]
    chunks = [len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [7072, 9500, 14_000, 60_000])
def test_a_decompression_bomb_is_skipped_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    """Just above our bound, above the one Pillow warns at, above the one it refuses at, and far above."""
    two_classes(tmp_path)
    (tmp_path / "cats" / "bomb.png").write_bytes(png_header(side, side))
    data = read(tmp_path)
    assert data.skipped == 1
    assert data.skipped_names[0].startswith("cats/bomb.png: ")
    assert "pixels" in data.skipped_names[0]


def test_links_to_images_count_and_broken_ones_or_loops_do_not(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "data")
    solid(tmp_path / "elsewhere.png")
    (root / "cats" / "linked.png").symlink_to(tmp_path / "elsewhere.png")
    (root / "cats" / "broken.png").symlink_to(tmp_path / "gone.png")
    (root / "cats" / "loop.png").symlink_to(root / "cats" / "loop.png")
    (root / "cats" / "up").symlink_to(root)
    data = read(root)
    assert len(data.y_train) + len(data.y_test) == 9
    assert data.skipped == 0


@pytest.mark.parametrize("name", ["missing", "file.csv", "a\0b", "n" * 300, ""])
def test_what_is_no_data_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.csv").write_text("1,2")
    refused(tmp_path / name, "no such data|cannot be read|holds no images")


@pytest.mark.parametrize("folders", [(), ("cats",), ("cats", "dogs/deeper")])
def test_an_empty_folder_is_refused_with_advice(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for name in folders:
        (tmp_path / name).mkdir(parents=True)
    assert "CLASS/IMAGE.jpg" in refused(tmp_path, "holds no images").fix


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    solid(tmp_path / "a.png")
    refused(tmp_path, "holds no images in class folders")


def test_a_folder_of_unreadable_images_is_refused(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"?")
    assert refused(tmp_path, "none of the images can be read").where == "cats/a.png: not an image"


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    solid(tmp_path / "cats" / "a.png")
    solid(tmp_path / "cats" / "b.png")
    refused(tmp_path, r"only one class \(cats\)")


def test_a_class_with_one_usable_sample_is_refused_by_name(tmp_path: Path) -> None:
    two_classes(tmp_path)
    solid(tmp_path / "emus" / "a.png")
    (tmp_path / "emus" / "b.png").write_bytes(b"?")
    refused(tmp_path, "class 'emus' has 1 usable sample, at least 2")
    (tmp_path / "emus" / "a.png").write_bytes(b"?")
    refused(tmp_path, "class 'emus' has 0 usable samples, at least 2")


def test_more_samples_than_allowed_are_refused_not_cut(tmp_path: Path) -> None:
    two_classes(tmp_path)
    assert len(read(tmp_path, most=8).y_train) == 6
    refused(tmp_path, "8 samples are more than most_samples = 7", most=7)


def test_more_than_fits_into_memory_is_refused_before_decoding(tmp_path: Path) -> None:
    two_classes(tmp_path, each=1)
    refused(tmp_path, "2 samples of 20000x20000 take more than 1024 MiB", size=20_000)


def test_more_classes_than_allowed_are_refused(tmp_path: Path) -> None:
    two_classes(tmp_path)
    for i in range(MAX_CLASSES - 1):
        (tmp_path / f"empty{i}").mkdir()
    refused(tmp_path, "more than 1000 classes")


# --- .npz -------------------------------------------------------------------------------------------------------------

X = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3), np.uint8)
Y = np.asarray([0, 1] * 4)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path / "data.npz", **arrays)
    return path / "data.npz"


def test_an_npz_with_a_test_part_of_its_own(tmp_path: Path) -> None:
    data = read(npz(tmp_path, x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3], classes=["no", "yes"], other=X))
    assert data.classes == ("no", "yes")
    assert (data.y_train.tolist(), data.y_test.tolist()) == (Y.tolist(), [0, 1, 0])
    assert (data.x_train.shape, data.x_test.shape) == ((8, SIZE, SIZE, 3), (3, SIZE, SIZE, 3))
    expected = np.asarray(Image.fromarray(X[4]).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(data.x_train[4], expected)


@pytest.mark.parametrize("given", [{}, {"x_test": X}, {"y_test": Y}])
def test_an_npz_without_a_whole_test_part_is_split(tmp_path: Path, given: dict[str, Any]) -> None:
    data = read(npz(tmp_path, x_train=X, y_train=Y.astype(np.uint8), **given))
    assert data.classes == ("0", "1")
    assert (len(data.y_train), len(data.y_test)) == (6, 2)


@pytest.mark.parametrize("shape", [(8, 6, 5), (8, 6, 5, 1)])
def test_grey_arrays_become_rgb(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = read(npz(tmp_path, x_train=X[..., 0].reshape(shape), y_train=Y))
    assert data.x_train.shape == (6, SIZE, SIZE, 3)
    np.testing.assert_array_equal(data.x_train[..., 0], data.x_train[..., 2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x_train": None}, "needs the arrays x_train and y_train"),
        ({"y_train": None}, "needs the arrays x_train and y_train"),
        ({"x_train": X.astype(np.float32)}, "float32 of shape"),
        ({"x_train": X[..., :2]}, r"is not uint8 \[N, H, W\]"),
        ({"x_train": X[0, 0]}, r"is not uint8 \[N, H, W\]"),
        ({"x_train": X[:, :0]}, r"is not uint8 \[N, H, W\]"),
        ({"x_train": X[:, :, :0]}, r"is not uint8 \[N, H, W\]"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "labels do not fit"),
        ({"y_train": Y[:7]}, "labels do not fit"),
        ({"y_train": Y[:, None]}, "labels do not fit"),
        ({"y_train": Y.astype(np.float64)}, "labels do not fit"),
        ({"y_train": np.asarray(["a", "b"] * 4)}, "labels do not fit"),
        ({"y_train": np.int64(1)}, "labels do not fit"),
        ({"y_train": Y - 1}, "label -1 is outside the 1 classes"),
        ({"y_train": Y * 2**62}, "is outside the 1001 classes"),
        ({"y_train": Y * 2, "classes": ["a", "b"]}, "label 2 is outside the 2 classes"),
        ({"y_train": Y * 0}, r"only one class \(0\)"),
        ({"y_train": Y * 2}, "class '1' has 0 usable samples"),
        ({"y_train": np.asarray([0] * 7 + [1])}, "class '1' has 1 usable sample, at least 2"),
        ({"classes": np.asarray("a")}, "not a list of different names"),
        ({"classes": [["a", "b"]]}, "not a list of different names"),
        ({"classes": []}, "not a list of different names"),
        ({"classes": ["a", "a"]}, "not a list of different names"),
        ({"classes": ["a", "b", "c"]}, "class 'c' has 0 usable"),
        ({"classes": [str(i) for i in range(1001)]}, "more than 1000 classes"),
        ({"x_train": np.asarray([{}] * 8)}, "cannot be read"),
        ({"x_test": X, "y_test": Y + 1}, "label 2 is outside"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "labels do not fit"),
        ({"x_test": X, "y_test": Y, "y_train": Y * 0, "classes": ["a", "b"]}, "class 'b' has 0 usable samples, at"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    arrays = {"x_train": X, "y_train": Y} | change
    refused(npz(tmp_path, **{key: value for key, value in arrays.items() if value is not None}), says)


def test_an_npz_that_unpacks_to_more_than_the_bound_is_refused_before_it_does(tmp_path: Path) -> None:
    """One header of 2 GiB: what would be unpacked is told by the archive's own table."""
    path = npz(tmp_path, x_train=X, y_train=Y)
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 24 : entry + 28] = (2 << 30).to_bytes(4, "little")
    path.write_bytes(raw)
    assert "2048 MiB unpacked" in refused(path, "cannot be read").where


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x_train.npy", header.getvalue() + b"\0" * 100)
        archive.writestr("y_train.npy", b"")
    refused(tmp_path / "data.npz", "cannot be read")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a zip file at all", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(data)
    refused(tmp_path / "data.npz", "cannot be read")
    np.save(tmp_path / "plain.npy", X)
    (tmp_path / "plain.npy").rename(tmp_path / "data.npz")
    refused(tmp_path / "data.npz", "cannot be read")


def whole_npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, x_train=X[:, :2, :2], y_train=Y, classes=["a", "b"])
    return stream.getvalue()


WHOLE = whole_npz()


@steady
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_npz_is_read_or_refused_in_our_own_words(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    raw = bytearray(WHOLE)
    for place, value in damage:
        raw[place] = value
    (tmp_path / "data.npz").write_bytes(raw)
    try:
        data = read(tmp_path / "data.npz")
    except DataError:
        return
    assert set(data.y_train.tolist()) == {0, 1}


@steady
@given(st.data(), st.sampled_from(["PNG", "JPEG", "BMP", "PPM", "WEBP"]))
def test_a_damaged_image_is_read_or_refused_in_our_own_words(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(X[0]).save(stream, kind)
    raw = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "image"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        assert decode_one(path, SIZE).shape == (SIZE, SIZE, 3)
    except DataError as error:
        assert error.where == str(path)  # noqa: PT017 - both ends are allowed
        assert len(error.what) <= dataset.MAX_WHY  # noqa: PT017 - same


# --- split and batches ------------------------------------------------------------------------------------------------


def numbered(labels: list[int]) -> dict[str, Any]:
    """Samples that bear their own index in their pixels."""
    index = np.arange(len(labels))
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = (index % 256)[:, None, None], (index // 256)[:, None, None]
    return {"x_train": pixels, "y_train": np.asarray(labels)}


def who(pixels: np.ndarray) -> list[int]:
    return [int(p[0, 0, 0]) + 256 * int(p[0, 0, 1]) for p in pixels]


@steady
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=5),
    held_out=st.floats(0.05, 0.5, allow_subnormal=False),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_split_is_disjoint_complete_stratified_and_seeded(
    tmp_path: Path, counts: list[int], held_out: float, seed: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    path = npz(tmp_path, **numbered(labels))
    data = read(path, held_out=held_out, seed=seed)
    assert sorted(who(data.x_train) + who(data.x_test)) == list(range(len(labels)))
    for part, pixels in ((data.y_train, data.x_train), (data.y_test, data.x_test)):
        assert [labels[i] for i in who(pixels)] == part.tolist()
    for label, count in enumerate(counts):
        apart = int((data.y_test == label).sum())
        assert 1 <= apart <= count - 1
        assert abs(apart - count * held_out) <= 1
    again = read(path, held_out=held_out, seed=seed)
    assert who(again.x_test) == who(data.x_test)


def test_another_seed_is_another_split(tmp_path: Path) -> None:
    path = npz(tmp_path, **numbered([0, 1] * 50))
    assert who(read(path, seed=1).x_test) != who(read(path, seed=2).x_test)


@steady
@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_an_epoch_uses_every_sample_in_batches_of_one_size(samples: int, batch: int, seed: int, epoch: int) -> None:
    batches = list(epoch_batches(samples, batch, seed, epoch))
    assert len(batches) == -(-samples // batch)
    assert {len(chosen) for chosen in batches} == {batch}
    order = np.concatenate(batches)
    assert order.dtype == np.int64
    assert sorted(order[:samples].tolist()) == list(range(samples))
    np.testing.assert_array_equal(order[samples:], np.resize(order[:samples], len(order))[samples:])
    again = np.concatenate(list(epoch_batches(samples, batch, seed, epoch)))
    np.testing.assert_array_equal(order, again)


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {tuple(next(epoch_batches(50, 50, seed, epoch)).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_preprocessing_scales_shifts_and_puts_channels_first() -> None:
    planes = preprocessed(X, Preprocess(1 / 127.5, -1.0))
    assert planes.shape == (8, 3, 6, 5)
    assert planes.dtype == np.float32
    assert planes.flags.c_contiguous
    np.testing.assert_allclose(planes, X.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-6)


def test_unreadable_paths_say_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file") as caught:
        decode_one(tmp_path / "gone.png", SIZE)
    assert caught.value.where == str(tmp_path / "gone.png")
    with pytest.raises(DataError, match="Is a directory"):
        decode_one(tmp_path, SIZE)
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path, "holds no images")  # a pipe is not read: it might never end
