"""Which waiting job is next. Pure: jobs and the state of charge in, an order out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies.battery import order_jobs
from policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Waiting:
    """One job in the line."""

    id: str
    priority: int = 0
    depth_percent: int = 0
    interrupted: bool = False
    """Its worker went away with the daemon: it goes on before anything else begins."""


def line(policy: Policy, waiting: Sequence[Waiting], *, short: bool) -> tuple[str, ...]:
    """Names of the jobs in the order to run them.

    Interrupted ones first, then by priority, higher first. Within one priority by arrival; while charge is short by
    R11, and by arrival among equals. So while charge is not short no job is overtaken by a later one of its priority.

    Args:
        policy: the order of R11.
        waiting: in order of arrival.
        short: see `policies.battery.is_short`.
    """
    by_id = {job.id: job for job in waiting}
    ordered = order_jobs(policy.battery, [(job.id, job.depth_percent) for job in waiting], short=short)
    return tuple(sorted(ordered, key=lambda name: (not by_id[name].interrupted, -by_id[name].priority)))


def asked_depth(spec: Mapping[str, object], policy: Policy) -> int:
    """Depth a job asked for, in percent; unknown depths count as the policy's default."""
    asked = str(spec.get("depth", "auto"))
    return {"auto": policy.freezing.unknown_percent, "head": 100}.get(asked) or int(asked if asked.isdigit() else 0)


def priority(spec: Mapping[str, object]) -> int:
    """Priority of a job; those of an older journal have none."""
    asked = spec.get("priority", 0)
    return asked if isinstance(asked, int) else 0
