"""Short-term forecasting as a task: a window of the past in, the next values of one column out, mean absolute error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from agent.card import FORECASTING, WindowRule, parse_window_rule, window_table
from agent.engine.base import Float32, Int64, LossSpec
from agent.errors import SpecError
from agent.evaluate import Baseline, Float64, Score, score_forecast
from agent.spec import FineTuneSpec
from agent.windows import Windows, read_windows, skipped_rows


@dataclass(frozen=True)
class Forecasting:
    """See `agent.task.Task`. `season` is the job's where it names one, else the card's; 0: none."""

    windows: Windows
    rule: WindowRule
    loss: LossSpec
    season: int
    name: str = FORECASTING
    classes: tuple[str, ...] = ()

    @property
    def train_samples(self) -> int:
        """Windows to learn from."""
        return len(self.windows.train)

    @property
    def test_samples(self) -> int:
        """Windows held out."""
        return len(self.windows.test)

    @cached_property
    def actual(self) -> Float64:
        """What followed the held-out windows [M, H], in the units of the data."""
        return self.windows.targets(self.windows.test, self.rule).astype(np.float64)

    @cached_property
    def baselines(self) -> tuple[Baseline, ...]:
        """The last value stays (naive-last); what was one season ago comes again (seasonal-naive)."""
        rule, starts = self.rule, self.windows.test
        past = self.windows.series.values[:, rule.columns.index(rule.target)].astype(np.float64)
        last = past[starts + rule.window - 1][:, None]
        found = [Baseline("naive_last", _mae(last, self.actual), "the last value alone")]
        if 0 < self.season <= rule.window:
            again = starts[:, None] + rule.window + np.arange(rule.horizon) % self.season - self.season
            found.append(Baseline("seasonal_naive", _mae(past[again], self.actual), "the last season alone"))
        return tuple(found)

    def inputs(self, chosen: Int64) -> Float32:
        """Windows [N, ...]."""
        return self.windows.inputs(self.windows.train[chosen], self.rule)

    def view(self, chosen: Int64, number: int) -> Float32:
        """The windows themselves; other views are refused before."""
        assert number == 0
        return self.inputs(chosen)

    def targets(self, chosen: Int64) -> Float32:
        """The values that followed [N, H], normalized as the target column is."""
        mean, deviation = target_statistics(self.rule)
        values = self.windows.targets(self.windows.train[chosen], self.rule)
        return ((values - np.float32(mean)) / np.float32(deviation)).astype(np.float32)

    def test_inputs(self, start: int, stop: int) -> Float32:
        """Held-out windows [M, ...]."""
        return self.windows.inputs(self.windows.test[start:stop], self.rule)

    def measured(self, outputs: Float32, start: int) -> Float64:  # noqa: ARG002 - forecasts are judged all at once
        """Forecasts [M, H] in the units of the data."""
        return in_units(outputs, self.rule)

    def score(self, measured: Float64) -> Score:
        """Mean absolute error."""
        return score_forecast(measured, self.actual)

    def fingerprint(self) -> str:
        """See `Windows.fingerprint`."""
        return self.windows.fingerprint()

    def skipped(self) -> tuple[int, str]:
        """Rows that could not be read, and which."""
        return skipped_rows(self.windows)

    def with_classes(self, classes: tuple[str, ...]) -> Forecasting:
        """There are no classes."""
        assert not classes
        return self

    def manifest(self) -> dict[str, object]:
        """What predicting needs."""
        return {"windows": window_table(self.rule)}

    def judging(self, manifest: dict[str, object]) -> Forecasting | None:
        """For a model that forecasts the same column as far, from the same columns and window."""
        rule = parse_window_rule(manifest.get("windows"))
        mine = self.rule
        same = (rule.columns, rule.window, rule.target, rule.horizon)
        if same != (mine.columns, mine.window, mine.target, mine.horizon):
            return None
        return replace(self, rule=rule)

    def decision(self, forward: Callable[[Float32], Float32]) -> dict[str, object]:  # noqa: ARG002 - nothing to learn
        """Nothing: a forecast is its own answer."""
        return {}


def target_statistics(rule: WindowRule) -> tuple[float, float]:
    """Mean and deviation of the column forecast."""
    place = rule.columns.index(rule.target)
    return rule.mean[place], rule.deviation[place]


def in_units(outputs: Float32, rule: WindowRule) -> Float64:
    """Model outputs [M, H] in the units of the data."""
    mean, deviation = target_statistics(rule)
    return outputs.astype(np.float64) * deviation + mean


def _mae(found: Float64, actual: Float64) -> float:
    return float(np.abs(found - actual).mean())


def forecasting(spec: FineTuneSpec, rule: WindowRule) -> Forecasting:
    """The windows of a job.

    Raises:
        DataError: see `read_series` and `cut`.
        SpecError: a loss that fits no values, or a season longer than the window.
    """
    kind = "huber" if spec.loss == "auto" else spec.loss
    if kind not in ("mse", "l1", "huber"):
        raise SpecError(f"{kind} does not fit {FORECASTING}", where="loss", fix="Take huber, l1 or mse")
    season = spec.season or rule.season
    if season > rule.window:
        raise SpecError(f"a season of {season} rows is longer than the window of {rule.window}", where="season")
    return Forecasting(read_windows(spec, rule, ""), rule, LossSpec(kind), season)
