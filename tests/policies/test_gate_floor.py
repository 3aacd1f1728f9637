from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.gate_floor import STRICTER_ABOVE, STRICTER_BELOW, milder
from policies.policy import GatePolicy

OWN = GatePolicy(least_gain=0.0, class_least=0.3, class_samples=10, held_out="/srv/mine")


def test_every_key_of_the_gate_is_compared() -> None:
    keys = {item.name for item in dataclasses.fields(GatePolicy)}
    assert keys == {*STRICTER_ABOVE, *STRICTER_BELOW, "held_out"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("least_gain", -0.01),
        ("class_least", 0.29),
        ("class_samples", 11),
        ("class_drop", 0.11),
        ("weight_growth", 6.1),
        ("weight_update", 5.1),
        ("head_rms", 15.1),
        ("held_out_drop", 0.021),
        ("held_out", "/srv/theirs"),
        ("held_out", ""),
    ],
)
def test_a_milder_value_is_named(key: str, value: object) -> None:
    found = milder(OWN, replace(OWN, **{key: value}))
    assert found is not None
    assert found[0] == f"gate.{key}"
    assert repr(value) in found[1]


def test_the_same_and_stricter_pass() -> None:
    assert milder(OWN, OWN) is None
    assert milder(OWN, replace(OWN, class_least=0.5, class_drop=0.0, weight_growth=1.0, least_gain=0.1)) is None
    assert milder(GatePolicy(), replace(GatePolicy(), held_out="/srv/any")) is None


GATES = st.builds(
    GatePolicy,
    least_gain=st.floats(-1, 1, allow_subnormal=False),
    class_samples=st.integers(1, 50),
    class_drop=st.floats(0, 1, allow_subnormal=False),
    class_least=st.floats(0, 1, allow_subnormal=False),
    weight_growth=st.floats(1, 10, allow_subnormal=False),
    held_out=st.sampled_from(["", "/a", "/b"]),
)


@given(GATES, GATES, GATES)
def test_what_passes_in_two_steps_passes_in_one(own: GatePolicy, middle: GatePolicy, last: GatePolicy) -> None:
    if milder(own, middle) is None and milder(middle, last) is None:
        assert milder(own, last) is None
