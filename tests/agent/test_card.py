from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical

from agent.card import ModelCard, Preprocess, WindowRule, parse, parse_window_rule, version_key, window_table
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

RULE = WindowRule(("pm2.5", "wind"), (98.6, -0.1), (92.0, 1e-3), 168, "FT", horizon=24, target="pm2.5", season=24)
FORECASTER = dataclasses.replace(
    CARD, task="forecasting", preprocess=None, windows=RULE, input_shape=(2, 168), labels=()
)


def test_survives_the_repositorys_canonical_json() -> None:
    text = encode_canonical(CARD.to_table())
    assert text is not None
    assert parse(json.loads(text)) == CARD


def test_a_card_of_windows_survives_too() -> None:
    text = encode_canonical(FORECASTER.to_table())
    assert text is not None
    assert parse(json.loads(text)) == FORECASTER
    assert parse_window_rule(json.loads(json.dumps(window_table(RULE)))) == RULE


def test_a_card_from_before_there_were_windows_is_read() -> None:
    table = CARD.to_table()
    del table["windows"]
    assert parse(table) == CARD


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"windows": None}, "windows"),
        ({"preprocess": {"scale": "1", "offset": "0"}}, "windows"),
        ({"task": "image-classification"}, "preprocess"),
        ({"task": "anomaly-detection"}, "windows.horizon"),
        ({"input_shape": [168, 2]}, "input_shape"),
        ({"windows": {"columns": ["pm2.5"]}}, "windows.mean"),
        ({"windows": {"columns": []}}, "windows.columns"),
        ({"windows": {"columns": ["a", "a"]}}, "windows.columns"),
        ({"windows": {"columns": ["a\n", "b"]}}, "windows.columns[0]"),
        ({"windows": {"deviation": ["0", "1"]}}, "windows.deviation[0]"),
        ({"windows": {"deviation": ["nan", "1"]}}, "windows.deviation[0]"),
        ({"windows": {"mean": ["x", "1"]}}, "windows.mean[0]"),
        ({"windows": {"window": 0}}, "windows.window"),
        ({"windows": {"layout": "NCHW"}}, "windows.layout"),
        ({"windows": {"horizon": 0}}, "windows.target"),
        ({"windows": {"target": "pm10"}}, "windows.target"),
        ({"windows": {"target": ""}}, "windows.target"),
        ({"windows": {"season": -1}}, "windows.season"),
    ],
)
def test_window_rules_that_do_not_fit_are_refused_by_key(change: dict[str, Any], key: str) -> None:
    table: dict[str, Any] = dict(FORECASTER.to_table())
    for name, value in change.items():
        table[name] = {**table[name], **value} if name == "windows" and value else value
    with pytest.raises(TrustError) as caught:
        parse(table)
    assert caught.value.where == key


@pytest.mark.parametrize(("layout", "shape"), [("TF", (168, 2)), ("FT", (2, 168)), ("flat", (336,))])
def test_the_layout_gives_the_sample_its_shape(layout: str, shape: tuple[int, ...]) -> None:
    assert dataclasses.replace(RULE, layout=layout).sample_shape == shape


def test_a_window_rule_that_is_no_table_is_refused() -> None:
    for table in (None, [], "rule", {}):
        with pytest.raises(SpecError, match="window rule"):
            parse_window_rule(table, error=SpecError)


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
