"""`temperd report`: what a board is and how it fares, for somebody far away."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from agent.errors import BoardError
from service.cli import config_path
from service.config import load_config
from service.journal import Journal
from service.live import live_folder, read_live
from service.report import Reports, Views
from service.report_log import RecentLog
from service.statuses import Clock


def report(options: argparse.Namespace) -> int:
    """The same report as the command `collect-report` gives, from what lies on the disk; the daemon need not run."""
    config = load_config(config_path(options))
    state = Path(config.device.state_dir)

    def live() -> Mapping[str, object]:
        try:
            return read_live(live_folder(state), time.monotonic())
        except BoardError as error:
            return {"unreadable": str(error)}

    journal = Journal.peek(state / "journal.sqlite")
    try:
        clock = Clock(time.time, time.monotonic, lambda: True)
        views = Views(birth=dict, live=live, link=dict)
        made = Reports(config, journal, clock, RecentLog(), views).make()
    finally:
        journal.close()
    for key in ("clock", "uptime_s", "birth", "link", "log", "log_total"):
        del made[key]  # the daemon's own: its log is where systemd or the container keeps it
    text = json.dumps(made, indent=None if options.json else 2, allow_nan=False) + "\n"
    if not options.out:
        print(text, end="")
        return 0
    out = Path(options.out)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BoardError(f"cannot write the report: {error.strerror}", where=os.fspath(out)) from error
    return 0
