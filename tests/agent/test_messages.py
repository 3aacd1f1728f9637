from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import EngineError
from agent.messages import (
    MAX_LINE_BYTES,
    EvaluateOrder,
    Failed,
    Finished,
    Go,
    Message,
    Order,
    Planned,
    Progress,
    ReleaseOrder,
    Scrubbed,
    ScrubOrder,
    SelfTestOrder,
    Stage,
    Steer,
    SwitchOrder,
    SystemOrder,
    Waits,
    Warned,
    decode,
    encode,
)

steady = settings(derandomize=True, deadline=None)
TYPES = typing.get_args(Message)
floats = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(st.text(max_size=20), values, max_size=5)
BY_HINT = {
    "str": st.text(max_size=200),
    "str | None": st.none() | st.text(max_size=200),
    "int": st.integers(),
    "float": floats,
    "bool": st.booleans(),
    "float | None": st.none() | floats,
    "tuple[str, ...]": st.lists(st.text(max_size=20), max_size=5).map(tuple),
    "dict[str, object]": tables,
    "dict[str, object] | None": st.none() | tables,
}


def messages_of(cls: type) -> st.SearchStrategy[Message]:
    return st.builds(cls, **{item.name: BY_HINT[str(item.type)] for item in dataclasses.fields(cls)})


EXAMPLES: tuple[Message, ...] = (
    Order("j1", {"model": "m"}, "/state", "http://repo", "/root.json", "/policy.toml", 2),
    Go("TRAINING"),
    Steer("RUN", 1.0, 0, reverify=False, rule="run"),
    Stage("PLANNING"),
    Planned({"plan": {}}),
    Progress(1, 2, 3, 4, 5, 0.5, None, 6, 75, 8.5, 9),
    Warned("one image skipped"),
    Waits(resting=True, rule="thermal.delta-t-pause"),
    Finished("SUCCEEDED", "", {"accuracy": 0.9}),
    Failed("bad-data", "no such data"),
    ScrubOrder("/state", "http://repo", "/root.json"),
    Scrubbed({"files": 3}),
    SwitchOrder("/state", None, "", promotes=False, threads=1),
    EvaluateOrder("/state", "http://repo", "/root.json", {"data": "/srv"}, 1),
    SelfTestOrder("/state", 1),
    ReleaseOrder("/state", "http://repo", "/root.json", "latest", "b", "0.1.0", refused=("ab" * 32,)),
    SystemOrder("/state", "http://repo", "/root.json", "pi", "latest", "pi-4"),
)


def test_the_examples_cover_every_message() -> None:
    assert {type(example) for example in EXAMPLES} == set(TYPES)


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_message_comes_back_as_it_was_sent(cls: type) -> None:
    @steady
    @given(messages_of(cls))
    def round_trip(message: Message) -> None:
        line = encode(message)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert decode(line) == message

    round_trip()


@steady
@given(st.binary(max_size=300))
def test_noise_is_an_engine_error(line: bytes) -> None:
    with pytest.raises(EngineError, match="unreadable message"):
        decode(line)


@steady
@given(values)
def test_json_that_is_no_message_is_an_engine_error(value: object) -> None:
    with pytest.raises(EngineError, match="unreadable message"):
        decode(json.dumps(value).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b'{"type":"go","stage":"A"',
        b'{"type":"go","stage":"A"}{"type":"go","stage":"A"}',
        b'{"type":["go"],"stage":"A"}',
        b'{"type":"message","stage":"A"}',
        b'{"type":"Go","stage":"A"}',
        b'{"stage":"A"}',
        b"[" * 100_000,
        b'{"type":"go","stage":' + b"9" * 5000 + b"}",
        b'{"type":"go","stage":"' + b"A" * 5000 + b'"}',
        b'{"type":"steer","action":"RUN","duty":1'
        + b"0" * 400
        + b',"least_depth_percent":0,"reverify":false,"rule":""}',
        b'{"type":"steer","action":"RUN","duty":NaN,"least_depth_percent":0,"reverify":false,"rule":""}',
        b'{"type":"steer","action":"RUN","duty":1e999,"least_depth_percent":0,"reverify":false,"rule":""}',
    ],
    ids=lambda line: repr(line[:40]),
)
def test_broken_lines_are_engine_errors_that_quote_little(line: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        decode(line)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_wrong_types_and_unknown_or_missing_keys_are_engine_errors(message: Message) -> None:
    body = json.loads(encode(message))
    for item in dataclasses.fields(message):
        for wrong in ([1], {"a": 1}, "text", 7, 7.5, True, None):
            if decodes_to(str(item.type), wrong):
                continue
            with pytest.raises(EngineError):
                decode(json.dumps(body | {item.name: wrong}).encode())
        if item.default is item.default_factory is dataclasses.MISSING:
            with pytest.raises(EngineError):
                decode(json.dumps({k: v for k, v in body.items() if k != item.name}).encode())
    with pytest.raises(EngineError):
        decode(json.dumps(body | {"surprise": 1}).encode())


def decodes_to(hint: str, value: object) -> bool:
    """Whether a value of JSON may stand for the annotation."""
    if hint == "tuple[str, ...]":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    fits = {
        "str": str,
        "str | None": (str, type(None)),
        "int": int,
        "float": (int, float),
        "bool": bool,
        "float | None": (int, float, type(None)),
        "dict[str, object]": dict,
        "dict[str, object] | None": (dict, type(None)),
    }[hint]
    return isinstance(value, fits) and (hint == "bool" or not isinstance(value, bool))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_sent(bad: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Finished("SUCCEEDED", "", {"accuracy": bad}))


def test_the_longest_failure_fits_a_line() -> None:
    """What the worker sends last is cut to 2000 characters; even all of them escaped, it fits."""
    from agent.worker import MAX_MESSAGE  # noqa: PLC0415 - the worker's own bound

    message = Failed("engine", "\U0001f525" * MAX_MESSAGE)
    assert len(encode(message)) < MAX_LINE_BYTES
    assert decode(encode(message)) == message
