"""What a job waits for, and the number that will let it go on. No clock, no file: facts in, a sentence out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from agent.messages import CLOCK_WRONG
from policies.policy import Policy
from policies.policy_schedule import MINUTES_A_DAY, parse_hours
from policies.schedule import QUIET, is_within

RETRY_S = 60.0  # a network that was away is asked again once a minute
RETRY_DISK_S = 5.0  # a full disk is usually emptied by a person or a log rotation
COOLER_KELVIN = 3.0  # below a job's own limit it goes on: a value at the limit would else stop and start it each second
HELD, QUEUED, WINDOW, JOB_HOT = "held", "queued", "window", "job.temperature"
DAEMON_STOPPED = "daemon-stopped"


@dataclass(frozen=True, slots=True)
class Until:
    """What releases a waiting job; numbers are `None` where there is none.

    `what` is a value of the board (`temperature_celsius`, `delta_t_celsius`, `charge`), or `time`, `network`,
    `operator`, `memory`, `supply`, `clock`, `disk` or `job`.
    """

    what: str
    below: float | None = None
    above: float | None = None
    ts: float | None = None
    """Seconds since 1970."""

    def table(self) -> dict[str, object]:
        """As JSON values."""
        return asdict(self)


class Why(NamedTuple):
    """Why a job waits: a stable code, a sentence, and what releases it."""

    code: str
    reason: str
    until: Until


@dataclass(frozen=True, slots=True)
class Hour:
    """The time as far as it is known."""

    now: float
    """Seconds since 1970."""
    minute_of_day: int | None
    """Local time, 0..1439; `None` while the clock cannot be trusted."""

    def at(self, minute: int) -> float | None:
        """When it is this minute of the day next, seconds since 1970; a change of the offset in between is not seen."""
        if self.minute_of_day is None:
            return None
        return self.now - self.now % 60 + (minute - self.minute_of_day) % MINUTES_A_DAY * 60

    def later(self, seconds: float) -> float | None:
        """So many seconds from now."""
        return None if self.minute_of_day is None else self.now + seconds


def board_waits(policy: Policy, rule: str, hour: Hour) -> Why:
    """The governor's `rule` says that nothing trains; the numbers are those at which it lets go."""
    thermal, battery = policy.thermal, policy.battery
    cool = thermal.pause.absolute_celsius - thermal.hysteresis_kelvin
    charge = round(battery.pause_charge + battery.hysteresis_charge, 6)  # 0.10 + 0.05 would be a hair above 0.15
    hours = policy.schedule.minutes()
    released = {
        "thermal.delta-t-pause": Until("delta_t_celsius", below=thermal.pause.delta_kelvin - thermal.hysteresis_kelvin),
        "thermal.absolute-pause": Until("temperature_celsius", below=cool),
        "thermal.critical": Until("temperature_celsius", below=cool),
        "thermal.sensor-missing-pause": Until("temperature_celsius"),
        "battery.pause": Until("charge", above=charge),
        QUIET: Until("time", ts=None if hours is None else hour.at(hours[1])),
    }
    return Why(rule, "waits for the board", released.get(rule, Until("job")))  # else a stress run has the board


def held() -> Why:
    """An operator paused the job."""
    return Why(HELD, "paused by an operator", Until("operator"))


def queued() -> Why:
    """Another job, or a stress run, has the board. Which one is not said: every job in the line would be told anew."""
    return Why(QUEUED, "another one has the board", Until("job"))


def put_aside(code: str, reason: str, hour: Hour) -> Why:
    """A worker could not go on, or was not to: the network is away, the clock is wrong, the daemon stops."""
    if code == CLOCK_WRONG:
        return Why(code, reason, Until("clock"))
    if code == DAEMON_STOPPED:
        return Why(code, reason, Until("operator"))
    return Why(code, reason, Until("network", ts=hour.later(RETRY_S)))


def window_closed(spec: Mapping[str, object], hour: Hour) -> Why | None:
    """Why a job with a window may not work now; `None` where it may."""
    window = spec.get("window")
    hours = parse_hours(window) if isinstance(window, str) and window else None
    if hours is None:
        return None
    if hour.minute_of_day is None:
        return Why(WINDOW, f"the clock is not set, so whether it is {window} is not known", Until("clock"))
    if is_within(hours, hour.minute_of_day):
        return None
    return Why(WINDOW, f"works {window} only", Until("time", ts=hour.at(hours[0])))


def too_hot(spec: Mapping[str, object], celsius: float | None, *, before: bool) -> Why | None:
    """Why a job with a temperature of its own rests now; `None` where it does not.

    Args:
        spec: of the job.
        celsius: of the die; while it is not known nothing changes, the policy judges that.
        before: whether it rested for this until now.
    """
    most = spec.get("most_temperature_celsius")
    if not isinstance(most, int | float) or most <= 0:
        return None
    mark = most - COOLER_KELVIN if before else most
    rests = before if celsius is None else celsius > mark
    if rests:
        return Why(
            JOB_HOT, f"the job rests above {most:g} °C", Until("temperature_celsius", below=most - COOLER_KELVIN)
        )
    return None
