"""What is told of one command, made ready for its page: its way, its stages, what it gave. Pure and bounded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.command_types import MAX_TIME_S
from service.console.device_facts import Cell, Command, cells, text
from service.console.rows import finite
from service.fleet.boards import table
from service.fleet.plain import plain

MAX_MOMENTS = 500  # as many as the store keeps of a command
MAX_STAGES = 200  # bands of a chart: narrower ones nobody sees
MAX_WARNINGS = 20
MAX_SPAN_S = 92 * 86400.0  # as long a chart as the store draws
MAX_ARGUMENTS_TEXT = 20_000  # characters of arguments as JSON: a policy has 45 KiB and has its own page
LEAST_SPAN_S = 10.0  # a command that ends at once still gets a chart that shows what was around it
METRICS = ("accuracy", "auc", "reconstruction_error", "mae")
MORE_IS_BETTER = frozenset({"accuracy", "auc"})
_SHOWN_APART = frozenset({"energy", "baselines", "warnings", "governor", "bandwidth", "log", "birth", "live"})


@dataclass(frozen=True, slots=True)
class Moment:
    """One status that the command had. Empty texts and `None`: not told."""

    ts: float | None
    status: str
    step: str
    reason_code: str
    reason: str
    progress: float | None
    attempt: int
    until: Mapping[str, Any]
    energy_j: float | None


@dataclass(frozen=True, slots=True)
class Stage:
    """A span of the command's way: seconds since 1970, and its step, or its status where it had none."""

    since: float
    until: float
    name: str


@dataclass(frozen=True, slots=True)
class Gate:
    """How the model was judged."""

    metric: str
    before: float | None
    after: float | None
    running: float | None
    """Of the model that was in use."""
    baselines: tuple[tuple[str, float], ...]
    held_out: float | None

    @property
    def gain(self) -> float | None:
        """After less before."""
        return None if self.after is None or self.before is None else self.after - self.before

    @property
    def better(self) -> bool | None:
        """Whether the model is better than its base; `None`: not known, or neither."""
        if not self.gain or self.metric not in METRICS:
            return None
        return (self.gain > 0) is (self.metric in MORE_IS_BETTER)


def moments(history: Iterable[Mapping[str, Any]], newest: Mapping[str, Any]) -> list[Moment]:
    """The way of a command, oldest first; the newest status is its end, whether or not the history has it."""
    bodies = list(history)[-MAX_MOMENTS:]
    if newest and (not bodies or _version(newest) > _version(bodies[-1])):
        bodies.append(newest)
    return [
        Moment(
            ts=_time(body.get("ts")),
            status=text(body.get("status"), 32),
            step=text(body.get("step"), 32),
            reason_code=text(body.get("reason_code"), 64),
            reason=text(body.get("reason"), 600),
            progress=finite(body.get("progress")),
            attempt=int(finite(body.get("attempt")) or 0),
            until=table(body.get("until")),
            energy_j=finite(body.get("energy_j")),
        )
        for body in bodies
    ]


def _version(body: Mapping[str, Any]) -> float:
    return finite(body.get("version")) or 0.0


def _time(value: object) -> float | None:
    found = finite(value)
    return found if found is not None and 0 < found <= MAX_TIME_S else None


def end_of(way: Sequence[Moment], one: Command, now: float) -> float:
    """When the command ended by its last status, seconds since 1970; now, while it has not."""
    return next((moment.ts for moment in reversed(way) if moment.ts is not None), one.begun) if one.ended else now


def span_of(way: Sequence[Moment], one: Command, now: float) -> tuple[float, float]:
    """Since when and until when the command was at work, seconds since 1970, for its charts.

    Where its history is lost, a result tells how long the work took. A board whose clock is wrong has a span in which
    nothing is found.
    """
    times = [moment.ts for moment in way if moment.ts is not None]
    until = end_of(way, one, now)
    since = min(times, default=one.begun)
    took = finite(one.result.get("wall_s"))
    if len(times) < 2 and one.ended and took is not None and took > 0:  # noqa: PLR2004 - one moment is no span
        since = until - took
    until = max(until, since + LEAST_SPAN_S)
    return max(since, until - MAX_SPAN_S), until


def stages(way: Sequence[Moment], until: float) -> list[Stage]:
    """The way as spans; equal ones that follow each other are one."""
    found: list[Stage] = []
    known = [moment for moment in way if moment.ts is not None]
    for at, moment in enumerate(known):
        since = moment.ts or 0.0
        end = known[at + 1].ts if at + 1 < len(known) else until
        name = moment.step or moment.status
        if end is None or end <= since or moment.status in _OVER:
            continue
        if found and found[-1].name == name and found[-1].until == since:
            found[-1] = Stage(found[-1].since, end, name)
        else:
            found.append(Stage(since, end, name))
    return found[:MAX_STAGES]


_OVER = ("succeeded", "failed", "rejected", "timed_out", "canceled", "rolled_back")


def gate_of(result: Mapping[str, Any]) -> Gate | None:
    """How the model was judged; `None`: the result does not say."""
    metric = text(result.get("metric"), 32)
    named = [metric] if metric else [name for name in METRICS if f"{name}_after" in result]
    if not named:
        return None
    name = named[0]
    before, after = finite(result.get(f"{name}_before")), finite(result.get(f"{name}_after"))
    after = after if after is not None else finite(result.get("score"))
    running = finite(result.get(f"{name}_running"))
    if before is None and after is None and running is None:
        return None
    lines = [(text(key, 32), finite(value)) for key, value in list(table(result.get("baselines")).items())[:8]]
    known = tuple((key, value) for key, value in lines if value is not None)
    held_out = finite(result.get("held_out"))
    return Gate(
        name, before, after, running, known, held_out if held_out is not None else finite(result.get("samples"))
    )


def energy_of(result: Mapping[str, Any]) -> list[Cell]:
    """What it took, as the result has it."""
    return cells("energy", table(result.get("energy")), {})


def rest_of(result: Mapping[str, Any]) -> list[Cell]:
    """What else a result has, tables flattened by one level."""
    gate = gate_of(result)
    scores = {f"{gate.metric}_{end}" for end in ("before", "after", "running")} if gate else set()
    plain = {key: value for key, value in result.items() if key not in _SHOWN_APART and key not in scores}
    return cells("", plain, {})


def warnings_of(result: Mapping[str, Any]) -> list[str]:
    """Warnings of a result."""
    found = result.get("warnings")
    return (
        [text(item, 300) for item in found[:MAX_WARNINGS] if isinstance(item, str)] if isinstance(found, list) else []
    )


def arguments_text(args: Mapping[str, Any]) -> str:
    """Arguments as people read JSON, without marks that turn the direction of writing."""
    lines = json.dumps(args, indent=2, ensure_ascii=False, default=str)[:MAX_ARGUMENTS_TEXT].splitlines()
    return "\n".join(plain(line, MAX_ARGUMENTS_TEXT) for line in lines)
