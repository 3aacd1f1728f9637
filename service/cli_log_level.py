"""`temperd log-level`: another level for the daemon that runs."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from agent.durable import disk_errors, write_atomic
from agent.errors import BoardError, SpecError
from service.cli import config_path, say_json
from service.config import load_config
from service.live import live_folder, read_live
from service.log_level import CONFIGURED, FILE_NAME, LONGEST_S, Wish

TAKEN_WITHIN_S = 20.0  # a daemon takes it within a second, one on a very busy board within some
LOOK_EVERY_S = 0.1
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def log_level(options: argparse.Namespace) -> int:
    """Ask for the level, and wait until the daemon has taken it."""
    wish = Wish(options.level, duration_s(options.duration))
    folder = live_folder(Path(load_config(config_path(options)).device.state_dir))
    read_live(folder, time.monotonic())  # nobody at home: say so
    _ask(folder / FILE_NAME, wish)
    if options.json:
        say_json({"level": wish.level, "for_s": None if wish.level == CONFIGURED else wish.for_s})
    elif wish.level == CONFIGURED:
        print("log level: that of the configuration")
    else:
        print(f"log level {wish.level} for {wish.for_s:.0f} s, then back by itself")
    return 0


def duration_s(text: str) -> float:
    """Seconds of `30s`, `10m` or `2h`.

    Raises:
        SpecError: no such text, or longer than a day.
    """
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_S:
        raise SpecError(f"{text[:20]!r} is no time: a number with s, m or h, at most 24h", where="--for")
    return float(seconds)


def _ask(path: Path, wish: Wish) -> None:
    write_atomic(path, wish.encode(), 0o644)  # root may write it, and the daemon reads it
    until = time.monotonic() + TAKEN_WITHIN_S
    while path.exists():
        if time.monotonic() > until:
            with disk_errors(path):
                path.unlink(missing_ok=True)
            raise BoardError("the daemon did not take the log level", where=str(path), fix="temperd status")
        time.sleep(LOOK_EVERY_S)
