"""How long a job worked, and how long it will: two clocks that leave out its pauses. Time comes from the caller."""

from __future__ import annotations

import math

PACE_MEMORY_S = 60.0  # a pace of the last minute: it follows the governor, and no single step shakes it
LEAST_PACE_S = 2.0  # of work, before anything is said of what is left


class WorkClock:
    """Counts seconds while there is work.

    Args:
        before_s: from earlier attempts.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._seconds = before_s
        self._since: float | None = None

    def seconds(self, mono_s: float) -> float:
        """So far, at the monotonic time `mono_s`."""
        return self._seconds + (0.0 if self._since is None else max(0.0, mono_s - self._since))

    def turn(self, mono_s: float, *, on: bool) -> None:
        """From now on there is work, or none."""
        self._seconds, self._since = self.seconds(mono_s), mono_s if on else None


class Pace:
    """Seconds a sample takes, rests by duty and checkpoints included, pauses left out."""

    def __init__(self) -> None:
        self._seconds = self._samples = 0.0
        self._before: tuple[float, int] | None = None

    def rest(self) -> None:
        """The job pauses: the time until the next step does not count."""
        self._before = None

    def step(self, mono_s: float, samples: int) -> None:
        """So many samples are done at the monotonic time `mono_s`."""
        before, self._before = self._before, (mono_s, samples)
        if before is None or samples < before[1]:
            return
        span = mono_s - before[0]
        fade = math.exp(-span / PACE_MEMORY_S)
        self._seconds, self._samples = self._seconds * fade + span, self._samples * fade + samples - before[1]

    def eta_s(self, samples_left: int | None) -> float | None:
        """Seconds until so many samples are done; `None` while nothing is known."""
        if samples_left is None or self._seconds < LEAST_PACE_S or self._samples <= 0:
            return None
        return samples_left * self._seconds / self._samples
