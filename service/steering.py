"""Reading, deciding, acting: what the daemon does with the board once a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.board.board import Board
from agent.energy import COUNTED, LONGEST_GAP_S, TRAINING, Energy, EnergyMeter, energy_figures
from agent.messages import Steer
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy
from policies.predictive import models_of, with_models
from policies.reading import Decision, Health, Reading
from service.logs import logger
from service.sample_costs import clock_share

RESTORE_EVERY_S = 30.0  # without a job: a lever that would not go back is asked again, and one that did costs nothing
LEVERS_TELL = (Health.REFUSED, Health.OVERRIDDEN)  # the board's own complaints name the file

log = logger("governor")


class Steering:
    """Holds the governor's state between readings; limits are written only while a job is at work.

    Args:
        board: to be steered.
        policy: thresholds.
        stopwatch: seconds, of processor time or of a steady clock, to tell what the governor itself costs; `None`: it
            is not told.

    Attributes:
        memory_faults: how often a worker found weights changed in memory since the daemon started.
        alarms: types of the alarms that are raised.
        drill: a stress run's own orders, made of each reading and of what the governor decided; `None`: no such run.
    """

    def __init__(self, board: Board, policy: Policy, stopwatch: Callable[[], float] | None = None) -> None:
        self._board, self._policy, self._stopwatch = board, policy, stopwatch
        self._state = GovernorState()
        self._acting, self._restored_s = False, -math.inf
        self.memory_faults = 0
        self.alarms: tuple[str, ...] = ()
        self.drill: Callable[[Reading, Decision], Decision] | None = None
        self.reading = Reading(mono_s=0.0)
        self.decision = Decision()
        self._meter = EnergyMeter()
        self._training_ticks, self._governor_s, self._covered_before = 0, 0.0, 0.0

    def tick(self, mono_s: float, *, working: bool, phase: str, outlook: Outlook) -> Decision:
        """Look at the board and decide.

        Args:
            mono_s: monotonic clock, seconds.
            working: a job is at work: limits are written to the board; else they are put back.
            phase: what the job does, as `agent.energy` names it; empty without a job.
            outlook: the job.
        """
        began = self._stopwatch() if self._stopwatch else 0.0
        self._look(mono_s)
        before = self.decision
        self._state, self.decision = decide(self._policy, self._state, self.reading, outlook)
        if self.drill is not None:
            self.decision = self.drill(self.reading, self.decision)
        complaints: tuple[str, ...] = ()
        if working:
            complaints = self._board.apply(self.decision)
        elif self._acting or mono_s - self._restored_s >= RESTORE_EVERY_S:
            complaints, self._restored_s = self._board.restore(), mono_s
        self._acting = working
        for complaint in complaints:
            log.warning("lever refused", complaint=complaint)
        if phase:
            self.enter(mono_s, phase)
        if working and (before.action, before.rule) != (self.decision.action, self.decision.rule):
            log.info("decision", action=self.decision.action.name, rule=self.decision.rule, **self._shown())
        if phase == TRAINING and self._stopwatch:
            self._training_ticks += 1
            self._governor_s += self._stopwatch() - began
        return self.decision

    def _look(self, mono_s: float) -> None:
        """Read the board; a sensor that turns ill or well is told once."""
        was, self.reading = dict(self.reading.health), self._board.read(mono_s)
        for sensor, health in self.reading.health:
            if health == was.get(sensor, Health.OK) or health in LEVERS_TELL:
                continue
            if health is Health.OK:
                log.info("sensor is back", sensor=sensor, was=str(was[sensor]))
            else:
                log.warning("sensor not believed", sensor=sensor, health=str(health))

    @property
    def policy(self) -> Policy:
        """What is decided by."""
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Decide by `policy` from the next tick on; what was remembered stays."""
        self._policy = policy

    def learnt(self) -> dict[str, object]:
        """The models of the board that were learnt, as JSON values for its record."""
        return models_of(self._state.predictive)

    def take_learnt(self, models: Mapping[str, object]) -> None:
        """Go on from what `learnt` gave for the same board.

        Raises:
            policies.strict.TableError: no such models.
        """
        self._state = replace(self._state, predictive=with_models(self._state.predictive, models))

    def steer(self) -> Steer:
        """The present decision as an order to the worker."""
        decision = self.decision
        duty = decision.duty
        return Steer(
            decision.action.name, duty, decision.least_depth_percent, decision.reverify, decision.rule,
            depth_until_samples=decision.depth_until_samples, depth_after_percent=decision.depth_after_percent,
            micro_batch_share=decision.micro_batch_share,
        )  # fmt: skip

    def restore(self) -> None:
        """Put back every limit that was changed."""
        self._board.restore()

    @property
    def cap_share(self) -> float:
        """The highest clock that training has now, as a share of the board's top clock."""
        points, cap = self.reading.operating_points, self.decision.frequency_cap_hz
        share = clock_share(self.reading)
        return min(1.0, cap / points[-1].frequency_hz) if points and cap and self._acting else share

    def start_energy(self, before: Energy) -> None:
        """Count from here; `before` was spent by earlier attempts of the same job."""
        self._meter = EnergyMeter(before=before)
        self._training_ticks, self._governor_s = 0, 0.0
        self._covered_before = before.spent(TRAINING).seconds

    def enter(self, mono_s: float, phase: str) -> None:
        """The job begins to do something else between two readings: from here its energy counts for `phase`.

        Until the next reading the power is taken to be that of the latest.
        """
        reading = self.reading
        watts = reading.power_watts if mono_s - reading.mono_s <= LONGEST_GAP_S else None
        self._meter.add(mono_s, watts, modelled=reading.power_is_modelled, source=reading.power_source, state=phase)

    def count_operations(self, operations: float) -> None:
        """Arithmetic operations that training steps of the job did."""
        self._meter.count(operations)

    @property
    def energy(self) -> Energy:
        """Of the job so far, earlier attempts included."""
        return self._meter.energy

    @property
    def joules(self) -> float:
        """E_total of R9: energy of the job's training so far, pauses and earlier attempts included."""
        return self.energy.spent(*COUNTED).joules

    def board_metrics(self) -> dict[str, object]:
        """The `board` group of the telemetry."""
        reading, decision = self.reading, self.decision
        return {
            "temperature_celsius": reading.temperature_celsius,
            "ambient_celsius": reading.ambient_celsius,
            "delta_t_celsius": reading.delta_t_celsius,
            "frequency_hz": reading.frequency_hz,
            "frequency_cap_hz": decision.frequency_cap_hz,
            "frequency_cap_found_hz": reading.frequency_cap_hz,
            "cooling_level": decision.cooling_level,
            "charge": reading.charge,
            "on_mains": reading.on_mains,
            "undervoltage": reading.undervoltage,
            "throttled": reading.throttled,
            "power_watts": reading.power_watts,
            "power_is_modelled": reading.power_is_modelled,
            "power_source": reading.power_source,
            "utilisation": reading.utilisation,
            "pressure": dict(reading.pressure),
            "health": {name: str(health) for name, health in reading.health},
            "memory_available_bytes": reading.memory_available_bytes,
            "memory_faults": self.memory_faults,
            "alarms": list(self.alarms),
            "action": decision.action.name,
            "rule": decision.rule,
            "frequency_rule": decision.frequency_rule,
            "depth_rule": decision.depth_rule,
            "notes": list(decision.notes),
            "duty": decision.duty,
            "least_depth_percent": decision.least_depth_percent,
            "micro_batch_share": decision.micro_batch_share,
            "batch_rule": decision.batch_rule,
        }

    def energy_metrics(self, samples: int) -> dict[str, object]:
        """The `energy` group: joules of the job so far (R9); `None` before the second reading.

        Args:
            samples: N_success.
        """
        figures = energy_figures(self.energy, samples)
        if figures["joules"] is None:
            figures["modelled"] = self.energy.modelled or self.reading.power_is_modelled
        figures["source"] = figures["source"] or self.reading.power_source
        return figures

    def governor_told(self) -> dict[str, object]:
        """What reading, deciding and acting cost while the job trained in this daemon's life, as JSON values.

        `share` is of the training time; `None` where nothing was timed.
        """
        covered = self.energy.spent(TRAINING).seconds - self._covered_before
        timed = self._training_ticks > 0
        return {
            "ticks": self._training_ticks,
            "seconds": self._governor_s if timed else None,
            "share": self._governor_s / covered if timed and covered > 0 else None,
        }

    def _shown(self) -> dict[str, object]:
        delta = self.reading.delta_t_celsius
        return {"delta_t_celsius": None if delta is None else round(delta, 1), "duty": self.decision.duty}
