"""Whether a day lost anything: commands, telemetry, files; and what it cost."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simulators.wiretap import STATUS, Heard
from tests.soak.keeper import Life

ENDED = ("succeeded", "failed", "rejected", "canceled", "timed_out", "rolled_back")
SAME_MOMENT_MS = 5000
"""A message and the end of a life that it fell into: their clocks are one, its way to the kernel is not."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Sequence numbers of telemetry that never came."""

    after_ms: int
    before_ms: int
    numbers: int
    torn: bool
    """A life ended within it: numbers kept in reserve are given up then, and what was only in memory is gone."""


def command_faults(sent: Mapping[str, str], heard: Iterable[Heard]) -> tuple[list[str], Counter[str]]:
    """Commands that have no end, or two; and how many ended how.

    Args:
        sent: type by id.
        heard: everything said.
    """
    ends: dict[str, set[str]] = {name: set() for name in sent}
    for one in heard:
        found = STATUS.fullmatch(one.topic)
        if found and one.payload and found[1] in ends:
            told = json.loads(one.payload)
            if told["status"] in ENDED:
                ends[found[1]].add(f"{told['status']} {told['reason_code']}".strip())
    faults = [f"{sent[name]} {name} ended {sorted(how) or 'never'}" for name, how in ends.items() if len(how) != 1]
    return faults, Counter(f"{sent[name]} {status}" for name, how in ends.items() for status in how)


def telemetry_gaps(store: Path, ends_ms: Sequence[float]) -> tuple[int, list[Gap]]:
    """Messages in the consumer's store, and the gaps in their numbers.

    Args:
        store: SQLite file of `temperd ingest`.
        ends_ms: when a life of the daemon ended, wall clock.
    """
    database = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT seq, ts FROM telemetry ORDER BY seq").fetchall()
    finally:
        database.close()
    gaps = []
    for (seq, ts), (following, later) in itertools.pairwise(rows):
        if following > seq + 1:
            torn = any(ts - SAME_MOMENT_MS <= end <= later + SAME_MOMENT_MS for end in ends_ms)
            gaps.append(Gap(ts, later, following - seq - 1, torn))
    return len(rows), gaps


def downtime(lives: Sequence[Life]) -> dict[str, list[float]]:
    """Seconds from the last sign of a daemon to the readiness of the next, by why the first one ended."""
    found: dict[str, list[float]] = {}
    for before, after in itertools.pairwise(lives):
        if after.ready is not None:
            found.setdefault(before.why, []).append(after.ready - (before.last or before.began))
    return found


def journal_fault(path: Path) -> str:
    """What SQLite says of the journal; empty: it is whole."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        word = str(database.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        database.close()
    return "" if word == "ok" else word
