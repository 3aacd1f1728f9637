"""Series of numbers: the rows of a CSV or .npz file, in time order; missing and broken values counted and named."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.card import MAX_COLUMNS
from agent.dataset import MAX_DATA_BYTES, NAMED_BAD, read_arrays, reason
from agent.engine.base import Float32
from agent.errors import DataError
from agent.spec import LABEL

MAX_CSV_BYTES = 256 << 20  # two million rows of some thirty sensors
MAX_ROWS = 2_000_000  # a reading a second for three weeks
ROWS_AT_ONCE = 4096  # read before they are packed
MAX_CELL = 40  # characters shown of a cell that is no number
MAX_BAD_SHARE = 0.1  # more than every tenth row: the source is broken, and what is left of it is not to be learnt from
MAX_FILLED_ROWS = 6  # a longer gap is not filled: the last value says little about the next hours
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-"})
NPZ_KEYS = ("x", "columns", "label")

Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Series:
    """Rows in time order.

    Attributes:
        values: [R, F], one column a feature, in the order asked for; what could not be read is NaN.
        sound: [R] whether all values of the row are finite.
        labels: [R] whether the row is an anomaly; `None` where nobody said so.
        bad: rows with a value that is missing, infinite or no number, before any were filled.
        bad_names: the first of them, each with the reason.
        filled: rows of these that took the last sound values before them.
    """

    values: Float32
    sound: npt.NDArray[np.bool_]
    labels: Labels | None
    bad: int = 0
    bad_names: tuple[str, ...] = ()
    filled: int = 0


def read_series(path: str, columns: Sequence[str], label: str, missing: str) -> Series:
    """Read the columns of a CSV file (header, comma) or of an .npz file (x [R, F] or [R], columns, label).

    Args:
        path: the file.
        columns: names of the features, in the order wanted.
        label: name of the column with 0 or 1 for normal and anomalous rows; empty: none is read. Only one that is
            called `label` may be missing; in an .npz file it is always called so.
        missing: what becomes of bad rows: `skip` leaves them bad; `fill` repeats the last sound row before them, over
            at most `MAX_FILLED_ROWS` rows.

    Raises:
        DataError: no such file, a column that is not there, too many rows, or more than `MAX_BAD_SHARE` of them bad.
    """
    file = Path(path)
    try:
        if file.suffix == ".csv" and file.is_file():
            raw = _read_csv(file, columns, label)
        elif file.suffix == ".npz" and file.is_file():
            raw = _read_npz(file, columns, label)
        else:
            raise DataError("no such data", where=path, fix="Give a .csv or .npz file of rows; see docs/first-job.md")
    except OSError as error:
        raise DataError("the data cannot be read", where=f"{path}: {error.strerror}") from error
    series = _checked(raw, path)
    return _filled(series) if missing == "fill" else series


def column_names(path: str) -> tuple[str, ...]:
    """The columns that a file offers, label included.

    Raises:
        DataError: as `read_series`.
    """
    file = Path(path)
    if file.suffix == ".csv" and file.is_file():
        return tuple(next(_rows(file)))
    if file.suffix == ".npz" and file.is_file():
        arrays = read_arrays(file, NPZ_KEYS)
        return (*_npz_columns(file, arrays), *(("label",) if "label" in arrays else ()))
    raise DataError("no such data", where=path, fix="Give a .csv or .npz file of rows; see docs/first-job.md")


@dataclass(frozen=True, slots=True)
class _Raw:
    values: Float32
    labels: Labels | None
    why: dict[int, str]
    """What was wrong with a row, where its cells could not be read as numbers."""


def _checked(raw: _Raw, where: str) -> Series:
    sound = np.asarray(np.isfinite(raw.values).all(axis=1), bool)
    bad = np.flatnonzero(~sound)
    if not len(sound):
        raise DataError("the file holds no rows", where=where)
    names = tuple(
        f"row {row + 1}: {raw.why.get(int(row), 'a value is missing or infinite')}" for row in bad[:NAMED_BAD]
    )
    if len(bad) > MAX_BAD_SHARE * len(sound):
        raise DataError(
            f"{len(bad)} of {len(sound)} rows have values that are missing, infinite or no numbers, "
            f"at most {MAX_BAD_SHARE:.0%} may",
            where=f"{where}: {'; '.join(names[:3])}",
            fix="Mend the source, or name other columns",
        )
    return Series(raw.values, sound, raw.labels, len(bad), names)


def _filled(series: Series) -> Series:
    """Bad rows repeat the last sound one, as far as it is near."""
    rows = np.arange(len(series.sound))
    last = np.maximum.accumulate(np.where(series.sound, rows, -1))
    fill = ~series.sound & (last >= 0) & (rows - last <= MAX_FILLED_ROWS)
    values = series.values.copy()
    values[fill] = series.values[last[fill]]
    return Series(
        values, series.sound | fill, series.labels, series.bad, series.bad_names, int(fill.sum())
    )  # fmt: skip


# --- .csv -------------------------------------------------------------------------------------------------------------


def _rows(file: Path) -> Iterator[list[str]]:
    if file.stat().st_size > MAX_CSV_BYTES:
        raise DataError(f"the file is longer than {MAX_CSV_BYTES >> 20} MiB", where=str(file), fix="Cut it into parts")
    with file.open("rb") as binary:
        text = io.TextIOWrapper(binary, "utf-8-sig", newline="")
        try:
            reader = csv.reader(text, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header or len(set(header)) < len(header):
                raise DataError("the first line is not a list of different column names", where=str(file))
            if len(header) > MAX_COLUMNS + 1:
                raise DataError(f"more than {MAX_COLUMNS} columns", where=str(file))
            yield header
            yield from reader
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError("the .csv file cannot be read", where=f"{file}: {reason(error)}") from error


def _read_csv(file: Path, columns: Sequence[str], label: str) -> _Raw:
    rows = _rows(file)
    header = next(rows)
    places = [_place(header, name, file) for name in columns]
    marks = _label_place(header, label, file)
    table = _Table(len(places))
    labels: list[bool] = []
    why: dict[int, str] = {}
    for row in rows:
        if not row:  # a blank line
            continue
        if table.rows == MAX_ROWS:
            raise DataError(f"more than {MAX_ROWS} rows", where=str(file), fix="Cut the file into parts")
        if len(row) != len(header):
            why[table.rows] = f"{len(row)} cells for {len(header)} columns"
            row = [""] * len(header)  # noqa: PLW2901 - the row as it counts
        cells = [_number(row[place]) for place in places]
        if wrong := [row[place] for place, value in zip(places, cells, strict=True) if value is None]:
            why[table.rows] = f"{wrong[0][:MAX_CELL]!r} is not a number"
        table.add([math.nan if value is None else value for value in cells])
        if marks is not None:
            labels.append(_mark(row[marks], table.rows, file))
    return _Raw(table.values(), np.asarray(labels, bool) if marks is not None else None, why)


class _Table:
    """Rows as they come, packed now and then: Python's numbers take eight times the room."""

    def __init__(self, width: int) -> None:
        self.rows = 0
        self._width = width
        self._packed: list[Float32] = []
        self._loose: list[list[float]] = []

    def add(self, row: list[float]) -> None:
        self.rows += 1
        self._loose.append(row)
        if len(self._loose) == ROWS_AT_ONCE:
            self._pack()

    def values(self) -> Float32:
        """All rows [R, width]; what float32 cannot hold is infinite."""
        self._pack()
        return np.concatenate(self._packed)

    def _pack(self) -> None:
        with np.errstate(over="ignore"):
            rows = np.asarray(self._loose, np.float64).reshape(-1, self._width)
            self._packed.append(rows.astype(np.float32))
        self._loose = []


def _place(header: Sequence[str], name: str, where: Path) -> int:
    try:
        return header.index(name)
    except ValueError:
        raise DataError(
            f"there is no column {name!r}",
            where=f"{where}: {', '.join(header)[:200]}",
            fix="Name the file's columns in the order of the model's features: columns = [...]",
        ) from None


def _label_place(header: Sequence[str], label: str, where: Path) -> int | None:
    """Where the labels stand; a column that somebody named must be there."""
    if not label or (label == LABEL and label not in header):
        return None
    return _place(header, label, where)


def _number(cell: str) -> float | None:
    """A cell as a number: NaN when it says that nothing is there, `None` when it is something else."""
    text = cell.strip()
    if text.lower() in MISSING:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return None


def _mark(cell: str, row: int, where: Path) -> bool:
    value = _number(cell)
    if value is None or value not in (0.0, 1.0):
        if value is not None and math.isnan(value):
            return False  # a row nobody judged counts as normal
        raise DataError(f"the label {cell[:MAX_CELL]!r} is neither 0 nor 1", where=f"{where}: row {row}")
    return value == 1.0


# --- .npz -------------------------------------------------------------------------------------------------------------


def _read_npz(file: Path, columns: Sequence[str], label: str) -> _Raw:
    arrays = read_arrays(file, NPZ_KEYS)
    names = _npz_columns(file, arrays)
    x = arrays["x"] if arrays["x"].ndim > 1 else arrays["x"][:, None]
    if len(x) > MAX_ROWS or x.shape[0] * len(columns) * 4 > MAX_DATA_BYTES:
        raise DataError(f"{len(x)} rows are too many", where=str(file), fix=f"Cut the file: at most {MAX_ROWS} rows")
    with np.errstate(over="ignore"):
        values = x[:, [_place(names, name, file) for name in columns]].astype(np.float32)
    marks = arrays.get("label") if label else None
    if marks is not None and (marks.shape != (len(x),) or not np.isin(marks, (0, 1)).all()):
        raise DataError("label is not one 0 or 1 for each row", where=f"{file}: label")
    return _Raw(values, None if marks is None else marks.astype(bool), {})


def _npz_columns(file: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> tuple[str, ...]:
    x = arrays.get("x")
    if x is None or x.ndim not in (1, 2) or x.dtype.kind not in "fiu":
        raise DataError("the .npz file needs an array x of numbers [R, F] or [R]", where=str(file))
    width = 1 if x.ndim == 1 else x.shape[1]
    names = arrays.get("columns")
    found = tuple(map(str, names)) if names is not None and names.ndim == 1 else tuple(f"x{i}" for i in range(width))
    if len(found) != width or len(set(found)) < width or not 0 < width <= MAX_COLUMNS:
        raise DataError(f"the columns are not {width} different names", where=f"{file}: columns")
    return found
