"""`temperd bench ingest`: a fleet of simulated boards, a real broker, real consumers. Is anything lost?

Every message is counted where it is sent and confirmed and again in the store. The broker's, the consumers' and the
boards' processor time is told apart, since on a bench they share the cores that a fleet does not.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent.errors import BoardError, SpecError
from service.bench import check_bounds, machine, say_progress
from service.bench_ingest_devices import TENANT
from service.broker import Broker, cache_folder, find_mosquitto, start_broker
from service.cli import say_json
from service.fleet.store import open_store

CONNECT_S = 120.0  # for 10,000 boards; a machine that needs longer is too slow for them
DRAIN_S = 120.0  # for what waits when the measured time is over
SAMPLES = 60  # of each consumer, over the measured time
MOST_BETWEEN_S = 1.0  # two of them
SPARE_FILES = 200  # beside one socket a board: libraries, logs, the database
LEAST_PERIOD_S, MOST_PERIOD_S = 0.1, 3600.0
STEADY_PARTS = 4  # of the measured time: the last is compared with the second
BROKER = """max_connections -1
max_queued_messages 100000
max_inflight_messages 0
sys_interval 0
log_type error
"""


@dataclass(slots=True)
class Party:
    """A process of the bench and the JSON lines it says."""

    name: str
    process: subprocess.Popen[str]
    lines: queue.Queue[dict[str, Any]]

    def tell(self, word: str) -> None:
        """A line for its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next line.

        Raises:
            BoardError: it said nothing within `seconds`, or ended.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                return self.lines.get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None and self.lines.empty():
                    break
        raise BoardError("a process of the bench ended or is too slow", where=self.name)


def ingest(options: argparse.Namespace) -> int:
    """Measure; exit code 0: nothing was lost."""
    check_bounds(options)
    if not LEAST_PERIOD_S <= options.period <= MOST_PERIOD_S:
        raise SpecError(f"{options.period} is outside {LEAST_PERIOD_S}..{MOST_PERIOD_S}", where="--period")
    if options.seconds < options.period:
        raise SpecError("the measured time is shorter than a period", where="--seconds")
    allow_files(options.devices)
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as folder:
        report = _measure(options, Path(folder))
    if options.json:
        say_json(report)
    else:
        show(report)
    return 0 if report["lost"] == 0 else 1


def allow_files(devices: int) -> None:
    """The broker has a socket a board; it and all others inherit our limit.

    Raises:
        SpecError: so many are not allowed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = devices + SPARE_FILES
    if hard != resource.RLIM_INFINITY and hard < needed:
        fix = f"Raise it (ulimit -Hn {needed}) or name fewer --devices"
        raise SpecError(f"{devices} boards need {needed} open files, {hard} are allowed", where="--devices", fix=fix)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    place = options.store or str(folder / "fleet.sqlite")
    store = open_store(place)
    if store.count():
        store.close()
        raise SpecError("the store is not empty: what is in it could not be told apart", where="--store")
    broker = start_broker(find_mosquitto(cache_folder(), say_progress), folder, BROKER)
    parties: list[Party] = []
    try:
        every_s = min(MOST_BETWEEN_S, options.seconds / SAMPLES)
        consumers = [_consumer(number, broker, place, every_s) for number in range(options.consumers)]
        parties += consumers
        for consumer in consumers:
            _until_connected(consumer)
        boards = boards_of(options, broker)
        parties += boards
        say_progress(f"{options.devices} boards connect")
        memory_kib = sum(board.hear(CONNECT_S)["memory_kib"] for board in boards)
        _until_quiet(consumers)
        had = [_last(consumer)["stored"] for consumer in consumers]
        run = _run(options, broker, consumers, boards)
        run["stored"] = _drained(store.count, run["confirmed"])
        run["consumers_stored"] = [_last(c)["stored"] - before for c, before in zip(consumers, had, strict=True)]
        run["lost"] = max(0, run["confirmed"] - run["stored"])
        run["boards_kib_each"] = round(memory_kib / options.devices, 1)
        run["store_bytes"] = store.used_bytes()
        for board in boards:
            board.tell("end")
    finally:
        for party in reversed(parties):
            party.process.terminate()
            party.process.wait()
        broker.stop()
        store.close()
    return {"bench": "ingest", "machine": machine(), **_asked(options), **run}


def _asked(options: argparse.Namespace) -> dict[str, object]:
    names = ("devices", "period", "seconds", "consumers", "processes", "format")
    kind = "postgresql" if "://" in options.store else "sqlite"
    return {**{name: getattr(options, name) for name in names}, "store": kind}


def _run(
    options: argparse.Namespace, broker: Broker, consumers: Sequence[Party], boards: Sequence[Party]
) -> dict[str, Any]:
    """The measured time."""
    pids = {party.name: party.process.pid for party in (*consumers, *boards)} | {"broker": broker.pid}
    before = {name: processor_s(pid) for name, pid in pids.items()}
    say_progress(f"{options.seconds} s are measured")
    for board in boards:
        board.tell("go")
    samples: list[list[dict[str, Any]]] = [[] for _ in consumers]
    begin = time.monotonic()
    while (left := begin + options.seconds - time.monotonic()) > 0:
        time.sleep(min(MOST_BETWEEN_S, left))
        for place, consumer in enumerate(consumers):
            samples[place] += _all(consumer)
    wall_s = time.monotonic() - begin
    cpu = {name: (processor_s(pid) - before[name]) / wall_s for name, pid in pids.items()}
    tallies = [board.hear(DRAIN_S) for board in boards]
    return {
        **{key: sum(tally[key] for tally in tallies) for key in ("sent", "confirmed", "failed")},
        "messages_a_s": round(sum(tally["sent"] for tally in tallies) / wall_s, 1),
        "confirmed_after_ms": {
            key: round(max(tally["confirmed_after_ms"][key] for tally in tallies), 2) for key in ("median", "p95")
        },
        "late_s": round(max(tally["late_s"] for tally in tallies), 3),
        "cores": {
            "boards": _share(cpu, boards),
            "broker": round(cpu["broker"], 3),
            "consumers": [round(cpu[consumer.name], 3) for consumer in consumers],
        },
        "queue": [_steady(found) for found in samples],
    }


def processor_s(pid: int) -> float:
    """Processor time of a process so far, seconds (proc(5): utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _share(cpu: Mapping[str, float], parties: Sequence[Party]) -> float:
    return round(sum(cpu[party.name] for party in parties), 3)


def _steady(samples: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """How long the queue was and how far behind the store, and whether either grew from the second part to the last."""
    part = max(1, len(samples) // STEADY_PARTS)
    early, late = samples[part : 2 * part], samples[-part:]
    found: dict[str, object] = {"samples": len(samples)}
    for key in ("waiting", "lag_s"):
        values = [sample[key] for sample in samples] or [0]
        found[key] = {
            "median": statistics.median(values),
            "most": max(values),
            "early": round(statistics.fmean([sample[key] for sample in early] or [0]), 3),
            "late": round(statistics.fmean([sample[key] for sample in late] or [0]), 3),
        }
    for key in ("retries", "duplicates"):
        found[key] = samples[-1][key] - samples[0][key] if samples else 0
    found["refused"] = samples[-1]["refused"] if samples else {}
    return found


def _consumer(number: int, broker: Broker, place: str, every_s: float) -> Party:
    arguments = ("--broker", f"127.0.0.1:{broker.port}", "--tenant", TENANT, "--store", place, "--json")
    named = ("--group", "bench", "--name", f"consumer-{number}", "--every", str(every_s))
    return start_party(f"consumer-{number}", "service", "ingest", *arguments, *named)


def boards_of(options: argparse.Namespace, broker: Broker) -> list[Party]:
    """Processes that hold `options.devices` boards; each says a line when its boards are connected."""
    found, first = [], 0
    for number in range(options.processes):
        count = options.devices // options.processes + (number < options.devices % options.processes)
        numbers = ("--port", broker.port, "--first", first, "--count", count, "--period", options.period)
        arguments = (*map(str, numbers), "--seconds", str(options.seconds), "--format", options.format)
        found.append(start_party(f"boards-{number}", "service.bench_ingest_devices", *arguments))
        first += count
    return found


def start_party(name: str, module: str, *arguments: str) -> Party:
    """A process of a module of ours that says JSON lines."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    return Party(name, process, lines)


def _read(stream: IO[str], lines: queue.Queue[dict[str, Any]]) -> None:
    for line in stream:
        lines.put(json.loads(line))


def _until_connected(consumer: Party) -> None:
    end = time.monotonic() + CONNECT_S
    while not consumer.hear(CONNECT_S)["connected"]:
        if time.monotonic() > end:
            raise BoardError("a consumer finds no broker", where=consumer.name)


def _until_quiet(consumers: Sequence[Party]) -> None:
    """Until what the boards said on connecting is in the store."""
    end = time.monotonic() + CONNECT_S
    for consumer in consumers:
        before = -1
        while time.monotonic() < end:
            line = _last(consumer)
            if line["waiting"] == 0 and line["received"] == before:
                break
            before = line["received"]


def _last(consumer: Party) -> dict[str, Any]:
    """A line that is yet to come, after those that wait."""
    _all(consumer)
    return consumer.hear(CONNECT_S)


def _all(consumer: Party) -> list[dict[str, Any]]:
    found = []
    while not consumer.lines.empty():
        found.append(consumer.lines.get())
    return found


def _drained(count: Any, wanted: int) -> int:  # noqa: ANN401 - a bound method of whatever store
    """How many messages the store has in the end."""
    end = time.monotonic() + DRAIN_S
    while (there := int(count())) < wanted and time.monotonic() < end:
        time.sleep(MOST_BETWEEN_S)
    return there


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    where, cores = report["machine"], report["cores"]
    print(f"{where['processor']}, {where['cores']} cores, all of it on one machine, {report['store']}")
    print(
        f"{report['devices']} boards, one message in {report['period']:g} s, {report['seconds']} s: "
        f"{report['messages_a_s']:g} messages a second"
    )
    print(f"  sent {report['sent']}, confirmed {report['confirmed']}, stored {report['stored']}, lost {report['lost']}")
    print(f"  confirmed after {report['confirmed_after_ms']['median']} ms, 95 %: {report['confirmed_after_ms']['p95']}")
    for number, found in enumerate(report["queue"]):
        waiting, lag = found["waiting"], found["lag_s"]
        print(
            f"  consumer {number}: stored {report['consumers_stored'][number]}, waiting {waiting['median']:g} "
            f"(most {waiting['most']}), behind {lag['median']:.2f} s (most {lag['most']:.2f}; "
            f"early {lag['early']:.2f}, late {lag['late']:.2f})"
        )
    shares = ", ".join(f"{share:.2f}" for share in cores["consumers"])
    print(f"  cores: boards {cores['boards']:.2f}, broker {cores['broker']:.2f}, consumers {shares}")
    print(f"  {report['boards_kib_each']} KiB a simulated board; store {report['store_bytes'] / (1 << 20):.0f} MiB")
