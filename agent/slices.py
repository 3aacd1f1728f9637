"""Whether a job's frozen layers run in tiles of rows (R4): for their memory, where it costs no time or is asked for."""

from __future__ import annotations

import math

from agent.engine.base import TrainingRun
from agent.errors import EngineError, ModelError
from agent.int8 import too_few_runs
from agent.spec import FineTuneSpec
from agent.task import Task


def choose_slices(run: TrainingRun, spec: FineTuneSpec, task: Task) -> dict[str, object]:
    """Let the frozen part's first stage run in tiles of rows if that is asked for, or worth trying and not slower.

    Returns:
        What the job's result tells: `used`, `reason`; where it was tried, the number of tiles, bytes of the largest
        block and of all live tensors of one sample, and the times of one batch, each with and without tiles.
    """
    reason = _not_tried(run, spec, task)
    if reason:
        return {"used": False, "reason": reason}
    try:
        check = run.use_slices(math.inf) if spec.slices == "on" else run.use_slices()
    except (ModelError, EngineError) as error:
        return {"used": False, "reason": str(error)}
    plan = check.plan
    return {
        "used": check.keep,
        "reason": check.reason,
        "tiles": plan.tiles,
        "block_bytes": plan.block_bytes,
        "whole_block_bytes": plan.whole_block_bytes,
        "live_bytes": plan.live_bytes,
        "whole_live_bytes": plan.whole_live_bytes,
        "sliced_ms": 1e3 * check.sliced_seconds,
        "whole_ms": 1e3 * check.whole_seconds,
    }


def _not_tried(run: TrainingRun, spec: FineTuneSpec, task: Task) -> str:
    if spec.slices == "off":
        return "asked for"
    if run.frozen_layers == 0:
        return "nothing is frozen"
    return too_few_runs(spec.slices, spec, task)
