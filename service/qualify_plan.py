"""What a stress run asks of a board, stage by stage, and when it must stop. Pure: readings in, orders out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from policies.dvfs import cap_hz
from policies.policy import Policy
from policies.reading import Action, Decision, Reading

LEAST_MINUTES, MOST_MINUTES = 1, 60  # below, no stage outlasts a die's time constants; above, an hour of full heat
DEFAULT_MINUTES = 10  # R8


class Place(NamedTuple):
    """The board that is tried."""

    state: Path
    """Folder of the record."""
    model: str
    """Its device-tree model."""
    profile: str
    emulated: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """Some time in which load and levers stay as they are."""

    name: str
    weight: float
    """Share of the run."""
    load: float
    """Share of time in which every core works, 0..1."""
    clock: float = 1.0
    """Highest clock as a share of the top clock; 1: no cap."""
    cooling: float = 0.0
    """Least share of the highest cooling level; 0: as found."""


HEATING, COOLED, LOWEST = "full load", "full load, full cooling", "full load, lowest clock"
STAGES = (
    Stage("rest", 40, 0.0),
    Stage(HEATING, 90, 1.0),
    Stage(COOLED, 120, 1.0, cooling=1.0),  # the stage that R7's bound of delta-T is about
    Stage("rest, full cooling", 25, 0.0, cooling=1.0),
    Stage("half load", 40, 0.5),
    Stage("full load, half cooling", 50, 1.0, cooling=0.5),
    Stage("hot rest", 25, 0.0),  # the die is still warm: what leaks shows apart from what rests
    Stage(LOWEST, 50, 1.0, clock=0.0),
    Stage("full load, clock 60 %", 40, 1.0, clock=0.6, cooling=0.25),
    Stage("half load, clock 80 %", 40, 0.5, clock=0.8, cooling=0.5),
    Stage("full load, clock 80 %", 40, 1.0, clock=0.8, cooling=0.75),
    Stage("half load, lowest clock", 40, 0.5, clock=0.0, cooling=1.0),
)
"""Each input of the models moves on its own: load at one clock, clock at one load, fan at one load, heat at rest."""
_WHOLE = sum(stage.weight for stage in STAGES)


@dataclass(frozen=True, slots=True)
class Tick:
    """One look at the board during the run."""

    at_s: float
    """Since the run began."""
    stage: int
    reading: Reading
    order: Decision
    """The levers asked for when the reading was taken."""
    rule: str
    """What bound training in the governor's eyes."""
    products: int
    """Pieces of work done so far, by all cores."""


@dataclass(slots=True)
class Drill:
    """The course of one run.

    Args:
        policy: whose trips hold.
        seconds: length of the whole run.
        begin_s: monotonic time at which it begins.
    """

    policy: Policy
    seconds: float
    begin_s: float
    stage: int = 0
    ended: str = ""
    """Why it ended: `done`, `too-hot`, `sensor-lost`, `battery` or the rule that paused it; empty while it runs."""
    ticks: list[Tick] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    """Stages that were left early because the board grew too warm with less than full cooling."""
    _left_s: float = 0.0
    _order: Decision = field(default_factory=Decision)

    @property
    def load(self) -> float:
        """Share of time in which every core shall work now."""
        return 0.0 if self.ended else STAGES[self.stage].load

    @property
    def share(self) -> float:
        """Share of the run that is over, 0..1; a stage that was cut counts whole."""
        before = sum(stage.weight for stage in STAGES[: self.stage]) / _WHOLE
        now = self.ticks[-1].at_s - self._left_s if self.ticks else 0.0
        return 1.0 if self.ended else min(before + now / self.seconds, 1.0)

    def step(self, reading: Reading, decision: Decision, products: int) -> Decision:
        """Judge one reading.

        Args:
            reading: the board now.
            decision: what the governor would do with training.
            products: pieces of work done so far.

        Returns:
            The levers until the next reading: those of the stage; the governor's own when the run has ended.
        """
        if self.ended:
            return decision
        at = reading.mono_s - self.begin_s
        self.ticks.append(Tick(at, self.stage, reading, self._order, decision.rule, products))
        if decision.action >= Action.PAUSE:
            self.ended = _ending(decision.rule)
            return decision
        stage = STAGES[self.stage]
        too_warm = self._too_warm(stage, reading)
        if too_warm or at - self._left_s >= stage.weight / _WHOLE * self.seconds:
            self.cut += [stage.name] if too_warm else []
            self.stage, self._left_s = self.stage + 1, at
        if self.stage == len(STAGES):
            self.stage, self.ended = len(STAGES) - 1, "done"
            return decision
        self._order = _order(STAGES[self.stage], reading)
        return self._order

    def _too_warm(self, stage: Stage, reading: Reading) -> bool:
        """Above the slow trip although cooling is left: no reason to fail, the next stage may come."""
        delta = reading.delta_t_celsius
        spare = stage.cooling < 1.0 and reading.cooling_max > 0
        return spare and stage.load > 0.0 and delta is not None and delta > self.policy.thermal.slow.delta_kelvin


def _order(stage: Stage, reading: Reading) -> Decision:
    return Decision(
        rule="qualify",
        frequency_cap_hz=cap_hz(reading.operating_points, stage.clock) if stage.clock < 1.0 else None,
        frequency_rule="qualify" if stage.clock < 1.0 else "unlimited",
        cooling_level=math.ceil(stage.cooling * reading.cooling_max),
    )


def _ending(rule: str) -> str:
    if rule.startswith("thermal.sensor-missing"):
        return "sensor-lost"
    if rule.startswith("thermal."):
        return "too-hot"
    return "battery" if rule.startswith("battery.") else rule
