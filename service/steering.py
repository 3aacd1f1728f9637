"""Reading, deciding, acting: what the daemon does with the board once a second."""

from __future__ import annotations

from collections.abc import Callable

from agent.board.board import Board
from agent.energy import EnergyMeter, gops_per_watt, joules_per_sample
from agent.messages import Steer
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import Decision, Reading
from service.logs import logger

log = logger("governor")


class Steering:
    """Holds the governor's state between readings; limits are written only while a job is at work.

    Attributes:
        memory_faults: how often a worker found weights changed in memory since the daemon started.
        drill: a stress run's own orders, made of each reading and of what the governor decided; `None`: no such run.
    """

    def __init__(self, board: Board, policy: Policy) -> None:
        self._board, self._policy = board, policy
        self._state = GovernorState()
        self._acting = False
        self.memory_faults = 0
        self.drill: Callable[[Reading, Decision], Decision] | None = None
        self.reading = Reading(mono_s=0.0)
        self.decision = Decision()
        self._energy, self._joules_before = EnergyMeter(), 0.0

    def tick(self, mono_s: float, *, working: bool, training: bool, outlook: Outlook) -> Decision:
        """Look at the board and decide.

        Args:
            mono_s: monotonic clock, seconds.
            working: a job is at work: limits are written to the board; else they are put back.
            training: energy counts for the job now.
            outlook: the job.
        """
        before = self.decision
        self.reading = self._board.read(mono_s)
        self._state, self.decision = decide(self._policy, self._state, self.reading, outlook)
        if self.drill is not None:
            self.decision = self.drill(self.reading, self.decision)
        complaints: tuple[str, ...] = ()
        if working:
            complaints = self._board.apply(self.decision)
        elif self._acting:
            complaints = self._board.restore()
        self._acting = working
        for complaint in complaints:
            log.warning("lever refused", complaint=complaint)
        if training:
            self._energy.add(mono_s, self.reading.power_watts, modelled=self.reading.power_is_modelled)
        if working and (before.action, before.rule) != (self.decision.action, self.decision.rule):
            log.info("decision", action=self.decision.action.name, rule=self.decision.rule, **self._shown())
        return self.decision

    def set_policy(self, policy: Policy) -> None:
        """Decide by `policy` from the next tick on; what was remembered stays."""
        self._policy = policy

    def steer(self) -> Steer:
        """The present decision as an order to the worker."""
        decision = self.decision
        duty = decision.duty
        return Steer(decision.action.name, duty, decision.least_depth_percent, decision.reverify, decision.rule)

    def restore(self) -> None:
        """Put back every limit that was changed."""
        self._board.restore()

    def start_energy(self, joules_before: float) -> None:
        """Count from here; `joules_before` were spent by earlier attempts of the same job."""
        self._energy, self._joules_before = EnergyMeter(), joules_before

    @property
    def joules(self) -> float:
        """Energy of the job so far, earlier attempts included."""
        return self._joules_before + self._energy.joules

    def board_metrics(self) -> dict[str, object]:
        """The `board` group of the telemetry."""
        reading, decision = self.reading, self.decision
        return {
            "temperature_celsius": reading.temperature_celsius,
            "ambient_celsius": reading.ambient_celsius,
            "delta_t_celsius": reading.delta_t_celsius,
            "frequency_hz": reading.frequency_hz,
            "frequency_cap_hz": decision.frequency_cap_hz,
            "cooling_level": decision.cooling_level,
            "charge": reading.charge,
            "on_mains": reading.on_mains,
            "undervoltage": reading.undervoltage,
            "throttled": reading.throttled,
            "power_watts": reading.power_watts,
            "power_is_modelled": reading.power_is_modelled,
            "memory_available_bytes": reading.memory_available_bytes,
            "memory_faults": self.memory_faults,
            "action": decision.action.name,
            "rule": decision.rule,
            "frequency_rule": decision.frequency_rule,
            "duty": decision.duty,
            "least_depth_percent": decision.least_depth_percent,
        }

    def energy_metrics(self, samples: int, operations: float) -> dict[str, object]:
        """The `energy` group: joules of the job so far (R9); `None` before the second reading.

        Args:
            samples: N_success.
            operations: arithmetic operations of the training steps so far.
        """
        joules, known = self.joules, self.joules > 0
        return {
            "joules": joules if known else None,
            "joules_per_sample": joules_per_sample(joules, samples) if known else None,
            "gops_per_watt": gops_per_watt(operations, joules),
            "covered_s": self._energy.seconds,
            "gap_s": self._energy.gap_s,
            "modelled": self._energy.modelled or (not known and self.reading.power_is_modelled),
        }

    def _shown(self) -> dict[str, object]:
        delta = self.reading.delta_t_celsius
        return {"delta_t_celsius": None if delta is None else round(delta, 1), "duty": self.decision.duty}
