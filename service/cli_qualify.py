"""`temperd qualify`: the stress run of the board it is called on."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from agent.board.profile import EMULATED_PREFIX, named_profile, pick_profile
from agent.board.record import read_record
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from agent.durable import make_folder
from agent.errors import BoardError, SpecError
from service import logs
from service.cli import config_path, say_json
from service.config import Config, load_config
from service.emulation import EmulatedBoardProcess
from service.live import runtime_folder
from service.policy_file import PolicyFile
from service.qualify import Outcome, Trial, conclude, drive, keep, report, rows
from service.qualify_load import StressLoad
from service.qualify_plan import LEAST_MINUTES, MOST_MINUTES, Drill, Place
from service.qualify_view import line, lines, picture, summary
from service.state_lock import state_lock

TICK_S = 1.0
PLAIN_EVERY = 15  # ticks between two lines where the cursor cannot move
NOT_PASSED, INTERRUPTED = 1, 130
IN_USE = "The daemon runs: ask it with `temperd fleet send BOARD qualify`, or stop it first"


def qualify(options: argparse.Namespace) -> int:
    """One run, now; 0: passed, 1: not."""
    if not LEAST_MINUTES <= options.minutes <= MOST_MINUTES:
        raise SpecError(f"{options.minutes} is outside {LEAST_MINUTES}..{MOST_MINUTES}", where="--minutes")
    config = load_config(config_path(options))
    logs.configure("error" if options.json else "warning", config.log.format)
    if options.last:
        return _show_last(options, config)
    quiet = bool(options.json)
    outcome, place, limit = asyncio.run(run(config, options.minutes * 60.0, quiet=quiet))
    if options.chart:
        title = f"{place.model or place.profile}: {'passed' if outcome.verdict.passed else 'not passed'}"
        _write(Path(options.chart), picture(outcome.drill, outcome.fitted, limit, title))
    if options.json:
        say_json(report(outcome, place))
    else:
        print("\n".join(summary(outcome.verdict, rows(outcome.drill))))
    return exit_code(outcome)


def _show_last(options: argparse.Namespace, config: Config) -> int:
    """How the last run ended, from the board's record.

    Raises:
        BoardError: there was none on this board, or its record cannot be used.
    """
    board, state = config.board, Path(config.device.state_dir)
    if board.emulated:
        model = EMULATED_PREFIX + named_profile(board.emulated).models[0]
    else:
        model = read_model(BoardRoots(Path(board.sys_root), Path(board.proc_root)))
    found = read_record(state, model)
    if found.record is None or found.record.qualification is None:
        what = found.complaint or "this board was not qualified yet"
        raise BoardError(what, where=str(state), fix="Run `temperd qualify`", reason="not-qualified")
    last = found.record.qualification
    if options.json:
        say_json({"board": found.record.board, "profile": found.record.profile, **dataclasses.asdict(last)})
    else:
        when = datetime.fromtimestamp(last.unix_s, UTC).isoformat(timespec="seconds")
        delta = "" if last.delta_t_kelvin is None else f", delta-T {last.delta_t_kelvin:.1f} K"
        how = " (modelled)" if last.modelled else ""
        verdict = "passed" if last.passed else f"NOT PASSED: {', '.join(last.reasons)}"
        print(f"{found.record.board or found.record.profile}, {when}: {verdict}{delta}{how}")
    return 0 if last.passed else NOT_PASSED


def exit_code(outcome: Outcome) -> int:
    """What the program ends with."""
    if outcome.drill.ended == "stopped":
        return INTERRUPTED
    return 0 if outcome.verdict.passed else NOT_PASSED


async def run(config: Config, seconds: float, *, quiet: bool) -> tuple[Outcome, Place, float]:
    """One run under the state's lock; the record is written.

    Args:
        config: of the board.
        seconds: length of the run.
        quiet: show nothing.

    Returns:
        The outcome, the board, and the highest delta-T that passes.

    Raises:
        BoardError: the daemon runs, the board has no temperature, or the disk or the system fails.
        ConfigError: the configuration names what there is not.
    """
    state = Path(config.device.state_dir)
    make_folder(state)
    stopping = _stopping()
    with state_lock(state, IN_USE):
        async with _board(config, state) as roots:
            model = read_model(roots)
            profile = pick_profile(model) if config.board.profile == "auto" else named_profile(config.board.profile)
            place = Place(state, model, profile.name, profile.emulated)
            policy = PolicyFile(
                state, config.policy.file, profile.policy_name, by_command=config.policy.by_command
            ).policy
            levers = SysfsBoard(roots, profile, state / "undo.json", config.board.powerd)
            board = _tried(levers, model or profile.name)
            drill = Drill(policy, seconds, time.monotonic())
            load = await StressLoad.start(len(os.sched_getaffinity(0)))
            trial = Trial(board, drill, load)

            async def wait() -> bool:
                trial.tick(time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await stopping.wait()
                return not stopping.is_set()

            try:
                with _shown(quiet=quiet) as show:
                    await drive(drill, load, wait, show)
                lost = load.lost
            finally:
                board.restore()
                await load.stop()
        outcome = conclude(drill, wrong=load.wrong, lost=lost)
        keep(outcome, place, time.time())
    return outcome, place, policy.thermal.slow.delta_kelvin


@contextlib.asynccontextmanager
async def _board(config: Config, state: Path) -> AsyncIterator[BoardRoots]:
    """The kernel's files, or those of an emulated board that lives as long as the body."""
    board = config.board
    if not board.emulated:
        yield BoardRoots(Path(board.sys_root), Path(board.proc_root))
        return
    named_profile(board.emulated)
    emulated = await EmulatedBoardProcess.start(runtime_folder(state) / "board", board.emulated, board.emulated_speed)
    try:
        yield emulated.roots
    finally:
        await emulated.stop()


def _tried(board: SysfsBoard, name: str) -> SysfsBoard:
    """The board, after one look at it.

    Raises:
        BoardError: without a temperature there is nothing to judge.
    """
    board.restore()  # what a killed run left
    if board.read(time.monotonic()).temperature_celsius is None:
        fix = "docs/boards.md lists the sensors that are read"
        raise BoardError("no temperature can be read, so heat cannot be judged", where=name, fix=fix, reason="sensor")
    return board


def _stopping() -> asyncio.Event:
    """Set by Ctrl-C or SIGTERM: the limits are put back before the program ends."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping


@contextlib.contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[Drill], None]]:
    """A live chart in a terminal with rich, else a line now and then; nothing when `quiet`."""
    if quiet:
        yield lambda _drill: None
        return
    try:
        from rich.live import Live  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415 - same
    except ImportError:
        live = None
    else:
        live = Live(auto_refresh=False) if sys.stdout.isatty() else None
    if live is None:
        yield _plain()
        return
    with live:
        yield lambda drill: live.update(Text("\n".join(lines(drill))), refresh=True)


def _plain() -> Callable[[Drill], None]:
    calls = itertools.count()

    def show(drill: Drill) -> None:
        if next(calls) % PLAIN_EVERY == 0:
            print(line(drill), flush=True)

    return show


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BoardError(f"the chart cannot be written: {error.strerror}", where=str(path), reason="disk") from error
