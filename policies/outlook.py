"""What lies ahead of the governor: the job, what its steps cost, and the hour."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DepthCost:
    """What a training sample costs at one freeze depth and micro-batch."""

    depth_percent: int
    sample_s: float
    """Seconds a sample at the board's top clock and full duty."""
    measured: bool = False
    """False: reckoned from the multiply-accumulates of the plan's cost table and the depths that were measured."""
    micro_batch: int = 0
    """Samples that go through a step at once; 0: the whole batch."""
    clocked_share: float = 1.0
    """Share of `sample_s` that grows as the clock falls; the rest waits for memory, whose clock stays."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the governor is told beside the Reading. The defaults stand for a board without a job."""

    plan_depth_percent: int = 0
    """Freeze depth the job planned, 0..100."""
    costs: tuple[DepthCost, ...] = ()
    """Depths the job may train at, shallowest first; empty while nothing is known of them."""
    samples_left: int | None = None
    """Training samples to the job's end."""
    samples_done: int = 0
    loss: float | None = None
    """Training loss of the latest step, smoothed by nobody."""
    score: float | None = None
    """Latest held-out score; larger is better."""
    deadline_mono_s: float | None = None
    """Monotonic time by which the job should be done."""
    minute_of_day: int | None = None
    """Local time, 0..1439; `None` while the clock cannot be trusted."""
