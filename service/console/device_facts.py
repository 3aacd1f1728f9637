"""What is told of one board, made ready for its page. Pure; a board may say anything, and what comes out is bounded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.command_types import COMMAND_ID, FINE_TUNE, PROMOTE, ROLLBACK, id_time_s
from service.config import NAME
from service.console.rows import Row, State, finite
from service.fleet.boards import Board, table
from service.fleet.outcome import Outcome, of_status
from service.fleet.plain import plain
from service.metric_units import described_metrics

MAX_ROWS = 64  # of one table of telemetry: the largest documented group has 29 keys
MAX_TABLES = 16  # five groups are documented
MAX_SENSORS = 32
MAX_EVIDENCE = 12
MAX_INNER = 8  # of a list or table within a value
MAX_TEXT = 200  # characters of a value
MAX_HISTORY = 10  # earlier models that are shown
OUR_UNITS = described_metrics()
"""What this version knows: a board that does not list a key's unit may still send it."""
TILES = (
    ("board.temperature_celsius", "Cel", 1.0, 1), ("board.delta_t_celsius", "K", 1.0, 1),
    ("board.frequency_hz", "MHz", 1e-6, 0), ("board.power_watts", "W", 1.0, 2),
    ("board.charge", "%", 100.0, 0), ("board.duty", "%", 100.0, 0),
    ("training.depth_percent", "%", 1.0, 0), ("training.loss", "1", 1.0, 4),
)  # fmt: skip
"""What stands above the charts: metric, unit shown, what it is multiplied by, digits."""


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that is known of a board.

    Attributes:
        name: of the board.
        row: as the list has it; `None`: the list does not know it yet.
        board: what was heard since the console runs.
        birth: the whole birth message, or empty.
        latest: by group when and what it told last.
        commands: newest first: id, type (empty: not known) and the latest status.
        alarms: what is raised, each as its message.
        now: our clock, seconds since 1970.
    """

    name: str
    row: Row | None
    board: Board | None
    birth: Mapping[str, Any]
    latest: Mapping[str, tuple[float, Mapping[str, Any]]]
    commands: Sequence[tuple[str, str, Mapping[str, Any]]]
    alarms: Sequence[Mapping[str, Any]]
    now: float


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the board for a list. Empty texts and `None`: not told."""

    id: str
    type: str
    status: str
    step: str
    reason_code: str
    reason: str
    progress: float | None
    """0..1."""
    eta_s: float | None
    until: Mapping[str, Any]
    attempt: int
    ts: float | None
    begun: float
    """When its id was made, seconds since 1970."""
    energy_j: float | None
    energy_is_modelled: bool | None
    """`None`: the board does not say."""
    ended: bool
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A tuned model that the board told of. Empty texts: not told."""

    role: str
    """`active`, `staged` (waits for somebody's word) or `before`."""
    name: str
    base_version: str
    sha256: str
    base_sha256: str
    job: str
    task: str
    slot: str
    score: tuple[str, float] | None
    """Name and value of its held-out score."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of the telemetry tables."""

    key: str
    unit: str
    value: float | None
    """A number, or `None`: then `text` says it."""
    text: str


def command(command_id: str, kind: str, body: Mapping[str, Any]) -> Command:
    """A status ready for a list."""
    result = table(body.get("result"))
    progress = finite(body.get("progress"))
    return Command(
        id=command_id,
        type=plain(kind)[:32],
        status=text(body.get("status"), 32),
        step=text(body.get("step"), 32),
        reason_code=text(body.get("reason_code"), 64),
        reason=text(body.get("reason"), 600),
        progress=None if progress is None else min(max(progress, 0.0), 1.0),
        eta_s=finite(body.get("eta_s")),
        until=table(body.get("until")),
        attempt=int(finite(body.get("attempt")) or 0),
        ts=finite(body.get("ts")),
        begun=id_time_s(command_id),
        energy_j=finite(body.get("energy_j")),
        energy_is_modelled=modelled(result),
        ended=of_status(body.get("status")) is not Outcome.OPEN,
        result=result,
    )


def modelled(result: Mapping[str, Any]) -> bool | None:
    """Whether a result's energy comes from a model and not from a meter; `None`: it does not say."""
    said = table(result.get("energy")).get("modelled")
    return said if isinstance(said, bool) else None


def text(value: object, longest: int = MAX_TEXT) -> str:
    """A text as a page shows it; of what is none an empty one."""
    return plain(value[: longest + 1])[:longest] if isinstance(value, str) else ""


def known_job(value: object) -> str:
    """The id of a command, or empty."""
    return value if isinstance(value, str) and COMMAND_ID.fullmatch(value) else ""


def is_name(value: str) -> bool:
    """Whether a board can have this name."""
    return bool(NAME.fullmatch(value))


def state_of(told: Told) -> State:
    """What the board does, in one word."""
    if told.row is not None:
        return told.row.state
    return State.IDLE if told.board is not None and told.board.online else State.OFFLINE


def current(commands: Iterable[Command]) -> Command | None:
    """The command that is at work: running or paused first, then what waits; `None`: nothing is open."""
    going = [one for one in commands if not one.ended]
    at_work = [one for one in going if one.status in ("running", "paused")]
    return max(at_work or going, key=lambda one: one.id, default=None)


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm that is raised. Empty texts and `None`: not told."""

    type: str
    severity: str
    since: float | None
    reason: str
    evidence: tuple[tuple[str, str], ...]


def raised(alarms: Iterable[Mapping[str, Any]]) -> list[Raised]:
    """Alarms ready for a list, critical ones first."""
    found = [
        Raised(
            text(alarm.get("type"), 64),
            text(alarm.get("severity"), 32),
            finite(alarm.get("since")),
            text(alarm.get("reason"), 600),
            tuple((cell.key, shown(cell)) for cell in cells("", table(alarm.get("evidence")), {})[:MAX_EVIDENCE]),
        )
        for alarm in alarms
    ]
    return sorted(found, key=lambda one: (one.severity != "critical", one.type))


def shown(cell: Cell) -> str:
    """A value as text."""
    return cell.text if cell.value is None else f"{cell.value:.6g}"


# --- models ----------------------------------------------------------------------------------------------------------


def models(birth: Mapping[str, Any], commands: Sequence[Command]) -> list[Model]:
    """The active model as the birth tells it, one that waits for `promote`, and those before as results tell them.

    Args:
        birth: of the board.
        commands: newest first.
    """
    manifest = table(birth.get("active_model"))
    active = text(manifest.get("model_sha256"), 64)
    slots = _slots(commands)
    made = {text(one.result.get("model_sha256"), 64): one for one in commands if one.type in ("", FINE_TUNE)}
    found = []
    if active:
        found.append(_active(manifest, active, slots.get(active, "")))
    moved = next((one.id for one in commands if _moved(one)), "")
    for one in commands:
        digest = text(one.result.get("model_sha256"), 64)
        if one.result.get("staged") is True and digest != active and one.status == "succeeded" and one.id > moved:
            found.append(_made("staged", digest, one, slots.get(digest, "")))
            break
    seen = {model.sha256 for model in found}
    for one in commands:
        digest = text(one.result.get("from"), 64) if _moved(one) else ""
        if not digest and one.status == "succeeded" and one.result.get("staged") is not True:
            digest = text(one.result.get("model_sha256"), 64)
        if digest and digest not in seen and len(found) < MAX_HISTORY:
            seen.add(digest)
            maker = made.get(digest)
            empty = Model("before", "", "", digest, "", "", "", slots.get(digest, ""), None)
            found.append(_made("before", digest, maker, slots.get(digest, "")) if maker else empty)
    return found


def _slots(commands: Sequence[Command]) -> dict[str, str]:
    """The slot of each model, as far as results tell: of two that were put into one slot the later one is there."""
    held: dict[str, str] = {}
    for one in reversed(commands):
        slot = text(one.result.get("slot"), 8)
        digest = text(one.result.get("model_sha256"), 64) or _to(one)
        if one.status == "succeeded" and one.type in _INTO_SLOTS and slot and digest:
            held[slot] = digest
    return {digest: slot for slot, digest in held.items()}


_INTO_SLOTS = ("", FINE_TUNE, PROMOTE, ROLLBACK)


def _moved(one: Command) -> bool:
    """Whether it made another model active."""
    return one.status == "succeeded" and one.type in ("", PROMOTE, ROLLBACK) and {"from", "to"} <= one.result.keys()


def _to(one: Command) -> str:
    return text(one.result.get("to"), 64)


def _active(manifest: Mapping[str, Any], digest: str, slot: str) -> Model:
    return Model(
        role="active",
        name=text(manifest.get("name"), 64),
        base_version=text(manifest.get("base_version") or manifest.get("version"), 64),
        sha256=digest,
        base_sha256=text(manifest.get("base_sha256"), 64),
        job=known_job(manifest.get("job")),
        task=text(manifest.get("task"), 64),
        slot=slot,
        score=_score(manifest, ""),
    )


def _made(role: str, digest: str, one: Command, slot: str) -> Model:
    result = one.result
    name, version = text(result.get("name"), 64), text(result.get("base_version"), 64)
    base, score = text(result.get("base_sha256"), 64), _score(result, "_after")
    return Model(role, name, version, digest, base, one.id, text(result.get("task"), 64), slot, score)


_SCORES = ("accuracy", "auc", "reconstruction_error", "mae")


def _score(source: Mapping[str, Any], suffix: str) -> tuple[str, float] | None:
    for name in _SCORES:
        value = finite(source.get(name + suffix))
        if value is not None:
            return name, value
    return None


# --- telemetry and sensors -------------------------------------------------------------------------------------------


def sensors(told: Told) -> list[tuple[str, str]]:
    """Name and health of each sensor and lever: the newest telemetry, else the birth."""
    health = table(told.latest["board"][1].get("health")) if "board" in told.latest else {}
    source = health or table(told.birth.get("sensors"))
    return [(text(key, 64), text(value, 32)) for key, value in sorted(source.items())[:MAX_SENSORS]]


def cells(group: str, values: Mapping[str, Any], birth: Mapping[str, Any]) -> list[Cell]:
    """A group's values, nested ones with dots in their keys."""
    units = table(table(birth.get("metrics")).get(group)) or OUR_UNITS.get(group, {})
    found: list[Cell] = []
    for key, value in values.items():
        if len(found) >= MAX_ROWS:
            break
        unit = text(table(units.get(key)).get("unit"), 16)
        if isinstance(value, Mapping):
            inner = list(value.items())[: MAX_ROWS - len(found)]
            found += [_cell(f"{text(key, 64)}.{text(name, 64)}", unit, item) for name, item in inner]
        else:
            found.append(_cell(text(key, 64), unit, value))
    return found


NOTHING = "[]"


def _cell(key: str, unit: str, value: object) -> Cell:
    number_told = finite(value)
    if number_told is not None:
        return Cell(key, unit, number_told, "")
    if isinstance(value, Mapping):
        inner = [
            f"{text(name, 64)} {shown(_cell('', '', item))}"
            for name, item in list(value.items())[:MAX_INNER]
            if not isinstance(item, Mapping)
        ]
        return Cell(key, unit, None, ", ".join(inner)[:MAX_TEXT])
    if isinstance(value, list):
        if not value:
            return Cell(key, unit, None, NOTHING)  # known, and nothing: not the same as not known
        items = [_item(item) for item in value[:MAX_INNER]]
        between = "; " if any(isinstance(item, Mapping) for item in value[:MAX_INNER]) else ", "
        return Cell(key, unit, None, between.join(filter(None, items))[:MAX_TEXT])
    if isinstance(value, bool):
        return Cell(key, unit, None, "true" if value else "false")
    return Cell(key, unit, None, text(value))


def _item(value: object) -> str:
    """An item of a list, with the plain values of a table; what lies deeper is left out."""
    if isinstance(value, Mapping):
        parts = [(text(name, 64), item) for name, item in list(value.items())[:MAX_INNER]]
        return ", ".join(f"{name} {shown(_cell('', '', item))}" for name, item in parts if not _is_deep(item))
    return "" if _is_deep(value) else shown(_cell("", "", value))


def _is_deep(value: object) -> bool:
    return isinstance(value, Mapping | list)


def tiles(told: Told) -> list[dict[str, Any]]:
    """The figures above the charts that this board has."""
    found = []
    for metric, unit, scale, digits in TILES:
        group, _, key = metric.partition(".")
        values = told.latest[group][1] if group in told.latest else {}
        value = finite(values.get(key))
        listed = group == "training" or value is not None or key == "temperature_celsius"
        if listed:
            shown = None if value is None else value * scale
            found.append({"metric": metric, "unit": unit, "scale": scale, "digits": digits, "value": shown})
    return found


def power_is_modelled(told: Told) -> bool:
    """Whether the watts of this board come from a model."""
    return "board" in told.latest and told.latest["board"][1].get("power_is_modelled") is True
