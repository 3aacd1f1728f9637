"""Energy from power readings: joules by the monotonic clock, and the two figures made of them (R9)."""

from __future__ import annotations

LONGEST_GAP_S = 5.0
"""Readings come once a second; over a longer silence nobody knows what the power was."""


class EnergyMeter:
    """Integrates watts over monotonic time by the trapezoid rule.

    A span between two readings that is longer than `longest_gap_s`, or that has a reading without power at one end, is
    not integrated: it counts in `gap_s`, so that the reader knows what is missing from `joules`.
    """

    def __init__(self, longest_gap_s: float = LONGEST_GAP_S) -> None:
        self._longest_gap_s = longest_gap_s
        self._last: tuple[float, float | None, bool] | None = None
        self.joules = 0.0
        self.seconds = 0.0
        """Time that `joules` covers."""
        self.gap_s = 0.0
        """Time that passed without being integrated."""
        self.gaps = 0
        self.modelled = False
        """True as soon as any part of `joules` comes from a model instead of a sensor."""

    def add(self, mono_s: float, watts: float | None, *, modelled: bool) -> None:
        """Take one reading.

        Args:
            mono_s: monotonic clock, in seconds.
            watts: power, or `None` when unknown.
            modelled: the power comes from a model.

        Raises:
            ValueError: the clock went backwards.
        """
        before, self._last = self._last, (mono_s, watts, modelled)
        if before is None:
            return
        since_s, since_watts, since_modelled = before
        span = mono_s - since_s
        if span < 0:
            self._last = before
            raise ValueError(f"monotonic time went back from {since_s} to {mono_s}")
        if span > self._longest_gap_s or watts is None or since_watts is None:
            self.gap_s += span
            self.gaps += 1
            return
        self.joules += (watts + since_watts) / 2.0 * span
        self.seconds += span
        self.modelled = self.modelled or modelled or since_modelled


def joules_per_sample(joules: float, samples: int) -> float | None:
    """E_sample = E_total / N_success (R9), N_success being the samples whose update was finite and kept.

    `None` when there was none.
    """
    return joules / samples if samples > 0 else None


def gops_per_watt(operations: float, joules: float) -> float | None:
    """Giga-operations a second per watt (R9): the same as giga-operations a joule. `None` without energy."""
    return operations / 1e9 / joules if joules > 0 else None
