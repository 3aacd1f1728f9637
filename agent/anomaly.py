"""Anomaly detection as a task: an autoencoder reconstructs normal windows well and the others badly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from agent.card import ANOMALY_DETECTION, WindowRule, parse_window_rule, window_table
from agent.engine.base import Float32, Int64, LossSpec
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import DataError, SpecError
from agent.evaluate import CHANCE, Baseline, Float64, Score, score_errors
from agent.series import Labels
from agent.spec import FineTuneSpec
from agent.windows import LEAST_WINDOWS, Windows, read_windows, skipped_rows

THRESHOLD_QUANTILE = 0.995  # of normal training windows: one false alarm in two hundred where the future is like them
THRESHOLD_WINDOWS = 4000  # that quantile then rests on twenty windows above it


@dataclass(frozen=True)
class AnomalyDetection:
    """See `agent.task.Task`. The training windows are the normal ones: those that hold no labelled row."""

    windows: Windows
    rule: WindowRule
    loss: LossSpec
    name: str = ANOMALY_DETECTION
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
    def anomalous(self) -> Labels | None:
        """[M] which held-out windows hold a labelled row; `None` unless there are windows of both kinds."""
        if self.windows.series.labels is None:
            return None
        found = self.windows.anomalous(self.windows.test, self.rule.window)
        return found if 0 < int(found.sum()) < len(found) else None

    @cached_property
    def baselines(self) -> tuple[Baseline, ...]:
        """By chance; without labels, always the mean of the training windows."""
        if self.anomalous is not None:
            return (Baseline("chance", CHANCE, "chance"),)
        chosen = self.windows.train[:: max(1, self.train_samples // THRESHOLD_WINDOWS)]
        mean = self.windows.inputs(chosen, self.rule).mean(axis=0, dtype=np.float64)
        parts = [
            window_errors(mean, self.test_inputs(i, i + FORWARD_CHUNK))
            for i in range(0, self.test_samples, FORWARD_CHUNK)
        ]
        return (Baseline("mean", float(np.concatenate(parts).mean()), "the mean window alone"),)

    def inputs(self, chosen: Int64) -> Float32:
        """Normal windows [N, ...]."""
        return self.windows.inputs(self.windows.train[chosen], self.rule)

    def view(self, chosen: Int64, number: int) -> Float32:
        """The windows themselves; other views are refused before."""
        assert number == 0
        return self.inputs(chosen)

    def targets(self, chosen: Int64) -> Float32:
        """The inputs themselves."""
        return self.inputs(chosen)

    def test_inputs(self, start: int, stop: int) -> Float32:
        """Held-out windows [M, ...]."""
        return self.windows.inputs(self.windows.test[start:stop], self.rule)

    def measured(self, outputs: Float32, start: int) -> Float64:
        """Mean squared error of each window [M]."""
        return window_errors(outputs, self.test_inputs(start, start + len(outputs)))

    def score(self, measured: Float64) -> Score:
        """AUC where labels of both kinds are held out, else the mean error."""
        return score_errors(measured, self.anomalous)

    def fingerprint(self) -> str:
        """See `Windows.fingerprint`."""
        return self.windows.fingerprint()

    def skipped(self) -> tuple[int, str]:
        """Rows that could not be read, and which."""
        return skipped_rows(self.windows)

    def with_classes(self, classes: tuple[str, ...]) -> AnomalyDetection:
        """There are no classes."""
        assert not classes
        return self

    def manifest(self) -> dict[str, object]:
        """What predicting needs, beside the threshold."""
        return {"windows": window_table(self.rule)}

    def judging(self, manifest: dict[str, object]) -> AnomalyDetection | None:
        """For a model of the same columns and window; without labels also of the same normalization."""
        rule = parse_window_rule(manifest.get("windows"))
        same = (rule.columns, rule.window) == (self.rule.columns, self.rule.window)
        if not same or (self.anomalous is None and rule != self.rule):
            return None
        return replace(self, rule=rule)

    def decision(self, forward: Callable[[Float32], Float32]) -> dict[str, object]:
        """The threshold: a window whose error is greater is called anomalous."""
        chosen = np.linspace(0, self.train_samples - 1, min(self.train_samples, THRESHOLD_WINDOWS)).astype(np.int64)
        parts = []
        for start in range(0, len(chosen), FORWARD_CHUNK):
            inputs = self.inputs(chosen[start : start + FORWARD_CHUNK])
            parts.append(window_errors(forward(inputs), inputs))
        return {"threshold": float(np.quantile(np.concatenate(parts), THRESHOLD_QUANTILE))}


def window_errors(outputs: Float32 | Float64, inputs: Float32) -> Float64:
    """Mean squared error of each of M samples; outputs [M, ...], or one [...] for all."""
    wide = (np.asarray(outputs, np.float64) - inputs) ** 2
    found: Float64 = wide.reshape(len(inputs), -1).mean(axis=1)
    return found


def anomaly_detection(spec: FineTuneSpec, rule: WindowRule) -> AnomalyDetection:
    """The windows of a job.

    Raises:
        DataError: see `read_series` and `cut`.
        SpecError: a loss that fits no values.
    """
    kind = "mse" if spec.loss == "auto" else spec.loss
    if kind not in ("mse", "l1", "huber"):
        raise SpecError(f"{kind} does not fit {ANOMALY_DETECTION}", where="loss", fix="Take mse, l1 or huber")
    windows = read_windows(spec, rule, spec.label)
    if windows.series.labels is not None:
        normal = windows.train[~windows.anomalous(windows.train, rule.window)]
        if len(normal) < LEAST_WINDOWS:
            raise DataError(f"only {len(normal)} training windows hold no labelled anomaly", where=spec.data)
        windows = replace(windows, train=normal)
    return AnomalyDetection(windows, rule, LossSpec(kind))
