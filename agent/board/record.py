"""The board's record, `board.json` in the state folder: what a board was found to be worth, and what was learnt of it.

Schema 1. A record belongs to one device-tree model: on another board it is not used, and the next write replaces it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent import strict_json
from agent.durable import disk_errors, read_bounded, sync_folder, write_atomic
from agent.errors import ArtifactError
from policies.strict import TableError, build_known, limits

FILE_NAME = "board.json"
SCHEMA = 1
MAX_RECORD_BYTES = 64 << 10  # a record with its models has a few KB
MAX_REASONS = 32
_ASIDE = ".broken"
_TEXT = limits(longest=256)  # a device-tree model has about 40 characters, a reason about 100


@dataclass(frozen=True, slots=True)
class Qualification:
    """How a stress run ended (R8)."""

    passed: bool
    unix_s: float = field(metadata=limits(0.0, 1e11))
    """When it ended, by the wall clock of the board."""
    duration_s: float = field(metadata=limits(0.0, 86_400.0))
    delta_t_kelvin: float | None = field(default=None, metadata=limits(-200.0, 200.0))
    """Highest die over ambient at full load with cooling; `None` where it was not measured."""
    ambient_celsius: float | None = field(default=None, metadata=limits(-100.0, 150.0))
    modelled: bool = False
    """The board is emulated, or its power comes from a model: nothing here was measured."""
    reasons: tuple[str, ...] = field(default=(), metadata=limits(longest=256))
    """Why it did not pass, one code each; empty when it did."""

    def __post_init__(self) -> None:
        """Refuse a list that only a broken writer makes."""
        if len(self.reasons) > MAX_REASONS:
            raise TableError("reasons", f"has {len(self.reasons)} entries, at most {MAX_REASONS}")


@dataclass(frozen=True, slots=True)
class BoardRecord:
    """One board."""

    board: str = field(metadata=_TEXT)
    """The device-tree model; empty on machines without one."""
    profile: str = field(metadata=_TEXT)
    qualification: Qualification | None = None
    models: dict[str, object] = field(default_factory=dict)
    """What the predictive policy learnt, in its own form: it checks what it loads (`policies.predictive`)."""
    schema: int = field(default=SCHEMA, metadata=limits(SCHEMA, SCHEMA))


class Found(NamedTuple):
    """What `read_record` found."""

    record: BoardRecord | None
    complaint: str = ""
    """Why a record that is there is not used; for the log, once."""


def read_record(state: Path, board: str) -> Found:
    """The record in the state folder `state`, if it is that of the device-tree model `board`.

    One that cannot be read is put aside as `board.json.broken`, over an earlier one.

    Raises:
        BoardError: `disk`.
    """
    path = state / FILE_NAME
    try:
        record = _parse(read_bounded(path, MAX_RECORD_BYTES))
    except FileNotFoundError:
        return Found(None)
    except ArtifactError as error:
        aside = path.with_name(path.name + _ASIDE)
        with disk_errors(path):
            path.replace(aside)
            sync_folder(state)
        return Found(None, f"the board's record cannot be used, put aside as {aside}: {error}")
    if record.board != board:
        return Found(None, f"the board's record is that of {record.board!r}, this is {board!r}: it is not used")
    return Found(record)


def write_record(state: Path, record: BoardRecord) -> None:
    """Replace the record in the state folder `state`; after a power cut the old or the new one is there.

    Raises:
        ArtifactError: it could not be read again: too long, not finite, nested too deep. The file is as it was.
        BoardError: `no-space` or `disk`. The same.
    """
    try:
        data = strict_json.canonical(dataclasses.asdict(record))
    except ValueError as error:
        raise ArtifactError("a value of the record is not finite", where=FILE_NAME) from error
    _parse(data)
    write_atomic(state / FILE_NAME, data)


def _parse(data: bytes) -> BoardRecord:
    body = strict_json.loads(data, what=FILE_NAME, max_bytes=MAX_RECORD_BYTES)
    if not isinstance(body, dict):
        raise ArtifactError("must be a table", where=FILE_NAME)
    try:
        return build_known(BoardRecord, body)
    except TableError as error:
        raise ArtifactError(str(error), where=FILE_NAME) from error
