"""The new system on trial: seen from the board's first minutes after its restart, until it stays or is left.

Healthy are a daemon that is ready, a model that answers, a broker that is reached where it was reached before, and a
die that is no hotter than under the system before. What is found wrong is written down before the board is told to go
back, so it goes back once: a second restart for the same command never happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from policies.reading import Reading
from policies.trial_health import (
    IDLE,
    LEAST_SHARE,
    TRAINING,
    Baseline,
    HeatBook,
    HeatMargins,
    baseline_of,
    settle_s,
    too_hot,
)
from service.statuses import Clock

GATE, LINK, HEAT, CRASHED = "trial-gate", "trial-link", "trial-heat", "crashed"
MAX_STARTS = 3  # of the daemon in one trial: one may be a person's, three are a pattern


@dataclass(frozen=True, slots=True)
class Sight:
    """What a trial looks at.

    Attributes:
        reading: the board now.
        training: whether a job trains.
        working: whether anything is at work.
        connected: whether the broker is reached.
        gate: tries the active model; what is wrong with it, empty: nothing.
    """

    reading: Callable[[], Reading]
    training: Callable[[], bool]
    working: Callable[[], bool]
    connected: Callable[[], bool]
    gate: Callable[[], Awaitable[str]]


class Book:
    """What the running system measures of itself, so that the next one can be compared with it.

    Args:
        sight: see `Sight`.
        clock: see `Clock`.
        settle: readings so soon after a change of load do not count, seconds.
    """

    def __init__(self, sight: Sight, clock: Clock, settle: float | None = None) -> None:
        self._sight, self._clock = sight, clock
        self._book = HeatBook() if settle is None else HeatBook(settle)
        self._had_link = False

    def look(self) -> None:
        """Take one reading; call once a second."""
        sight, reading = self._sight, self._sight.reading()
        load = TRAINING if sight.training() else "" if sight.working() else IDLE
        over_air = None if reading.ambient_is_baseline else reading.delta_t_celsius
        self._book.add(self._clock.mono(), load, reading.temperature_celsius, over_air)
        self._had_link = self._had_link or sight.connected()

    def baseline(self) -> Baseline:
        """What is known."""
        return Baseline(self._book.heats(), self._had_link)


class SystemTrial:
    """One window of one daemon's life.

    Args:
        before: what the system before measured, see `policies.trial_health`.
        window_s: how long to watch.
        starts: of the daemon in this trial, this one included.
        sight: see `Sight`.
        clock: see `Clock`.
    """

    def __init__(self, before: dict[str, object], window_s: float, starts: int, sight: Sight, clock: Clock) -> None:
        self._before, self._window_s, self._starts = baseline_of(before), window_s, starts
        self._sight, self._clock = sight, clock
        self._book, self._began_s = Book(sight, clock, settle_s(window_s)), clock.mono()
        self._tested, self._wrong = False, ""

    @property
    def watched_s(self) -> float:
        """Seconds since it began."""
        return self._clock.mono() - self._began_s

    @property
    def untested(self) -> bool:
        """Whether the model has still to be tried: by `test`, while nothing is at work."""
        return not self._tested

    @property
    def over(self) -> bool:
        """Whether it was watched for long enough."""
        return self.watched_s >= self._window_s

    async def test(self) -> None:
        """Try the active model."""
        self._wrong = await self._sight.gate()
        self._tested = True

    def look(self) -> tuple[str, str] | None:
        """What is wrong, a code and a sentence; empty texts: nothing, and the window is over. `None`: go on looking."""
        if self._starts > MAX_STARTS:
            return CRASHED, f"the daemon was started {self._starts} times in the trial"
        if self._wrong:
            return GATE, self._wrong
        self._book.look()
        now = self._book.baseline()
        if hot := too_hot(HeatMargins(), self._before.heat, now.heat, int(self._window_s * LEAST_SHARE)):
            return HEAT, hot
        if not self.over or self.untested:
            return None
        if self._before.had_link and not now.had_link:
            return LINK, f"the broker was not reached in {self._window_s:g} s, and it was before"
        return "", ""
