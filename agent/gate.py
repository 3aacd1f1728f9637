"""Judging a tuned model: by the job's held-out samples, the owner's, class by class, and by how far its weights moved.

The policy of the board's owner sets the bounds. A job can ask for more than they do, never for less.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.card import IMAGE_CLASSIFICATION
from agent.engine.base import Float32
from agent.engine.infer import Inference
from agent.engine.ir import Array, parse
from agent.errors import TemperdError
from agent.evaluate import Score, Verdict, gate
from agent.gate_classes import class_table, class_verdict
from agent.gate_weights import Start, moved, weight_verdict
from agent.promote import active_slot, load_active
from agent.store import Store
from agent.task import Task
from policies.policy import GatePolicy

Forward = Callable[[Float32], Float32]
ScoreWith = Callable[[Forward, Task], Score]


class RefusedError(TemperdError):
    """The gate refused the tuned model; the active one stays."""

    def __init__(self, verdict: Verdict, result: dict[str, object]) -> None:
        super().__init__("the tuned model may not run", where=verdict.evidence, reason=verdict.reason)
        self.result = result


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a job's model is measured by.

    Attributes:
        policy: the owner's part.
        least_gain: the stricter of policy and job.
        keeps_head: whether the base knew the classes, so that its answers mean something.
    """

    policy: GatePolicy
    least_gain: float
    keeps_head: bool

    @classmethod
    def of(cls, policy: GatePolicy, least_gain: float, *, keeps_head: bool) -> Bounds:
        """Bounds for a job that asks for `least_gain`."""
        return cls(policy, max(policy.least_gain, least_gain), keeps_head)


@dataclass(slots=True)
class Judged:
    """The scores of one set of held-out samples: base, tuned and running model."""

    task: Task
    before: Score
    after: Score | None = None
    running: Score | None = None

    def known(self, bounds: Bounds) -> tuple[Score | None, ...]:
        """Models that knew these classes."""
        return (self.before if bounds.keeps_head else None, self.running)


@dataclass(slots=True)
class Gate:
    """Judges one job. Make it before training, for the base's scores; ask `verdict` after.

    Attributes:
        bounds: what counts.
        start: the weights that learn, as they were.
        own: on the job's held-out samples.
        owners: on those of the board's owner, where there are any.
    """

    bounds: Bounds
    start: Start
    own: Judged
    owners: Judged | None = None
    told: dict[str, object] = field(default_factory=dict)
    """What was measured, as JSON values, once `verdict` was asked."""

    def score(self, after: Score, forward: Forward, score_with: ScoreWith) -> None:
        """Take the tuned model's score on the job's samples, and measure that on the owner's."""
        self.own.after = after
        if self.owners is not None:
            self.owners.after = score_with(forward, self.owners.task)

    def score_running(self, store: Store, threads: int, warn: Callable[[str], None], score_with: ScoreWith) -> None:
        """Measure the active model on the same samples, when the two can be compared."""
        active = active_slot(store, warn)
        if active is None or active.manifest.get("task", IMAGE_CLASSIFICATION) != self.own.task.name:
            return
        judging = [(judged, judged.task.judging(active.manifest)) for judged in (self.own, self.owners) if judged]
        if all(task is None for _, task in judging) or (loaded := load_active(store, warn)) is None:
            return
        run = Inference(parse(loaded[0]), threads).run
        for judged, task in judging:
            judged.running = score_with(run, task) if task is not None else None

    def verdict(self, tuned: Mapping[str, Array]) -> Verdict:
        """Whether the tuned model, with these weights by name, may be promoted: the gravest refusal, if there is one.

        Precondition: `score` was called; `score_running` too, where a model may be active.
        """
        bounds, policy = self.bounds, self.bounds.policy
        distances = moved(self.start, tuned)
        self.told = {"weights": distances.table()}
        refusals = [weight_verdict(distances, policy)]
        for name, judged, gain in (
            ("owners", self.owners, -policy.held_out_drop),
            ("own", self.own, bounds.least_gain),
        ):
            if judged is None or judged.after is None:
                continue
            floor = judged.task.baselines[0]
            passed = gate(judged.after, judged.before, judged.running, floor, gain)
            classes = class_verdict(judged.after, judged.known(bounds), judged.task.classes, policy)
            self.told[name] = _told(judged, bounds)
            refusals += [_named(verdict, name) for verdict in (passed, classes) if verdict and not verdict.accepted]
        return next((found for found in refusals if found is not None), Verdict(accepted=True, reason="", evidence=""))


def _named(verdict: Verdict, name: str) -> Verdict:
    """Refusals by the owner's samples say so."""
    if name == "own":
        return verdict
    return Verdict(accepted=False, reason=verdict.reason, evidence=f"by the owner's samples: {verdict.evidence}")


def _told(judged: Judged, bounds: Bounds) -> dict[str, object]:
    assert judged.after is not None
    scores = {"before": judged.before, "after": judged.after, "running": judged.running}
    told: dict[str, object] = {name: told_score(score) for name, score in scores.items()}
    told["samples"] = judged.after.samples
    if judged.after.by_class:
        told["classes"] = class_table(judged.after, judged.known(bounds), judged.task.classes)
    return told


def told_score(score: Score | None) -> float | None:
    """The score as JSON can hold it."""
    return score.value if score is not None and score.finite else None
