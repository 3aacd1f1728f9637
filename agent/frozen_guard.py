"""Frozen weights in memory: a bit that flips there is noticed before what was learnt with it is kept (R14).

What feeds the frozen computation, and what is done about each copy:

- The values that a run takes its constants from (`TrainingRun.frozen_memory`) are hashed. What never learns must be as
  it was unsealed; what learnt and was frozen later, as it was when that happened.
- The runtime's own copies, in an order of its own that cannot be read, are asked: the same samples must give the same
  bytes as after compilation. Sessions are deterministic, so nothing else changes the answer. A flip that changes
  no bit of the answers to `PROBE_SAMPLES` samples of the job stays unseen; docs/memory.md says how many do.
- Activations in the feature cache carry a checksum each from the moment they are made (features_blocks.py).
- For weights that learn, their optimizer state and the samples there is nothing to compare with. Steps that are not
  finite are dropped, and the gate scores what comes out on held-out samples.

A fault ends the attempt. Checkpoints are written only right after a verification and hold nothing that never learns,
so the next attempt goes on from before the fault, with weights unsealed again and an empty cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from agent.engine.base import TrainingRun
from agent.errors import EngineError
from agent.messages import MEMORY_CORRUPT
from agent.task import Task

PIECE_BYTES = 512 << 10  # hashed between two steps: 3 ms at the 180 MB/s of a core without SHA instructions
PROBE_SAMPLES = 32  # half as many see up to 6 flips of 100 fewer, twice as many up to 6 more: docs/memory.md
PACKED = "copies packed by the runtime"
Values = Mapping[str, npt.NDArray[np.generic]]


def digests(values: Values) -> dict[str, bytes]:
    """SHA-256 of each value's bytes."""
    return {name: hashlib.sha256(np.ascontiguousarray(value).data).digest() for name, value in values.items()}


def kept(base: Values, now: Values, known: Mapping[str, bytes]) -> dict[str, bytes]:
    """Of the digests of a base's values those that a graph made from it still has: a new head may bear an old name."""
    return {name: known[name] for name, value in base.items() if now.get(name) is value}


class FrozenGuard:
    """Verifies what does not learn in a run: at once, or piece by piece between steps.

    Attributes:
        never_learn: names of what does not learn under the plan that the run was started with.
    """

    def __init__(
        self,
        run: TrainingRun,
        task: Task,
        clock: Callable[[], float],
        every_s: float,
        unsealed: Mapping[str, bytes] | None = None,
    ) -> None:
        """Compare what the run took with what was unsealed.

        Args:
            run: right after its start.
            task: gives the samples of the probes.
            clock: monotonic seconds.
            every_s: longest time between two verifications while steps are made.
            unsealed: digests of the base's values by name, from when its file was verified.

        Raises:
            EngineError: `memory-corrupt`.
        """
        self._run, self._task, self._clock, self._every_s = run, task, clock, every_s
        self.never_learn = frozenset(run.frozen_memory())
        self._unsealed = {k: v for k, v in (unsealed or {}).items() if k in self.never_learn}
        self._known: dict[str, bytes] = {}
        self._answers: dict[int, list[bytes]] = {}
        self._round: Iterator[None] | None = None
        self._verified_at = clock()
        self.take()
        self.verify()

    def take(self, *, loaded: bool = False) -> None:
        """After a change of the plan: what froze with it is taken as it is now, all else stays what it was.

        Call `verify` before the change, for what thaws is given up, and after it.

        Args:
            loaded: other weights were loaded: all that could learn is taken as it is now.
        """
        known = {name: digest for name, digest in self._known.items() if not loaded or name in self.never_learn}
        known |= self._unsealed
        frozen = self._run.frozen_memory()
        fresh = digests({name: value for name, value in frozen.items() if name not in known})
        self._known = {name: known.get(name) or fresh[name] for name in frozen}
        self._round = None

    def verify(self) -> None:
        """Verify everything now; the answers of sessions compiled since the last time are taken as they are.

        Raises:
            EngineError: `memory-corrupt`, and it names the first value that changed.
        """
        for _ in self._pieces():
            pass
        self._done()

    def verify_and_renew(self) -> None:
        """After great heat: `verify`, and compile the frozen part anew, which then must give the same answers.

        A flip that changed none of the answers is gone with the old copies.

        Raises:
            EngineError: as `verify`.
        """
        self.verify()
        answers = self._answers[self._run.form]
        self._run.renew()
        self._answers[self._run.form] = answers
        self.verify()

    def advance(self) -> None:
        """Between two steps: verify the next piece, if it is time for a round of them.

        Raises:
            EngineError: as `verify`.
        """
        if self._round is None:
            if self._clock() - self._verified_at < self._every_s:
                return
            self._round = self._pieces()
        if next(self._round, self) is self:
            self._done()

    def check(self, values: Values) -> None:
        """`verify`, and compare what never learns with its namesakes in a finished model.

        Raises:
            EngineError: as `verify`.
        """
        self.verify()
        found = digests({name: values[name] for name in self._known.keys() & self.never_learn & values.keys()})
        for name, digest in found.items():
            if digest != self._known[name]:
                raise _corrupt(name)

    def fingerprint(self) -> npt.NDArray[np.uint8]:
        """SHA-256 [32] of all that never learns, as it should be: a checkpoint fits no other base."""
        digest = hashlib.sha256()
        for name in sorted(self.never_learn):
            digest.update(repr((name, self._known[name])).encode())
        return np.frombuffer(digest.digest(), np.uint8)

    def _done(self) -> None:
        self._round, self._verified_at = None, self._clock()

    def _samples(self) -> Iterator[npt.NDArray[np.float32]]:
        count = min(PROBE_SAMPLES, self._task.train_samples)
        at_once = self._run.probe_samples
        for start in range(0, count, at_once):
            yield self._task.inputs(np.arange(start, min(start + at_once, count), dtype=np.int64))

    def _pieces(self) -> Iterator[None]:
        frozen, room = self._run.frozen_memory(), PIECE_BYTES
        for name, digest in self._known.items():
            data = np.ascontiguousarray(frozen[name]).reshape(-1).view(np.uint8)
            hashed = hashlib.sha256()
            for start in range(0, len(data), PIECE_BYTES):
                part = data[start : start + PIECE_BYTES]
                if len(part) > room:
                    yield
                    room = PIECE_BYTES
                hashed.update(part.data)
                room -= len(part)
            if hashed.digest() != digest:
                raise _corrupt(name)
        known = self._answers.get(self._run.form)
        found = []
        for samples in self._samples():
            yield
            found.append(self._run.probe(samples))
            if known is not None and found[-1] != known[len(found) - 1]:
                raise _corrupt(PACKED)
        self._answers[self._run.form] = found


def _corrupt(where: str) -> EngineError:
    return EngineError(
        "frozen weights changed in memory",
        where=where,
        fix="The active model is as it was. If this happens again, test the board's memory, its supply and its cooling",
        reason=MEMORY_CORRUPT,
    )
