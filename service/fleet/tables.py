"""Boards and roll-outs as lines for people. Pure; everything a board said goes through `plain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from service.fleet.boards import number, table
from service.fleet.plain import plain

HEADS = ("BOARD", "STATE", "AGENT", "PROFILE", "MODEL", "JOB", "HEAT", "ALARMS")
MAX_CELL = 48  # a table of eight columns is read on one screen
OLD_S = 150.0  # telemetry of an idle board comes once a minute: what is older is shown with its age
MAX_LINES, MAX_DEPTH = 400, 6  # of one board's messages on a screen
NOTHING = "-"
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def board_cells(view: Mapping[str, object], now: float) -> tuple[str, ...]:
    """The cells of one board, by `HEADS`; `view` as `boards.summary` gives it."""
    alarms = view.get("alarms")
    names = ", ".join(plain(name, MAX_CELL) for name in alarms) if isinstance(alarms, list | tuple) else ""
    model = view.get("model") and f"{view.get('model')} {view.get('model_version') or ''}".rstrip()
    cells = (view.get("board"), _state(view, now), view.get("agent"), view.get("profile"), model)
    job = view.get("complaint") or job_cell(table(view.get("job")))
    return tuple(plain(cell, MAX_CELL) or NOTHING for cell in (*cells, job, _heat(view, now), names))


def _state(view: Mapping[str, object], now: float) -> str:
    if view.get("online") is True:
        return "online"
    seen = number(view.get("last_seen"))
    word = "offline" if view.get("on_broker", True) else "gone"
    return f"{word} {age(now - seen)}" if seen else word


def _heat(view: Mapping[str, object], now: float) -> str:
    heat, at = number(view.get("temperature_celsius")), number(view.get("temperature_at"))
    if heat is None:
        return NOTHING
    old = f" ({age(now - at)} ago)" if at is not None and now - at > OLD_S else ""
    return f"{heat:.1f} °C{old}"


def job_cell(job: Mapping[str, object]) -> str:
    """What a board works on: type, status, stage, share, time left, and why."""
    if not job:
        return NOTHING
    share, left = number(job.get("progress")), number(job.get("eta_s"))
    words = [job.get("type"), job.get("status"), job.get("step")]
    if share is not None:
        words.append(f"{share:.0%}")
    if left is not None:
        words.append(f"{age(left)} left")
    if job.get("reason_code"):
        words.append(f"({job.get('reason_code')})")
    return " ".join(plain(word, MAX_CELL) for word in words if word)


def age(seconds: float) -> str:
    """A time span in its largest unit, rounded down."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(min(seconds, 1e9) / size)} {unit}"
    return f"{max(0, int(seconds))} s"


def aligned(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with columns below each other."""
    lines = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def urgency(view: Mapping[str, object]) -> tuple[int, str]:
    """Order on a screen that does not hold all: alarms, work, the rest; by name within one."""
    status = table(view.get("job")).get("status")
    rank = 0 if view.get("alarms") else 1 if status in ("running", "paused", "deferred") else 2
    return rank, str(view.get("board"))


def detail_lines(known: Mapping[str, object], now: float) -> list[str]:
    """All of one board; `known` as `boards.details` gives it."""
    lines = aligned(HEADS, [board_cells(known, now)])
    for name in ("conn", "birth", "alarms", "telemetry"):
        lines += ["", f"{name}:", *(_tree(known.get(name), 1) or [f"  {NOTHING}"])]
    lines += ["", f"carries out: {', '.join(plain(name) for name in _list(known.get('capabilities'))) or NOTHING}"]
    lines += ["", "commands, the newest first:"]
    for command in map(table, _list(known.get("commands"))):
        lines.append(f"  {plain(command.get('id'))} {job_cell(command)}")
        if command.get("reason"):
            lines.append(f"    {plain(command.get('reason'))}")
    return lines


def _tree(value: object, depth: int) -> list[str]:
    lines: list[str] = []
    for key, item in table(value).items():
        if len(lines) >= MAX_LINES:
            return [*lines, f"{'  ' * depth}(more)"]
        if isinstance(item, dict) and item and depth < MAX_DEPTH:
            lines += [f"{'  ' * depth}{plain(key)}:", *_tree(item, depth + 1)]
        else:
            lines.append(f"{'  ' * depth}{plain(key)}: {plain(item) if item not in (None, '', {}) else NOTHING}")
    return lines[: MAX_LINES + 1]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
