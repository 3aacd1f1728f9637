"""The plan of a job: chosen once, written to the journal, kept by every later attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from agent.card import MAX_LABELS
from agent.cost import CostTable
from agent.engine.base import UpdatePlan
from agent.errors import EngineError
from agent.messages import OUT_OF_MEMORY, can_shrink
from agent.spec import FineTuneSpec
from agent.update_plan import Learner, learners_macs
from policies.freezing import HEAD_ONLY_PERCENT, choose_depth, snap
from policies.policy import DEPTH_LADDER, Policy
from policies.strict import TableError, build, limits

OUT_OF_MEMORY_FIX = "Lower batch or image_size, freeze deeper, or end other programs; the active model is untouched"
MAX_LEARNERS = 20_000  # parameters of a model with as many nodes as are read


@dataclass(frozen=True, slots=True)
class Rung:
    """One depth of the ladder: nominal percent, the boundary it was snapped to, and what a sample's step costs."""

    percent: int
    frozen_layers: int
    step_macs: int
    crossing_bytes: int


@dataclass(frozen=True, slots=True)
class Trial:
    """Loss on training samples that were set apart, after a short training at a depth."""

    percent: int
    loss: float


@dataclass(frozen=True, slots=True)
class DepthChoice:
    """A freeze depth that trials chose.

    Attributes:
        percent: nominal depth.
        rule: that chose it.
        trials: loss at each depth that was tried, in percent of frozen layers, in the order of the trials.
    """

    percent: int
    rule: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job will do.

    Attributes:
        engine: name of the engine.
        depth_percent: nominal freeze depth.
        rule: the rule that chose it, or `spec` when the job asked for it.
        similarity: cosine of target and source features, or `None`.
        ladder: boundaries for every depth the governor may ask for.
        layers: parametric layers of the model.
        classes: class names in output order.
        head: `keep` or `replace`.
        batch: samples a step.
        steps: steps an epoch.
        data_sha256: fingerprint of the data it was made for.
        micro_batch: samples that go through the step at once; it divides `batch`. 0: the whole batch.
        shrunk: memory ran out before and the micro-batch was halved.
        learners: parameters that learn, of those past the boundary, in execution order; empty: all of them. Those of
            the head are among them.
        step_macs: multiply-accumulates of the planned step for one sample.
        trials: that chose the depth, if any did.
        model_bytes: size of all parameters; 0 in plans of before.
    """

    engine: str
    depth_percent: int
    rule: str
    similarity: float | None
    ladder: tuple[Rung, ...]
    layers: int
    classes: tuple[str, ...] = field(metadata=limits(longest=MAX_LABELS))
    head: str
    batch: int
    steps: int
    data_sha256: str
    micro_batch: int = 0
    shrunk: bool = False
    learners: tuple[Learner, ...] = field(default=(), metadata=limits(longest=MAX_LEARNERS))
    step_macs: int = 0
    trials: tuple[Trial, ...] = ()
    model_bytes: int = 0

    def update(self, boundary: int) -> UpdatePlan:
        """What learns with `boundary` frozen layers."""
        learning = frozenset(learner.parameter for learner in self.learners if learner.layer >= boundary)
        return UpdatePlan(boundary, learning or None)

    def frozen_layers(self, least_depth_percent: int) -> tuple[int, int]:
        """Depth in percent and boundary when at least `least_depth_percent` must be frozen."""
        wanted = max(self.depth_percent, least_depth_percent)
        rung = self.rung(wanted)
        return rung.percent, rung.frozen_layers

    def passes(self, epochs: int) -> int:
        """Passes over the parameters that so many epochs take: one for each micro-batch."""
        return epochs * self.steps * (self.batch // (self.micro_batch or self.batch))

    def rung(self, percent: int) -> Rung:
        """The shallowest rung that freezes at least `percent`."""
        return _at_least(self.ladder, percent)


def _at_least(ladder: tuple[Rung, ...], percent: int) -> Rung:
    return next((rung for rung in ladder if rung.percent >= percent), ladder[-1])


def make_plan(
    spec: FineTuneSpec,
    policy: Policy,
    costs: CostTable,
    similarity: float | None,
    *,
    engine: str,
    classes: tuple[str, ...],
    head: str,
    samples: int,
    data_sha256: str,
    chosen: DepthChoice | None = None,
    learners: tuple[Learner, ...] = (),
) -> Plan:
    """Choose depth and batch for a job on `samples` training samples.

    `learners`, where there are any, say how deep to freeze; else the job's order does, else `chosen`, else similarity.
    """
    crossing = (*costs.crossing_bytes, 0)
    ladder = tuple(_rung(costs, percent, snap(crossing, percent)) for percent in DEPTH_LADDER)
    percent, rule = _depth(spec, policy, similarity, ladder, chosen, learners)
    batch = min(spec.batch, samples)
    return Plan(
        engine,
        percent,
        rule,
        similarity,
        ladder,
        len(costs.layers),
        classes,
        head,
        batch,
        -(-samples // batch),
        data_sha256,
        _divisor(batch, spec.micro_batch) if spec.micro_batch else 0,
        learners=learners,
        step_macs=learners_macs(costs, learners) if learners else _at_least(ladder, percent).step_macs,
        trials=chosen.trials if chosen else (),
        model_bytes=costs.weight_bytes(),
    )


def _depth(
    spec: FineTuneSpec,
    policy: Policy,
    similarity: float | None,
    ladder: tuple[Rung, ...],
    chosen: DepthChoice | None,
    learners: tuple[Learner, ...],
) -> tuple[int, str]:
    """Nominal depth in percent and the rule that says so."""
    if learners:
        first = min(learner.layer for learner in learners)
        return max(rung.percent for rung in ladder if rung.frozen_layers <= first), f"update.{spec.update}"
    if spec.depth != "auto":
        return spec_percent(spec), "spec"
    return (chosen.percent, chosen.rule) if chosen else choose_depth(policy.freezing, similarity)


def spec_percent(spec: FineTuneSpec) -> int:
    """The depth that the job asks for; 0 where it leaves the choice."""
    return {"auto": 0, "head": HEAD_ONLY_PERCENT}.get(spec.depth) or int(spec.depth if spec.depth.isdigit() else 0)


def first_layer(costs: CostTable, spec: FineTuneSpec) -> int:
    """How many layers the job's own depth keeps frozen, whatever learns behind them."""
    return snap((*costs.crossing_bytes, 0), spec_percent(spec))


def shrink(plan: Plan) -> Plan:
    """The plan once memory ran out: half the micro-batch. The update stays that of the whole batch.

    A plan that cannot shrink comes back as it is: a worker may be killed for other reasons too.

    Raises:
        EngineError: `out-of-memory`: it was shrunk before.
    """
    at_once = plan.micro_batch or plan.batch
    if plan.shrunk:
        size = f"{at_once} sample{'s' * (at_once > 1)} at once"
        raise EngineError(
            f"not enough memory for this job, with {size} too", fix=OUT_OF_MEMORY_FIX, reason=OUT_OF_MEMORY
        )
    if not can_shrink(plan_table(plan)):
        return plan
    return replace(plan, micro_batch=_divisor(plan.batch, at_once // 2), shrunk=True)


def _divisor(batch: int, most: int) -> int:
    """The largest divisor of `batch` that is at most `most`."""
    return next(size for size in range(min(most, batch), 0, -1) if batch % size == 0)


def _rung(costs: CostTable, percent: int, frozen_layers: int) -> Rung:
    return Rung(percent, frozen_layers, costs.step_macs(frozen_layers), costs.crossing_bytes[frozen_layers])


def plan_table(plan: Plan) -> dict[str, object]:
    """The plan as JSON values."""
    return asdict(plan)


def parse_plan(table: Mapping[str, object]) -> Plan:
    """Read what `plan_table` made.

    Raises:
        EngineError: the journal holds a plan of another version.
    """
    try:
        return build(Plan, table)
    except TableError as error:
        raise EngineError(
            f"the journal's plan cannot be read: {error.what}", where=error.key, fix="Send the job again"
        ) from error
