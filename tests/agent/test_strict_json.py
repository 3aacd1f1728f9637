from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import ArtifactError, CommandError
from agent.strict_json import canonical, loads

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_canonical_reads_back_and_is_stable(value: object) -> None:
    data = canonical(value)
    again = loads(data, what="value", max_bytes=1 << 20, max_depth=64)
    assert again == json.loads(data)
    assert canonical(again) == data


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = loads(data, what="value", max_bytes=100)
    except ArtifactError:
        return
    canonical(value)
    json.dumps(value, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a":1,"a":2}', "key 'a' is given twice"),
        (b'{"b":{"a":1,"a":1}}', "key 'a' is given twice"),
        (b"[NaN]", "NaN is no JSON number"),
        (b"-Infinity", "-Infinity is no JSON number"),
        (b"1e999", "a number overflows"),
        (b"9" * 5000, "too many digits"),
        (b'"\xff"', "not UTF-8"),
        (b'"\\ud800"', "half of a surrogate pair"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"", "not JSON"),
        (b'"' + b"a" * 6000 + b'"', "6002 bytes, at most 6000"),
    ],
)
def test_refusals_say_why(data: bytes, says: str) -> None:
    with pytest.raises(CommandError, match=says):
        loads(data, what="request", max_bytes=6000, error=CommandError)


def test_depth_is_counted_outside_texts_only() -> None:
    assert loads(b'["[[[[", "\\"[[[["]', what="x", max_bytes=100, max_depth=1) == ["[[[[", '"[[[[']
    assert loads(b"[" * 32 + b"]" * 32, what="x", max_bytes=100)
    with pytest.raises(ArtifactError, match="deeper than 32"):
        loads(b"[" * 33 + b"]" * 33, what="x", max_bytes=100)
    with pytest.raises(ArtifactError, match="deeper than 32"):
        loads(b'{"a":' * 100_000, what="x", max_bytes=1 << 20)


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert loads(b'"\\ud83d\\ude00"', what="x", max_bytes=100) == "\U0001f600"


def test_messages_and_causes_hold_no_value() -> None:
    for broken in (b'{"key":"s3cret"', b'{"key":"s3cret","key":"s3cret"}', b'{"key":"s3cret\xff"}'):
        with pytest.raises(ArtifactError) as caught:
            loads(broken, what="identity", max_bytes=100)
        assert "s3cret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_canonical_form() -> None:
    assert canonical({"b": [1, 2.5, None, True], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5,null,true]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))
