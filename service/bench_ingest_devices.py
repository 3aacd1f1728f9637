"""Simulated boards of `temperd bench ingest`: many real links in one process, with telemetry of a board at rest.

Driven by lines on standard input: `go` begins the measured time. Says JSON lines on standard output: when all are
connected, and at the end what was sent and what the broker confirmed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import sys
import time
from dataclasses import dataclass, field

from service.config import Mqtt
from service.device_link import Address, Connected, Link
from service.logs import configure
from service.payload import CONTENT_TYPES, encode

CONNECTS_A_S = 400  # new connections of one process: a broker greets some thousand a second
SLICE_S = 0.01  # boards whose time comes within it are served together
CONFIRM_S = 60.0  # for the last confirmations
TENANT = "bench"
BIRTH = {"schema": 1, "agent": "0.0.0", "board": {"model": "simulated", "profile": "raspberry-pi-4"}, "metrics": {}}


def reading(chance: random.Random) -> dict[str, object]:
    """The `board` group of an idle board, with every key that a Raspberry Pi 4 gives."""
    return {
        "temperature_celsius": round(chance.uniform(38, 60), 3),
        "ambient_celsius": 21.5,
        "delta_t_celsius": round(chance.uniform(15, 35), 3),
        "frequency_hz": 1_500_000_000,
        "frequency_cap_hz": 1_500_000_000,
        "frequency_cap_found_hz": 1_500_000_000,
        "cooling_level": 0,
        "charge": None,
        "on_mains": None,
        "undervoltage": False,
        "throttled": False,
        "power_watts": round(chance.uniform(2.2, 3.1), 3),
        "power_is_modelled": True,
        "power_source": "model",
        "utilisation": round(chance.random(), 3),
        "pressure": {"cpu": round(chance.random(), 3), "memory": 0.0, "io": 0.01},
        "health": {"temperature": "ok", "frequency": "ok", "cap": "ok", "power": "missing", "charge": "missing"},
        "memory_available_bytes": chance.randrange(1 << 29, 1 << 31),
        "memory_faults": 0,
        "alarms": [],
        "action": "RUN",
        "rule": "run",
        "duty": 1.0,
        "frequency_rule": "unlimited",
        "least_depth_percent": 0,
        "depth_rule": "plan",
        "micro_batch_share": 1.0,
        "batch_rule": "plan",
        "notes": "",
    }


@dataclass(slots=True)
class Tally:
    """What the boards of this process did."""

    sent: int = 0
    confirmed: int = 0
    failed: int = 0
    """Not confirmed: refused, or the connection was lost before."""
    late_s: float = 0.0
    """The longest that a message left after its time."""
    delays_ms: list[float] = field(default_factory=list)
    """From publication to confirmation."""


class Fleet:
    """The boards of this process."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._chance, self.tally = options, random.Random(options.first), Tally()  # noqa: S311 - readings
        self._waiting: set[asyncio.Future[bool]] = set()
        self._boot_id, self._form = f"{options.first:08x}-bench", CONTENT_TYPES[options.format]
        settings = Mqtt(host="127.0.0.1", port=options.port, keepalive_s=60)
        names = (f"board-{number:05}" for number in range(options.first, options.first + options.count))
        self._links = [
            Link(
                settings,
                Address(TENANT, name),
                session=1,
                boot_id=self._boot_id,
                capabilities={},
                birth=BIRTH,
                now=time.time,
            )
            for name in names
        ]

    async def connect(self) -> None:
        """All of them, not all at once."""
        for place, link in enumerate(self._links):
            link.start()
            if place % 20 == 0:
                await asyncio.sleep(20 / CONNECTS_A_S)
        for link in self._links:
            while not isinstance(await link.receive(), Connected):
                pass

    async def publish(self) -> None:
        """Each board once a period, at its own moment in it, for the measured time."""
        begin, period = time.monotonic(), self._options.period
        moments = sorted((self._chance.random() * period, link) for link in self._links)
        for turn in range(max(1, round(self._options.seconds / period))):
            for moment, link in moments:
                due = begin + turn * period + moment
                if due > time.monotonic() + SLICE_S:
                    await asyncio.sleep(due - time.monotonic())
                self.tally.late_s = max(self.tally.late_s, time.monotonic() - due)
                self._send(link)
        await asyncio.sleep(begin + self._options.seconds - time.monotonic())

    def _send(self, link: Link) -> None:
        self.tally.sent += 1
        at = time.monotonic()
        told = link.publish_telemetry("board", self._message(), self._form)
        self._waiting.add(told)
        told.add_done_callback(lambda done: self._confirmed(done, at))

    def _message(self) -> bytes:
        """As `service.telemetry.Telemetry` makes it, which would need a disk for each board."""
        body = {
            "seq": self.tally.sent,
            "boot_id": self._boot_id,
            "ts": time.time(),
            "mono_ms": int(time.monotonic() * 1000),
            "dropped_total": 0,
            "values": reading(self._chance),
        }
        return encode(body, self._form)

    def _confirmed(self, told: asyncio.Future[bool], at: float) -> None:
        self._waiting.discard(told)
        if told.result():
            self.tally.confirmed += 1
            self.tally.delays_ms.append(1000 * (time.monotonic() - at))
        else:
            self.tally.failed += 1

    async def finish(self) -> None:
        """Wait for what is not confirmed yet."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=CONFIRM_S)

    async def stop(self) -> None:
        """Say goodbye."""
        for place in range(0, len(self._links), 100):
            await asyncio.gather(*(link.stop() for link in self._links[place : place + 100]))


async def _run(options: argparse.Namespace) -> None:
    before_kib = _memory_kib()
    fleet = Fleet(options)
    await fleet.connect()
    _say({"connected": options.count, "memory_kib": _memory_kib() - before_kib})
    await asyncio.to_thread(sys.stdin.readline)  # `go`
    before = time.process_time()
    await fleet.publish()
    cpu_s = time.process_time() - before
    await fleet.finish()
    tally = fleet.tally
    delays = sorted(tally.delays_ms) or [0.0]
    _say(
        {
            "sent": tally.sent,
            "confirmed": tally.confirmed,
            "failed": tally.failed,
            "late_s": tally.late_s,
            "confirmed_after_ms": {"median": delays[len(delays) // 2], "p95": delays[len(delays) * 95 // 100]},
            "cpu_s": cpu_s,
        }
    )
    await asyncio.to_thread(sys.stdin.readline)  # `end`: the consumers still count
    await fleet.stop()


def _memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    for name in ("port", "first", "count"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("period", "seconds"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--format", choices=("json", "cbor"), default="json")
    configure("warning", "json")
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
