"""What a fleet said, in a database: the rows, and what every database must be able to do with them.

A telemetry message is one row: its values stay one JSON text. A row for each value would be some twenty-five times the
writes, and reading one metric of one device back is a range of one index either way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from agent.errors import SpecError
from service.fleet.boards import number
from service.fleet.outcome import BY_STATUS
from service.fleet.store_chart import MAX_CHANGES, Changes, Chart
from service.fleet.store_chart import metric_path as metric_path  # noqa: PLC0414 - callers name it by this module

MAX_DEVICES = 100_000  # a store's: ids stay in memory, some 200 bytes each, and a broker may invent names
RECENT_S = 2 * 86400.0  # a list tells no older telemetry: a temperature of last week is no state, and costs a search
ENDED = f"({', '.join(map(repr, BY_STATUS))})"  # final statuses, as both databases write them
NEWER_STATUS = f"""excluded.version > commands.version OR (
    excluded.version = commands.version AND excluded.ts > commands.ts AND excluded.status NOT IN {ENDED})"""
MAX_PAGE = 10_000  # devices or points that one question gives back


class Sample(NamedTuple):
    """One telemetry message."""

    tenant: str
    device: str
    group: str
    boot_id: str
    seq: int
    ts_ms: int
    """By the device's clock, milliseconds since 1970."""
    mono_ms: int
    values: str
    """A JSON object, without spaces."""
    dated: bool = True
    """The device knew the time. If not, the same message may come again with its right time, which is then kept."""


class Presence(NamedTuple):
    """`conn`: of a late and of a present message the one with the higher numbers is true."""

    tenant: str
    device: str
    online: bool
    session: int
    connection: int
    ts: float


class Birth(NamedTuple):
    """`birth`, and what of it devices are listed by."""

    tenant: str
    device: str
    state_version: int
    agent: str
    board: str
    model: str
    """Name and version of the active model; empty: none."""
    body: str


class Status(NamedTuple):
    """The status of one command; a higher version is newer, and so is the same one with later progress."""

    tenant: str
    device: str
    id: str
    type: str
    version: int
    status: str
    ts: float
    body: str


class Alarm(NamedTuple):
    """An alarm that is raised, or, with an empty body, cleared."""

    tenant: str
    device: str
    type: str
    severity: str
    ts: float
    body: str


Fact = Sample | Presence | Birth | Status | Alarm


@dataclass(slots=True)
class Batch:
    """Facts in the order in which they came."""

    samples: list[Sample] = field(default_factory=list)
    presences: list[Presence] = field(default_factory=list)
    births: list[Birth] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)

    def add(self, fact: Fact) -> None:
        """Put a fact where it belongs."""
        match fact:
            case Sample():
                self.samples.append(fact)
            case Presence():
                self.presences.append(fact)
            case Birth():
                self.births.append(fact)
            case Status():
                self.statuses.append(fact)
            case Alarm():
                self.alarms.append(fact)

    def devices(self) -> set[tuple[str, str]]:
        """Tenant and name of everybody in it."""
        parts: tuple[Sequence[Fact], ...] = (self.samples, self.presences, self.births, self.statuses, self.alarms)
        return {key(fact) for part in parts for fact in part}

    def of(self, known: Container[tuple[str, str]]) -> tuple[Batch, int]:
        """The part whose devices are known, and how many facts are of others."""
        kept, strangers = Batch(), 0
        for part in (self.samples, self.presences, self.births, self.statuses, self.alarms):
            for fact in part:
                if key(fact) in known:
                    kept.add(fact)
                else:
                    strangers += 1
        return kept, strangers


def key(fact: Fact) -> tuple[str, str]:
    """Tenant and name of its device."""
    return fact.tenant, fact.device


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a batch."""

    samples: int
    """Rows that are new."""
    duplicates: int
    """Messages that were there already: delivered twice, or backfilled and sent."""
    strangers: int
    """Facts of devices beyond `MAX_DEVICES`: not kept."""


class DeviceRow(NamedTuple):  # of which a list has 10,000: a frozen dataclass takes four times as long
    """One device of a list."""

    tenant: str
    name: str
    online: bool
    since: float | None
    """When that presence was said, by the device's clock; null: it never said one."""
    agent: str
    board: str
    model: str
    alarms: int
    telemetry_ts: float | None
    """Of its newest `board` telemetry, by its own clock; null: none in the last `RECENT_S` seconds."""
    temperature_celsius: float | None
    action: str
    """What its governor decided last."""
    rule: str = ""
    """And the rule that asked for it."""
    delta_t_celsius: float | None = None
    charge: float | None = None
    """0..1."""
    power_watts: float | None = None
    power_is_modelled: bool = False
    command_id: str = ""
    """Of the newest command; empty: it has none."""
    command_type: str = ""
    command_status: str = ""
    command_ts: float | None = None


def device_row(row: Sequence[object]) -> DeviceRow:
    """A `DeviceRow` from what a database gave in its order, the time of the telemetry in milliseconds."""
    tenant, name, online, since, agent, board, model, alarms, ts_ms, heat, action, rule, *more = row
    delta_t, charge, power, modelled, command_id, command_type, command_status, command_ts = more
    return DeviceRow(
        str(tenant),
        str(name),
        bool(online),
        since if isinstance(since, float) else None,
        str(agent),
        str(board),
        str(model),
        alarms if isinstance(alarms, int) else 0,
        ts_ms / 1000 if isinstance(ts_ms, int) else None,
        None if heat is None else number(heat),
        action if isinstance(action, str) else "",
        rule if isinstance(rule, str) else "",
        None if delta_t is None else number(delta_t),
        None if charge is None else number(charge),
        None if power is None else number(power),
        modelled is True or modelled == 1,
        command_id if isinstance(command_id, str) else "",
        command_type if isinstance(command_type, str) else "",
        command_status if isinstance(command_status, str) else "",
        command_ts if isinstance(command_ts, float) else None,
    )


def presence_values(fact: Presence, device: int) -> dict[str, object]:
    """The named values of both databases' statement for a presence."""
    return {
        "id": device,
        "online": fact.online,
        "session": fact.session,
        "connection": fact.connection,
        "since": fact.ts,
    }


@dataclass(frozen=True, slots=True)
class Filter:
    """Which devices a list holds; pages go on after the last `(tenant, name)` of the one before."""

    tenant: str = ""
    prefix: str = ""
    """With which the name begins."""
    online: bool | None = None
    alarmed: bool | None = None
    after: tuple[str, str] = ("", "")
    limit: int = MAX_PAGE

    def values(self) -> dict[str, object]:
        """The named values of both databases' statement for a list."""
        return {
            "tenant": self.tenant,
            "prefix": self.prefix,
            "online": self.online,
            "alarmed": self.alarmed,
            "tenant_after": self.after[0],
            "name_after": self.after[1],
            "limit": min(self.limit, MAX_PAGE),
        }


class Store(Protocol):
    """A database of what a fleet said.

    Methods block; they may be called from another thread than the one that made the store, but only one
    call runs at a time. Any number of processes may write into one database.

    Raises (each method):
        BoardError: the disk is full or the file cannot be used.
        NetworkError: the database cannot be reached. What was being written is not there and can be written again.
    """

    def write(self, batch: Batch, received: float) -> Written:
        """Keep all of a batch or nothing of it; when this returns, it survives a power cut."""

    def devices(self, wanted: Filter, now: float) -> list[DeviceRow]:
        """A page of devices by tenant and name, at most `MAX_PAGE`. Telemetry from beyond `now` + a day is no news."""

    def latest(self, tenant: str, device: str, now: float) -> dict[str, tuple[float, str]]:
        """By group the time and the values of the newest message."""

    def series(
        self, tenant: str, device: str, group: str, metric: str, since: float, until: float, limit: int = MAX_PAGE
    ) -> list[tuple[float, object]]:
        """Time and value of one metric, oldest first, `since` <= time < `until`; `pressure.cpu` is a nested one.

        Raises:
            SpecError: not the name of a metric.
        """

    def alarms(self, tenant: str, device: str) -> list[str]:
        """What is raised, each as the JSON text of its message."""

    def forget_alarms(self, tenant: str, unseen_since: float) -> int:
        """Forget alarms of a tenant, or of all where it is empty, that no message spoke of since then; how many.

        For after all that the broker retains was read anew: what was cleared while nobody listened is not among it.
        """

    def has_read(self, consumer: str) -> bool:
        """Whether it was noted that a consumer has read all that the broker retains."""

    def note_read(self, consumer: str, *, whole: bool) -> None:
        """Note whether a consumer has read all that the broker retains, by the id of its session."""

    def statuses(self, tenant: str, device: str) -> list[str]:
        """Of its commands, newest first, at most `MAX_PAGE`, each as the JSON text of the message."""

    def types(self, tenant: str, device: str) -> dict[str, str]:
        """The types of its commands by id, which their messages do not tell; as many as `statuses`."""

    def birth(self, tenant: str, device: str) -> str:
        """Its whole birth, as the JSON text of the message; empty: it left none."""

    def history(self, tenant: str, device: str, command_id: str) -> list[str]:
        """What one command went through, oldest first: the first status of each of its `MAX_HISTORY` newest versions.

        Each as a JSON text with what of `KEPT` the status had, texts cut; both names are of `store_history`.
        """

    def chart(
        self,
        tenant: str,
        device: str,
        wanted: Mapping[str, Sequence[str]],
        since: float,
        until: float,
        buckets: int,
    ) -> Chart:
        """Metrics by group over `since` <= time < `until`, in at most so many buckets and one, see `Chart`.

        At fewer messages than buckets each is given as it is. Else the span is widened to whole buckets, whose width is
        one of `WIDTHS_MS`: the first and the last may reach over its ends. Of many messages there may be fewer and
        wider buckets than asked for, which are found faster; never wider than `STEP_MS` for that.

        Raises:
            SpecError: not the name of a metric; more than `MAX_METRICS`, `MAX_BUCKETS` or `MAX_CHART_S`; none at all.
        """

    def changes(
        self,
        tenant: str,
        device: str,
        group: str,
        metrics: Sequence[str],
        since: float,
        until: float,
        limit: int = MAX_CHANGES,
    ) -> Changes:
        """The moments in `since` <= time < `until` at which texts of a group changed, such as rules and actions.

        Raises:
            SpecError: as `chart`; or more than `MAX_CHANGES`.
        """

    def condense(self, now: float) -> int:
        """Make digests of a slice of the telemetry that came long before `now`; how many quarters were done, 0: none.

        Charts are the same without them, and slower. Short enough to stand between two batches; call it until it gives
        0, as `trim`.
        """

    def trim(self, received_before: float, most_bytes: int) -> int:
        """Forget a slice of what is too old, or too much; 0: nothing is.

        Too old is what came before then: telemetry, and commands that have ended. A store of more than `most_bytes` has
        too much telemetry, and its oldest goes.

        A slice is short enough to stand between two batches; call again until it gives 0.
        """

    def used_bytes(self) -> int:
        """What the telemetry and all else takes, without what is free for reuse."""

    def count(self) -> int:
        """Telemetry messages that are kept."""

    def close(self) -> None:
        """Let go of the file or the connection."""


DAY_MS = 86_400_000
POSTGRES = ("postgresql://", "postgres://")


def open_store(place: str) -> Store:
    """The store at a path (SQLite; made when missing) or at a PostgreSQL URL.

    Raises:
        SpecError: no place was given, or psycopg is not installed.
        BoardError, NetworkError: as the methods of `Store`.
    """
    if place.startswith(POSTGRES):
        try:
            from service.fleet.store_postgres import PostgresStore  # noqa: PLC0415 - psycopg is an extra
        except ImportError as error:
            fix = "pip install 'temperd[postgres]'"
            raise SpecError("PostgreSQL needs psycopg, which is not installed", where="--store", fix=fix) from error
        return PostgresStore(place)
    if not place or "://" in place:
        raise SpecError("a store is a path or a postgresql:// URL", where=f"--store {place.partition('://')[0][:100]}")
    from service.fleet.store_sqlite import SqliteStore  # noqa: PLC0415 - beside the other database

    return SqliteStore(Path(place))


def boot_number(boot_id: str) -> int:
    """63 bits in place of a boot id: a quarter of the index would be the same text over and over."""
    return int.from_bytes(hashlib.blake2b(boot_id.encode(), digest_size=8).digest()) >> 1
