"""Windows of a series: split by time, normalized by the card's statistics, cut when they are needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.card import WindowRule
from agent.engine.base import Float32, Int64
from agent.errors import DataError, SpecError
from agent.series import Series, read_series
from agent.spec import FineTuneSpec

LEAST_WINDOWS = 8  # in each part: fewer give a score that means nothing


@dataclass(frozen=True, slots=True)
class Windows:
    """A series with the rows at which its windows begin; the windows themselves are never stored.

    Attributes:
        series: the rows.
        train: [N] first row of each training window.
        test: [M] first row of each held-out window.
        gap: windows left out of both for a bad row in them.
    """

    series: Series
    train: Int64
    test: Int64
    gap: int

    def inputs(self, starts: Int64, rule: WindowRule) -> Float32:
        """Windows at `starts` [N] as the model's input [N, *rule.sample_shape]."""
        return arranged(self.series.values[_rows(starts, rule.window)], rule)

    def targets(self, starts: Int64, rule: WindowRule) -> Float32:
        """What follows the windows at `starts`: the target column in its own units [N, H]."""
        rows = _rows(starts + rule.window, rule.horizon)
        found: Float32 = self.series.values[rows, rule.columns.index(rule.target)]
        return found

    def anomalous(self, starts: Int64, window: int) -> npt.NDArray[np.bool_]:
        """Whether a window [N] holds a labelled row."""
        assert self.series.labels is not None
        return np.asarray(self.series.labels[_rows(starts, window)].any(axis=1), bool)

    def fingerprint(self) -> str:
        """SHA-256 over values, labels and both parts, in hexadecimal."""
        digest = hashlib.sha256()
        labels = self.series.labels
        for array in (self.train, self.test, self.series.values, *(() if labels is None else (labels,))):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _rows(starts: Int64, count: int) -> Int64:
    """Row numbers [N, count] of windows at `starts`."""
    return starts[:, None] + np.arange(count)


def arranged(rows: Float32, rule: WindowRule) -> Float32:
    """Windows of rows [N, T, F], normalized and laid out as the rule says."""
    normal = (rows - np.asarray(rule.mean, np.float32)) / np.asarray(rule.deviation, np.float32)
    if rule.layout == "FT":
        normal = normal.transpose(0, 2, 1)
    return np.ascontiguousarray(normal, np.float32).reshape(len(rows), *rule.sample_shape)


def cut(series: Series, rule: WindowRule, held_out: float, stride: int, most: int, where: str) -> Windows:
    """Windows of a series: the last share of the rows is held out.

    Time splits the data, never chance: neighbouring windows share rows, and what comes later must not teach. A training
    window ends, its horizon included, before the first held-out row. A held-out window may look back at earlier rows
    for a forecast, as it will in use, but all that is judged (the window of an anomaly score, the horizon of a
    forecast) lies in the held-out part.

    Args:
        series: rows in time order.
        rule: window, horizon.
        held_out: share of the rows.
        stride: rows from one window to the next.
        most: bound; more windows are refused, not silently cut.
        where: the file, for messages.

    Raises:
        DataError: too many windows, or too few in a part.
    """
    length = rule.window + rule.horizon
    rows = len(series.sound)
    border = rows - round(rows * held_out)
    starts = whole_windows(series, length, stride)
    train = starts[starts + length <= border]
    test = starts[starts + (rule.window if rule.horizon else 0) >= border]
    if len(train) + len(test) > most:
        raise DataError(
            f"{len(train) + len(test)} windows are more than most_samples = {most}",
            where=where,
            fix="Raise most_samples, or stride",
        )
    for name, part in (("training", train), ("held-out", test)):
        if len(part) < LEAST_WINDOWS:
            raise DataError(
                f"the {name} part holds {len(part)} whole windows of {length} rows, at least {LEAST_WINDOWS} are "
                f"needed: {rows} rows, {series.bad} of them bad",
                where=where,
                fix='Give more rows, or try missing = "fill"',
            )
    return Windows(series, train, test, len(range(0, rows - length + 1, stride)) - len(starts))


def whole_windows(series: Series, length: int, stride: int = 1) -> Int64:
    """First rows of all windows of `length` rows, none of them bad."""
    starts = np.arange(0, max(0, len(series.sound) - length + 1), stride, dtype=np.int64)
    bad_before = np.concatenate(([0], np.cumsum(~series.sound)))
    found: Int64 = starts[bad_before[starts + length] == bad_before[starts]]
    return found


def read_windows(spec: FineTuneSpec, rule: WindowRule, label: str) -> Windows:
    """Read a job's series and cut it; `label` names the column of labels, empty where none is wanted.

    Raises:
        DataError: see `read_series` and `cut`.
        SpecError: not as many columns as the model has features.
    """
    columns = spec.columns or rule.columns
    if len(columns) != len(rule.columns):
        raise SpecError(
            f"{len(columns)} columns for the model's {len(rule.columns)}: {', '.join(rule.columns)[:200]}",
            where="columns",
            fix="Name one column of the data for each, in this order",
        )
    series = read_series(spec.data, columns, label, spec.missing)
    return cut(series, rule, spec.held_out, spec.stride, spec.most_samples, spec.data)


def skipped_rows(windows: Windows) -> tuple[int, str]:
    """Bad rows of a series, and in words what became of them."""
    series = windows.series
    if not series.bad:
        return 0, ""
    what = f"{series.bad} bad row{'s' * (series.bad > 1)}, {series.filled} of them filled"
    return series.bad, f"{what}, {windows.gap} windows left out: {'; '.join(series.bad_names)}"
