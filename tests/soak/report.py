"""What a day was like, as a table and as text."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from tests.simulators.fleet import World
from tests.soak.driver import Driver
from tests.soak.judge import command_faults, downtime, journal_fault, telemetry_gaps
from tests.soak.keeper import Keeper
from tests.soak.watch import Look, slope

DAY_S = 86400.0
SETTLED_S = 60.0
"""Of a life: what a daemon reads and keeps at its start is no leak."""
HOUR_S = 3600.0


def judged(
    facts: dict[str, Any], world: World, keeper: Keeper, driver: Driver, *, clock_offset_s: float
) -> dict[str, Any]:
    """Everything that is told of the day.

    Args:
        facts: of the run.
        world: broker, store, journal.
        keeper: of the daemon.
        driver: what happened, and what was seen.
        clock_offset_s: wall clock minus monotonic clock.
    """
    heard = world.tap.heard
    faults, ends = command_faults(driver.sent, heard)
    faults += world.tap.faults()
    ends_ms = [(life.ended + clock_offset_s) * 1000 for life in keeper.lives if life.ended]
    stored, gaps = telemetry_gaps(world.folder / "fleet.sqlite", ends_ms)
    untorn = sum(gap.numbers for gap in gaps if not gap.torn)
    if untorn:
        faults.append(f"{untorn} telemetry messages are missing, and no life ended there")
    if word := journal_fault(world.state / "journal.sqlite"):
        faults.append(f"the journal: {word}")
    if facts["exit_code"] != 0:
        faults.append(f"the last stop ended with {facts['exit_code']}")
    down = downtime(keeper.lives)
    return {
        **facts,
        "faults": faults,
        "happened": dict(
            Counter(what.rsplit(" ", 1)[0] if what[-1].isdigit() else what for _at, what in driver.happened)
        ),
        "commands": {"sent": len(driver.sent), "unsent": len(driver.unsent), "ends": dict(sorted(ends.items()))},
        "telemetry": {
            "heard": len(heard),
            "stored": stored,
            "missing_without_an_end": untorn,
            "gaps_at_ends": len([gap for gap in gaps if gap.torn]),
        },
        "lives": len(keeper.lives),
        "downtime_s": {why: [round(one, 2) for one in values] for why, values in sorted(down.items())},
        "delta_t_modelled": {"highest_k": round(driver.hottest_k, 1), "seconds_above_30_k": driver.hot_s},
        "memory": _memory(driver.looks, float(facts["quiet_from_s"])),
    }


def _memory(looks: list[Look], quiet_from_s: float) -> dict[str, Any]:
    """Of the last life, which began before the quiet part or in it, once it had settled."""
    if not looks:
        return {}
    last = [one for one in looks if one.pid == looks[-1].pid]
    quiet = [one for one in last if one.at_s >= max(quiet_from_s, last[0].at_s + SETTLED_S)]
    found: dict[str, Any] = {"seconds_watched": round(quiet[-1].at_s - quiet[0].at_s) if quiet else 0}
    for name in ("resident_kib", "anonymous_kib", "descriptors", "threads", "state_kib"):
        points = [(one.at_s / HOUR_S, float(getattr(one, name))) for one in quiet]
        values = [value for _at, value in points]
        estimate = slope(points)
        found[name] = {
            "least": min(values, default=0),
            "most": max(values, default=0),
            "slope_per_hour": [round(one, 1) for one in estimate] if estimate else None,
        }
    found["resident_mib_of_lives"] = [round(value / 1024, 1) for value in _medians(looks)]
    return found


def _medians(looks: list[Look]) -> list[float]:
    """Resident memory of each life, settled."""
    lives: dict[int, list[Look]] = {}
    for one in looks:
        lives.setdefault(one.pid, []).append(one)
    kept = [[one.resident_kib for one in life if one.at_s > life[0].at_s + SETTLED_S / 2] for life in lives.values()]
    return [statistics.median(values) for values in kept if values]


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    commands, telemetry, memory = found["commands"], found["telemetry"], found["memory"]
    lines = [
        f"# {found['hours']:g} emulated hours, seed {found['seed']}, {found['speed']:g} times as fast",
        "",
        f"It took {found['wall_s'] / 60:.0f} minutes.",
        "",
        f"**{'Nothing was lost.' if not found['faults'] else 'FAULTS:'}**",
        *(f"- {fault}" for fault in found["faults"][:50]),
        "",
        "Happened: " + ", ".join(f"{count} {what}" for what, count in sorted(found["happened"].items())) + ".",
        f"The disk {'really filled' if found['disk_filled'] else 'was not filled: that needs root'}.",
        "",
        f"Commands: {commands['sent']} sent; "
        + ", ".join(f"{count} {how}" for how, count in commands["ends"].items())
        + ".",
        f"Telemetry: {telemetry['stored']} messages stored, {telemetry['missing_without_an_end']} missing.",
        f"Where a life ended there are {telemetry['gaps_at_ends']} gaps: numbers held in reserve are given up then.",
        "",
        "| A daemon ended by | times | median s until the next was ready | most |",
        "|---|---|---|---|",
        *(
            f"| {why} | {len(all_)} | {statistics.median(all_):.2f} | {max(all_):.2f} |"
            for why, all_ in found["downtime_s"].items()
        ),
        "",
        f"Heat (modelled): at most {found['delta_t_modelled']['highest_k']} K over the air.",
    ]
    if memory:
        lines += [
            "",
            f"The last life, watched for {memory['seconds_watched']} s:",
            "",
            "| | least | most | slope an hour (quartiles) |",
            "|---|---|---|---|",
        ]
        for name in ("resident_kib", "anonymous_kib", "descriptors", "threads", "state_kib"):
            one = memory[name]
            told = "{} ({} .. {})".format(*one["slope_per_hour"]) if one["slope_per_hour"] else "-"
            lines.append(f"| {name} | {one['least']:g} | {one['most']:g} | {told} |")
        lines += ["", "Resident MiB of each life: " + ", ".join(map(str, memory["resident_mib_of_lives"])) + "."]
    return "\n".join(lines) + "\n"
