"""Forms out of schemas: our own go there and back, and no board's breaks a page."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SpecError
from service.capabilities import WINDOW, arguments
from service.command_types import ARGUMENTS, SET_POLICY, Command
from service.commands import KNOWN
from service.console.schema_form import MAX_FIELDS, MAX_WHOLE, Field, Form, Kind, own_form, read_schema, written
from service.console.schema_form_read import is_default, read_form

NOW = 1_800_000_000
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_characters="\x7f"), min_size=1).map(
    str.strip
)
BY_KEY = {
    "job": st.just("0192f0c1-0000-7000-8000-000000000001"),
    "window": st.sampled_from(("", "22:00-06:00", "00:00-00:01")),
    "to": st.sampled_from(("", "base", "ab" * 32)),
    "version": st.sampled_from(("latest", "0.2.0", "7")),
    "name": st.sampled_from(("plant-image", "a.b_c")),
    "most_temperature_celsius": st.one_of(st.just(0.0), st.floats(20.0, 125.0)),
}


def values(key: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if key in BY_KEY or "enum" in schema:
        return BY_KEY[key] if key in BY_KEY else st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "number":
            return st.floats(schema["minimum"], schema["maximum"])
        case "array":
            return st.lists(WORDS.filter(bool), max_size=4)
    return WORDS.filter(bool).map(lambda text: text[: schema["maxLength"]].strip())


@st.composite
def orders(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A command type with arguments that its schema allows."""
    kind = draw(st.sampled_from(KNOWN))
    schema: Any = arguments(kind)
    properties = schema["properties"]
    if kind == SET_POLICY:
        given_one = draw(st.sampled_from(({"text": 'name = "x"\n[gate]'}, {"name": "default"}, {"reset": True})))
        return kind, dict(given_one)
    chosen = set(schema["required"]) | set(draw(st.lists(st.sampled_from(sorted(properties)))) if properties else [])
    return kind, {key: draw(values(key, properties[key])) for key in properties if key in chosen}


@given(orders())
def test_what_a_schema_allows_goes_through_the_form_and_the_board_takes_it(order: tuple[str, dict[str, Any]]) -> None:
    kind, args = order
    schema: Any = arguments(kind)
    jsonschema.validate(args, schema)
    form = own_form(kind)
    read, faults = read_form(form, {key: written(value) for key, value in args.items()})
    assert faults == {}
    assert read == {
        key: value
        for key, value in args.items()
        if key in schema["required"] or (value not in ("", []) and value != schema["properties"][key].get("default"))
    }
    jsonschema.validate(read, schema)
    for key, value in read.items():
        assert not (isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE), key
    wire = json.loads(json.dumps(read))
    ARGUMENTS[kind](Command("", "b", kind, NOW, NOW, wire))


@given(orders(), st.dictionaries(st.sampled_from(sorted(own_form("fine-tune").fields, key=str)), st.text(max_size=30)))
def test_whatever_is_typed_is_a_fault_or_fits_the_schema(order: tuple[str, dict[str, Any]], typed: Any) -> None:
    kind, args = order
    given_texts = {key: written(value) for key, value in args.items()} | {field.name: t for field, t in typed.items()}
    read, faults = read_form(own_form(kind), given_texts)
    if not faults:
        jsonschema.validate(read, arguments(kind) or {})


@pytest.mark.parametrize(
    ("typed", "fault"),
    [
        ({"model": "", "data": "/d"}, {"model": "required"}),
        ({"epochs": "0"}, {"epochs": "range"}),
        ({"epochs": "1"}, {}),
        ({"epochs": "1000"}, {}),
        ({"epochs": "1001"}, {"epochs": "range"}),
        ({"epochs": "2.0"}, {"epochs": "whole"}),
        ({"epochs": "٣"}, {"epochs": "whole"}),
        ({"learning_rate": "nan"}, {"learning_rate": "number"}),
        ({"learning_rate": "1e999"}, {"learning_rate": "number"}),
        ({"learning_rate": "0,01"}, {"learning_rate": "number"}),
        ({"learning_rate": "1e-3"}, {}),
        ({"optimizer": "adam"}, {"optimizer": "choice"}),
        ({"window": "22:00-22:00"}, {"window": "form"}),
        ({"window": "22:00-06:00"}, {}),
        ({"most_temperature_celsius": "19.9"}, {"most_temperature_celsius": "alternatives"}),
        ({"most_temperature_celsius": "20"}, {}),
        ({"columns": "a\r\n\r\n b "}, {}),
        ({"columns": "\n".join("a" * 1025)}, {"columns": "entries"}),
        ({"columns": "a" * 1025}, {"columns": "longest"}),
        ({"model": "m" * 65}, {"model": "longest"}),
        ({"model": "a\nb"}, {"model": "control"}),
        ({"model": "a\x1b[2Jb"}, {"model": "control"}),
    ],
)
def test_each_field_says_what_is_wrong_with_it(typed: dict[str, str], fault: dict[str, str]) -> None:
    _, faults = read_form(own_form("fine-tune"), {"model": "m", "data": "/d"} | typed)
    assert {key: found.key for key, found in faults.items()} == fault


def test_whole_numbers_defaults_and_lists_are_sent_as_boards_read_them() -> None:
    typed = {"model": " m ", "data": "/d", "warm_up": "0.05", "weight_decay": "1.0", "columns": "a\r\n\r\n b "}
    read, faults = read_form(own_form("fine-tune"), typed | {"epochs": "4", "most_time_s": "600.0"})
    assert (read, faults) == (
        {"model": "m", "data": "/d", "weight_decay": 1, "columns": ["a", "b"], "most_time_s": 600},
        {},
    )
    assert [type(read[key]) for key in ("weight_decay", "most_time_s")] == [int, int]
    read, _ = read_form(own_form("update-agent"), {"allow_downgrade": "true"})
    assert read == {"allow_downgrade": True}


def test_exactly_one_of_a_policys_texts_is_given() -> None:
    form = own_form("set-policy")
    assert form.one_of == ("text", "name", "reset")
    assert read_form(form, {})[1][""].key == "one-of"
    assert read_form(form, {"name": "default", "reset": "true"})[1][""].key == "one-of"
    assert read_form(form, {"name": "default", "reset": "false"}) == ({"name": "default"}, {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYWORDS = st.sampled_from(
    [
        "type",
        "enum",
        "const",
        "default",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "pattern",
        "anyOf",
        "items",
        "maxItems",
        "description",
        "$ref",
    ]
)
TYPES = st.sampled_from(["string", "number", "integer", "boolean", "array", "object", "null", "strange", ["string"]])
PART = st.dictionaries(KEYWORDS, JSON | TYPES | st.lists(st.dictionaries(KEYWORDS, JSON, max_size=3), max_size=3))
SCHEMAS = st.fixed_dictionaries(
    {"properties": st.dictionaries(st.text(max_size=6) | st.sampled_from("abc"), PART | JSON, max_size=6)},
    optional={"type": st.just("object") | JSON, "required": JSON | st.lists(st.text(max_size=3)), "oneOf": JSON},
)


@settings(max_examples=400)
@given(SCHEMAS | JSON, st.data())
def test_a_hostile_schema_is_refused_or_becomes_a_form_that_reads(schema: Any, data: st.DataObject) -> None:
    try:
        form = read_schema(schema)
    except SpecError:
        return
    assert len(form.fields) <= MAX_FIELDS
    typed = {field.name: data.draw(st.text(max_size=10) | st.just("1")) for field in form.fields}
    read, _ = read_form(form, typed)
    json.dumps(read, allow_nan=False)
    for field in form.fields:
        if field.default is not None:
            written(field.default)


@pytest.mark.parametrize("schema", [None, True, [], "x", {"type": "array"}, {"properties": []}, {"properties": 7}])
def test_what_is_no_schema_of_an_object_is_refused(schema: Any) -> None:
    with pytest.raises(SpecError, match="schema"):
        read_schema(schema)


def one(schema: Any, name: str = "a") -> Field:
    field = read_schema({"properties": {name: schema}}).field(name)
    assert field is not None
    return field


def test_a_million_arguments_are_cut_and_those_that_must_be_there_are_shown() -> None:
    properties = {f"k{number}": {"type": "string"} for number in range(100_000)}
    form = read_schema({"properties": properties, "required": ["k99999", 7]})
    assert (len(form.fields), form.left_out) == (MAX_FIELDS, 100_000 - MAX_FIELDS)
    assert form.fields[-1] == Field("k99999", Kind.TEXT, required=True)


def test_names_that_are_none_are_left_out() -> None:
    form = read_schema({"properties": {"<script>": {}, "a b": {}, "x" * 65: {}, "": {}, "fine": {"type": "string"}}})
    assert ([field.name for field in form.fields], form.left_out) == (["fine"], 4)


def test_a_strange_pattern_is_never_tried_and_ours_is() -> None:
    form = read_schema({"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}})
    begun = time.monotonic()
    assert read_form(form, {"a": "a" * 60 + "!"}) == ({"a": "a" * 60 + "!"}, {})
    assert time.monotonic() - begun < 5
    assert form.fields[0].unclear
    ours = one({"type": "string", "pattern": WINDOW})
    assert not ours.unclear
    assert read_form(Form((ours,)), {"a": "x"})[1]["a"].key == "form"


def test_what_is_not_understood_is_json_by_hand() -> None:
    field = one({"type": "object", "properties": {}})
    assert (field.kind, field.unclear) == (Kind.RAW, True)
    form = Form((field,))
    assert read_form(form, {"a": '{"b": [1]}'}) == ({"a": {"b": [1]}}, {})
    for bad in ("{", "NaN", "[" * 9 + "]" * 9, "1e999", '{"a": 1, "a": 2}', '"\\ud800"', "9" * 5000):
        assert read_form(form, {"a": bad})[1]["a"].key == "json", bad


def test_menus_of_numbers_and_truths_keep_their_types() -> None:
    field = one({"enum": [1, True, 2.5, "1 "], "default": 1})
    assert field.kind is Kind.CHOICE
    assert [read_form(Form((field,)), {"a": text})[0].get("a") for text in ("true", "2.5", "1")] == [True, 2.5, None]
    assert is_default(field, 1)
    assert not is_default(field, value=True)


def test_defaults_that_do_not_fit_their_kind_are_not_told() -> None:
    assert one({"type": "integer", "default": 2.5}).default is None
    assert one({"type": "number", "default": "2"}).default is None
    assert one({"type": "string", "default": 2}).default is None
    assert one({"type": "boolean", "default": 0}).default is None
    assert one({"type": "number", "default": float("nan")}).default is None
    assert one({"type": "array", "items": {"type": "integer"}, "default": [1]}).default == (1,)


def test_a_boards_own_words_are_one_harmless_line() -> None:
    assert one({"type": "string", "description": "a\x1b[2J\u202e" + "b" * 400}).told.startswith("a?[2J?b")
    assert len(one({"type": "string", "description": "b" * 400}).told) == 300
