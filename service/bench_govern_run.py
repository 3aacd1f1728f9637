"""Jobs on a simulated board under one governor: heat, clock and power are modelled, step times were measured.

Which depths a job went through is what comes out; what they teach is found by real training afterwards
(`bench_govern_learning`), because no rule looks at loss or score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from agent.board.kernel_governors import KernelSteered
from agent.board.profile import named_policy_text
from agent.board.simulated import SimulatedBoard
from policies.governor import GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import DEPTH_LADDER, Policy, parse_policy
from policies.reading import Action, Decision, least_depth_after
from service.bench_govern_learning import Depths, EpochCost, runs_prefix

TICK_S = 1.0  # as the daemon's
SLOWDOWN: Mapping[str, float] = {
    "raspberry-pi-4": 8.0,
    "raspberry-pi-5": 3.5,
    "jetson-orin-nano": 4.0,
    "edge-22w": 3.0,
}
"""How much longer a step takes on all cores of the board at its top clock than on one thread of the machine that
measured it: assumed. It scales times and energies of all governors alike."""
QUALIFY_S = 600.0
"""Excitation before the predictive policy is judged: as long as `temperd qualify`."""
QUALIFY_STAY_S = 20.0  # at each operating point and fan level: long against the die, short against the board
COOL_S = 3600.0  # several time constants of the slowest board
LONGEST_JOB_S = 6 * 3600.0
"""A job that takes longer is given up: a governor that keeps a board paused must not keep the bench."""
STEADY_AFTER_S = 300.0  # twice the longest time constant of the boards, with the fan at rest


class Governor(Protocol):
    """Steers a board once a tick."""

    def tick(self, board: SimulatedBoard, outlook: Outlook) -> Decision:
        """Look, decide, act; the Decision the worker obeys."""


class KernelGovernor:
    """No temperd: the kernel's `ondemand` and `step_wise`, and a worker that nobody steers."""

    def __init__(self, board: SimulatedBoard) -> None:
        self._kernel = KernelSteered(board)

    def tick(self, board: SimulatedBoard, outlook: Outlook) -> Decision:
        """See `Governor`."""
        del outlook
        self._kernel.step(board, board.elapsed_s)
        return Decision()


class TemperdGovernor:
    """temperd's governor under a policy.

    Args:
        policy: thresholds.
        without: what the fixed rules decide instead of the prediction, to see what it is worth: `clock`, `fan`.
    """

    def __init__(self, policy: Policy, without: str = "") -> None:
        self._policy, self._state, self._without = policy, GovernorState(), without
        fixed = dataclasses.replace(policy.predictive, enabled=False)
        self._fixed, self._fixed_state = dataclasses.replace(policy, predictive=fixed), GovernorState()

    def tick(self, board: SimulatedBoard, outlook: Outlook) -> Decision:
        """See `Governor`."""
        reading = board.read(board.elapsed_s)
        self._state, decision = decide(self._policy, self._state, reading, outlook)
        if self._without:
            self._fixed_state, fixed = decide(self._fixed, self._fixed_state, reading, outlook)
            decision = _replaced(decision, fixed, self._without)
        board.apply(decision)
        return decision

    def qualify(self, board: SimulatedBoard) -> None:
        """Walk through operating points, fan levels and loads, so that the policy's models learn the board.

        Thermal bounds hold meanwhile. Afterwards the board rests until it is as cool as before.
        """
        parts = board.constants
        cases = [
            (row, fan, load)
            for fan in range(parts.fan_levels, 0, -1)
            for row in (0, len(parts.points) - 1, len(parts.points) // 2)
            for load in (1.0, 0.3)
        ]
        case = 0
        began_s = board.elapsed_s
        while board.elapsed_s - began_s < QUALIFY_S:
            row, fan, load = cases[case % len(cases)]
            until = board.elapsed_s + QUALIFY_STAY_S
            while board.elapsed_s < until:
                self._state, decision = decide(self._policy, self._state, board.read(board.elapsed_s), Outlook())
                cap = min(parts.points[row].frequency_hz, decision.frequency_cap_hz or parts.points[-1].frequency_hz)
                cooling = max(fan, decision.cooling_level)
                board.apply(dataclasses.replace(decision, frequency_cap_hz=cap, cooling_level=cooling))
                board.advance(TICK_S, load if decision.action < Action.PAUSE else 0.0)
            case += 1
        board.restore()
        board.advance(COOL_S, 0.0)


def _replaced(decision: Decision, fixed: Decision, part: str) -> Decision:
    if part == "fan":
        return dataclasses.replace(decision, cooling_level=fixed.cooling_level)
    return dataclasses.replace(
        decision, frequency_cap_hz=fixed.frequency_cap_hz, frequency_rule=fixed.frequency_rule, duty=fixed.duty
    )


def board_policy(board: SimulatedBoard, *, predictive: bool) -> Policy:
    """The policy that ships for a board, with or without prediction."""
    policy = parse_policy(named_policy_text(board.profile.policy_name))
    return dataclasses.replace(policy, predictive=dataclasses.replace(policy.predictive, enabled=predictive))


@dataclass(frozen=True, slots=True)
class Milestone:
    """The end of an epoch: seconds and joules since the job's start."""

    depth_percent: int
    seconds: float
    joules: float


class SimulatedJob:
    """A job at work: the real worker's order of things, with time measured here times the board's slowdown.

    Depths are taken up between epochs; the real worker does so between steps.

    Args:
        costs: of an epoch at each depth of the ladder.
        plan: freeze depth planned, in percent.
        epochs: of the job.
        samples: training samples of an epoch.
        slowdown: of the board.
    """

    def __init__(self, costs: Sequence[EpochCost], plan: int, epochs: int, samples: int, slowdown: float) -> None:
        self._plan, self._epochs, self._samples, self._slowdown = plan, epochs, samples, slowdown
        self._costs = {cost.depth_percent: cost for cost in costs}
        self._depth_costs = tuple(DepthCost(c.depth_percent, c.sample_s * slowdown, measured=True) for c in costs)
        self._left: list[float] = []
        """Seconds at the top clock of what is left of the epoch: boundary and frozen part, steps, judging."""
        self.depths: Depths = ()

    @property
    def finished(self) -> bool:
        """Whether the last epoch is over."""
        return len(self.depths) == self._epochs and not self._left

    @property
    def samples_done(self) -> float:
        """Training samples so far."""
        if not self._left:
            return len(self.depths) * self._samples
        steps_s = self._costs[self.depths[-1]].steps_s * self._slowdown
        part = {3: 0.0, 2: 1.0 - self._left[0] / steps_s, 1: 1.0}[len(self._left)]
        return (len(self.depths) - 1 + part) * self._samples

    @property
    def epochs_done(self) -> int:
        """Epochs that have ended."""
        return len(self.depths) - bool(self._left)

    def outlook(self, deadline_mono_s: float | None = None) -> Outlook:
        """The job as the governor sees it."""
        done = int(self.samples_done)
        return Outlook(
            plan_depth_percent=self._plan,
            costs=self._depth_costs,
            samples_left=self._epochs * self._samples - done,
            samples_done=done,
            deadline_mono_s=deadline_mono_s,
        )

    def work(self, seconds: float, order: Decision) -> float:
        """Spend seconds at the top clock, to the epoch's end at most; the seconds that are left then."""
        if not self._left:
            self._begin(least_depth_after(order, self.samples_done))
        while self._left:
            if seconds < self._left[0]:
                self._left[0] -= seconds
                return 0.0
            seconds -= self._left.pop(0)
        return seconds

    def _begin(self, least_depth: int) -> None:
        wanted = max(self._plan, least_depth)
        depth = next((rung for rung in DEPTH_LADDER if rung >= wanted), DEPTH_LADDER[-1])
        moved = bool(self.depths) and self.depths[-1] != depth
        self.depths = (*self.depths, depth)
        cost = self._costs[depth]
        made = (cost.compile_s if moved else 0.0) + (cost.prefix_s if runs_prefix(self.depths) else 0.0)
        self._left = [part * self._slowdown for part in (made, cost.steps_s, cost.judging_s)]


@dataclass(slots=True)
class Watched:
    """What a run on a board is judged by."""

    seconds: float = 0.0
    joules: float = 0.0
    above_delta_s: float = 0.0
    """Die more than the policy's delta-T bound (30 K) over the air."""
    above_absolute_s: float = 0.0
    """Die above the policy's first absolute trip."""
    hottest_delta_kelvin: float = 0.0
    paused_s: float = 0.0
    clock_changes: int = 0
    """After `STEADY_AFTER_S`."""
    fan_changes: int = 0
    steady_s: float = 0.0
    samples: float = 0.0
    jobs: list[list[Milestone]] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)
    """Seconds in which each rule bound action, clock or depth."""


class Track:
    """A board with a governor, on which jobs run."""

    def __init__(self, board: SimulatedBoard, governor: Governor, limits: Policy) -> None:
        self.board, self.seen = board, Watched()
        self._governor = governor
        self._delta_kelvin = limits.thermal.slow.delta_kelvin
        self._absolute_celsius = limits.thermal.slow.absolute_celsius
        self._point: tuple[int, int] | None = None

    def run(
        self, job: SimulatedJob, deadline_s: float | None = None, alive: Callable[[Decision], bool] = lambda _: True
    ) -> bool:
        """Run a job to its end; False if the board, `alive` or `LONGEST_JOB_S` ended it."""
        board, seen = self.board, self.seen
        began_s, began_j = board.elapsed_s, board.joules
        milestones: list[Milestone] = []
        seen.jobs.append(milestones)
        deadline = None if deadline_s is None else began_s + deadline_s
        before = 0.0
        while not job.finished:
            decision = self._governor.tick(board, job.outlook(deadline))
            if not board.alive or not alive(decision) or board.elapsed_s - began_s > LONGEST_JOB_S:
                return False
            share = board.clock_share * (decision.duty if decision.action < Action.PAUSE else 0.0)
            self._advance(decision)
            left = TICK_S * share
            while left > 0.0 and not job.finished:
                epochs = len(milestones)
                left = job.work(left, decision)
                if job.epochs_done > epochs:  # some way into this tick: counted as at its end
                    now = Milestone(job.depths[-1], board.elapsed_s - began_s, board.joules - began_j)
                    milestones.append(now)
            seen.samples += job.samples_done - before
            before = job.samples_done
        return True

    def _advance(self, decision: Decision) -> None:
        board, seen = self.board, self.seen
        running = decision.action < Action.PAUSE
        joules = board.joules
        board.advance(TICK_S, decision.duty if running else 0.0)
        seen.seconds += TICK_S
        seen.joules += board.joules - joules
        seen.paused_s += 0.0 if running else TICK_S
        delta = board.truth.die_celsius - board.truth.ambient_celsius
        seen.hottest_delta_kelvin = max(seen.hottest_delta_kelvin, delta)
        seen.above_delta_s += TICK_S if delta > self._delta_kelvin else 0.0
        seen.above_absolute_s += TICK_S if board.truth.die_celsius > self._absolute_celsius else 0.0
        for rule in {decision.rule, decision.frequency_rule, decision.depth_rule, *decision.notes}:
            seen.rules[rule] = seen.rules.get(rule, 0) + 1
        point = (board.index, board.fan_level)
        if self._point is not None and seen.seconds > STEADY_AFTER_S:
            seen.clock_changes += point[0] != self._point[0]
            seen.fan_changes += point[1] != self._point[1]
            seen.steady_s += TICK_S
        self._point = point
