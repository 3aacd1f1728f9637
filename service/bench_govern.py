"""`bench govern`: one job under the kernel alone, under the fixed rules and under prediction, on simulated boards."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.board.injection import Injection
from agent.board.physics import CONSTANTS
from agent.board.simulated import SimulatedBoard
from agent.images import Images
from policies.policy import Policy
from policies.reading import Action, Decision
from service.bench_govern_kept import kept_file, read_kept, write_kept
from service.bench_govern_learning import Course, Depths, Learning
from service.bench_govern_run import (
    SLOWDOWN,
    Governor,
    KernelGovernor,
    Milestone,
    SimulatedJob,
    TemperdGovernor,
    Track,
    Watched,
    board_policy,
)

AMBIENTS = (10, 25, 40)
KERNEL, RULES, PREDICTIVE, UNQUALIFIED = "kernel", "rules", "predictive", "unqualified"
GOVERNORS = (KERNEL, RULES, PREDICTIVE, UNQUALIFIED)
WITHOUT = ("depth", "clock", "fan", "dwell")
MAINS_S = 1800.0  # the boards are in thermal balance after 10 minutes
EQUAL_WITHIN = 0.005
"""Equal accuracy: what the job reaches at its planned depth, less half a point."""
DEADLINE_SHARE = 0.75
"""Of the time that the better of kernel and rules takes: a deadline they both miss."""

DIGITS = (600, 500)
"""Scanned digits to learn from and held out, where no data are given."""
HELD_OUT, MOST_SAMPLES = 0.25, 20_000

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared, and on what.

    Attributes:
        course: what is trained.
        seeds: of head and order of samples; accuracies are means over them.
        plans: planned freeze depths, in percent.
        boards: simulated boards.
        ambients: temperatures of the air, in degrees Celsius.
        mains_s: jobs run back to back at least this long.
        charge: state of charge with which jobs on battery begin.
        learnt: folder in which what was trained is kept, and looked for.
    """

    course: Course
    seeds: tuple[int, ...]
    plans: tuple[int, ...]
    boards: tuple[str, ...] = tuple(sorted(CONSTANTS))
    ambients: tuple[int, ...] = AMBIENTS
    mains_s: float = MAINS_S
    charge: float = 1.0
    learnt: Path | None = None


class Bench:
    """The same job everywhere; trained for real, once for each sequence of depths."""

    def __init__(self, study: Study, images: Images, tell: Callable[[str], None]) -> None:
        self._study, self._tell = study, tell
        self._samples = len(images.y_train)
        courses = [dataclasses.replace(study.course, seed=seed) for seed in study.seeds]
        self._files = [kept_file(study.learnt, course, images) if study.learnt else None for course in courses]
        self._learning = [
            Learning(course, images, read_kept(file, course.epochs) if file else None)
            for course, file in zip(courses, self._files, strict=True)
        ]
        tell("measuring what an epoch costs here at each depth")
        self.costs = self._learning[0].costs()

    def close(self) -> None:
        """Release the networks."""
        for learning in self._learning:
            learning.close()

    def plan(self, plan: int) -> dict[str, object]:
        """All figures for one planned depth."""
        study, costs = self._study, {cost.depth_percent: cost for cost in self.costs}
        self._tell(f"plan {plan} %: training it as planned")
        curve = self._accuracies((plan,) * study.course.epochs)
        goal = curve[-1] - EQUAL_WITHIN
        rows = [
            self._judged(plan, goal, board, ambient, governor)
            for board in study.boards
            for ambient in study.ambients
            for governor in GOVERNORS
        ]
        return {
            "plan_percent": plan,
            "planned_accuracy": curve[-1],
            "equal_accuracy": goal,
            "planned_epoch_s": costs[plan].steps_s + costs[plan].judging_s,
            "rows": rows,
            "compared": compared(rows),
            "ablation": self._ablation(plan, goal, rows),
            "deadline": [self._deadline(plan, goal, board, rows) for board in study.boards],
        }

    def _accuracies(self, depths: Depths) -> list[float]:
        """Held-out accuracy after each epoch, by real training: mean over the seeds."""
        return [statistics.fmean(run) for run in zip(*self._runs(depths), strict=True)]

    def _runs(self, depths: Depths) -> list[list[float]]:
        """The same for each seed."""
        sofar = [depths[: epoch + 1] for epoch in range(len(depths))]
        found = []
        for learning, file in zip(self._learning, self._files, strict=True):
            known = len(learning.learnt)
            found.append([learning.after(some).accuracy for some in sofar])
            if file and len(learning.learnt) > known:
                write_kept(file, learning.learnt)
        return found

    def _judged(
        self, plan: int, goal: float, board: str, ambient: int, governor: str, without: str = "", *, charge: bool = True
    ) -> Row:
        """One board under one governor: jobs back to back on mains, then on one charge."""
        track = self._track(board, ambient, governor, without)
        while track.seen.seconds < self._study.mains_s and track.run(self._job(plan, board)):
            pass
        row = {"board": board, "ambient_celsius": ambient, "governor": governor, **_seen(track.seen)}
        row |= self._reached(track.seen.jobs[-1], goal)
        if charge:
            row["charge"] = self._on_battery(plan, board, ambient, governor)
        self._tell(f"plan {plan} %, {board}, {ambient} °C, {governor}{without and ', without ' + without}")
        return row

    def _on_battery(self, plan: int, board: str, ambient: int, governor: str) -> Row:
        """Jobs back to back on battery, until the board is off or temperd pauses to spare the rest."""
        track = self._track(board, ambient, governor, "")
        track.board.on_mains = False
        track.board.inject(Injection(charge=self._study.charge))
        while track.run(self._job(plan, board), alive=_spends_charge):
            pass
        seen = track.seen
        return {
            "samples": round(seen.samples),
            "jobs": seen.samples / (self._samples * self._study.course.epochs),
            "minutes": seen.seconds / 60,
            "charge_left": track.board.truth.charge,
        }

    def _job(self, plan: int, board: str) -> SimulatedJob:
        return SimulatedJob(self.costs, plan, self._study.course.epochs, self._samples, SLOWDOWN[board])

    def _track(self, board: str, ambient: int, governor: str, without: str) -> Track:
        """A board at rest, its fan off until somebody asks for it, with its governor."""
        made = SimulatedBoard(board, ambient_celsius=ambient, start_fan=0)
        policy = board_policy(made, predictive=governor not in (KERNEL, RULES))
        return Track(made, _governor(made, policy, governor, without), policy)

    def _reached(self, job: Sequence[Milestone], goal: float) -> Row:
        """The last job of a run: from which epoch on it was as accurate as the planned one, and the cost until then."""
        curve = self._accuracies(tuple(epoch.depth_percent for epoch in job))
        place = stays_from(curve, goal)
        found = None if place is None else job[place]
        touched = next((epoch for epoch, accuracy in zip(job, curve, strict=True) if accuracy >= goal), None)
        return {
            "depths": [epoch.depth_percent for epoch in job],
            "accuracies": curve,
            "accuracy": curve[-1],
            "accuracy_by_seed": [run[-1] for run in self._runs(tuple(epoch.depth_percent for epoch in job))],
            "joules_to_equal": found.joules if found else None,
            "seconds_to_equal": found.seconds if found else None,
            "joules_to_touch": touched.joules if touched else None,
        }

    def _ablation(self, plan: int, goal: float, rows: Sequence[Row]) -> list[Row]:
        """Each part of the predictive policy switched off in turn, on all boards in all air."""
        study = self._study
        full = [row for row in rows if row["governor"] == PREDICTIVE]
        found = []
        for part in WITHOUT:
            less = [
                self._judged(plan, goal, board, ambient, PREDICTIVE, part, charge=False)
                for board in study.boards
                for ambient in study.ambients
            ]
            found.append({"without": part, **_worth(less, full), "rows": less})
        return found

    def _deadline(self, plan: int, goal: float, board: str, rows: Sequence[Row]) -> Row:
        """One job at 25 °C (or the air nearest to it) that is due before kernel and rules would be done."""
        ambient = min(self._study.ambients, key=lambda celsius: abs(celsius - 25))
        others = [
            row
            for row in rows
            if row["board"] == board and row["ambient_celsius"] == ambient and row["governor"] in (KERNEL, RULES)
        ]
        fastest_s = min(row["seconds_a_job"] for row in others)
        track = self._track(board, ambient, PREDICTIVE, "")
        track.run(self._job(plan, board), deadline_s=DEADLINE_SHARE * fastest_s)
        return {
            "board": board,
            "ambient_celsius": ambient,
            "deadline_s": DEADLINE_SHARE * fastest_s,
            "others_s": fastest_s,
            "others_to_equal_s": min(
                (row["seconds_to_equal"] for row in others if row["seconds_to_equal"]), default=None
            ),
            **_seen(track.seen),
            **self._reached(track.seen.jobs[-1], goal),
        }


def measure(study: Study, images: Images, tell: Callable[[str], None]) -> dict[str, object]:
    """All figures.

    Args:
        study: what is compared.
        images: what the job learns from.
        tell: receives a line of progress at a time.

    Raises:
        EngineError: training diverged.
        ModelError: the model cannot be trained.
    """
    bench = Bench(study, images, tell)
    try:
        plans = [bench.plan(plan) for plan in study.plans]
    finally:
        bench.close()
    return {
        **{key: value for key, value in dataclasses.asdict(study.course).items() if key != "seed"},
        "seeds": list(study.seeds),
        "train_samples": len(images.y_train),
        "held_out_samples": len(images.y_test),
        "costs": [dataclasses.asdict(cost) for cost in bench.costs],
        "slowdown": dict(SLOWDOWN),
        "plans": plans,
    }


def _governor(board: SimulatedBoard, policy: Policy, name: str, without: str) -> Governor:
    if name == KERNEL:
        return KernelGovernor(board)
    if without == "depth":
        planned = dataclasses.replace(policy.predictive, head_first_share=0.0, settled_share=1.0, late_share=1.0)
        policy = dataclasses.replace(policy, predictive=planned)
    elif without == "dwell":
        policy = dataclasses.replace(policy, predictive=dataclasses.replace(policy.predictive, dwell_s=1.0))
    governor = TemperdGovernor(policy, without if without in ("clock", "fan") else "")
    if name == PREDICTIVE:
        governor.qualify(board)
    return governor


def _spends_charge(decision: Decision) -> bool:
    return not (decision.action >= Action.PAUSE and decision.rule.startswith("battery."))


def _seen(seen: Watched) -> Row:
    jobs = sum(1 for job in seen.jobs if job)
    steady_minutes = seen.steady_s / 60
    return {
        "jobs": jobs,
        "seconds": seen.seconds,
        "watts": seen.joules / seen.seconds if seen.seconds else None,
        "seconds_a_job": seen.seconds / jobs if jobs else None,
        "joules_a_job": seen.joules / jobs if jobs else None,
        "above_delta_s": seen.above_delta_s,
        "above_absolute_s": seen.above_absolute_s,
        "hottest_delta_kelvin": seen.hottest_delta_kelvin,
        "paused_s": seen.paused_s,
        "clock_changes_a_minute": seen.clock_changes / steady_minutes if steady_minutes else None,
        "fan_changes_a_minute": seen.fan_changes / steady_minutes if steady_minutes else None,
        "rules_s": dict(sorted(seen.rules.items(), key=lambda item: -item[1])),
    }


def stays_from(curve: Sequence[float], goal: float) -> int | None:
    """The first epoch from which on the accuracy never falls below the goal again; `None` if the last one is below.

    What is promoted is what stands at the end, so an early epoch that was good by chance counts for nothing.
    """
    below = next((place for place in range(len(curve) - 1, -1, -1) if curve[place] < goal), -1)
    return None if below == len(curve) - 1 else below + 1


def compared(rows: Sequence[Row]) -> list[Row]:
    """Prediction against the better of the other two, for each board and air."""
    cells: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["board"], row["ambient_celsius"]), {})[row["governor"]] = row
    return [
        {"board": board, "ambient_celsius": ambient, **_compared(found)} for (board, ambient), found in cells.items()
    ]


def _compared(found: Mapping[str, Row]) -> Row:
    ours, kernel = found[PREDICTIVE], found[KERNEL]
    others = (kernel, found[RULES])
    return {
        "joules_percent": _percent(ours["joules_to_equal"], [row["joules_to_equal"] for row in others]),
        "seconds_percent": _percent(ours["seconds_to_equal"], [row["seconds_to_equal"] for row in others]),
        "joules_to_touch_percent": _percent(ours["joules_to_touch"], [row["joules_to_touch"] for row in others]),
        "joules_a_job_percent": _percent(ours["joules_a_job"], [row["joules_a_job"] for row in others]),
        "accuracy_points": 100 * (ours["accuracy"] - kernel["accuracy"]),
        "samples_a_charge": ours["charge"]["samples"] / kernel["charge"]["samples"],
    }


def _percent(ours: float | None, others: Sequence[float | None]) -> float | None:
    """Difference to the smaller of the others, in percent of it; `None` where there is nothing to compare."""
    known = [value for value in others if value is not None]
    return None if ours is None or not known else 100 * (ours / min(known) - 1)


def _worth(less: Sequence[Row], full: Sequence[Row]) -> Row:
    """What a part is worth: means over boards and air of what changes without it."""
    pairs = list(zip(less, full, strict=True))
    to_equal = [_percent(row["joules_to_equal"], [whole["joules_to_equal"]]) for row, whole in pairs]
    known = [value for value in to_equal if value is not None]
    return {
        "joules_a_job_percent": statistics.fmean(
            100 * (row["joules_a_job"] / whole["joules_a_job"] - 1) for row, whole in pairs
        ),
        "joules_to_equal_percent": statistics.fmean(known) if known else None,
        "seconds_a_job_percent": statistics.fmean(
            100 * (row["seconds_a_job"] / whole["seconds_a_job"] - 1) for row, whole in pairs
        ),
        "above_delta_s": sum(row["above_delta_s"] for row in less),
        "clock_changes_a_minute": max(row["clock_changes_a_minute"] or 0.0 for row in less),
        "fan_changes_a_minute": max(row["fan_changes_a_minute"] or 0.0 for row in less),
    }
