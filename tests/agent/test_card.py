from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical

from agent.card import ModelCard, Preprocess, parse, version_key
from agent.errors import SpecError, TrustError
from policies.strict import TableError

CARD = ModelCard(
    name="efficientnet-lite0",
    version="1.0",
    security_floor=1,
    task="image-classification",
    preprocess=Preprocess(1 / 127.5, -1.0),
    input_shape=(3, 224, 224),
    plaintext_sha256="ab" * 32,
    plaintext_length=1000,
    labels=("daisy", "crane", "crane"),
    boards=("raspberry-pi-5",),
    signature_of_source_features=(0.1, -2.5e-9, 3.0),
    signature_origin="1,000 photographs",
)


def test_survives_the_repositorys_canonical_json() -> None:
    text = encode_canonical(CARD.to_table())
    assert text is not None
    assert parse(json.loads(text)) == CARD


@given(st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), max_size=20), st.floats(-1e6, 1e6, allow_subnormal=False))
def test_numbers_come_back_exactly(features: list[float], scale: float) -> None:
    card = dataclasses.replace(CARD, signature_of_source_features=tuple(features), preprocess=Preprocess(scale, 0.0))
    assert parse(json.loads(json.dumps(card.to_table()))) == card


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "../../etc/passwd"),
        ("name", "Upper"),
        ("name", ""),
        ("name", "a" * 65),
        ("version", "latest"),
        ("version", "1.0-rc1"),
        ("version", "01"),
        ("version", "1.2.3.4.5"),
        ("version", "1\n"),
        ("security_floor", -1),
        ("security_floor", True),
        ("task", "mining"),
        ("labels", ["\x1b[2J"]),
        ("labels", [""]),
        ("labels", ["x"] * 10_001),
        ("input_shape", []),
        ("input_shape", [0]),
        ("input_shape", [3, 2, 2, 2, 2]),
        ("plaintext_sha256", "AB" * 32),
        ("plaintext_length", 0),
        ("plaintext_length", 2**63),
        ("signature_of_source_features", ["nan"]),
        ("signature_of_source_features", ["one"]),
        ("signature_of_source_features", ["0"] * 4097),
        ("preprocess", {"scale": "inf", "offset": "0"}),
        ("preprocess", {"scale": "1", "offset": "0", "layout": "NHWC"}),
        ("unknown", 1),
    ],
)
def test_refusals_name_the_key(key: str, value: Any) -> None:
    table = {**CARD.to_table(), key: value}
    with pytest.raises(TrustError) as caught:
        parse(table)
    assert caught.value.where.startswith(key)
    with pytest.raises(SpecError):
        parse(table, error=SpecError)


def test_a_card_built_by_hand_is_checked_too() -> None:
    with pytest.raises(TableError, match="does not match"):
        dataclasses.replace(CARD, name="a/b")
    with pytest.raises(TrustError, match="outside"):
        dataclasses.replace(CARD, plaintext_length=0).to_table()


def test_versions_are_ordered_by_number() -> None:
    ordered = ["0", "1", "1.0", "1.0.1", "1.9", "1.10", "2", "10"]
    assert sorted(["2", "1.9", "10", "1.0.1", "1", "1.10", "0", "1.0"], key=version_key) == ordered
