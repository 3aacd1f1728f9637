"""What `temperd fleet roll-out` says: how it begins, how far it is, how it stands; for people or as JSON lines."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping

from service.fleet.outcome import Outcome, exit_code
from service.fleet.plain import plain
from service.fleet.roll_out import RollOutRun
from service.fleet.state import RUNNING, STOPPED, RollOut, Sent
from service.fleet.tables import aligned

PROGRESS_S = 0.5  # between two lines of progress
MAX_NAMED = 5  # boards named in a line


def say_begin(options: argparse.Namespace, made: RollOut, absent: list[str], boards: int) -> None:
    """Which roll-out begins, and which boards are not there."""
    if options.json:
        print(json.dumps({"id": made.id, "type": made.type, "boards": boards, "offline": absent}), flush=True)
        return
    print(f"roll-out {made.id}: {made.type} to {boards} boards", flush=True)
    if absent:
        print(f"{len(absent)} are offline and get it when they come back: {_named(absent)}", flush=True)


def _named(boards: list[str]) -> str:
    more = f" and {len(boards) - MAX_NAMED} more" if len(boards) > MAX_NAMED else ""
    return ", ".join(boards[:MAX_NAMED]) + more


@contextlib.contextmanager
def progress(options: argparse.Namespace) -> Iterator[Callable[[RollOutRun], None]]:
    """What shows how far a roll-out is: a line that changes in a terminal, else a line for each change."""
    if options.json or not sys.stdout.isatty():
        yield _LineProgress(as_json=options.json)
        return
    from rich.live import Live  # noqa: PLC0415 - only here
    from rich.text import Text  # noqa: PLC0415 - same

    with Live(refresh_per_second=1.0 / PROGRESS_S) as live:
        yield lambda run: live.update(Text(progress_line(run)))


class _LineProgress:
    def __init__(self, *, as_json: bool) -> None:
        self._as_json, self._said = as_json, ""

    def __call__(self, run: RollOutRun) -> None:
        counts = {"id": run.roll_out.id, "counts": run.counts(), "offline": len(run.away)}
        line = json.dumps(counts) if self._as_json else progress_line(run)
        if line != self._said:
            self._said = line
            print(line, flush=True)


def progress_line(run: RollOutRun) -> str:
    """How many boards stand where."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(run.counts().items()))
    absent = sum(run.commands[place].outcome == Outcome.OPEN for place in run.away)
    return f"{counts}" + (f" ({absent} of the open ones offline)" if absent else "")


def say_end(options: argparse.Namespace, ended: RollOut, commands: list[Sent]) -> int:
    """Where every board stands; the exit code of that."""
    code = exit_code(Outcome(command.outcome) for command in commands)
    if options.json:
        print(json.dumps({**told(ended), "boards": [_row(command) for command in commands]}), flush=True)
        return code
    print(f"roll-out {ended.id} {ended.state}" + (f": {plain(ended.why)}" if ended.why else ""))
    for line in end_lines(commands):
        print(line)
    if ended.state in (RUNNING, STOPPED):
        print(f"go on with: temperd fleet roll-out --resume {ended.id}")
    return code


def end_lines(commands: list[Sent]) -> list[str]:
    """Boards by how they ended; those that did not succeed by their reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for command in commands:
        status: Mapping[str, object] = command.status or {}
        good = command.outcome == Outcome.SUCCEEDED
        code, reason = ("", "") if good else (plain(status.get("reason_code")), plain(status.get("reason")))
        groups.setdefault((command.outcome, code, reason), []).append(command.board)
    rows = [
        (outcome, str(len(boards)), f"{code}: {reason}" if code else "", _named(boards))
        for (outcome, code, reason), boards in sorted(groups.items())
    ]
    return aligned(("OUTCOME", "BOARDS", "WHY", "WHICH"), rows)


def told(ended: RollOut) -> dict[str, object]:
    """A roll-out as JSON has it."""
    keys = ("id", "tenant", "type", "created", "state", "why")
    rules = ended.terms.get("rules")
    return {**{key: getattr(ended, key) for key in keys}, "rules": rules}


def _row(command: Sent) -> dict[str, object]:
    status = command.status or {}
    keys = ("status", "step", "progress", "reason_code", "reason")
    return {
        "board": command.board,
        "outcome": command.outcome,
        "id": command.id,
        **{key: status.get(key) for key in keys},
    }
