"""Rows from files: what is read, what is bad, what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import series as source
from agent.errors import DataError
from agent.series import MAX_BAD_SHARE, MAX_FILLED_ROWS, Series, column_names, read_series

steady = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, text: str) -> str:
    (folder / "rows.csv").write_bytes(text.encode())
    return str(folder / "rows.csv")


def read(path: str, *columns: str, label: str = "label", missing: str = "skip") -> Series:
    return read_series(path, columns or ("a", "b"), label, missing)


def table(rows: int, spoilt: dict[int, str] | None = None) -> str:
    lines = [(spoilt or {}).get(i, f"{i},{-i}") for i in range(rows)]
    return "a,b\n" + "\n".join(lines) + "\n"


def refused(path: str, says: str, *columns: str, **options: Any) -> DataError:
    with pytest.raises(DataError, match=says) as caught:
        read(path, *columns, **options)
    assert caught.value.code == "bad-data"
    return caught.value


def test_columns_are_read_by_name_in_the_order_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufefftime, a ,"b",label\r\nmon,1,2.5,0\r\n\r\ntue,-3e2,4,1\r\nwed,5,6,\r\n')
    found = read(path, "b", "a")
    np.testing.assert_array_equal(found.values, [[2.5, 1], [4, -300], [6, 5]])
    assert found.values.dtype == np.float32
    assert found.labels is not None
    assert found.labels.tolist() == [False, True, False]
    assert (found.bad, found.filled, found.sound.all()) == (0, 0, True)
    assert read(path, label="").labels is None
    assert column_names(path) == ("time", "a", "b", "label")


def test_a_label_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, "a,b,fault\n1,2,1\n3,4,0\n")
    assert read(path).labels is None
    marks = read(path, label="fault").labels
    assert marks is not None
    assert marks.tolist() == [True, False]
    refused(path, "no column 'alarm'", label="alarm")
    unnamed = write(tmp_path, ",a,b\n17,1,2\n18,3,4\n")  # as pandas writes its index
    assert read(unnamed, label="").labels is None


@pytest.mark.parametrize("cell", ["", "  ", "NA", "nan", "NaN", "null", "None", "-", "inf", "-Infinity", "1e300"])
def test_what_is_missing_or_infinite_makes_a_row_bad(tmp_path: Path, cell: str) -> None:
    found = read(write(tmp_path, table(20, {7: f"1,{cell}"})))
    assert (found.bad, found.filled) == (1, 0)
    assert np.flatnonzero(~found.sound).tolist() == [7]
    assert found.bad_names == ("row 8: a value is missing or infinite",)


def test_other_text_and_torn_rows_are_named_as_what_they_are(tmp_path: Path) -> None:
    found = read(write(tmp_path, table(40, {3: "on,1", 9: "1,2,3", 11: "1"})))
    assert found.bad_names == (
        "row 4: 'on' is not a number",
        "row 10: 3 cells for 2 columns",
        "row 12: 1 cells for 2 columns",
    )


@pytest.mark.parametrize(("rows", "bad", "fits"), [(20, 2, True), (20, 3, False), (10, 1, True), (10, 2, False)])
def test_a_tenth_may_be_bad_and_no_more(tmp_path: Path, rows: int, bad: int, *, fits: bool) -> None:
    path = write(tmp_path, table(rows, dict.fromkeys(range(bad), "x,1")))
    assert fits == (bad / rows <= MAX_BAD_SHARE)
    if fits:
        assert read(path).bad == bad
        return
    error = refused(path, f"{bad} of {rows} rows")
    assert "row 1: 'x' is not a number" in error.where
    refused(path, f"{bad} of {rows} rows", missing="fill")


def test_of_many_bad_rows_the_first_are_named(tmp_path: Path) -> None:
    found = read(write(tmp_path, table(1000, dict.fromkeys(range(100), ","))))
    assert found.bad == 100
    assert len(found.bad_names) == source.NAMED_BAD
    assert len("; ".join(found.bad_names)) < 4000


@steady
@given(st.sets(st.integers(0, 59), max_size=6), st.integers(0, 12), st.integers(0, 59))
def test_filling_repeats_the_last_sound_row_over_short_gaps(
    tmp_path: Path, single: set[int], length: int, at: int
) -> None:
    bad = single | set(range(at, min(60, at + length)))
    rows = 400  # far more, so that the share is never the reason
    path = write(tmp_path, table(rows, dict.fromkeys(bad, ",1")))
    found = read(path, missing="fill")
    for row in range(rows):
        last = next((r for r in range(row, -1, -1) if r not in bad), None)
        near = last is not None and row - last <= MAX_FILLED_ROWS
        assert bool(found.sound[row]) == near
        if near:
            assert found.values[row].tolist() == [last, -(last or 0)]
    assert found.bad == len(bad)
    assert found.filled == len(bad) - int((~found.sound).sum())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a list of different column names"),
        ("a,a\n1,2\n", "not a list of different column names"),
        ("a,b\n", "holds no rows"),
        ("a,c\n1,2\n", "no column 'b'"),
        ('a,b\n1,"2\n', "cannot be read"),
        ("a,b,label\n1,2,3\n", "label '3' is neither 0 nor 1"),
        ("a,b,label\n1,2,yes\n", "label 'yes' is neither 0 nor 1"),
        (",".join(f"c{i}" for i in range(1026)) + "\n", "more than 1024 columns"),
    ],
)
def test_a_csv_that_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    refused(write(tmp_path, text), says)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,\xff\xfe\n")
    refused(str(tmp_path / "rows.csv"), "cannot be read")
    (tmp_path / "rows.csv").write_bytes(b"a,b\n1,\0\n")
    refused(str(tmp_path / "rows.csv"), "cannot be read|1 of 1 rows")


@pytest.mark.parametrize("name", ["gone.csv", "rows.txt", "folder.csv", ""])
def test_what_is_no_file_of_rows_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "rows.txt").write_text("a,b\n1,2\n")
    refused(str(tmp_path / name), "no such data")
    with pytest.raises(DataError, match="no such data"):
        column_names(str(tmp_path / name))


def npz(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "rows.npz", **arrays)
    return str(folder / "rows.npz")


def test_an_npz_of_rows(tmp_path: Path) -> None:
    x = np.arange(60, dtype=np.float64).reshape(20, 3)
    x[4, 2] = math.inf
    path = npz(tmp_path, x=x, columns=["a", "b", "c"], label=np.arange(20) % 2)
    found = read(path, "c", "a")
    np.testing.assert_array_equal(found.values[:4], x[:4, [2, 0]])
    assert (found.bad, found.bad_names) == (1, ("row 5: a value is missing or infinite",))
    assert found.labels is not None
    assert found.labels.sum() == 10
    assert read(path, "b").bad == 0, "a column that is not asked for is not judged"
    assert column_names(path) == ("a", "b", "c", "label")


def test_one_column_may_be_flat_and_nameless(tmp_path: Path) -> None:
    path = npz(tmp_path, x=np.arange(9))
    assert read(path, "x0").values.shape == (9, 1)
    assert read(path, "x0").labels is None


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": np.ones(3)}, "needs an array x"),
        ({"x": np.ones((2, 2, 2))}, "needs an array x"),
        ({"x": np.asarray(["a", "b"])}, "needs an array x"),
        ({"x": np.ones((3, 2)), "columns": ["a"]}, "not 2 different names"),
        ({"x": np.ones((3, 2)), "columns": ["a", "a"]}, "not 2 different names"),
        ({"x": np.ones((3, 2)), "columns": ["a", "c"]}, "no column 'b'"),
        ({"x": np.ones((0, 2)), "columns": ["a", "b"]}, "holds no rows"),
        ({"x": np.ones((3, 2)), "columns": ["a", "b"], "label": np.ones(2)}, "one 0 or 1 for each row"),
        ({"x": np.ones((3, 2)), "columns": ["a", "b"], "label": np.full(3, 2)}, "one 0 or 1 for each row"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    refused(npz(tmp_path, **arrays), says)


CSV = "a,b,label\n" + "".join(f"{i},{i * 0.5},{i % 2}\n" for i in range(12))


@steady
@given(st.lists(st.tuples(st.integers(0, len(CSV) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_csv_is_read_or_refused_in_our_own_words(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    raw = bytearray(CSV.encode())
    for place, value in damage:
        raw[place] = value
    (tmp_path / "rows.csv").write_bytes(raw)
    try:
        found = read(str(tmp_path / "rows.csv"))
    except DataError as error:
        assert error.where  # noqa: PT017 - both ends are allowed
        return
    assert np.isfinite(found.values[found.sound]).all()
