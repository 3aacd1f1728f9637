"""Memory bandwidth: what a job requires of the board (R10), and what the board gives.

Measured by copying between two buffers, on as many threads as training has; bytes read and bytes written both count, as
in STREAM (McCalpin 1995). The first import is cheap: NumPy is loaded when something is measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import strict_json
from agent.durable import read_bounded, write_atomic
from agent.errors import ArtifactError, BoardError, SpecError
from policies.strict import TableError, build, limits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

OPERATIONS_PER_PARAMETER = 2.0
"""F_op of R10: each parameter takes part in a multiplication and an addition."""
LEAST_BUFFER_BYTES = 8 << 20
"""Each of the two; a Raspberry Pi 4 has 1 MB of last-level cache, a Pi 5 2 MB, a Jetson Orin Nano 4 MB."""
MOST_BUFFER_BYTES = 24 << 20  # both together stay below 64 MiB, on boards where that is a lot
CACHES = 2  # a buffer of two caches is evicted before it is read again
MEASURE_S = 0.08  # nobody waits for it; the fastest copy of many is the board's, the others shared it
LEAST_COPIES, MOST_COPIES = 3, 400
COPIED_BOTH_WAYS = 2  # a copied byte is read once and written once
FILE_NAME = "bandwidth.json"
MAX_FILE_BYTES = 4 << 10
REASON = "bandwidth"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the board's memory gave."""

    bytes_per_s: float = field(metadata=limits(1.0, 1e13))
    """Read and written together, of the fastest copy."""
    buffer_bytes: int = field(metadata=limits(1, MOST_BUFFER_BYTES))
    """Of each of the two buffers."""
    beyond_cache: bool | None = None
    """False: the last-level cache is too large for the buffers that are affordable, and the figure may be the cache's.
    `None`: the kernel does not say how large it is."""
    clock_share: float = field(default=1.0, metadata=limits(0.0, 1.0))
    """Clock cap in force, as a share of the top clock: a slower core asks its memory for less."""
    threads: int = field(default=1, metadata=limits(1, 4096))
    board: str = field(default="", metadata=limits(longest=256))
    boot_id: str = field(default="", metadata=limits(longest=256))
    schema: int = field(default=1, metadata=limits(1, 1))


class BandwidthError(SpecError):
    """The job's time budget needs more of the memory than the board gives; `result` has the numbers."""

    reason = REASON

    def __init__(self, what: str, *, where: str, fix: str, result: dict[str, object]) -> None:
        super().__init__(what, where=where, fix=fix)
        self.result = result


def required_bandwidth(model_bytes: float, operations_per_parameter: float, budget_s: float) -> float:
    """B_req = M_params F_op 2 / T_budget in bytes a second (R10).

    Args:
        model_bytes: M_params, size of all parameters.
        operations_per_parameter: F_op.
        budget_s: T_budget, the time for one pass over the parameters.
    """
    return model_bytes * operations_per_parameter * 2 / budget_s


def measure(threads: int, clock: Callable[[], float], cache_bytes: int = 0) -> Measured:
    """Measure the memory bandwidth; takes about `MEASURE_S` and at most 2 x `MOST_BUFFER_BYTES`.

    Args:
        threads: that copy, each its own part.
        clock: monotonic seconds.
        cache_bytes: size of the last-level cache; 0: unknown.
    """
    import numpy as np  # noqa: PLC0415 - the daemon reads the figures and must not load it

    wanted = max(LEAST_BUFFER_BYTES, CACHES * cache_bytes)
    size = min(wanted, MOST_BUFFER_BYTES)
    source = np.ones(size, np.uint8)  # written once, so that every page exists: an untouched page is not read at all
    target = np.ones(size, np.uint8)
    parts = [slice(size * i // threads, size * (i + 1) // threads) for i in range(threads)]
    best_s = _fastest_copy(source, target, parts, clock)
    return Measured(COPIED_BOTH_WAYS * size / best_s, size, size >= wanted if cache_bytes else None, threads=threads)


def _fastest_copy(
    source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], parts: list[slice], clock: Callable[[], float]
) -> float:
    """Seconds of the fastest of many copies."""

    def copy(part: slice) -> None:
        target[part] = source[part]

    best_s, copies = float("inf"), 0
    with ThreadPoolExecutor(len(parts)) as pool:
        began = clock()
        while copies < LEAST_COPIES or (clock() - began < MEASURE_S and copies < MOST_COPIES):
            before = clock()
            list(pool.map(copy, parts))
            best_s, copies = min(best_s, clock() - before), copies + 1
    return max(best_s, 1e-9)  # a clock that did not move within a copy


class MemoryBandwidth:
    """The board's bandwidth, measured once a boot and kept in the state folder.

    Args:
        state: the state folder.
        board: name of the board's profile.
        boot_id: of the kernel; without one nothing is kept.
        threads: that training has.
        clock_share: see `Measured`.
        take: measures.
    """

    def __init__(
        self, state: Path, board: str, boot_id: str, threads: int, clock_share: float, take: Callable[[], Measured]
    ) -> None:
        self._path, self._take = state / FILE_NAME, take
        self._identity = (board, boot_id, threads)
        self._clock_share = clock_share

    def known(self) -> Measured:
        """As kept of this boot, else as measured now. One taken under a lower clock than today's is taken again."""
        kept = self._kept()
        return kept if kept is not None and kept.clock_share >= self._clock_share else self.fresh()

    def fresh(self) -> Measured:
        """Measured now; the better of it and of what was kept of this boot counts, and is kept."""
        share, (board, boot_id, threads) = self._clock_share, self._identity
        now = replace(self._take(), clock_share=share, board=board, boot_id=boot_id, threads=threads)
        kept = self._kept()
        if kept is not None and kept.bytes_per_s >= now.bytes_per_s:
            now = replace(kept, clock_share=max(kept.clock_share, now.clock_share))
        if boot_id:
            try:
                write_atomic(self._path, json.dumps(asdict(now)).encode())
            except BoardError:  # a full disk costs the next job a tenth of a second
                return now
        return now

    def _kept(self) -> Measured | None:
        """What this boot has measured; `None` for another boot or board, or a file that cannot be read."""
        try:
            body = strict_json.loads(read_bounded(self._path, MAX_FILE_BYTES), what=FILE_NAME, max_bytes=MAX_FILE_BYTES)
            kept = build(Measured, body) if isinstance(body, Mapping) else None
        except (FileNotFoundError, BoardError, ArtifactError, TableError):
            return None
        same = kept is not None and (kept.board, kept.boot_id, kept.threads) == self._identity
        return kept if same and self._identity[1] else None


def bandwidth_told(model_bytes: int, budget_ms: float, measured: Measured | None) -> dict[str, object]:
    """Both figures of R10 as JSON values; `required_bytes_per_s` is `None` for a job without a time budget."""
    required = required_bandwidth(model_bytes, OPERATIONS_PER_PARAMETER, budget_ms / 1e3) if budget_ms else None
    return {
        "model_bytes": model_bytes,
        "operations_per_parameter": OPERATIONS_PER_PARAMETER,
        "budget_ms": budget_ms or None,
        "required_bytes_per_s": required,
        "measured_bytes_per_s": measured.bytes_per_s if measured else None,
        "beyond_cache": measured.beyond_cache if measured else None,
        "clock_share": measured.clock_share if measured else None,
    }


def at_pace(told: Mapping[str, object], busy_s: float, passes: int) -> dict[str, object]:
    """`told` with what training really took of the memory's time.

    A budget that the memory could meet may still be missed: bandwidth is necessary and not sufficient.

    Args:
        told: see `bandwidth_told`; empty where nothing was found out.
        busy_s: time spent in training steps.
        passes: over the parameters in that time.
    """
    if not told or passes <= 0 or busy_s <= 0:
        return dict(told)
    pass_s = busy_s / passes
    pace = required_bandwidth(_number(told["model_bytes"]), OPERATIONS_PER_PARAMETER, pass_s)
    budget_ms = told["budget_ms"]
    met = None if budget_ms is None else pass_s * 1e3 <= _number(budget_ms)
    return {**told, "pass_ms": pass_s * 1e3, "required_at_pace_bytes_per_s": pace, "budget_met": met}


def admit(model_bytes: int, budget_ms: float, memory: MemoryBandwidth) -> dict[str, object]:
    """`bandwidth_told` of a job that the board's memory can serve (R10). A refusal is never on an old figure.

    Raises:
        BandwidthError: it cannot.
    """
    measured = memory.known()
    told = bandwidth_told(model_bytes, budget_ms, measured)
    if not _too_much(told):
        return told
    told = bandwidth_told(model_bytes, budget_ms, memory.fresh())
    if not _too_much(told):
        return told
    required, given = _number(told["required_bytes_per_s"]), _number(told["measured_bytes_per_s"])
    least_ms = budget_ms * required / given
    raise BandwidthError(
        f"a pass over {model_bytes / 1e6:.3g} MB of parameters in {budget_ms:g} ms needs {_shown(required / 1e9)} GB/s "
        f"of memory bandwidth, this board gives {_shown(given / 1e9)} GB/s as measured",
        where="budget_ms",
        fix=f"Set budget_ms to {least_ms:.3g} or more, leave it out, or take a smaller model",
        result={"bandwidth": told},
    )


def _shown(value: float) -> str:
    """Three digits, and never as a power of ten."""
    return f"{value:.3g}" if value < 1e3 else f"{value:.0f}"  # noqa: PLR2004 - from there on all digits are shown


def _too_much(told: Mapping[str, object]) -> bool:
    return _number(told["required_bytes_per_s"]) > _number(told["measured_bytes_per_s"])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
