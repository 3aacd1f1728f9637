"""The list of boards: a row each, filters, sorting, pages, and a summary. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PAGE_ROWS = 50
MAX_PAGE_ROWS = 200


class State(StrEnum):
    """What a board is doing, in one word: the first that holds."""

    OFFLINE = "offline"
    HOT = "hot"
    """The governor pauses or aborts because of heat, or an overheating alarm is raised."""
    TRAINING = "training"
    PAUSED = "paused"
    DEFERRED = "deferred"
    """Work waits for something: `until` says for what."""
    IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Row:
    """One board of the list. Empty texts and `None`: not known."""

    name: str
    revision: int
    """Of the hub, when this row changed last."""
    state: State
    online: bool
    last_seen: float | None
    """Seconds since 1970."""
    agent: str
    profile: str
    policy: str
    model: str
    model_version: str
    model_sha256: str
    temperature_celsius: float | None
    delta_t_celsius: float | None
    charge: float | None
    """0..1."""
    power_watts: float | None
    power_is_modelled: bool
    action: str
    rule: str
    job: Mapping[str, Any] | None
    """What it does, or did last: id, type and what of the status `service.fleet.boards.summary` tells."""
    alarms: tuple[str, ...]
    complaint: str


@dataclass(frozen=True, slots=True)
class Summary:
    """How many boards there are, of each state, with alarms, and where their temperatures lie."""

    total: int
    states: Mapping[str, int]
    alarmed: int
    temperatures: tuple[int, ...]
    """Boards by temperature: below 30 °C, then in steps of 5 K, last 90 °C and above; offline ones not counted."""


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """What of the list is wanted; see `read_query` for its form in a URL."""

    search: str = ""
    """Part of name, model, profile, agent or reason; letters of either case."""
    states: tuple[State, ...] = ()
    alarmed: bool | None = None
    group: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 1
    rows: int = PAGE_ROWS


@dataclass(frozen=True, slots=True)
class FleetPage:
    """Rows of one page; `total` boards fit the filter."""

    rows: tuple[Row, ...]
    total: int
    page: int
    pages: int
    revision: int
