"""The frozen-feature cache: boundary activations on disk, so that a frozen prefix runs once a sample.

    <folder>/<generation>/00000000.block ...

The key of an activation has two parts. The generation is everything that many records share: the digest of the frozen
part (its nodes and weights), the boundary's tensors and shapes, the preprocessing and the storage format. The record is
one picture in one view. A key differs in one byte: it is another key, and what is stored is never found for it.

The cache never ends a job. A disk that refuses switches it off with one warning, and the prefix runs again at every
step. Activations can reveal the pictures they were made of: files are the owner's alone, and `remove` ends them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.durable import disk_errors, make_folder
from agent.errors import BoardError
from agent.features_blocks import BLOCK_BYTES, MAX_RECORD_BYTES, SUFFIX, Generation
from agent.features_codec import Records

MAX_CACHE_BYTES = 1 << 30  # a sixteenth of the smallest usual memory card (16 GB); as many blocks as may be open
LEAST_FREE_SHARE = 0.10  # of the file system, left to everyone else: flash wears and slows down when full
FORMAT = "features 1"  # part of every key: a change of meaning makes all that is stored unreachable


@dataclass(frozen=True, slots=True)
class GenerationKey:
    """What all records of a generation share.

    Attributes:
        prefix: digest of the frozen part, as `TrainingRun.prefix_digest`.
        boundary: name and shape for one sample of each crossing tensor, in order.
        preprocess: the preprocessing rule, in any form that differs when the rule differs.
        storage: number format.
    """

    prefix: bytes
    boundary: tuple[tuple[str, tuple[int, ...]], ...]
    preprocess: bytes
    storage: str

    def digest(self) -> bytes:
        """SHA-256 of all of it; Python's own notation keeps the parts apart."""
        parts = (FORMAT, self.prefix, self.boundary, self.preprocess, self.storage)
        return hashlib.sha256(repr(parts).encode()).digest()


def sample_digest(sample: npt.NDArray[np.generic]) -> bytes:
    """SHA-256 of a sample's values, type and shape."""
    digest = hashlib.sha256(repr((sample.dtype.str, sample.shape)).encode())
    digest.update(np.ascontiguousarray(sample).data)
    return digest.digest()


def record_key(sample: bytes, view: int, seed: int) -> bytes:
    """Key of a sample, by its digest, in one view; the seed draws the views but for view 0, the sample itself."""
    return hashlib.sha256(repr((sample, view, seed if view else 0)).encode()).digest()


@dataclass(frozen=True, slots=True)
class Limits:
    """How much disk the cache may take.

    Attributes:
        max_bytes: of all files.
        least_free_share: share of the file system that stays free.
        block_bytes: about how much is written at once.
    """

    max_bytes: int = MAX_CACHE_BYTES
    least_free_share: float = LEAST_FREE_SHARE
    block_bytes: int = BLOCK_BYTES


@dataclass(slots=True)
class Counts:
    """What the cache has done, in records unless the name says otherwise."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted_blocks: int = 0
    evicted_generations: int = 0


class FeatureCache:
    """Records by generation and key, in a folder that belongs to one job and one process.

    Attributes:
        counts: what it has done.
        off: why it is switched off; empty while it works.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None], limits: Limits | None = None) -> None:
        """Nothing is touched before `select`.

        Args:
            folder: where generations lie; made when missing, with its parents.
            warn: receives one sentence when the cache stops storing or switches itself off.
            limits: how much disk it may take.
        """
        self.counts, self.off = Counts(), ""
        self._folder, self._warn, self._limits = folder, warn, limits or Limits()
        self._generation: Generation | None = None
        self._name = ""
        self._corrupt = 0
        self._full = False

    @property
    def corrupt(self) -> int:
        """Records and blocks found damaged so far; each is a miss and is stored again."""
        current = self._generation
        return self._corrupt + (0 if current is None else current.corrupt + current.broken_blocks)

    def room(self) -> int:
        """Bytes that the cache may hold now, those it holds included; 0 when it is off."""
        with self._guarded():
            self._check_on()
            make_folder(self._folder)
            return max(0, min(self._limits.max_bytes, self._spare() + self._held()))
        return 0  # type: ignore[unreachable]  # mypy does not see that `_guarded` swallows

    def select(self, key: GenerationKey, record_bytes: int) -> None:
        """Work with this generation from now on; what waits of the one before is written first."""
        self.flush()
        self._close()
        self._full = record_bytes > MAX_RECORD_BYTES
        digest = key.digest()
        with self._guarded():
            self._check_on()
            self._name = digest.hex()
            make_folder(self._folder)
            folder = self._folder / self._name
            self._generation = Generation(folder, digest, record_bytes, self._limits.block_bytes)

    def get(self, keys: Sequence[bytes], out: Records) -> npt.NDArray[np.bool_]:
        """Copy the records that are there to their rows of `out` [M, record_bytes]; which they are [M]."""
        found = np.zeros(len(keys), np.bool_)
        with self._guarded():
            if self._generation is not None:
                for row, key in enumerate(keys):
                    found[row] = self._generation.read(key, out[row])
        hits = int(found.sum())
        self.counts.hits += hits
        self.counts.misses += len(keys) - hits
        return found

    def put(self, keys: Sequence[bytes], records: Records) -> None:
        """Store records [M, record_bytes]; they can be read at once and are on disk after `flush`."""
        for key, record in zip(keys, records, strict=True):
            generation = self._generation
            if generation is None or self._full:
                return
            generation.add(key, record)
            self.counts.stored += 1
            if generation.full_block:
                self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        generation = self._generation
        if generation is None or not generation.waiting_bytes:
            return
        with self._guarded():
            if self._make_room(generation):
                generation.write()
                return
            generation.forget_waiting()
            self._full = True
            self._warn("the feature cache has no room left: it serves what it holds and stores no more")

    def remove(self) -> None:
        """Remove everything; the cache is off afterwards."""
        self._close()
        self.off = self.off or "removed"
        try:
            if self._folder.exists():
                shutil.rmtree(self._folder)
        except OSError as error:
            self._warn(f"the feature cache could not be removed: delete {self._folder} ({error.strerror})")

    # --- disk --------------------------------------------------------------------------------------------------------

    def _make_room(self, generation: Generation) -> bool:
        """Whether what waits may be written now, after what may go for it has gone.

        Other generations go first, the one written longest ago before the others. Blocks of this one go only for the
        bound in bytes: a disk that others fill is left to them.
        """
        need = generation.waiting_bytes
        if need > self._limits.max_bytes:
            return False
        while need > self._limits.max_bytes - self._held() or need > self._spare():
            if self._evict_other():
                self.counts.evicted_generations += 1
            elif need <= self._spare() and generation.evict():
                self.counts.evicted_blocks += 1
            else:
                return False
        if generation.too_many_blocks:
            self.counts.evicted_blocks += generation.evict()
        return True

    def _held(self) -> int:
        return sum(_bytes_in(path) for path in self._generations())

    def _spare(self) -> int:
        """Bytes that may be written before the file system is too full."""
        disk = os.statvfs(self._folder)
        return int(disk.f_bavail * disk.f_frsize - disk.f_blocks * disk.f_frsize * self._limits.least_free_share)

    def _evict_other(self) -> bool:
        others = [path for path in self._generations() if path.name != self._name]
        if not others:
            return False
        shutil.rmtree(min(others, key=lambda path: path.stat().st_mtime_ns))
        return True

    def _generations(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir()]

    # --- faults ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """A disk that refuses switches the cache off and nothing else."""
        try:
            with disk_errors(self._folder):
                yield
        except BoardError as error:
            if not self.off:
                self.off = str(error)
                self._warn(f"the feature cache is off, training goes on without it: {error}")
            self._close()

    def _check_on(self) -> None:
        if self.off:
            raise BoardError(self.off)

    def _close(self) -> None:
        if self._generation is not None:
            self._corrupt = self.corrupt
            self._generation.close()
            self._generation = None


def _bytes_in(generation: Path) -> int:
    return sum(path.stat().st_size for path in generation.glob(f"*{SUFFIX}"))


def job_cache(folder: Path, job_id: str, warn: Callable[[str], None], *, fresh: bool) -> FeatureCache:
    """The cache of a job, below `folder`. The caches of other jobs are removed: those were killed before they could.

    Args:
        folder: of all jobs' caches.
        job_id: whose cache it is.
        warn: see `FeatureCache`.
        fresh: remove what an earlier attempt of this job left, too. Blocks are read through memory maps, and a disk
            that cannot read a mapped page kills the process: it must not kill the next attempt as well.
    """
    try:
        with disk_errors(folder):
            for path in folder.iterdir() if folder.is_dir() else ():
                if fresh or path.name != job_id:
                    shutil.rmtree(path)
    except BoardError as error:
        warn(f"old feature caches could not be removed: {error}")
    return FeatureCache(folder / job_id, warn)
