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
        critical: whether the die is above the abort trip.
        gate: tries the active model; what is wrong with it, empty: nothing.
    """

    reading: Callable[[], Reading]
    training: Callable[[], bool]
    working: Callable[[], bool]
    connected: Callable[[], bool]
    critical: Callable[[], bool]
    gate: Callable[[], Awaitable[str]]


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
        self._book, self._began_s = HeatBook(settle_s(window_s)), clock.mono()
        self._tested, self._wrong = False, ""
        self._connected = self._critical = False

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
        self._read()
        over = self.over and not self.untested
        margins, least = HeatMargins(), int(self._window_s * LEAST_SHARE)
        wrong = (
            (CRASHED, self._starts > MAX_STARTS, f"the daemon was started {self._starts} times in the trial"),
            (GATE, self._wrong, self._wrong),
            (HEAT, hot := too_hot(margins, self._before.heat, self._book.heats(), least), hot),
            (HEAT, self._critical and not self._before.critical, "the die came above the abort trip, as never before"),
            (LINK, over and self._before.had_link and not self._connected, f"no broker in {self._window_s:g} s"),
        )
        found = next(((code, why) for code, holds, why in wrong if holds), None)
        return found or (("", "") if over else None)

    def _read(self) -> None:
        sight, reading = self._sight, self._sight.reading()
        load = TRAINING if sight.training() else "" if sight.working() else IDLE
        over_air = None if reading.ambient_is_baseline else reading.delta_t_celsius
        self._book.add(self._clock.mono(), load, reading.temperature_celsius, over_air)
        self._connected = self._connected or sight.connected()
        self._critical = self._critical or sight.critical()
