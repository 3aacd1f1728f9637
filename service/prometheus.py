"""The live view as Prometheus reads it: text format 0.0.4, names with base units. Pure: a view in, text out.

https://prometheus.io/docs/instrumenting/exposition_formats/ and https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent import __version__
from policies.reading import Action
from service.alarms_kinds import KINDS
from service.job import State, wire_status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_LABEL = 200  # characters of a value: every other text is longer only where something is wrong


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of the view.

    Attributes:
        name: with its base unit last, `_total` on a counter.
        section: of the view.
        key: of the section.
    """

    name: str
    section: str
    key: str
    text: str
    kind: str = "gauge"


METRICS = (
    Metric("temperd_die_temperature_celsius", "board", "temperature_celsius", "Temperature of the die."),
    Metric("temperd_ambient_temperature_celsius", "board", "ambient_celsius", "The air, or the resting baseline."),
    Metric("temperd_delta_temperature_celsius", "board", "delta_t_celsius", "Die over ambient, in kelvin."),
    Metric("temperd_frequency_hertz", "board", "frequency_hz", "Clock of the fastest cores."),
    Metric("temperd_frequency_cap_hertz", "board", "frequency_cap_hz", "Highest clock asked for."),
    Metric("temperd_battery_charge_ratio", "board", "charge", "Charge of the battery, 0 to 1."),
    Metric("temperd_on_mains", "board", "on_mains", "1 while mains is there."),
    Metric("temperd_undervoltage", "board", "undervoltage", "1 while the supply voltage is too low."),
    Metric("temperd_throttled", "board", "throttled", "1 while firmware or kernel hold the clock down."),
    Metric("temperd_power_watts", "board", "power_watts", "Power of the board."),
    Metric("temperd_power_is_modelled", "board", "power_is_modelled", "1 where no sensor measures the power."),
    Metric("temperd_utilisation_ratio", "board", "utilisation", "Share of all cores that was busy, 0 to 1."),
    Metric("temperd_memory_available_bytes", "board", "memory_available_bytes", "Memory that programs may take."),
    Metric("temperd_memory_faults_total", "board", "memory_faults", "Weights found changed in memory.", "counter"),
    Metric("temperd_duty_ratio", "board", "duty", "Share of time that training may work, 0 to 1."),
    Metric("temperd_freeze_depth_least_ratio", "board", "least_depth_ratio", "Least share of layers frozen, 0 to 1."),
    Metric("temperd_connected", "view", "connected", "1 while the broker is there."),
    Metric("temperd_connections_total", "link", "connections", "Connections made since the start.", "counter"),
    Metric("temperd_connection_losses_total", "link", "connection_losses", "Connections lost.", "counter"),
    Metric("temperd_takeovers_total", "link", "takeovers", "Times that another client took our id.", "counter"),
    Metric("temperd_refused_messages_total", "link", "refused_total", "Messages that were no command.", "counter"),
    Metric("temperd_telemetry_dropped_total", "telemetry", "dropped_total", "Telemetry lost for good.", "counter"),
    Metric("temperd_telemetry_backfilled_total", "telemetry", "backfilled_total", "Telemetry told later.", "counter"),
    Metric("temperd_outbox_messages", "telemetry", "outbox_messages", "Telemetry that waits on the disk."),
    Metric("temperd_outbox_size_bytes", "telemetry", "outbox_bytes", "What it takes there."),
    Metric("temperd_job_progress_ratio", "job", "progress", "How far the job is, 0 to 1."),
    Metric("temperd_job_attempt", "job", "attempt", "Attempt of the job."),
    Metric("temperd_training_epoch", "training", "epoch", "Epochs of the job that are done."),
    Metric("temperd_training_samples", "training", "samples", "Samples of the job that are done."),
    Metric("temperd_training_loss", "training", "loss", "Loss of the latest step."),
    Metric("temperd_training_score", "training", "score", "Held-out score after an epoch."),
    Metric("temperd_training_step_seconds", "training", "step_seconds", "Time of the latest step."),
    Metric("temperd_training_freeze_depth_ratio", "training", "depth_ratio", "Share of layers frozen now, 0 to 1."),
    Metric("temperd_training_resident_memory_bytes", "training", "rss_bytes", "Memory of the worker."),
    Metric("temperd_training_dropped_steps", "training", "dropped", "Steps of the job that were not finite."),
    Metric("temperd_job_energy_joules", "energy", "joules", "Energy of the job so far."),
    Metric("temperd_job_energy_per_sample_joules", "energy", "joules_per_sample", "Energy a sample."),
    Metric("temperd_scrub_timestamp_seconds", "store", "ts", "When the last scrub ended, seconds since 1970."),
    Metric("temperd_scrub_duration_seconds", "store", "duration_s", "How long the last scrub took."),
    Metric("temperd_scrub_files", "store", "files", "Files that the last scrub read."),
    Metric("temperd_scrub_damaged_files", "store", "damaged", "Files that it found damaged."),
    Metric("temperd_scrub_repaired_files", "store", "repaired", "Files that it mended."),
    Metric("temperd_scrub_unrepairable_files", "store", "unrepairable", "Files that it could not mend."),
)

Labels: TypeAlias = tuple[tuple[str, str], ...]
Family: TypeAlias = tuple[str, str, str, list[tuple[Labels, float]]]

_STATUSES = tuple(dict.fromkeys(wire_status(state).status for state in State))


def exposition(view: Mapping[str, object]) -> str:
    """The page of a live view (`service.views`). What is not known has no line; what is no number is left out."""
    sections = {name: table for name, table in view.items() if isinstance(table, Mapping)}
    sections |= {"view": view, "board": _board(sections), "training": _training(sections)}
    lines: list[str] = []
    for metric in METRICS:
        value = _number(sections.get(metric.section, {}).get(metric.key))
        if value is not None:
            lines += _family(metric.name, metric.kind, metric.text, [((), value)])
    for family in _families(view, sections):
        lines += _family(*family)
    return "\n".join(lines) + "\n"


def _families(view: Mapping[str, object], sections: Mapping[str, Mapping[str, object]]) -> Iterator[Family]:
    """What has labels."""
    board, policy, job = (sections.get(name, {}) for name in ("board", "policy", "job"))
    named = _labels(version=__version__, device=view.get("device"), policy=policy.get("name", ""))
    yield "temperd_info", "gauge", "Which daemon this is.", [(named, 1.0)]
    action = str(board.get("action", ""))
    states = [(_labels(action=name.name), float(action == name.name)) for name in Action]
    yield "temperd_action", "gauge", "1 at what training does now.", states
    rule = _labels(rule=board.get("rule", ""))
    yield "temperd_rule", "gauge", "1 at the rule that asks for the action.", [(rule, 1.0)]
    status = str(job.get("status", ""))
    jobs = [(_labels(status=name), float(name == status)) for name in _STATUSES]
    yield "temperd_job", "gauge", "1 at the status of the job at work; all 0 without one.", jobs
    raised = {str(alarm.get("type")) for alarm in _tables(view.get("alarms"))}
    alarms = [(_labels(type=kind.type, severity=kind.severity), float(kind.type in raised)) for kind in KINDS.values()]
    yield "temperd_alarm", "gauge", "1 while the alarm is raised.", alarms
    yield from _by_name(board)


def _by_name(board: Mapping[str, object]) -> Iterator[Family]:
    """Sensors and resources, of which each board has others."""
    health, pressure = board.get("health"), board.get("pressure")
    if isinstance(health, Mapping) and health:
        sensors = [(_labels(sensor=name), float(value == "ok")) for name, value in health.items()]
        yield "temperd_sensor_ok", "gauge", "1 while a sensor or lever is well.", sensors
    known = {name: _number(value) for name, value in pressure.items()} if isinstance(pressure, Mapping) else {}
    if found := [(_labels(resource=name), value) for name, value in known.items() if value is not None]:
        yield "temperd_pressure_ratio", "gauge", "Share of the last 10 s in which some task waited, 0 to 1.", found


def _labels(**labels: object) -> Labels:
    return tuple((name, str(value)) for name, value in labels.items())


def _board(sections: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    board = dict(sections.get("board", {}))
    return board | {"least_depth_ratio": _scaled(board.get("least_depth_percent"), 0.01)}


def _training(sections: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    training = dict(sections.get("training", {}))
    ratio, seconds = _scaled(training.get("depth_percent"), 0.01), _scaled(training.get("step_ms"), 0.001)
    return training | {"depth_ratio": ratio, "step_seconds": seconds}


def _tables(value: object) -> Iterable[Mapping[str, object]]:
    return [table for table in value if isinstance(table, Mapping)] if isinstance(value, list) else []


def _family(name: str, kind: str, text: str, samples: list[tuple[Labels, float]]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        told = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels)
        lines.append(f"{name}{{{told}}} {_exact(value)}" if told else f"{name} {_exact(value)}")
    return lines


def _escaped(label: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in label[:MAX_LABEL])
    return clean.replace("\\", r"\\").replace('"', r"\"")


def _exact(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _scaled(value: object, factor: float) -> float | None:
    number = _number(value)
    return None if number is None else number * factor
