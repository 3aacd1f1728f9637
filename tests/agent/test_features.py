from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.features import Counts, FeatureCache, GenerationKey, Limits, job_cache, record_key, sample_digest
from agent.features_blocks import MAX_BLOCK_RECORDS, MAX_BLOCKS, MAX_RECORD_BYTES, Generation
from agent.features_codec import MOST_FLOAT16, MOST_INT8, STORAGES, Codec
from agent.spec import CACHE_CHOICES
from tests.agent.features_crash import LIMITS, RECORD_BYTES, RECORDS, generation, key_of, record_of

EASY = Limits(max_bytes=1 << 20, least_free_share=0.0, block_bytes=8000)  # blocks of eight records of 1000 bytes
KEY = generation(0)


def unwanted(what: str) -> None:
    raise AssertionError(what)


def opened(
    folder: Path, limits: Limits = EASY, key: GenerationKey = KEY, warnings: list[str] | None = None
) -> FeatureCache:
    cache = FeatureCache(folder, unwanted if warnings is None else warnings.append, limits)
    cache.select(key, RECORD_BYTES)
    return cache


def put(cache: FeatureCache, *numbers: int) -> None:
    cache.put([key_of(n) for n in numbers], np.stack([record_of(n) for n in numbers]))


def held(cache: FeatureCache, *numbers: int) -> list[int]:
    """Which records are there; each must be what was stored."""
    out = np.zeros((len(numbers), RECORD_BYTES), np.uint8)
    found = cache.get([key_of(n) for n in numbers], out)
    for row in np.flatnonzero(found):
        np.testing.assert_array_equal(out[row], record_of(numbers[row]))
    return [number for number, there in zip(numbers, found, strict=True) if there]


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# --- number formats ---------------------------------------------------------------------------------------------------


def bound(storage: str, values: np.ndarray) -> np.ndarray:
    """The documented error of each value of [M, ...]."""
    exact = values.astype(np.float64)
    if storage == "float32":
        return np.zeros_like(exact)
    if storage == "float16":
        return np.maximum(2.0**-11 * np.abs(exact), 2.0**-25)
    flat = exact.reshape(len(exact), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)
    row = (high - low) / 510 + 2.0**-20 * np.maximum(np.abs(low), np.abs(high)) + 2.0**-140
    return np.broadcast_to(row.reshape(-1, *[1] * (exact.ndim - 1)), exact.shape)


shapes = st.lists(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), min_size=1, max_size=3)
largest = st.sampled_from([1e-44, 1e-38, 1e-6, 1.0, 6.0, 6e4, 1e9, 1e36])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data(), shapes, largest, st.sampled_from(STORAGES))
def test_what_comes_back_is_within_the_stated_error(
    data: st.DataObject, shapes: list[tuple[int, ...]], most: float, storage: str
) -> None:
    most = float(np.float32(most))
    # Thousandths, not st.floats: a runtime session in the same process may have switched subnormal numbers off.
    numbers = st.integers(-1000, 1000).map(lambda n: float(np.float32(n / 1000 * most)))
    arrays = [data.draw(hnp.arrays(np.float32, (3, *shape), elements=numbers)) for shape in shapes]
    codec = Codec(storage, shapes)
    records, fits = codec.encode(arrays)
    assert (records.shape, records.dtype) == ((3, codec.record_bytes), np.uint8)
    assert fits.all() == (storage != "float16" or max(np.abs(array).max() for array in arrays) <= MOST_FLOAT16)
    for values, again in zip(arrays, codec.decode(records), strict=True):
        assert (again.shape, again.dtype) == (values.shape, np.float32)
        off = np.abs(again[fits].astype(np.float64) - values[fits])
        assert (off <= bound(storage, values)[fits]).all()


@pytest.mark.parametrize(("storage", "size"), [("float32", 4 * 30), ("float16", 2 * 30), ("int8", 30 + 2 * 8)])
def test_a_record_takes_the_bytes_of_its_format(storage: str, size: int) -> None:
    assert Codec(storage, [(2, 3, 4), (6,)]).record_bytes == size


def test_int8_keeps_each_sample_s_own_range_and_its_lowest_value() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal((2, 500)), 0).astype(np.float32)
    values[1] *= 1e6
    codec = Codec("int8", [(500,)])
    (again,) = codec.decode(codec.encode([values])[0])
    np.testing.assert_array_equal(again[values == 0], 0)
    assert 0 < np.abs(again[0] - values[0]).max() <= values[0].max() / 500


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65520.0, -1e38])
@pytest.mark.parametrize("storage", STORAGES)
def test_samples_that_a_format_cannot_hold_do_not_fit(storage: str, bad: float) -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = bad
    records, fits = Codec(storage, [(4,)]).encode([values])
    most = {"float32": np.inf, "float16": MOST_FLOAT16, "int8": MOST_INT8}[storage]
    assert fits.tolist() == [True, storage == "float32" or abs(bad) <= most, True]
    (again,) = Codec(storage, [(4,)]).decode(records)
    np.testing.assert_array_equal(again[[0, 2]], 1)
    if storage == "float32":
        np.testing.assert_array_equal(again, values)


def test_the_job_s_key_names_the_formats_there_are() -> None:
    assert ("auto", "off", *STORAGES) == CACHE_CHOICES


# --- keys -------------------------------------------------------------------------------------------------------------


def flipped(data: bytes, place: int) -> bytes:
    raw = bytearray(data)
    raw[place % len(raw)] ^= 1 << (place // len(raw) % 8)
    return bytes(raw)


BOUNDARY = (("block/3", (24, 6, 6)), ("residual", (8, 6, 6)))
GENERATION = GenerationKey(bytes(range(32)), BOUNDARY, b"Preprocess(scale=0.0078, offset=-1.0)", "float16")
PART = st.sampled_from(["prefix", "name", "shape", "order", "preprocess", "storage", "sample", "view", "seed"])


@settings(derandomize=True, deadline=None, max_examples=150)
@given(PART, st.integers(0, 2000), st.integers(0, 1))
def test_one_byte_of_any_part_of_the_key_makes_it_a_miss(part: str, place: int, which: int) -> None:
    sample, view, seed, changed = bytes(range(32, 64)), 3, 77, GENERATION
    key = record_key(sample, view, seed)
    name, shape = BOUNDARY[which]
    if part == "prefix":
        changed = replace(GENERATION, prefix=flipped(GENERATION.prefix, place))
    elif part == "name":
        other = flipped(name.encode(), place).decode("latin-1")
        changed = replace(GENERATION, boundary=tuple((other if n == name else n, s) for n, s in BOUNDARY))
    elif part == "shape":
        other_shape = tuple(side + (axis == place % 3) for axis, side in enumerate(shape))
        changed = replace(GENERATION, boundary=tuple((n, other_shape if n == name else s) for n, s in BOUNDARY))
    elif part == "order":
        changed = replace(GENERATION, boundary=BOUNDARY[::-1])
    elif part == "preprocess":
        changed = replace(GENERATION, preprocess=flipped(GENERATION.preprocess, place))
    elif part == "storage":
        changed = replace(GENERATION, storage="float32" if place % 2 else "int8")
    elif part == "sample":
        key = record_key(flipped(sample, place), view, seed)
    elif part == "view":
        key = record_key(sample, view ^ (1 << place % 32), seed)
    else:
        key = record_key(sample, view, seed ^ (1 << place % 31))
    with scratch() as folder:
        cache = opened(folder, key=GENERATION)
        cache.put([record_key(sample, view, seed)], record_of(1)[None])
        cache.select(changed, RECORD_BYTES)
        out = np.zeros((1, RECORD_BYTES), np.uint8)
        assert not cache.get([key], out).any()
        cache.select(GENERATION, RECORD_BYTES)
        assert cache.get([record_key(sample, view, seed)], out).all()
        np.testing.assert_array_equal(out[0], record_of(1))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of examples would else wait for hundreds of syncs."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder below is private and random
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder) / "features"


def test_the_seed_draws_views_and_does_not_touch_the_picture_itself() -> None:
    assert record_key(bytes(32), 0, 1) == record_key(bytes(32), 0, 2)
    assert len({record_key(bytes(32), view, seed) for view in range(3) for seed in range(2)}) == 5


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 47), st.integers(1, 255))
def test_a_sample_s_digest_covers_each_byte_the_type_and_the_shape(place: int, change: int) -> None:
    sample = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    other = sample.copy()
    other.reshape(-1)[place] ^= change
    found = [sample, other, sample.view(np.int8), sample.reshape(3, 4, 4), sample.transpose(1, 0, 2)]
    assert len({sample_digest(array) for array in found}) == 5
    assert sample_digest(sample) == sample_digest(sample.copy(order="F"))


def test_a_file_in_the_place_of_another_generation_s_is_no_block(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, *range(8))
    cache.select(generation(1), RECORD_BYTES)
    put(cache, *range(8, 16))
    mine, other = (next((tmp_path / generation(n).digest().hex()).glob("*.block")) for n in (0, 1))
    shutil.copy(mine, other)
    cache = opened(tmp_path, key=generation(1))
    assert held(cache, *range(16)) == []
    assert (cache.corrupt, other.exists()) == (1, False)


# --- storing ----------------------------------------------------------------------------------------------------------


def test_records_are_there_at_once_and_for_the_next_process(tmp_path: Path) -> None:
    cache = opened(tmp_path / "deep" / "features")
    put(cache, *range(20))
    assert held(cache, *range(21)) == list(range(20))
    assert len(files(tmp_path)) == 2  # of eight records; four wait
    assert held(opened(tmp_path / "deep" / "features"), *range(20)) == list(range(16))
    cache.flush()
    again = opened(tmp_path / "deep" / "features")
    assert held(again, *range(20)) == list(range(20))
    assert again.counts == Counts(hits=20)
    assert cache.counts == Counts(hits=20, misses=1, stored=20)


def test_a_record_is_stored_once(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    for _ in range(5):
        put(cache, 1, 1, 2)
        cache.flush()
    assert len(files(tmp_path)) == 1


def test_only_the_owner_reads_and_nothing_stays(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    cache = opened(folder)
    put(cache, *range(9))
    cache.flush()
    for path in folder.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    cache.remove()
    assert list(tmp_path.iterdir()) == []
    put(cache, 1)
    cache.flush()
    assert held(cache, 1) == []
    assert list(tmp_path.iterdir()) == []
    cache.remove()


def test_a_job_removes_the_caches_of_others_and_keeps_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        cache = opened(tmp_path / name)
        put(cache, *range(8))
    cache = job_cache(tmp_path, "two", unwanted, fresh=False)
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    cache.select(KEY, RECORD_BYTES)
    assert held(cache, *range(8)) == list(range(8))
    job_cache(tmp_path, "two", unwanted, fresh=True)
    assert list(tmp_path.iterdir()) == []
    job_cache(tmp_path / "none", "two", unwanted, fresh=True)


# --- bounds -----------------------------------------------------------------------------------------------------------


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def test_other_generations_go_first_and_then_what_was_not_read_for_longest(tmp_path: Path) -> None:
    limits = replace(EASY, max_bytes=35_000)  # four blocks
    for number in (1, 2):
        put(opened(tmp_path, limits, generation(number)), *range(8))
        os.utime(tmp_path / generation(number).digest().hex(), (number, number))
    cache = opened(tmp_path, limits)
    names = lambda: {path.name for path in tmp_path.iterdir()}  # noqa: E731 - asked four times
    put(cache, *range(16))
    assert names() == {generation(n).digest().hex() for n in (0, 1, 2)}
    put(cache, *range(16, 24))
    assert names() == {generation(n).digest().hex() for n in (0, 2)}
    put(cache, *range(24, 32))
    assert names() == {KEY.digest().hex()}
    assert (cache.counts.evicted_generations, cache.counts.evicted_blocks) == (2, 0)
    assert held(cache, 0, 17, 25) == [0, 17, 25]
    put(cache, *range(32, 40))
    assert cache.counts.evicted_blocks == 1
    assert held(cache, *range(40)) == [*range(8), *range(16, 40)]
    assert held(opened(tmp_path, limits), *range(40)) == [*range(8), *range(16, 40)]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), max_size=25), st.integers(1, 60_000))
def test_the_bound_in_bytes_holds_at_any_time(operations: list[tuple[int, int]], most: int) -> None:
    warnings: list[str] = []
    with scratch() as folder:
        cache = opened(folder, replace(EASY, max_bytes=most), warnings=warnings)
        for number, record in operations:
            cache.select(generation(number), RECORD_BYTES)
            put(cache, *range(record, record + 9))
            cache.flush()
            assert on_disk(folder) <= most
            held(cache, *range(70))
        assert cache.off == ""
        assert set(warnings) <= {"the feature cache has no room left: it serves what it holds and stores no more"}


def test_a_file_system_without_its_free_share_is_left_alone(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail / disk.f_blocks
    warnings: list[str] = []
    cache = opened(tmp_path, replace(EASY, least_free_share=free + 0.01), warnings=warnings)
    assert cache.room() == 0
    put(cache, *range(50))
    cache.flush()
    assert files(tmp_path) == []
    assert len(warnings) == 1
    cache = opened(tmp_path, replace(EASY, least_free_share=max(0.0, free - 0.01)))
    assert cache.room() == EASY.max_bytes
    put(cache, *range(8))
    assert len(files(tmp_path)) == 1


def test_what_is_larger_than_a_block_may_be_is_not_stored(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, unwanted, Limits(least_free_share=0.0))
    for size, stored in ((MAX_RECORD_BYTES, 1), (MAX_RECORD_BYTES + 1, 1)):
        cache.select(KEY, size)
        cache.put([key_of(1)], np.zeros((1, size), np.uint8))
        assert cache.counts.stored == stored


def test_blocks_and_their_records_are_bounded_in_number(tmp_path: Path) -> None:
    records = Generation(tmp_path, bytes(32), 1, block_bytes=1 << 20)
    for number in range(MAX_BLOCK_RECORDS):
        assert not records.full_block
        records.add(key_of(number), np.zeros(1, np.uint8))
    assert records.full_block
    with scratch() as folder:
        cache = opened(folder, replace(EASY, block_bytes=1))
        put(cache, *range(MAX_BLOCKS + 3))
        assert len(files(folder)) == MAX_BLOCKS
        assert cache.counts.evicted_blocks == 3


# --- damage -----------------------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=120)
@given(st.integers(0, 8500), st.integers(1, 255))
def test_a_flipped_byte_is_a_miss_that_is_counted_and_stored_again(place: int, change: int) -> None:
    with scratch() as folder:
        put(opened(folder), *range(8))
        (block,) = files(folder)
        raw = bytearray(block.read_bytes())
        raw[place % len(raw)] ^= change
        block.write_bytes(raw)
        cache = opened(folder)
        there = held(cache, *range(8))  # asserts that each is what was stored
        assert len(there) in (0, 7)
        assert cache.corrupt == 1
        put(cache, *range(8))
        cache.flush()
        assert held(cache, *range(8)) == list(range(8))
        assert held(opened(folder), *range(8)) == list(range(8))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 9000), st.binary(max_size=300))
def test_a_torn_file_is_no_block(length: int, rest: bytes) -> None:
    with scratch() as folder:
        put(opened(folder), *range(8))
        (block,) = files(folder)
        whole = block.read_bytes()
        torn = whole[:length] + rest
        if torn == whole:
            return
        block.write_bytes(torn)
        cache = opened(folder)
        assert len(held(cache, *range(8))) in (0, 7)
        assert cache.corrupt == 1


def test_what_rots_under_an_open_cache_is_noticed(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, *range(8))
    (block,) = files(tmp_path)
    with block.open("r+b") as stream:
        stream.seek(-500, os.SEEK_END)
        stream.write(b"\0" * 5)
    assert held(cache, *range(8)) == list(range(7))
    assert cache.corrupt == 1


def test_what_rots_while_it_waits_for_its_block_is_noticed(tmp_path: Path) -> None:
    """Its checksum is made when it comes: one made when the block is written would vouch for the damage."""
    cache = opened(tmp_path)
    put(cache, *range(4))
    generation = cache._generation
    assert generation is not None
    for number in (1, 2):
        record, check = generation._pending[key_of(number)]
        generation._pending[key_of(number)] = (bytes([record[0] ^ 1]) + record[1:], check)
    assert held(cache, 0, 1) == [0]
    cache.flush()
    assert held(cache, *range(4)) == [0, 3]
    assert cache.corrupt == 2
    put(cache, 1, 2)
    assert held(cache, *range(4)) == [0, 1, 2, 3]


# --- kill -9 ----------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).with_name("features_crash.py")


def survived(folder: Path) -> None:
    """Every record is the right one or none, nothing is left over, and the cache works on."""
    for number in (0, 1):
        cache = opened(folder, LIMITS, generation(number))
        assert cache.corrupt == 0  # a kill tears nothing: what is there is whole
        held(cache, *range(4 * RECORDS))
        assert not list((folder / generation(number).digest().hex()).glob(".*"))
    put(cache, *range(8))
    cache.flush()
    assert held(opened(folder, LIMITS, generation(1)), *range(8)) == list(range(8))


def test_killed_before_each_file_operation(tmp_path: Path) -> None:
    number, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        number += 3  # every third of some eighty: the file operations of a block are seven
        folder = tmp_path / str(number)
        code = subprocess.run(
            [sys.executable, str(SCRIPT), str(folder), str(number)], stdout=subprocess.DEVNULL, check=False
        ).returncode
        if folder.exists():
            survived(folder)
    assert code == 0
    assert number > 30


@pytest.mark.parametrize("lines", [1, 7, 8, 9, 40, 41, 55, 150])
def test_killed_at_any_moment(tmp_path: Path, lines: int) -> None:
    folder = tmp_path / "cache"
    with subprocess.Popen([sys.executable, str(SCRIPT), str(folder), "0"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(lines):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        child.stdout.read()
    assert child.returncode == -signal.SIGKILL
    survived(folder)


# --- a disk that refuses ----------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_switches_the_cache_off_with_one_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    cache = opened(tmp_path, warnings=warnings)
    with largest_file(4096):
        put(cache, *range(40))
    cache.flush()
    assert held(cache, *range(40)) == []
    cache.select(generation(1), RECORD_BYTES)
    put(cache, *range(8))
    assert held(cache, *range(8)) == []
    assert cache.room() == 0
    assert len(warnings) == 1
    assert "no space left" in warnings[0]
    assert cache.off
    assert files(tmp_path) == []
    cache.remove()


def test_a_folder_that_cannot_be_made_or_has_gone_switches_it_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    warnings: list[str] = []
    cache = opened(tmp_path / "file" / "features", warnings=warnings)
    put(cache, 1)
    assert (held(cache, 1), len(warnings)) == ([], 1)
    cache.remove()
    gone = opened(tmp_path / "gone", warnings=warnings)
    shutil.rmtree(tmp_path / "gone")
    put(gone, *range(8))
    assert (held(gone, *range(8)), len(warnings)) == ([], 2)


SMALL_DISK = """
import os, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from tests.agent.test_features import EASY, RECORD_BYTES, FeatureCache, generation, held, put
folder, warnings = sys.argv[1], []
from pathlib import Path
cache = FeatureCache(Path(folder) / "full", warnings.append, EASY)
cache.select(generation(0), RECORD_BYTES)
put(cache, *range(8))
with open(folder + "/hog", "wb") as hog:
    os.posix_fallocate(hog.fileno(), 0, os.statvfs(folder).f_bavail * 4096)
assert held(cache, *range(8)) == list(range(8))
put(cache, *range(8, 16))
print(len(warnings), warnings[0])
os.remove(folder + "/hog")
cache = FeatureCache(Path(folder) / "share", warnings.append, type(EASY)(1 << 30, 0.5, 8000))
cache.select(generation(0), RECORD_BYTES)
put(cache, *range(200))
disk = os.statvfs(folder)
assert disk.f_bavail >= disk.f_blocks / 2, disk
print(len(warnings), warnings[1], cache.counts.stored > 20, cache.off == "")
assert os.system("mount -o remount,ro " + folder) == 0
cache = FeatureCache(Path(folder) / "readonly", warnings.append, EASY)
cache.select(generation(0), RECORD_BYTES)
put(cache, *range(8))
print(len(warnings), warnings[2])
"""


def private_mounts() -> bool:
    """Whether this machine lets a test mount a small disk of its own."""
    command = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs tmpfs "$0"', str(Path(__file__).parent)]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not private_mounts(), reason="needs user namespaces")
def test_a_real_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    shell = 'mount -t tmpfs -o size=128k tmpfs "$1" && exec "$0" -c "$2" "$1" "$3"'
    root = str(Path(__file__).parents[2])
    command = ["unshare", "-rm", "sh", "-c", shell, sys.executable, str(tmp_path), SMALL_DISK, root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, share, read_only = done.stdout.splitlines()
    assert full.startswith("1 the feature cache has no room left")
    assert share.startswith("2 the feature cache has no room left")
    assert share.endswith("True True")
    assert read_only.startswith(
        f"3 the feature cache is off, training goes on without it: disk access failed: {os.strerror(errno.EROFS)}"
    )
