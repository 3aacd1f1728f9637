"""The form of a command in words: labels, help, groups, and what is wrong, in the viewer's language. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.commands import EVALUATE, FINE_TUNE, UPDATE_AGENT, UPDATE_SYSTEM
from service.console.act_order import ARGUMENT
from service.console.schema_form import Field, Form, Kind, written
from service.console.schema_form_read import Fault

Words = Callable[..., str]

FIRST: Mapping[str, frozenset[str]] = {
    FINE_TUNE: frozenset(
        {"model", "data", "version", "depth", "epochs", "batch", "learning_rate", "promote", "window"},
    ),
    EVALUATE: frozenset({"data", "model", "held_out"}),
    UPDATE_AGENT: frozenset({"version"}),
    UPDATE_SYSTEM: frozenset({"name", "version"}),
}
"""What most people set; the rest is folded away. Of other types all is shown."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "learning": (
        *("update", "update_budget", "head", "image_size", "optimizer", "schedule", "warm_up", "momentum"),
        *("weight_decay", "clip_norm", "loss", "label_smoothing", "views", "seed"),
    ),
    "judging": ("held_out", "least_gain", "most_samples"),
    "rows": ("columns", "label", "missing", "stride", "season"),
    "cost": ("engine", "micro_batch", "cache", "prefix", "slices", "budget_ms"),
    "limits": (
        *("priority", "deadline_s", "most_wait_s", "most_time_s", "most_energy_j"),
        *("most_temperature_celsius", "window_s", "allow_downgrade"),
    ),
}
OTHER = "other"
MAX_SHOWN_OPTIONS = 40  # suggestions of one field; a board's twenty jobs


@dataclass(frozen=True, slots=True)
class Option:
    """An entry of a menu: what is posted, and what is read."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A field as a template needs it.

    Attributes:
        id: of the element, and its name: `arg.epochs`.
        kind: see `schema_form.Kind`; a text with options is shown as a menu.
        label: its name in words.
        key: the key itself.
        help: what it is, its bounds and default.
        error: what is wrong, or empty.
        text: what is in it.
        ticked: of a tick.
        required: it must be filled.
        options: of a menu.
        longest: most characters.
    """

    id: str
    kind: str
    label: str
    key: str
    help: str
    error: str
    text: str
    ticked: bool
    required: bool
    options: tuple[Option, ...]
    longest: int


@dataclass(frozen=True, slots=True)
class Group:
    """Fields below one heading; `name` is the key of its text."""

    name: str
    fields: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Sections:
    """A form: what is shown at once, and what is folded away; `open` where a fault or a value is in the latter."""

    first: tuple[Shown, ...]
    more: tuple[Group, ...]
    open: bool


def sections(
    kind: str,
    form: Form,
    given: Mapping[str, str],
    faults: Mapping[str, Fault],
    words: Words,
    options: Mapping[str, Sequence[Option]],
) -> Sections:
    """The form of a command.

    Args:
        kind: its type.
        form: its arguments.
        given: what was typed so far, by `arg.<name>`.
        faults: see `read_order`.
        words: from a key to a text.
        options: by argument, what may be chosen from, as the console knows; else it is typed.
    """
    first = FIRST.get(kind, frozenset(field.name for field in form.fields))
    shown = {field.name: show(kind, field, given, faults, words, options.get(field.name, ())) for field in form.fields}
    folded = [field.name for field in form.fields if field.name not in first and not field.required]
    rest = [Group(name, tuple(shown[key] for key in keys if key in folded)) for name, keys in GROUPS.items()]
    grouped = {field.key for group in rest for field in group.fields}
    rest.append(Group(OTHER, tuple(shown[name] for name in folded if name not in grouped)))
    return Sections(
        tuple(field for name, field in shown.items() if name not in folded),
        tuple(group for group in rest if group.fields),
        any(shown[name].error or given.get(f"{ARGUMENT}{name}", "").strip() for name in folded),
    )


def show(
    kind: str,
    field: Field,
    given: Mapping[str, str],
    faults: Mapping[str, Fault],
    words: Words,
    options: Sequence[Option] = (),
) -> Shown:
    """One field; arguments as in `sections`."""
    name = f"{ARGUMENT}{field.name}"
    typed = given.get(name)
    fault = faults.get(name)
    default = "" if field.default is None else written(field.default)
    offered = tuple(options)[:MAX_SHOWN_OPTIONS]
    if field.kind is Kind.CHOICE:
        offered = _choices(field, default, words)
    elif offered and typed and typed not in {option.value for option in offered}:
        offered = (Option(typed, typed), *offered)
    text = typed if typed is not None else default if field.kind is Kind.CHOICE else ""
    return Shown(
        id=name,
        kind="menu" if offered else str(field.kind),
        label=words(f"act.arg.{kind}.{field.name}", words(f"act.arg.{field.name}", field.name)),
        key=field.name,
        help=_help(kind, field, default, words),
        error=fault_text(fault, words) if fault else "",
        text=text,
        ticked=(typed if typed is not None else default) == "true",
        required=field.required,
        options=offered,
        longest=field.bounds.longest,
    )


def _choices(field: Field, default: str, words: Words) -> tuple[Option, ...]:
    made = []
    for value in field.bounds.values or ():
        text = written(value)
        label = words(f"act.choice.{field.name}.{text}", text) or '""'
        made.append(Option(text, words("act.form.is-default", value=label) if text == default else label))
    return tuple(made) if default or field.required else (Option("", ""), *made)


def _help(kind: str, field: Field, default: str, words: Words) -> str:
    own = words(f"act.help.{kind}.{field.name}", words(f"act.help.{field.name}", ""))
    parts = [own or (words("act.form.told", text=field.told) if field.told else "")]
    bounds = field.bounds
    if field.kind in (Kind.NUMBER, Kind.WHOLE):
        if bounds.least is not None and bounds.most is not None:
            parts.append(words("act.form.range", least=written(bounds.least), most=written(bounds.most)))
        elif bounds.least is not None:
            parts.append(words("act.form.least", least=written(bounds.least)))
        elif bounds.most is not None:
            parts.append(words("act.form.most", most=written(bounds.most)))
    if field.kind is Kind.LIST:
        parts.append(words("act.form.list"))
    if field.kind is Kind.RAW:
        parts.append(words("act.form.json"))
    if default and field.kind not in (Kind.CHOICE, Kind.TICK, Kind.LIST):
        parts.append(words("act.form.default", value=default))
    if field.unclear:
        parts.append(words("act.form.unclear"))
    return " ".join(part for part in parts if part)


def fault_text(fault: Fault, words: Words) -> str:
    """What is wrong, as a sentence."""
    return words(f"act.fault.{fault.key}", **fault.values)
