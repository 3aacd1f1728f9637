"""Figures that only a board with a battery, a fan and a clock can give, taken from simulated ones: all modelled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from agent.board.injection import Injection
from agent.board.physics import CONSTANTS
from agent.board.simulated import SimulatedBoard
from policies.battery import is_short, order_jobs
from policies.dvfs import cap_hz
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy
from policies.power_model import switching
from policies.reading import Action, Decision, Health
from service.qualify import Outcome, conclude
from service.qualify_plan import Drill

AIR_CELSIUS = (10.0, 25.0, 40.0)
SETTLING_S = 7200.0  # several time constants of the slowest board
R6_BOARD, R6_SLOWER = "edge-22w", 1.18
"""The board made after R6, and how much longer its lower clock takes."""
R5_RATIO = 0.72
GRID_LOADS, GRID_KELVIN = (0.0, 0.25, 0.5, 0.75, 1.0), (8.0, 20.0)
LONGEST_BATTERY_S = 48 * 3600.0
FAULT_S, WATCHED_S = 60.0, 240.0
"""A stuck sensor is known after two minutes."""
JOBS_EACH = 8
JOB_CHARGE = 0.02
"""Charge that a job with nothing frozen takes at full speed: so the battery ends within the queue (assumed)."""
CELL_JOULES = 3.0 * 3.7 * 3600.0  # 3000 mAh at a nominal 3.7 V


def measure(work: Mapping[int, float]) -> dict[str, object]:
    """All of it, some seconds of arithmetic.

    Args:
        work: multiply-accumulates of a training step by freeze depth in percent, 0, 50 and 75 among them: jobs take
            time in proportion.
    """
    return {
        "clock": {name: lower_clock(name) for name in sorted(CONSTANTS)},
        "modes": power_modes(),
        "qualify": _qualified(),
        "faults": faults_seen(),
        "orders": orders(work),
    }


def _at(name: str, hz: int | None, load: float) -> float:
    """Watts of a board in air of 25 °C, settled, its fan at rest."""
    board = SimulatedBoard(name)
    board.apply(Decision(frequency_cap_hz=hz))
    board.advance(SETTLING_S, load)
    return board.truth.watts


def lower_clock(name: str) -> dict[str, float]:
    """What a clock of 0.72 of the top changes, in percent (R5)."""
    points = CONSTANTS[name].points
    top, low = points[-1].frequency_hz, cap_hz(points, R5_RATIO)
    assert low is not None
    full, capped = _at(name, None, 1.0), _at(name, low, 1.0)
    return {
        "ratio": low / top,
        "watts_percent": 100 * (capped / full - 1),
        "joules_a_sample_percent": 100 * (capped / full * top / low - 1),
        "idle_watts_percent": 100 * (_at(name, low, 0.0) / _at(name, None, 0.0) - 1),
        "battery_life_percent": 100 * (full / capped - 1),
    }


def power_modes() -> dict[str, float]:
    """The two modes of R6 on the board made after it."""
    points = CONSTANTS[R6_BOARD].points
    top = points[-1].frequency_hz
    low = max(point.frequency_hz for point in points if point.frequency_hz * R6_SLOWER <= top)
    full, saving = _at(R6_BOARD, None, 1.0), _at(R6_BOARD, low, 1.0)
    return {
        "watts": full,
        "saving_watts": saving,
        "latency_percent": 100 * (top / low - 1),
        "joules_percent": 100 * (saving / full * top / low - 1),
        "cells": float(CONSTANTS[R6_BOARD].cells),
        "hours": _battery_hours(None),
        "saving_hours": _battery_hours(low),
    }


def _battery_hours(hz: int | None) -> float:
    board = SimulatedBoard(R6_BOARD, on_mains=False)
    board.apply(Decision(frequency_cap_hz=hz))
    while board.alive and board.elapsed_s < LONGEST_BATTERY_S:
        board.advance(30.0, 1.0)
    return board.elapsed_s / 3600.0


def _qualified() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, air in itertools.product(sorted(CONSTANTS), AIR_CELSIUS):
        board, policy, state = SimulatedBoard(name, ambient_celsius=air), Policy(), GovernorState()
        drill = Drill(policy, 600.0, 0.0)
        for second in itertools.count():
            reading = board.read(float(second))
            state, decision = decide(policy, state, reading, Outlook())
            board.apply(drill.step(reading, decision, 0))
            if drill.ended:
                break
            board.advance(1.0, drill.load)
        outcome = conclude(drill, wrong=0, lost=0)
        verdict = outcome.verdict
        rows.append(
            {
                "board": name,
                "ambient_celsius": air,
                "passed": verdict.passed,
                "delta_t_kelvin": verdict.delta_t_kelvin,
                "steady_kelvin": verdict.steady_kelvin,
                "power_error": verdict.power_error,
                "grid_error": _grid_error(board, outcome),
            }
        )
    return rows


def _grid_error(board: SimulatedBoard, outcome: Outcome) -> float:
    """Largest error of the fitted power against the board's own constants, over clock, load, heat and fan."""
    parts, model = board.constants, outcome.fitted.power
    worst = 0.0
    for point, load, delta, fan in itertools.product(
        parts.points, GRID_LOADS, GRID_KELVIN, range(parts.fan_levels + 1)
    ):
        celsius = board.ambient_celsius + delta
        truth = parts.power.watts(point, load, celsius) + parts.fan_watts * fan
        told, _ = model.watts(switching(parts.points, point.frequency_hz, load), fan / parts.fan_levels, celsius)
        worst = max(worst, abs(told - truth) / truth)
    return worst


_FAULTS = {
    "undervoltage": Injection(undervoltage=True),
    "temperature lost": Injection(temperature="missing"),
    "temperature stuck": Injection(temperature="frozen"),
    "temperature impossible": Injection(temperature="impossible"),
    "temperature jumps": Injection(temperature="jump"),
    "clock cap overridden": Injection(overrides_cap=True),
    "clock cap refused": Injection(refuses_cap=True),
    "charge unknown": Injection(battery="unknown"),
    "charge 101 %": Injection(battery="over-full"),
    "throttled by heat": Injection(heat_watts=40.0),
}


def faults_seen() -> dict[str, bool]:
    """Whether each injected fault showed in a reading or a decision (R16)."""
    return {name: _seen(injection) for name, injection in _FAULTS.items()}


def _seen(injection: Injection) -> bool:
    """Whether a rule bound or a sensor's health turned after the fault, and not before."""
    board, policy, state = SimulatedBoard("raspberry-pi-4", on_mains=False), Policy(), GovernorState()
    for second in range(int(FAULT_S + WATCHED_S)):
        if second == FAULT_S:
            board.inject(injection)
        reading = board.read(float(second))
        state, decision = decide(policy, state, reading, Outlook())
        ill = any(health is not Health.OK for _, health in reading.health)
        told = ill or reading.undervoltage or reading.throttled or decision.rule.startswith(("thermal", "supply"))
        if second < FAULT_S and told:
            return False
        if told:
            return True
        board.apply(Decision(frequency_cap_hz=reading.operating_points[0].frequency_hz))
        board.advance(1.0, 1.0)
    return False


def orders(work: Mapping[int, float]) -> dict[str, dict[str, int]]:
    """Jobs of both kinds that end between 20 % charge and the pause at 10 %, in either order (R11)."""
    return {order: _ended(order, work) for order in ("most-frozen-first", "least-frozen-first")}


def _ended(order: str, work: Mapping[int, float]) -> dict[str, int]:
    policy = Policy()
    battery = type(policy.battery)(order=order)
    board, state = SimulatedBoard("raspberry-pi-4", charge=battery.low_charge - 0.01, on_mains=False), GovernorState()
    whole_s = JOB_CHARGE * CELL_JOULES / _at("raspberry-pi-4", None, 1.0)
    left = {f"{depth}-{i}": (depth, whole_s * work[depth] / work[0]) for i in range(JOBS_EACH) for depth in (0, 75)}
    ended = {"0": 0, "75": 0}
    while left:
        reading = board.read(board.elapsed_s)
        state, decision = decide(policy, state, reading, Outlook())
        board.apply(decision)
        if decision.action >= Action.PAUSE or not board.alive:
            break
        waiting = [(name, depth) for name, (depth, _) in left.items()]
        first = order_jobs(battery, waiting, short=is_short(decision))[0]
        depth, seconds = left[first]
        board.advance(1.0, decision.duty)
        # The policy freezes at least half below the low mark: a job with nothing frozen then takes steps of that depth.
        asked = max(depth, decision.least_depth_percent)
        speed = work[depth] / work[min((d for d in work if d >= asked), default=depth)]
        seconds -= board.clock_share * decision.duty * speed
        left[first] = depth, seconds
        if seconds <= 0.0:
            del left[first]
            ended[str(depth)] += 1
    return ended
