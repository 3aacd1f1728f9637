"""`temperd bench link`: how soon a real daemon answers a command, and what a link costs that has nothing to say.

Everything is on loopback: what is measured is the daemon, its journal on this disk and the broker, not a network.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BoardError
from agent.keys import create_console_key, create_identity, load_console_key
from service.bench import check_bounds, machine, say_progress
from service.bench_ingest import processor_s
from service.broker import Broker, cache_folder, find_mosquitto, start_broker
from service.cli import say_json
from service.commands import Request, new_id, sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink
from service.device_link import Address, Connected, Link
from service.logs import configure

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DEVICE = "bench-board"
READY_S, ANSWER_S = 60.0, 30.0
POLL_S = 0.1
SETTLE_S = 5.0  # what a daemon does once after its start is not what an idle one costs
VALID_S = 600


def link(options: argparse.Namespace) -> int:
    """Measure both."""
    check_bounds(options)
    configure("error", "json")
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as place:
        folder = Path(place)
        broker = start_broker(find_mosquitto(cache_folder(), say_progress), folder)
        try:
            key = _prepare(folder, broker.port)
            with _daemon(folder) as daemon:
                found = asyncio.run(_measure(options, broker, key, daemon.pid))
        except TimeoutError:
            said = (folder / "daemon.log").read_text("utf-8", "replace")[-500:]
            raise BoardError("the daemon does not answer", where=said) from None
        finally:
            broker.stop()
    report = {"bench": "link", "machine": machine(), **found}
    if options.json:
        say_json(report)
    else:
        show(report)
    return 0


def _prepare(folder: Path, port: int) -> Ed25519PrivateKey:
    """Identity, a trusted console and a configuration."""
    create_identity(folder / "state" / "keys", DEVICE)
    public = create_console_key(folder / "console", "bench")
    (folder / "trusted").mkdir()
    (folder / "trusted" / public.name).write_bytes(public.read_bytes())
    (folder / "temperd.toml").write_text(
        f'[device]\nname = "{DEVICE}"\nstate_dir = "state"\n'
        f'[mqtt]\nhost = "127.0.0.1"\nport = {port}\n'
        '[repository]\nurl = "http://127.0.0.1:9"\nroot = "root.json"\n'
        '[board]\nemulated = "raspberry-pi-4"\n[commands]\ntrusted_consoles = "trusted"\n',
        "utf-8",
    )
    return load_console_key(folder / "console" / "bench.key")


@contextmanager
def _daemon(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon of its own process, on an emulated board."""
    command = [sys.executable, "-m", "service", "run", "--config", str(folder / "temperd.toml")]
    environment = {name: value for name, value in os.environ.items() if name != "RUNTIME_DIRECTORY"}
    with (folder / "daemon.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - ours
    try:
        yield process
        if process.poll() is not None:
            said = (folder / "daemon.log").read_text("utf-8", "replace")[-500:]
            raise BoardError("the daemon ended", where=said)
    finally:
        process.terminate()
        process.wait()


async def _measure(options: argparse.Namespace, broker: Broker, key: Ed25519PrivateKey, daemon: int) -> dict[str, Any]:
    settings = Mqtt(host="127.0.0.1", port=broker.port)
    address = Address("default", DEVICE)
    async with ConsoleLink(settings, address, "bench-console") as console:
        await console.wait_connected(READY_S)
        await _until_online(console)
        say_progress(f"{options.commands} commands, one after the other")
        times = [await _round_trip(console, key) for _ in range(options.commands)]
    say_progress(f"{options.seconds} s of an idle daemon and of an idle link")
    return {"round_trip": _spread(times), "idle": await _idle(options.seconds, settings, broker.pid, daemon)}


async def _until_online(console: ConsoleLink) -> None:
    async with asyncio.timeout(READY_S):
        async for seen in console.watch():
            if seen.kind == "conn" and seen.body.get("online"):
                return


async def _round_trip(console: ConsoleLink, key: Ed25519PrivateKey) -> float:
    """Seconds from the publication of a signed command to the first status by the daemon.

    A pause of a job that is not there: it is verified, written to the journal and answered, and nothing else happens.
    """
    now = time.time()
    number = new_id(int(now * 1000), os.urandom)
    request = Request(number, DEVICE, "pause", int(now), int(now) + VALID_S, {"job": number})
    envelope = sign_command(request, key)
    begin = time.perf_counter()
    sending = asyncio.ensure_future(console.send("pause", number, envelope, expires_s=VALID_S))
    async with asyncio.timeout(ANSWER_S):
        async for seen in console.watch():
            if seen.kind == "status" and seen.command_id == number:
                break
    took = time.perf_counter() - begin
    await sending
    return took


def _spread(times: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * took for took in times)
    return {
        "commands": len(ordered),
        "median_ms": round(statistics.median(ordered), 2),
        "p95_ms": round(ordered[len(ordered) * 95 // 100], 2),
        "most_ms": round(ordered[-1], 2),
    }


async def _idle(seconds: int, settings: Mqtt, broker: int, daemon: int) -> dict[str, float]:
    """Percent of a core: this process, which holds one idle link; the daemon; the broker."""
    alone = Link(
        settings,
        Address("default", "bench-idle"),
        session=1,
        boot_id="bench",
        capabilities={},
        birth={"schema": 1},
        now=time.time,
    )
    alone.start()
    while not isinstance(await alone.receive(), Connected):
        pass
    await asyncio.sleep(min(SETTLE_S, seconds))
    ours, theirs, brokers = time.process_time(), processor_s(daemon), processor_s(broker)
    begin = time.monotonic()
    await asyncio.sleep(seconds)
    wall_s = time.monotonic() - begin
    found = {
        "seconds": round(wall_s, 1),
        "link_percent": round(100 * (time.process_time() - ours) / wall_s, 4),
        "daemon_percent": round(100 * (processor_s(daemon) - theirs) / wall_s, 3),
        "broker_percent": round(100 * (processor_s(broker) - brokers) / wall_s, 3),
    }
    await alone.stop()
    return found


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    where, trip, idle = report["machine"], report["round_trip"], report["idle"]
    print(f"{where['processor']}, {where['cores']} cores, loopback")
    print(
        f"  {trip['commands']} commands: first status after {trip['median_ms']} ms (median), "
        f"{trip['p95_ms']} ms (95 %), {trip['most_ms']} ms (most)"
    )
    print(
        f"  idle for {idle['seconds']:g} s: link {idle['link_percent']} %, the whole daemon "
        f"{idle['daemon_percent']} %, broker {idle['broker_percent']} % of a core"
    )
