"""The live view and a job's figures in words, for people at a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from service.fleet.plain import plain

MAX_LINE = 1000  # characters: a reason has 500, and the line around it some words

NOTHING = "-"
_LAST_SECOND = 253_402_300_799  # of the year 9999: later ones are no dates
_LARGEST = 1e15  # what boards say may have thousands of digits, which neither fit on a line nor into a float
FREE = "run"  # stands for no rule
RULES = (
    ("clock", "frequency_rule", "unlimited"),
    ("depth", "depth_rule", "plan"),
    ("micro-batch", "batch_rule", "plan"),
)


def status_lines(view: Mapping[str, object]) -> list[str]:
    """What `temperd status` shows of the live view, harmless for a terminal: a server may have worded it."""
    return [plain(line, MAX_LINE) for line in _status_lines(view)]


def _status_lines(view: Mapping[str, object]) -> list[str]:
    board = table(view.get("board"))
    link = table(view.get("link"))
    lines = [f"{view.get('device')}: {'connected' if view.get('connected') else _no_broker(link)}"]
    if link.get("refused"):
        lines.append(f"the broker refuses the {link.get('refused')}; check its access rules")
    lines += [*_alarm_lines(view.get("alarms")), *_release_lines(table(view.get("agent"))), *_board_lines(board)]
    job, training = table(view.get("job")), table(view.get("training"))
    if job:
        lines.append(" ".join(str(word) for word in (f"job {job.get('id')}:", *_standing(job)) if word))
    if deadline := table(view.get("deadline")):
        lines.append(deadline_line(deadline, ended=False))
    if training:
        epochs = f"epoch {training.get('epoch')}/{training.get('epochs')}"
        at_once = f", {training['micro_batch']} samples at once" if training.get("micro_batch") else ""
        lines.append(f"{epochs}, loss {number(training, 'loss')}, {training.get('depth_percent')} % frozen{at_once}")
    if energy := table(view.get("energy")):
        lines.append(energy_line(energy))
    policy = table(view.get("policy"))
    if policy.get("complaint"):
        lines.append(f"policy {policy.get('name')} stays in force: {policy.get('complaint')}")
    elif policy.get("source") not in (None, "board"):
        lines.append(f"policy {policy.get('name')}, by {policy.get('source')}")
    lines += _queue_lines(view.get("queue"))
    if system := table(view.get("system")):
        lines.append(_system_line(system))
    lines += _outbox_lines(table(view.get("telemetry")))
    if store := table(view.get("store")):
        counts = ", ".join(f"{store.get(name)} {name}" for name in ("damaged", "repaired", "unrepairable"))
        lines.append(f"last scrub: {store.get('files')} files, {counts}")
    return lines


def _system_line(update: Mapping[str, object]) -> str:
    """What another image for the board's system comes to."""
    image = f"system {update.get('name')} {update.get('version')}:"
    return " ".join(
        str(word) for word in (image, update.get("status"), update.get("step"), update.get("reason")) if word
    )


def _release_lines(agent: Mapping[str, object]) -> list[str]:
    """Which temperd runs, where that is not simply the installed one, and what is under way."""
    lines = []
    if agent.get("slot") in ("a", "b") or agent.get("trial") or agent.get("safe_mode"):
        trial = f", {agent.get('trial')} on trial" if agent.get("trial") else ""
        safe = f", safe mode: {agent.get('safe_mode')}" if agent.get("safe_mode") else ""
        lines.append(f"temperd {agent.get('version')}, slot {agent.get('slot')}{trial}{safe}")
    if update := table(agent.get("update")):
        words = (f"update {update.get('id')}:", update.get("status"), update.get("step"), update.get("reason"))
        lines.append(" ".join(str(word) for word in words if word))
    return lines


def _outbox_lines(telemetry: Mapping[str, object]) -> list[str]:
    lines = []
    if telemetry.get("outbox_messages"):
        size = number(telemetry, "outbox_bytes", 2**-20, digits=1)
        lines.append(f"{telemetry.get('outbox_messages')} messages wait for the broker, {size} MiB on the disk")
    if telemetry.get("fault"):
        lines.append(f"the outbox cannot be written: {telemetry.get('fault')}")
    return lines


def _no_broker(link: Mapping[str, object]) -> str:
    return f"no broker: {link['why']}" if link.get("why") else "no broker"


def _alarm_lines(alarms: object) -> list[str]:
    """What is raised, the critical first."""
    tables = [table(alarm) for alarm in alarms] if isinstance(alarms, list) else []
    tables.sort(key=lambda alarm: alarm.get("severity") != "critical")
    return [f"ALARM {alarm.get('type')} ({alarm.get('severity')}) {_since(alarm)}: {_told(alarm)}" for alarm in tables]


def _since(alarm: Mapping[str, object]) -> str:
    since = alarm.get("since")
    if not isinstance(since, int | float) or not 0 <= since <= _LAST_SECOND:
        return "since a time unknown"
    return f"since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC"


def _told(alarm: Mapping[str, object]) -> str:
    evidence = [f"{key} {value}" for key, value in table(alarm.get("evidence")).items() if value not in (None, "")]
    return " · ".join([str(alarm.get("reason")), *evidence])


def _standing(job: Mapping[str, object]) -> tuple[object, ...]:
    reason = job.get("reason_code")
    left = f"{number(job, 'eta_s', digits=0)} s of training left" if job.get("eta_s") is not None else ""
    return (
        job.get("status"),
        job.get("step"),
        f"({reason})" if reason else "",
        until_words(table(job.get("until"))),
        left,
    )


def _queue_lines(queue: object) -> list[str]:
    """One line a waiting job, in the order in which they will run."""
    jobs = [table(job) for job in queue] if isinstance(queue, list) else []
    lines = []
    for job in jobs:
        rank = f"priority {job['priority']}" if job.get("priority") else ""
        lines.append(" ".join(str(word) for word in (f"waiting {job.get('id')}:", rank, *_standing(job)) if word))
    return lines


def until_words(until: Mapping[str, object]) -> str:
    """What releases a job that waits; empty where it does not wait."""
    if not until:
        return ""
    what = str(until.get("what"))
    if until.get("below") is not None:
        return f"until {what} is at most {number(until, 'below', digits=1)}"
    if until.get("above") is not None:
        return f"until {what} is {number(until, 'above')} at least"
    ts = until.get("ts")
    if isinstance(ts, int | float) and not isinstance(ts, bool):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ts))
        return f"until {when}" if what == "time" else f"until {when}, {what}"
    return f"waits for {what}"


def _board_lines(board: Mapping[str, object]) -> list[str]:
    heat = f"temperature {number(board, 'temperature_celsius')} °C, delta-T {number(board, 'delta_t_celsius')} K"
    clock = f"clock {number(board, 'frequency_hz', 1e-9)} GHz, charge {number(board, 'charge', 100)} %"
    lines = [f"{heat}, {clock}"]
    if board.get("power_watts") is not None:
        kind = told_kind(modelled=bool(board.get("power_is_modelled")))
        lines.append(f"power {number(board, 'power_watts')} W from {board.get('power_source') or 'unknown'} ({kind})")
    rules = [f"{what} by {board[key]}" for what, key, free in RULES if board.get(key, free) != free]
    duty = f"duty {number(board, 'duty', 100)} %"
    rule = board.get("rule")
    lines.append(", ".join([f"{board.get('action')}" + ("" if rule == FREE else f" by {rule}"), *rules, duty]))
    notes = board.get("notes")
    named = [rule, *(board.get(key) for _, key, _ in RULES)]
    if others := [str(note) for note in notes if note not in named] if isinstance(notes, list) else []:
        lines.append(f"rules that apply too: {', '.join(others)}")
    ill = [f"{name} {health}" for name, health in table(board.get("health")).items() if health != "ok"]
    if ill:
        lines.append(f"not all is well: {', '.join(ill)}")
    return lines


def energy_line(energy: Mapping[str, object]) -> str:
    """The `energy` group in one line."""
    if energy.get("joules") is None:
        return "energy not known yet"
    sample, work = number(energy, "joules_per_sample", digits=4), number(energy, "gops_per_watt")
    kind = told_kind(modelled=bool(energy.get("modelled")))
    source = energy.get("source") or "unknown"
    return f"energy {number(energy, 'joules')} J, {sample} J a sample, {work} GOPS/W from {source} ({kind})"


def deadline_line(deadline: Mapping[str, object], *, ended: bool) -> str:
    """The `deadline` of a job that runs or has ended, in one line."""
    late = deadline.get("met") is False
    left = number(deadline, "left_s", -1.0 if late else 1.0, digits=0)
    if late:
        return f"deadline missed by {left} s" + ("" if ended else " so far")
    return f"deadline met, {left} s left" if ended else f"deadline in {left} s"


def told_kind(*, modelled: bool) -> str:
    """How far a figure of power or energy is from a sensor."""
    return "modelled" if modelled else "measured"


def table(value: object) -> dict[str, object]:
    """The value, if it is a table; else an empty one."""
    return value if isinstance(value, dict) else {}


def number(values: Mapping[str, object], key: str, factor: float = 1.0, digits: int = 2) -> str:
    """A number for people, or a dash where there is none."""
    value = values.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > _LARGEST:
        return NOTHING
    return f"{value * factor:.{digits}f}"
