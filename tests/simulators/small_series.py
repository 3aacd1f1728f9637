"""Small made-up series: a machine with a rhythm, and how it may fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SEASON = 12


def machine(rows: int, seed: int = 0, level: float = 20.0, swing: float = 5.0) -> np.ndarray:
    """Load and temperature [R, 2]: load has a season of twelve rows, temperature follows it later and smoothed."""
    rng = np.random.default_rng(seed)
    load = np.sin(2 * np.pi * np.arange(rows) / SEASON) + 0.15 * rng.standard_normal(rows)
    warm = np.convolve(np.concatenate([np.zeros(5), load]), np.full(6, 1 / 6), "valid")
    return np.stack([level + swing * load, 2 * level + swing * warm + 0.1 * rng.standard_normal(rows)], axis=1)


def with_faults(rows: np.ndarray, starts: tuple[int, ...], length: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Rows in which the temperature stands still at its ceiling for a while, and their labels [R]."""
    values, labels = rows.copy(), np.zeros(len(rows), int)
    for start in starts:
        values[start : start + length, 1] = rows[:, 1].max() * 1.2
        labels[start : start + length] = 1
    return values, labels


def write_csv(path: Path, values: np.ndarray, labels: np.ndarray | None = None) -> Path:
    """A .csv file with the columns load, temperature and, where there are labels, label."""
    header = "load,temperature" + (",label" if labels is not None else "")
    rows = [",".join(f"{value:.5g}" for value in row) for row in values]
    if labels is not None:
        rows = [f"{row},{label}" for row, label in zip(rows, labels, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path
