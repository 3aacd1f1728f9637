"""`temperd report`: what a board is and how it fares, for somebody far away; alone, or with all that helps to help."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from agent.durable import atomic_writer, write_atomic
from agent.errors import BoardError, SpecError
from service.cli import config_path
from service.config import Config, load_config
from service.doctor_outside import environment, systemd
from service.journal import Journal
from service.live import live_folder, read_live
from service.report import Reports, Views
from service.report_log import RecentLog
from service.state_owner import as_owner
from service.statuses import Clock
from service.support import SUFFIXES, secrets_of, write_bundle

DOCTOR_LIMIT_S = 40.0  # it ends by itself within 15, on a busy board later
LOG_LIMIT_S = 20.0
LOG_LINES = 3000
_NOT_ROOT = "\nThis user may not read the whole journal: sudo /opt/temperd/bin/temperd report --out FILE.tar.gz\n"
_JOURNAL = (
    "journalctl",
    "-u",
    "temperd",
    "-u",
    "temperd-powerd",
    "-n",
    str(LOG_LINES),
    "-o",
    "short-iso",
    "--no-pager",
)


def report(options: argparse.Namespace) -> int:
    """The same report as the command `collect-report` gives, from what lies on the disk; the daemon need not run."""
    path = config_path(options).absolute()
    config = load_config(path)
    if os.path.exists(options.out) and not os.path.isfile(options.out):  # noqa: PTH110, PTH113 - an empty text is no path
        raise SpecError("it is there and no file", where=options.out, fix="Without --out it is printed")
    if options.out.endswith(SUFFIXES):
        return _bundle(config, path, Path(options.out))
    text = json.dumps(_made(config), indent=None if options.json else 2, allow_nan=False) + "\n"
    if not options.out:
        print(text, end="")
        return 0
    write_atomic(Path(options.out), text.encode())
    return 0


def _made(config: Config) -> dict[str, object]:
    state = Path(config.device.state_dir)

    def live() -> Mapping[str, object]:
        try:
            return read_live(live_folder(state), time.monotonic())
        except BoardError as error:
            return {"unreadable": str(error)}

    with as_owner(state):
        journal = Journal.peek(state / "journal.sqlite")
        try:
            clock = Clock(time.time, time.monotonic, lambda: True)
            views = Views(birth=dict, live=live, link=dict)
            made = Reports(config, journal, clock, RecentLog(), views).make()
        finally:
            journal.close()
    for key in ("clock", "uptime_s", "birth", "link", "log", "log_total"):
        del made[key]  # the daemon's own: its log is where systemd or the container keeps it
    return made


def _bundle(config: Config, path: Path, out: Path) -> int:
    try:
        made: object = _made(config)
    except BoardError as error:  # a board whose journal is gone needs help most of all
        made = {"unreadable": str(error)}
    parts = {"report.json": made, "doctor.json": _doctor(path), "unit.json": dict(systemd()), "log.txt": _log()}
    with as_owner(Path(config.device.state_dir)):
        secrets = secrets_of(config, os.environ)
    with atomic_writer(out) as stream:  # root writes it, into a folder of others it may be: no link is followed
        names = write_bundle(stream, parts, secrets)
    print(f"{out}: {', '.join(names)}; keys and passwords are left out, paths and names are in it", file=sys.stderr)
    return 0


def _doctor(path: Path) -> object:
    words = [sys.executable, "-P", "-m", "service", "doctor", "--json", "--config", str(path)]
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            words, capture_output=True, check=False, timeout=DOCTOR_LIMIT_S, env=environment()
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"unreadable": type(error).__name__}


def _log() -> str:
    try:
        done = subprocess.run(_JOURNAL, capture_output=True, check=False, timeout=LOG_LIMIT_S)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return "no journal of systemd here: the log is where the daemon's standard error goes (docker logs)\n"
    said = done.stdout.decode("utf-8", "replace") or done.stderr.decode("utf-8", "replace")
    return said + ("" if os.geteuid() == 0 else _NOT_ROOT)
