"""Telemetry as bytes: what goes through both forms, what a console refuses, and the table of keys."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.simulated import SimulatedBoard
from agent.energy import Energy, energy_figures
from agent.errors import CommandError
from agent.messages import Progress
from policies.outlook import Outlook
from policies.policy import Policy
from policies.strict import build
from service.config import Telemetry as Settings
from service.job_books import BANDWIDTH_METRICS
from service.metric_units import described_metrics
from service.payload import CBOR, JSON, MAX_DEPTH, decode, encode
from service.steering import Steering
from service.views import installed_runtime

DOCS = Path(__file__).parents[2] / "docs"
PLACES = {"energy": "energy.md", "store": "scrub.md"}  # the others stand in mqtt.md
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats(allow_subnormal=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def read(data: bytes, content_type: str = CBOR) -> Any:
    return decode(data, content_type, what="telemetry", max_bytes=1 << 16)


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


@given(body=st.dictionaries(st.text(), PLAIN, max_size=6), form=st.sampled_from([JSON, CBOR]))
def test_what_a_device_encodes_a_console_reads(body: dict[str, Any], form: str) -> None:
    assert read(encode(body, form), form) == without_nan(body)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = read(data)
    except CommandError:
        return
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x81" * 100_000, "bytes"),
        (b"\x81" * 60_000 + b"\x01", "depth"),
        (b"\x81" * (MAX_DEPTH + 1) + b"\x01", "depth"),
        (b"\x9f\x01\xff", "indefinite"),
        (cbor2.dumps(math.nan), "not finite"),
        (cbor2.dumps([1e999]), "not finite"),
        (bytes.fromhex("a2616101616102"), "Duplicate"),
        (bytes.fromhex("a10102"), "key"),
        (bytes.fromhex("a1416101"), "no text"),
        (bytes.fromhex("c074323031332d30332d32315432303a30343a30305a"), "tag 0"),
        (bytes.fromhex("c249010000000000000000"), "tag 2"),
        (bytes.fromhex("d81c81d81d00"), "tag 29"),
        (bytes.fromhex("d8236161"), "tag 35"),
        (bytes.fromhex("d9303901"), "CBORTag"),
        (b"\x3b" + b"\xff" * 8, "64 bits"),
        (b"\x41a", "a bytes"),
        (b"\xf7", "Undefined"),
        (b"\x01\x02", "bytes after"),
        (b"\x9b" + b"\xff" * 8, "read"),
        (b"\xbb\x00\x00\x00\x00\xff\xff\xff\xff", "read"),
        (b"\x61\xff", "text"),
        (b"", "read"),
    ],
)
def test_cbor_that_json_has_no_word_for_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(CommandError, match=why):
        read(data)


def test_depth_up_to_the_bound_is_read() -> None:
    assert read(b"\x81" * (MAX_DEPTH - 1) + b"\x01")


@pytest.mark.parametrize("content_type", ["text/plain", "application/cbor; v=1", "x" * 9999])
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(CommandError, match="neither JSON nor CBOR"):
        read(b"{}", content_type)


def test_no_content_type_is_json() -> None:
    assert read(b'{"a":1}', "") == {"a": 1}
    with pytest.raises(CommandError):
        read(b'{"a":NaN}', "")


# --- the table of keys -----------------------------------------------------------------------------------------------


def section(group: str) -> str:
    """The part of the documentation that tables the keys of a group."""
    if group in PLACES:
        return (DOCS / PLACES[group]).read_text("utf-8")
    text = (DOCS / "mqtt.md").read_text("utf-8").split("## Telemetry")[1].split("\n## ")[0]
    parts = re.split(r"\n(?=`\w+`[:,])", text)
    return "\n".join(part for part in parts if part.startswith(f"`{group}`"))


@pytest.mark.parametrize("group", described_metrics())
def test_every_key_is_explained_in_the_docs(group: str) -> None:
    rows = [line for line in section(group).splitlines() if line.startswith("| `")]
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(described_metrics()[group]) <= explained
    if group not in PLACES:
        assert explained <= set(described_metrics()[group])


def board_values() -> dict[str, object]:
    steering = Steering(SimulatedBoard("raspberry-pi-4"), Policy())
    steering.tick(1.0, working=True, phase="training", outlook=Outlook())
    return steering.board_metrics()


def test_the_table_has_the_keys_and_types_that_are_sent() -> None:
    fits: dict[str, Any] = {"number": (int, float), "boolean": bool, "text": str, "object": (dict, list)}
    energy = energy_figures(Energy(), 0) | dict.fromkeys(BANDWIDTH_METRICS)
    training = dict.fromkeys(Progress.__slots__)
    for group, values in (("board", board_values()), ("energy", energy), ("training", training)):
        table = described_metrics()[group]
        assert set(table) == set(values)
        for key, value in values.items():
            assert value is None or isinstance(value, fits[table[key]["type"]]), key
            assert not isinstance(value, bool) or table[key]["type"] == "boolean", key


def test_units_are_those_that_the_names_say() -> None:
    ending = {"_celsius": ("Cel", "K"), "_hz": ("Hz",), "_watts": ("W",), "_bytes": ("By",), "_s": ("s", "By/s"),
              "_ms": ("ms",), "_percent": ("%",)}  # fmt: skip
    for keys in described_metrics().values():
        for key, word in keys.items():
            assert (word["unit"] == "") == (word["type"] != "number"), key
            for end, units in ending.items():
                assert not key.endswith(end) or word["unit"] in units, key


def test_the_runtime_of_this_environment_is_named() -> None:
    told = installed_runtime()
    assert told is not None
    assert re.fullmatch(r"onnxruntime[a-z-]* \d+\.\d+\.\d+\S*", told), told


def test_the_page_shows_the_settings_as_they_ship() -> None:
    block = (DOCS / "telemetry.md").read_text("utf-8").split("## Settings")[1].split("\n- ")[0]
    shown = tomllib.loads("\n".join(line.strip() for line in block.splitlines() if line.startswith("    ")))
    assert build(Settings, shown["telemetry"]) == Settings()
    assert set(shown["telemetry"]) == {item.name for item in dataclasses.fields(Settings)}
