"""An emulated board: physics behind a sysfs tree, run as a process of its own.

    python -m agent.board.emulated --tree DIR --profile raspberry-pi-4 --load-of PID [--speed 8]

It writes DIR/sys and DIR/proc as the kernel of such a board would, heats up with the CPU time of PID's descendants,
obeys `scaling_max_freq` and the fan's `cur_state`, and slows worker processes down when the clock is capped. DIR/ready
appears when every file is there. DIR/inject.json, written by anyone, asks for heat and faults (`Injection`). It ends
on SIGTERM or when PID is gone, and never leaves a worker stopped. docs/emulated-board.md tells the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agent import strict_json
from agent.board.files import read_text
from agent.board.injection import Injection
from agent.board.injection_file import InjectionFile, strict_json_table
from agent.board.kernel_governors import POLL_S, TRIPS, KernelState, look
from agent.board.load import WorkerLoad
from agent.board.physics import (
    COLDEST_AIR_CELSIUS,
    WARMEST_AIR_CELSIUS,
    BoardPhysics,
    Constants,
    PhysicsState,
    named_constants,
)
from agent.board.tree import READ_ONLY, BoardTree, Shown
from agent.errors import ArtifactError, TemperdError
from policies.strict import TableError, build

WINDOW_S = 0.1
"""One round: the workers run for the clock's share of it and stand still for the rest."""
LOOK_EVERY = 5  # rounds between two searches for new workers: half a second of full speed at most
SAVE_EVERY = 10  # rounds between two saves of the state
SMOOTHING = 0.2  # of the utilisation: the kernel counts CPU time in ticks of 10 ms
FASTEST = 100.0  # beyond, one round is longer than the die's time constants by far
_ENDINGS = {signal.SIGTERM, signal.SIGINT}


class EmulatedBoard:
    """The board: one `round` is about a tenth of a second.

    Args:
        tree: folder of the board; made if absent. State and limits found in it are kept.
        profile: name of the board emulated.
        load: whose CPU time heats it.
        speed: how much faster than real its heat and its battery flow.
        kernel_fan: the kernel's own governor switches the fan at its trips too.
        ambient_celsius: temperature of the air; `None`: as saved, or 22 °C.
    """

    def __init__(
        self,
        tree: Path,
        profile: str,
        load: WorkerLoad,
        speed: float,
        *,
        kernel_fan: bool = False,
        ambient_celsius: float | None = None,
    ) -> None:
        self._folder, self._load, self._speed, self._kernel_fan = tree, load, speed, kernel_fan
        self._constants: Constants = named_constants(profile)
        self._physics = BoardPhysics(self._constants, self._saved_state())
        if ambient_celsius is not None:
            self._physics.state = dataclasses.replace(self._physics.state, ambient_celsius=ambient_celsius)
        self._tree = BoardTree(tree, profile, self._constants)
        self._file, self._injection = InjectionFile(tree / "inject.json", _say), Injection()
        self._rounds = 0
        self._busy, self._busy_s, self._passed_s = 0.0, 0.0, 0.0
        self._top = len(self._constants.points) - 1
        self._cap_index, self._fan = self._top, self._constants.resting_fan_level
        self._trips, self._kernel = TRIPS[profile], KernelState(self._top)
        self._kernel_due_s = 0.0  # of the board's own time
        self._last_s: float | None = None
        self._was_alive = True
        self._physics.step(0.0, 0.0, self._index(), self._fan)  # the meter shows a board that is on from the start
        self._show()
        self._tree.ready()

    def begin_round(self, mono_s: float) -> float:
        """Read what was asked, let time pass in the physics, show the result.

        Args:
            mono_s: the monotonic clock.

        Returns:
            The share of this round in which workers may run, 0..1; 0 while the battery is cut off.
        """
        self._load.resume()
        if self._rounds % LOOK_EVERY == 0:
            self._load.look()
        if self._rounds == 0:
            self._load.resume_left_stopped()
        self._rounds += 1
        self._read_injection(mono_s)
        self._read_levers()
        self._pass_time(mono_s)
        self._show()
        if self._rounds % SAVE_EVERY == 0:
            self._tree.show_machine(self._injection)
            self._save()
        return self._clock_share() if self._physics.state.alive else 0.0

    def close(self) -> None:
        """Let stopped workers go on and keep the state for the next start."""
        self._load.resume()
        self._save()

    def _clock_share(self) -> float:
        points = self._constants.points
        return points[self._index()].frequency_hz / points[-1].frequency_hz

    def _index(self) -> int:
        return max(min(self._cap_index, self._physics.firmware_index(), self._top - self._kernel.cooling_state), 0)

    def _pass_time(self, mono_s: float) -> None:
        span = 0.0 if self._last_s is None else mono_s - self._last_s
        self._last_s = mono_s
        # Stopped for the share (1 - f/f_top) of the time means busy all the time at the lower clock.
        seen = min(self._load.utilisation(span) / self._clock_share(), 1.0)
        self._busy += SMOOTHING * (seen - self._busy)
        self._busy_s, self._passed_s = self._busy_s + self._busy * span, self._passed_s + span
        now = self._physics.step(
            span * self._speed,
            self._busy,
            self._index(),
            self._fan,
            self._injection.heat_watts,
            on_mains=not self._injection.unplug,
        )
        if now.alive != self._was_alive:
            _say("on again" if now.alive else "battery cut off: workers stand still until the mains is back")
        self._was_alive = now.alive
        self._kernel_looks(span * self._speed, now.die_celsius)

    def _kernel_looks(self, passed_s: float, celsius: float) -> None:
        self._kernel_due_s -= passed_s
        if self._kernel_due_s > 0.0:
            return
        self._kernel_due_s = POLL_S
        before, self._kernel = self._kernel.fan_level, look(self._trips, self._kernel, self._top, celsius)
        if self._kernel_fan and self._kernel.fan_level != before:  # the kernel too writes only when it changes its mind
            self._tree.set_fan(max(self._constants.resting_fan_level, self._kernel.fan_level))

    def _read_levers(self) -> None:
        if self._injection.overrides_cap:
            self._tree.release_cap()
        elif self._injection.refuses_cap:
            self._tree.release_cap(READ_ONLY)
        khz, fan = self._tree.asked()
        points = self._constants.points
        if khz is not None:  # `None` while a writer is between truncating and writing: the last value holds
            below = [i for i, point in enumerate(points) if point.frequency_hz <= khz * 1000]
            self._cap_index = max(below, default=0)
        if fan is not None:
            self._fan = min(max(fan, 0), self._constants.fan_levels)

    def _read_injection(self, mono_s: float) -> None:
        refused = self._injection.refuses_cap
        self._injection, is_new = self._file.read(mono_s)
        if is_new:
            self._tree.show_machine(self._injection)
        if is_new and self._injection.charge is not None:
            self._physics.state = dataclasses.replace(self._physics.state, charge=self._injection.charge)
        if refused and not self._injection.refuses_cap:
            self._tree.release_cap()  # it may be written again

    def _show(self) -> None:
        physics, state = self._physics, self._physics.state
        self._tree.show(
            Shown(
                die_celsius=state.die_celsius,
                ambient_celsius=state.ambient_celsius,
                frequency_hz=self._constants.points[self._index()].frequency_hz,
                watts=state.watts,
                charge=state.charge,
                cell_volts=physics.cell_volts(),
                cell_amperes=physics.cell_amperes(),
                on_mains=state.on_mains,
                firmware_throttles=physics.firmware_index() < self._top,
                cooling_state=self._kernel.cooling_state,
                busy_s=self._busy_s,
                passed_s=self._passed_s,
                injection=self._injection,
            )
        )

    def _saved_state(self) -> PhysicsState | None:
        text = read_text(self._folder / "state.json")
        if not text:
            return None
        try:
            return build(PhysicsState, strict_json_table(text.encode(), "state.json"))
        except (ArtifactError, TableError) as error:
            _say(f"saved state ignored: {error}")
            return None

    def _save(self) -> None:
        self._tree.put("state.json", strict_json.canonical(dataclasses.asdict(self._physics.state)).decode())


def _say(text: str) -> None:
    sys.stderr.write(f"emulated board: {text}\n")


def run(board: EmulatedBoard, load: WorkerLoad) -> None:
    """Play rounds until SIGTERM or SIGINT arrives (both must be blocked) or the load's process is gone."""
    try:
        while load.alive():
            share = board.begin_round(time.monotonic())
            if signal.sigtimedwait(_ENDINGS, WINDOW_S * share):
                return
            if share < 1.0:
                load.stop()
                if signal.sigtimedwait(_ENDINGS, WINDOW_S * (1.0 - share)):
                    return
    finally:
        board.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m agent.board.emulated", description="An emulated board.")
    parser.add_argument("--tree", type=Path, required=True, help="folder of the board")
    parser.add_argument("--profile", default="raspberry-pi-4", help="name of the board to emulate")
    parser.add_argument("--load-of", type=int, required=True, help="process whose descendants are the load")
    parser.add_argument("--speed", type=float, default=1.0, help="how much faster heat and battery flow")
    parser.add_argument("--ambient", type=float, help="temperature of the air in °C")
    parser.add_argument("--kernel-fan", action="store_true", help="the kernel's fan trips of that board work too")
    asked = parser.parse_args(arguments)
    if not 0.0 < asked.speed <= FASTEST:
        parser.error(f"--speed must be above 0 and at most {FASTEST}")
    if asked.ambient is not None and not COLDEST_AIR_CELSIUS <= asked.ambient <= WARMEST_AIR_CELSIUS:
        parser.error(f"--ambient must lie between {COLDEST_AIR_CELSIUS:g} and {WARMEST_AIR_CELSIUS:g} °C")
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)  # waited for, so that none arrives between stop and resume
    load = WorkerLoad(asked.load_of, len(os.sched_getaffinity(0)))
    if not load.alive():
        _say(f"process {asked.load_of} is gone, or hidden from here: in a systemd unit set ProtectProc=default")
        return 1
    try:
        board = EmulatedBoard(
            asked.tree,
            asked.profile,
            load,
            asked.speed,
            kernel_fan=asked.kernel_fan,
            ambient_celsius=asked.ambient,
        )
        run(board, load)
    except TemperdError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:
        _say(f"the tree cannot be written: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
