"""`temperd launch`: which release starts next and why, and the owner's way out of safe mode."""

from __future__ import annotations

import argparse
from pathlib import Path

from agent.agent_slots import agent_folder, read_standing, write_standing
from agent.durable import make_folder, write_atomic
from agent.errors import BoardError
from policies.trial import opened
from policies.trial_standing import Standing, table_of
from service.cli import config_path, say_json
from service.config import load_config
from service.fleet.plain import plain
from service.launched import LEAVE_SAFE_MODE
from service.state_lock import state_lock
from service.state_owner import as_owner
from service.status_lines import MAX_LINE


def launch(options: argparse.Namespace) -> int:
    """Show, or leave safe mode."""
    state = Path(load_config(config_path(options)).device.state_dir)
    with as_owner(state):
        standing, complaint = read_standing(state)
        if options.leave_safe_mode and standing.safe_mode:
            standing = _leave(state)
    if options.json:
        say_json(table_of(standing))
        return 0
    told = [*([f"what was known is lost: {complaint}"] if complaint else []), *_lines(standing)]
    print("\n".join(plain(line, MAX_LINE) for line in told))
    return 0


def _leave(state: Path) -> Standing:
    """Where a daemon runs, it does it within seconds and starts anew; else the next start works again.

    Raises:
        BoardError: the disk refuses.
    """
    make_folder(agent_folder(state))
    try:
        with state_lock(state, ""):
            standing = opened(read_standing(state)[0])
            write_standing(state, standing)
            return standing
    except BoardError as error:
        if error.code != BoardError.reason:  # not because a daemon runs
            raise
    write_atomic(agent_folder(state) / LEAVE_SAFE_MODE, b"")
    return opened(read_standing(state)[0])


def _lines(standing: Standing) -> list[str]:
    lines = [f"starts     {standing.active} ({standing.version_of(standing.active)})"]
    if standing.trial is not None:
        lines.append(f"on trial   {standing.trial.slot} ({standing.trial.version}), {standing.trial.stage}")
    lines.append(f"falls back {standing.previous} ({standing.version_of(standing.previous)})")
    if standing.safe_mode:
        lines.append(f"safe mode  {standing.safe_mode}: no work until another release stays, or --leave-safe-mode")
    for end in (standing.last, standing.left):
        if end is not None:
            why = f": {end.code}, {end.reason}" if end.code else ""
            lines.append(f"ended      {end.version} {end.status}{why}")
    lines += [f"refused    {one.version} {one.code}" for one in standing.refused]
    return lines
