"""The plan of a job: chosen once, written to the journal, kept by every later attempt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from agent.card import MAX_LABELS
from agent.cost import CostTable
from agent.errors import EngineError
from agent.messages import OUT_OF_MEMORY, can_shrink
from agent.spec import FineTuneSpec
from policies.freezing import HEAD_ONLY_PERCENT, choose_depth, snap
from policies.policy import DEPTH_LADDER, Policy
from policies.strict import TableError, build, limits

OUT_OF_MEMORY_FIX = "Lower batch or image_size, freeze deeper, or end other programs; the active model is untouched"


@dataclass(frozen=True, slots=True)
class Rung:
    """One depth of the ladder: nominal percent, the boundary it was snapped to, and what a sample's step costs."""

    percent: int
    frozen_layers: int
    step_macs: int
    crossing_bytes: int


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

    def frozen_layers(self, least_depth_percent: int) -> tuple[int, int]:
        """Depth in percent and boundary when at least `least_depth_percent` must be frozen."""
        wanted = max(self.depth_percent, least_depth_percent)
        rung = self.rung(wanted)
        return rung.percent, rung.frozen_layers

    def rung(self, percent: int) -> Rung:
        """The shallowest rung that freezes at least `percent`."""
        return next((rung for rung in self.ladder if rung.percent >= percent), self.ladder[-1])


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
) -> Plan:
    """Choose depth and batch for a job on `samples` training samples."""
    crossing = (*costs.crossing_bytes, 0)
    ladder = tuple(_rung(costs, percent, snap(crossing, percent)) for percent in DEPTH_LADDER)
    if spec.depth == "auto":
        percent, rule = choose_depth(policy.freezing, similarity)
    else:
        percent, rule = HEAD_ONLY_PERCENT if spec.depth == "head" else int(spec.depth), "spec"
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
    )


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
