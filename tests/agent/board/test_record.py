"""The board's record: whole or absent, of this board or not used, broken or put aside."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.board.record import (
    FILE_NAME,
    MAX_REASONS,
    MAX_RECORD_BYTES,
    BoardRecord,
    Found,
    Qualification,
    read_record,
    write_record,
)
from agent.errors import ArtifactError, BoardError

PI = "Raspberry Pi 4 Model B Rev 1.4"
PASSED = Qualification(True, 1.8e9, 600.0, delta_t_kelvin=24.5, ambient_celsius=21.0)
RECORD = BoardRecord(PI, "raspberry-pi-4", PASSED, {"power": {"theta": [1.0, 2.0]}, "windows": 60})


def test_a_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path, PI) == Found(RECORD)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]


def test_no_record_is_no_complaint(tmp_path: Path) -> None:
    assert read_record(tmp_path, PI) == Found(None)


def test_a_record_of_another_board_stays_and_is_not_used(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    found = read_record(tmp_path, "Raspberry Pi 5 Model B Rev 1.0")
    assert found.record is None
    assert "Raspberry Pi 4" in found.complaint
    assert read_record(tmp_path, PI).record == RECORD


_BODY = dataclasses.asdict(RECORD)


def test_a_record_that_a_later_release_wrote_with_more_serves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({**_BODY, "colour": 1}))
    assert read_record(tmp_path, PI) == Found(RECORD)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not JSON"),
        (b'{"board": "x"', "not JSON"),
        (b"[1]", "table"),
        (b"\xff\xfe", "UTF-8"),
        (b"{" + b" " * MAX_RECORD_BYTES + b"}", "longer"),
        (json.dumps({**_BODY, "schema": 2}).encode(), "schema"),
        (json.dumps({**_BODY, "qualification": {"passed": "yes"}}).encode(), "passed"),
        (json.dumps({**_BODY, "models": [1]}).encode(), "models"),
        (json.dumps({"board": PI, "profile": "x", "models": {"a": math.nan}}).encode(), "NaN"),
        (b'{"board": "a", "board": "b", "profile": "x"}', "twice"),
        (
            json.dumps(
                {**_BODY, "qualification": {**_BODY["qualification"], "reasons": ["x"] * (MAX_REASONS + 1)}}
            ).encode(),
            "reasons",
        ),
    ],
)
def test_a_broken_record_is_put_aside_and_said(tmp_path: Path, data: bytes, word: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    found = read_record(tmp_path, PI)
    assert found.record is None
    assert word in found.complaint
    aside = tmp_path / f"{FILE_NAME}.broken"
    assert aside.read_bytes() == data
    assert str(aside) in found.complaint
    assert read_record(tmp_path, PI) == Found(None), "said once"
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path, PI).record == RECORD


def test_a_record_that_cannot_be_read_is_the_disks_fault(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(BoardError):
        read_record(tmp_path, PI)


@pytest.mark.parametrize(
    ("models", "word"),
    [
        ({"a": [math.inf]}, "finite"),
        ({"a": "x" * MAX_RECORD_BYTES}, "at most"),
        ({"a": json.loads("[" * 40 + "]" * 40)}, "nested"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, models: dict[str, object], word: str) -> None:
    write_record(tmp_path, RECORD)
    with pytest.raises(ArtifactError, match=word):
        write_record(tmp_path, dataclasses.replace(RECORD, models=models))
    assert read_record(tmp_path, PI).record == RECORD


_NUMBERS = (
    st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.integers(-(10**9), 10**9)
    | st.booleans()
)
_TREES = st.recursive(_NUMBERS, lambda below: st.lists(below, max_size=4), max_leaves=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    board=st.text(st.characters(codec="utf-8"), max_size=64),
    models=st.dictionaries(st.text(st.characters(codec="ascii"), max_size=16), _TREES, max_size=6),
    delta=st.none() | st.floats(-50, 120, allow_subnormal=False),
    passed=st.booleans(),
)
def test_every_record_comes_back(
    tmp_path: Path, board: str, models: dict[str, object], delta: float | None, passed: bool
) -> None:
    record = BoardRecord(board, "generic", Qualification(passed, 1.0, 2.0, delta_t_kelvin=delta), models)
    write_record(tmp_path, record)
    assert read_record(tmp_path, board) == Found(record)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_rubbish_never_raises_and_is_never_used(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    found = read_record(tmp_path, PI)
    assert found.record is None
    assert found.complaint
