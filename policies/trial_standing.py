"""What is known of the releases on a board between two starts, and how it is written. Pure.

A release that is older than the one that wrote the table must be able to read it after a rollback: what it does not
know it keeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from policies.strict import TableError, build, build_known, limits

T = TypeVar("T")

FORMAT = 1  # of the table; a later one only adds keys, which an earlier reader keeps and does not look at
A, B, INSTALLED = "a", "b", "installed"
SLOTS = (A, B)
PLACES = (A, B, INSTALLED)

MAX_TRIES = 3  # starts of one trial, power cuts included: a release that resets the board looks like a bad supply
MAX_KEPT_STARTS = 16  # more do not make the pause longer
MAX_REFUSED = 32  # releases that failed; a fleet publishes a few a year
MAX_TEXT = 500  # characters of a reason
MAX_NAME = 128  # of a version, a digest, an id

LEAST_WINDOW_S, MOST_WINDOW_S, WINDOW_DEFAULT_S = 10.0, 86400.0, 600.0
LEAST_READY_S, MOST_READY_S, READY_DEFAULT_S = 2.0, 600.0, 60.0  # a board is ready after 2 s, on a slow card after 20


class Stage(StrEnum):
    """How far a trial is."""

    STAGED = "staged"
    """The slot is whole; the release before runs still."""
    LEAVING = "leaving"
    """The release before has ended, or is about to: the next start is the trial's."""
    STARTED = "started"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Content:
    """What a slot holds."""

    version: str = field(metadata=limits(longest=MAX_NAME))
    digest: str = field(metadata=limits(longest=MAX_NAME))
    """Hash of its list of files, hexadecimal: what a release is known by."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A release on trial.

    Attributes:
        command_id: of the command that asked for it; empty: none did.
        window_s: how long it must be healthy.
        ready_s: how long after its start it must be ready.
        tries: starts so far.
        unready: of those in this boot, how many were never ready.
        boot: in which it was started last.
        left_s: seconds since boot at the last tick of the release before; `None`: not known.
        left_boot: the boot that `left_s` is of.
        downtime_s: from that tick until the trial was ready; `None`: not known, as the board was started between.
        baseline: what the release before measured, see `policies.trial_health`.
    """

    slot: str = field(metadata=limits(choices=SLOTS))
    version: str = field(metadata=limits(longest=MAX_NAME))
    digest: str = field(metadata=limits(longest=MAX_NAME))
    command_id: str = field(default="", metadata=limits(longest=MAX_NAME))
    window_s: float = field(default=WINDOW_DEFAULT_S, metadata=limits(LEAST_WINDOW_S, MOST_WINDOW_S))
    ready_s: float = field(default=READY_DEFAULT_S, metadata=limits(LEAST_READY_S, MOST_READY_S))
    stage: str = field(default=Stage.STAGED, metadata=limits(choices=tuple(Stage)))
    tries: int = field(default=0, metadata=limits(0, MAX_TRIES))
    unready: int = field(default=0, metadata=limits(0, MAX_TRIES))
    boot: str = field(default="", metadata=limits(longest=MAX_NAME))
    left_s: float | None = None
    left_boot: str = field(default="", metadata=limits(longest=MAX_NAME))
    downtime_s: float | None = None
    baseline: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a trial ended, or that the active release was left.

    Attributes:
        command_id: of the command that asked for the trial; empty: none did.
        version: on trial.
        before: version or place that ran before it.
        status: `succeeded` or `rolled_back`, as the command's status has it.
        code: why it was rolled back: `start-failed`, `crashed`, `slot-damaged`, `trial-gate`, `trial-link`,
            `trial-heat`, `superseded`, `restart-loop`; empty after success.
        reason: the same for people.
        result: figures.
    """

    command_id: str = field(metadata=limits(longest=MAX_NAME))
    version: str = field(metadata=limits(longest=MAX_NAME))
    before: str = field(metadata=limits(longest=MAX_NAME))
    status: str = field(metadata=limits(choices=("succeeded", "rolled_back")))
    code: str = field(default="", metadata=limits(longest=MAX_NAME))
    reason: str = field(default="", metadata=limits(longest=MAX_TEXT))
    result: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A release that failed here."""

    digest: str = field(metadata=limits(longest=MAX_NAME))
    version: str = field(metadata=limits(longest=MAX_NAME))
    code: str = field(metadata=limits(longest=MAX_NAME))


@dataclass(frozen=True, slots=True)
class Moment:
    """When a start happens: boot id, and seconds since that boot, sleep included."""

    boot: str = field(metadata=limits(longest=MAX_NAME))
    at_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known between starts. The default is that of a board that was never updated.

    Attributes:
        active: what starts when nothing is on trial.
        previous: what it falls back to.
        contents: what slots `a` and `b` hold.
        refused: releases that failed, the latest last.
        safe_mode: why the installed release runs without work; empty: it is not so.
        fell: the board fell back and has not run healthily since.
        starts: of `active` in this boot without a healthy run since.
        installed: version of the installed release at the last start; empty: never started.
        last: how the last trial ended.
        left: the active release that was left last, because it kept ending or its files were damaged.
        extra: keys of a later version, kept as they are.
    """

    active: str = field(default=INSTALLED, metadata=limits(choices=PLACES))
    previous: str = field(default=INSTALLED, metadata=limits(choices=PLACES))
    contents: dict[str, Content] = field(default_factory=dict)
    trial: Trial | None = None
    refused: tuple[Refused, ...] = field(default=(), metadata=limits(longest=MAX_REFUSED))
    safe_mode: str = field(default="", metadata=limits(longest=MAX_NAME))
    fell: bool = False
    starts: tuple[Moment, ...] = field(default=(), metadata=limits(longest=MAX_KEPT_STARTS))
    installed: str = field(default="", metadata=limits(longest=MAX_NAME))
    last: Outcome | None = None
    left: Outcome | None = None
    extra: dict[str, object] = field(default_factory=dict)

    def is_refused(self, digest: str) -> bool:
        """Whether the release failed here before."""
        return any(one.digest == digest for one in self.refused)

    def version_of(self, place: str) -> str:
        """The version that a place holds; the place's name where it is not known."""
        held = self.contents.get(place)
        return held.version if held else self.installed if place == INSTALLED and self.installed else place

    @property
    def free_slot(self) -> str:
        """The slot that the next release goes into: never the active one nor one on trial, rather not the previous."""
        taken = {self.active, self.trial.slot if self.trial else ""}
        free = [slot for slot in SLOTS if slot not in taken]
        return next((slot for slot in free if slot != self.previous), free[0] if free else "")


# --- the table -------------------------------------------------------------------------------------------------------


def standing_of(table: Mapping[str, object]) -> Standing:
    """Read a standing; keys that are not known are kept, below the top they are left out.

    Raises:
        TableError: a known key has a value that cannot be.
    """
    known = {item.name for item in dataclasses.fields(Standing)} - {"extra"}
    values: dict[str, Any] = {key: value for key, value in table.items() if key in known}
    contents = _table(values.get("contents", {}), "contents")
    values["contents"] = {slot: _known(Content, held, "contents") for slot, held in contents.items() if slot in SLOTS}
    for name, cls in (("trial", Trial), ("last", Outcome), ("left", Outcome)):
        if values.get(name) is not None:
            values[name] = _known(cls, values[name], name)
    values["refused"] = [_known(Refused, one, "refused") for one in _list(values.get("refused", ()), "refused")]
    values["starts"] = [_known(Moment, one, "starts") for one in _list(values.get("starts", ()), "starts")]
    extra = {key: value for key, value in table.items() if key not in known and key != "format"}
    standing = build(Standing, {**{key: _plain(value) for key, value in values.items()}, "extra": extra})
    return _consistent(standing)


def table_of(standing: Standing) -> dict[str, object]:
    """As JSON values."""
    table = dataclasses.asdict(standing)
    extra: dict[str, object] = table.pop("extra")
    return {**extra, "format": FORMAT, **table}


def _consistent(standing: Standing) -> Standing:
    """No place is named that is not filled, and a trial is of another slot than the active one."""
    trial = standing.trial
    if trial is not None and (trial.slot == standing.active or trial.slot not in standing.contents):
        raise TableError("trial.slot", f"slot {trial.slot} is active or empty")
    for name in ("active", "previous"):
        place = getattr(standing, name)
        if place != INSTALLED and place not in standing.contents:
            raise TableError(name, f"slot {place} is empty")
    return standing


def _known(cls: type[T], table: object, path: str) -> T:
    return build_known(cls, _table(table, path), path)


def _plain(value: object) -> object:
    """Parts that were read one by one, as tables again: the whole is then judged once."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _table(value: object, path: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TableError(path, "must be a table")
    return value


def _list(value: object, path: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise TableError(path, "must be a list")
    return list(value)
