"""A day of a simulated board: weather, mains that goes away, jobs that arrive, and whoever steers.

    python -m agent.board.day --profile raspberry-pi-4 [--steered-by kernel] [--ambient 25] [--seed 0] [--json]

The governor and its policy are the production ones; the board is modelled, so every figure is modelled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.board.kernel_governors import KernelSteered
from agent.board.physics import COLDEST_AIR_CELSIUS, CONSTANTS, WARMEST_AIR_CELSIUS
from agent.board.profile import named_policy_text, named_profile
from agent.board.simulated import SimulatedBoard
from agent.errors import TemperdError
from policies.governor import GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import DEPTH_LADDER, Policy, parse_policy
from policies.reading import Action, Decision, Reading

DAY_S = 86_400
HOUR_S = 3600
WARMEST_HOUR = 15.0
DELTA_BOUND_KELVIN, DELTA_PAUSE_KELVIN = 30.0, 35.0  # R7's two marks
HOT_CELSIUS = 80.0  # Raspberry Pi firmware throttles from here on
NO_RULES = ("run", "unlimited", "plan")
RESTING_LOAD = 0.02  # of the daemon and the system between jobs (assumed)

STEP_SECONDS = (0.087, 0.050, 0.038, 0.024, 0.016)
"""Measured: seconds of a step of 16 samples of MobileNetV2 at each depth of `DEPTH_LADDER`, on one thread of an x86
machine (docs/freezing.md, table of `temperd bench freeze`)."""
BATCH = 16
SLOWER: Mapping[str, float] = {"raspberry-pi-4": 8.0, "raspberry-pi-5": 3.0, "jetson-orin-nano": 3.0, "edge-22w": 2.0}
"""How much longer all cores of a board take for such a step at the top clock (assumed)."""


@dataclass(slots=True)
class DayJob:
    """One job of the day."""

    arrives_s: int
    samples: float
    """To be trained: epochs times training samples."""
    depth_percent: int
    """Freeze depth of its plan."""
    done: float = 0.0


@dataclass(frozen=True, slots=True)
class DayPlan:
    """What happens to the board from midnight on."""

    profile: str
    ambient_celsius: float = 25.0
    """Mean over the day."""
    swing_kelvin: float = 8.0
    """How far the warmest hour (15:00) is above the mean."""
    off_mains: tuple[int, int] = (18 * HOUR_S, 20 * HOUR_S + 1800)
    """The mains is away from the first second to the second."""
    jobs_a_day: float = 12.0
    """Arrive at random, by a Poisson process."""
    mean_job_s: float = 3600.0
    """Of a job as planned, at the top clock; drawn from an exponential distribution."""
    seconds: int = DAY_S
    seed: int = 0

    def air_celsius(self, second: float) -> float:
        """Temperature of the air: a sine over the day."""
        hours = second / HOUR_S - WARMEST_HOUR
        return self.ambient_celsius + self.swing_kelvin * math.cos(2.0 * math.pi * hours / 24.0)

    def jobs(self) -> list[DayJob]:
        """The jobs, in order of arrival; the same for the same seed."""
        dice = random.Random(self.seed)  # noqa: S311 - a day, no secret
        found: list[DayJob] = []
        second = dice.expovariate(self.jobs_a_day / DAY_S)
        while second < self.seconds:
            cost = dice.choice(measured_costs(self.profile)[:-1])
            samples = math.ceil(dice.expovariate(1.0 / self.mean_job_s) / cost.sample_s)
            found.append(DayJob(int(second), float(samples), cost.depth_percent))
            second += dice.expovariate(self.jobs_a_day / DAY_S)
        return found


@dataclass(slots=True)
class DayReport:
    """What came of it. Joules are the board's whole supply; temperatures are true ones, not the sensor's."""

    profile: str
    steered_by: str
    jobs: int = 0
    jobs_done: int = 0
    samples: float = 0.0
    joules: float = 0.0
    highest_delta_kelvin: float = 0.0
    highest_celsius: float = -273.15
    seconds_over_30_kelvin: int = 0
    seconds_over_35_kelvin: int = 0
    seconds_over_80_celsius: int = 0
    seconds_throttled: int = 0
    """Of firmware or kernel."""
    seconds_working: int = 0
    """On, with a job at hand, paused or not."""
    seconds_off: int = 0
    """Cut off by an empty battery."""
    lowest_charge: float = 1.0
    clock_changes: int = 0
    seconds_by_action: dict[str, int] = field(default_factory=dict)
    """While there was a job."""
    seconds_by_rule: dict[str, int] = field(default_factory=dict)

    @property
    def joules_a_sample(self) -> float:
        """Of everything the board drew that day, for each sample trained; infinite without one."""
        return self.joules / self.samples if self.samples else math.inf


class _Steered:
    """Steers a board as the daemon does: read, decide, apply. Its kernel does beneath it what it does anyway.

    Without a policy the kernel is alone, and jobs run as planned.
    """

    def __init__(self, board: SimulatedBoard, policy: Policy | None) -> None:
        self._policy, self._state, self._kernel = policy, GovernorState(), KernelSteered(board)

    def step(
        self, board: SimulatedBoard, mono_s: float, outlook: Outlook, *, working: bool
    ) -> tuple[Reading, Decision]:
        """One tick."""
        reading, decision = board.read(mono_s), Decision()
        if not board.alive:  # so is the daemon not
            return reading, decision
        if self._policy is not None:
            self._state, decision = decide(self._policy, self._state, reading, outlook)
            board.apply(decision)
        self._kernel.follow(board, reading, load=1.0 if working else None)
        return reading, decision


def measured_costs(profile: str) -> tuple[DepthCost, ...]:
    """Cost table of the day's jobs on that board: `STEP_SECONDS` times `SLOWER`."""
    slower = SLOWER[profile]
    pairs = zip(DEPTH_LADDER, STEP_SECONDS, strict=True)
    return tuple(DepthCost(depth, seconds / BATCH * slower, measured=True) for depth, seconds in pairs)


def simulate_day(plan: DayPlan, policy: Policy | None) -> DayReport:
    """Play `plan`, a second at a time, steered by temperd under `policy`, or by the kernel alone (`None`).

    Raises:
        ConfigError: that board is not emulated.
    """
    board = SimulatedBoard(plan.profile, ambient_celsius=plan.air_celsius(0.0), seed=plan.seed)
    steered = _Steered(board, policy)
    report = DayReport(plan.profile, "kernel" if policy is None else policy.name)
    jobs, waiting = plan.jobs(), deque[DayJob]()
    arriving, costs = deque(jobs), measured_costs(plan.profile)
    report.jobs = len(jobs)
    for second in range(plan.seconds):
        board.ambient_celsius = plan.air_celsius(second)
        board.on_mains = not plan.off_mains[0] <= second < plan.off_mains[1]
        while arriving and arriving[0].arrives_s <= second:
            waiting.append(arriving.popleft())
        job = waiting[0] if waiting else None
        row = board.index
        reading, decision = steered.step(board, float(second), _outlook(job, costs, second), working=job is not None)
        report.clock_changes += job is not None and board.index != row
        _work(board, job, decision, costs)
        _account(report, board, reading, decision, working=job is not None)
        if job is not None and (job.done >= job.samples or decision.action is Action.ABORT):
            report.jobs_done += job.done >= job.samples
            waiting.popleft()
    report.samples, report.joules = sum(job.done for job in jobs), board.joules
    return report


def _outlook(job: DayJob | None, costs: tuple[DepthCost, ...], second: int) -> Outlook:
    minute = second // 60 % (24 * 60)
    if job is None:
        return Outlook(minute_of_day=minute)
    return Outlook(
        plan_depth_percent=job.depth_percent,
        costs=tuple(cost for cost in costs if cost.depth_percent >= job.depth_percent),
        samples_left=max(math.ceil(job.samples - job.done), 0),
        samples_done=int(job.done),
        minute_of_day=minute,
    )


def _work(board: SimulatedBoard, job: DayJob | None, decision: Decision, costs: tuple[DepthCost, ...]) -> None:
    """One second passes. The job trains at the deeper of its plan's and the Decision's depth."""
    duty = 0.0 if job is None or decision.action >= Action.PAUSE else decision.duty
    share = board.clock_share
    lived = board.advance(1.0, max(duty, RESTING_LOAD))
    if job is not None and duty > 0.0:
        depth = max(job.depth_percent, decision.least_depth_percent)
        cost = next(cost for cost in costs if cost.depth_percent >= depth)
        job.done = min(job.done + lived * duty * share / cost.sample_s, job.samples)


def _account(report: DayReport, board: SimulatedBoard, reading: Reading, decision: Decision, *, working: bool) -> None:
    truth = board.truth
    delta = truth.die_celsius - truth.ambient_celsius
    report.highest_delta_kelvin = max(report.highest_delta_kelvin, delta)
    report.highest_celsius = max(report.highest_celsius, truth.die_celsius)
    report.seconds_over_30_kelvin += delta > DELTA_BOUND_KELVIN
    report.seconds_over_35_kelvin += delta > DELTA_PAUSE_KELVIN
    report.seconds_over_80_celsius += truth.die_celsius > HOT_CELSIUS
    report.seconds_throttled += reading.throttled
    report.seconds_off += not truth.alive
    report.lowest_charge = min(report.lowest_charge, truth.charge)
    if working and truth.alive:
        report.seconds_working += 1
        _count(report.seconds_by_action, decision.action.name.lower())
        for rule in sorted({decision.rule, decision.frequency_rule, decision.depth_rule, *decision.notes}):
            if rule not in NO_RULES:
                _count(report.seconds_by_rule, rule)


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1


def lines_of(report: DayReport) -> list[str]:
    """The report as text."""
    hours = report.seconds_working / HOUR_S
    most = sorted(report.seconds_by_rule.items(), key=lambda pair: -pair[1])
    rules = ", ".join(f"{rule} {seconds} s" for rule, seconds in most) or "none"
    changes = report.clock_changes / max(hours * 60.0, 1.0)
    return [
        f"{report.profile}, steered by {report.steered_by} (modelled)",
        f"jobs                {report.jobs_done} of {report.jobs} done, {report.samples:.0f} samples, {hours:.1f} h",
        f"energy              {report.joules / HOUR_S:.1f} Wh, {report.joules_a_sample:.3f} J a sample",
        f"highest             {report.highest_celsius:.1f} °C, {report.highest_delta_kelvin:.1f} K over the air",
        f"over 30 K, 35 K     {report.seconds_over_30_kelvin} s, {report.seconds_over_35_kelvin} s",
        f"over 80 °C          {report.seconds_over_80_celsius} s; throttled {report.seconds_throttled} s",
        f"battery             down to {report.lowest_charge:.0%}; off {report.seconds_off} s",
        f"clock changes       {report.clock_changes}, {changes:.2f} a minute of work",
        f"rules               {rules}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m agent.board.day", description="A day of a simulated board.")
    parser.add_argument("--profile", default="raspberry-pi-4", choices=sorted(CONSTANTS))
    parser.add_argument("--steered-by", default="temperd", choices=("temperd", "kernel"))
    parser.add_argument("--policy", help="name of a policy that ships (default: the board's own)")
    parser.add_argument("--ambient", type=float, default=25.0, help="mean of the air over the day, in °C")
    parser.add_argument("--swing", type=float, default=8.0, help="warmest hour over the mean, in K")
    parser.add_argument("--hours", type=float, default=24.0, help="how much of the day, from midnight on")
    parser.add_argument("--seed", type=int, default=0, help="of jobs and sensor noise")
    parser.add_argument("--json", action="store_true", help="as JSON")
    asked = parser.parse_args(arguments)
    coldest, warmest = asked.ambient - abs(asked.swing), asked.ambient + abs(asked.swing)
    if not (coldest >= COLDEST_AIR_CELSIUS and warmest <= WARMEST_AIR_CELSIUS):  # NaN is outside too
        parser.error(
            f"--ambient and --swing must keep the air between {COLDEST_AIR_CELSIUS:g} and {WARMEST_AIR_CELSIUS:g} °C"
        )
    if not 0.0 < asked.hours <= DAY_S / HOUR_S:
        parser.error("--hours must be above 0 and at most 24")
    try:
        policy = parse_policy(named_policy_text(asked.policy or named_profile(asked.profile).policy_name))
    except TemperdError as error:
        parser.error(str(error))
    plan = DayPlan(asked.profile, asked.ambient, asked.swing, seconds=math.ceil(asked.hours * HOUR_S), seed=asked.seed)
    report = simulate_day(plan, policy if asked.steered_by == "temperd" else None)
    text = json.dumps(dataclasses.asdict(report), indent=2) if asked.json else "\n".join(lines_of(report))
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
