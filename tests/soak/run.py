"""`make soak`: a day of an emulated board in fast time, with everything that can go wrong, and a report.

    python -m tests.soak.run --seed 7 --hours 24 --speed 40

Real broker, web server, consumer and daemon processes; heat and battery are emulated and run faster by `--speed`. The
daemon's own clock is the machine's: at speed 40 it decides once in 40 s of the board's heat, so the day says whether it
lasts and loses nothing, not how cool it keeps a board. As root the state lies on a small file system that really fills.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.simulators.fleet import World
from tests.soak.driver import Driver
from tests.soak.keeper import Keeper, clean_environment, daemon_command
from tests.soak.plan import QUIET_SHARE, day
from tests.soak.report import judged, markdown

STATE_MIB = 96
SETTLE_S = 300.0
"""For what is still open when the day is over."""


def main() -> int:
    """Play the day; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--hours", type=float, default=24.0, help="of the emulated day")
    parser.add_argument("--speed", type=float, default=40.0, help="how much faster heat and battery flow, at most 100")
    parser.add_argument("--out", type=Path, default=Path("temperd-soak"), help="folder of the report")
    options = parser.parse_args()
    if not (0 < options.hours <= 24 * 31 and 1 <= options.speed <= 100):
        parser.error("--hours is 0..744, --speed 1..100")
    with tempfile.TemporaryDirectory(prefix="temperd-soak-") as place, _small_disk(Path(place)) as full_disk:
        found = asyncio.run(_play(Path(place), options, full_disk=full_disk))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    text = markdown(found)
    (options.out / "soak.md").write_text(text)
    sys.stdout.write(text)
    return 1 if found["faults"] else 0


async def _play(place: Path, options: argparse.Namespace, *, full_disk: bool) -> dict[str, object]:
    world = World(place, speed=options.speed)
    extend_configuration(world)
    # It keeps the consumer's session over a stop: without, what boards backfill first is given to nobody.
    world.broker.keep_sessions(place)
    world.broker.start()
    world.publish()
    world.listen()
    keeper = Keeper(daemon_command(world.config), place, environment(place))
    consumer = start_consumer(world)
    driver = Driver(world, keeper, options.speed, full_disk=full_disk)
    began, wall_began = time.monotonic(), time.time()
    try:
        keeper.start()
        await driver.play(day(options.seed, options.hours), options.hours * 3600.0)
        await driver.settle(SETTLE_S)
        code = await asyncio.to_thread(keeper.stop)
    finally:
        if keeper.process is not None and keeper.process.poll() is None:
            await asyncio.to_thread(keeper.stop)
        await asyncio.sleep(3)  # the consumer's last batch
        consumer.terminate()
        consumer.wait(30)
        world.tap.stop()
        world.broker.stop()
        world.web.shutdown()
        world.web.server_close()
    facts = {
        "seed": options.seed,
        "hours": options.hours,
        "speed": options.speed,
        "wall_s": time.monotonic() - began,
        "exit_code": code,
        "disk_filled": full_disk,
        "quiet_from_s": (1 - QUIET_SHARE) * options.hours * 3600 / options.speed,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("daemon.log", "ingest.log"):
        shutil.copy(place / name, options.out / name)
    return judged(facts, world, keeper, driver, clock_offset_s=wall_began - began)


def extend_configuration(world: World) -> None:
    """Telemetry that the broker confirms: what is lost then is lost by temperd."""
    with world.config.open("a") as file:
        file.write("[telemetry]\nqos = 1\nactive_s = 1\nidle_s = 5\n")


def environment(place: Path) -> dict[str, str]:
    """Of the daemon; its live view and the emulated board are not on the disk that fills."""
    runtime = place / "runtime"
    runtime.mkdir()
    return {**clean_environment(), "RUNTIME_DIRECTORY": str(runtime)}


def start_consumer(world: World) -> subprocess.Popen[bytes]:
    """`temperd ingest` into a file."""
    log = (world.folder / "ingest.log").open("ab")
    command = [sys.executable, "-m", "service.cli", "ingest", "--broker", f"127.0.0.1:{world.broker.port}"]
    with log:
        return subprocess.Popen(
            [*command, "--store", str(world.folder / "fleet.sqlite"), "--name", "soak", "--group", "soak"],
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )


@contextlib.contextmanager
def _small_disk(place: Path):  # noqa: ANN202 - yields whether there is one
    """The state folder as a file system of its own, where we may mount one."""
    state = place / "state"
    state.mkdir()
    if os.geteuid() != 0:
        yield False
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={STATE_MIB}m,mode=0700", "tmpfs", str(state)], check=False
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(state)], check=False)


if __name__ == "__main__":
    sys.exit(main())
