"""`temperd bench console`: a store of many devices, a real broker, the real console, and open pages that listen.

How long a page, a filter and a chart of a day take; what the server costs while boards talk and pages are open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BoardError, SpecError
from agent.keys_consoles import Role
from service.bench import check_bounds, machine, say_progress
from service.bench_console_store import CHART_BOARD, DAY_POINTS, fill
from service.bench_ingest import BROKER, CONNECT_S, DRAIN_S, Party, allow_files, boards_of, processor_s, start_party
from service.bench_ingest_devices import TENANT
from service.broker import Broker, cache_folder, find_mosquitto, free_port, start_broker
from service.cli import say_json
from service.fleet.store import open_store

MAX_READERS = 190  # the console's own bound for all its streams, some left for who looks on
LISTS_OF_READERS = 0.8  # the rest are pages of boards
OF_SESSION = 20  # streams of one session, below the console's bound
START_S = 60.0  # for the console to answer, with all devices in its list
ANSWER_S = 30.0  # for one page
SETTLE_S = 180.0  # for the births and statuses of all boards, asked for in portions
QUIET_CORES = 0.15  # of the console with nothing to do: the list has settled
PAGES = {
    "fleet page": "/fleet",
    "fleet as JSON": "/api/fleet",
    "search": "/api/fleet?q=board-09&rows=50",
    "filter and sort": "/api/fleet?state=hot&state=idle&state=offline&q=board-0&sort=temperature&order=desc",
    "sort by model": "/api/fleet?sort=model&page=40",
    "device page": f"/device/{CHART_BOARD}",
    f"chart of {DAY_POINTS} points": f"/api/device/{CHART_BOARD}/chart?span=86400",
}
"""What is asked for, `--rounds` times each."""


@dataclass(slots=True)
class Server:
    """The console at work.

    Attributes:
        process: of it.
        port: on loopback.
        cookies: of sessions that are logged in.
    """

    process: subprocess.Popen[bytes]
    port: int
    cookies: list[str]
    started_s: float = 0.0

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request("GET", path, headers={"Cookie": self.cookies[0], "Accept": "text/html, */*"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def console(options: argparse.Namespace) -> int:
    """Measure; exit code 0: everything came."""
    from service.cli_console import need_extra  # noqa: PLC0415 - beside the others that need the extra

    check_bounds(options)
    need_extra()
    if options.live > options.devices:
        raise SpecError("more boards are live than there are devices", where="--live")
    if not 1 <= options.readers <= MAX_READERS:
        raise SpecError(f"{options.readers} is outside 1..{MAX_READERS}", where="--readers")
    allow_files(options.live + options.readers)
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as folder:
        report = _measure(options, Path(folder))
    if options.json:
        say_json(report)
    else:
        show(report)
    return 0 if not report["live"]["cut"] else 1


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    place = folder / "store.sqlite"
    say_progress(f"{options.devices} devices and a day of telemetry go into the store")
    store = open_store(str(place))
    fill(store, options.devices, time.time(), random.Random(1))  # noqa: S311 - readings
    store.close()
    broker = start_broker(find_mosquitto(cache_folder(), say_progress), folder, BROKER)
    try:
        with _server(folder, place, broker, options.readers) as server:
            _settle(server)
            say_progress("pages are asked for")
            pages = {name: _timed(server, path, options.rounds) for name, path in PAGES.items()}
            browser = _in_browser(server, options.rounds) if options.browser else None
            live = _live(options, broker, server)
            pages_busy = live.pop("pages")
    finally:
        broker.stop()
    asked = {name: getattr(options, name) for name in ("devices", "live", "period", "seconds", "readers", "rounds")}
    return {
        "bench": "console",
        "machine": machine(),
        **asked,
        "started_s": round(server.started_s, 2),
        "pages_ms": pages,
        "pages_busy_ms": pages_busy,
        "browser_ms": browser,
        "live": live,
    }


@contextmanager
def _server(folder: Path, place: Path, broker: Broker, readers: int) -> Iterator[Server]:
    """The console, started as anybody starts it, with sessions that were made beforehand."""
    state, port = folder / "console", free_port()
    cookies = asyncio.run(_sessions(state, 1 + readers // OF_SESSION))
    words = ("--broker", f"127.0.0.1:{broker.port}", "--tenant", TENANT, "--store", str(place), "--state", str(state))
    listen = ("--fleet-state", str(folder / "fleet.sqlite"), "--listen", f"127.0.0.1:{port}")
    begun = time.monotonic()
    with (folder / "console.log").open("wb") as log:
        command = [sys.executable, "-m", "service.cli", "console", *words, *listen]
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - ours
    server = Server(process, port, cookies)
    try:
        while not _answers(server):
            if process.poll() is not None or time.monotonic() > begun + START_S:
                told = (folder / "console.log").read_text("utf-8", "replace")[-300:]
                raise BoardError("the console does not start", where=told)
            time.sleep(0.05)
        server.started_s = time.monotonic() - begun
        yield server
    finally:
        process.terminate()
        process.wait()


async def _sessions(state: Path, count: int) -> list[str]:
    from service.console.accounts import Accounts  # noqa: PLC0415 - needs the extra
    from service.console.guard import SESSION_COOKIE  # noqa: PLC0415 - beside it

    accounts = Accounts(state, time.time)
    try:
        await accounts.add("bench", Role.VIEWER, "a password that nobody needs")
        return [f"{SESSION_COOKIE}={accounts.sessions.begin('bench')}" for _ in range(count)]
    finally:
        accounts.close()


def _answers(server: Server) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.get("/healthz")[0] == http.client.OK
    return False


def _settle(server: Server) -> None:
    """Until the console has nothing to do."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end:
        before = processor_s(server.process.pid)
        time.sleep(1.0)
        if processor_s(server.process.pid) - before < QUIET_CORES:
            return


def _timed(server: Server, path: str, rounds: int) -> dict[str, float]:
    """Each on a connection of its own, as the first of a browser."""
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        status, body = server.get(path)
        found.append(1000 * (time.perf_counter() - begin))
        if status != http.client.OK:
            raise BoardError(f"the console answers {status}", where=path)
    return {**_of(found), "kib": round(len(body) / 1024, 1)}


def _of(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "most": round(max(values), 1)}


def _live(options: argparse.Namespace, broker: Broker, server: Server) -> dict[str, Any]:
    """Boards talk, pages are open: what it costs, and how late news is."""
    parties: list[Party] = []
    try:
        boards = boards_of(argparse.Namespace(**{**vars(options), "devices": options.live}), broker)
        parties += boards
        say_progress(f"{options.live} boards connect")
        for board in boards:
            board.hear(CONNECT_S)
        _settle(server)
        readers = _readers(options, server)
        parties += readers
        for party in (*boards, *readers):
            party.tell("go")
        say_progress(f"{options.seconds} s are measured")
        pids = {"console": server.process.pid, "broker": broker.pid}
        before, begin = {name: processor_s(pid) for name, pid in pids.items()}, time.monotonic()
        waited_s = _waited_s(server.process.pid)
        time.sleep(options.seconds / 2)
        pages = {name: _timed(server, path, max(1, options.rounds // 4)) for name, path in PAGES.items()}
        time.sleep(max(0.0, begin + options.seconds - time.monotonic()))
        wall_s = time.monotonic() - begin
        cores = {name: round((processor_s(pid) - before[name]) / wall_s, 3) for name, pid in pids.items()}
        waited = round((_waited_s(server.process.pid) - waited_s) / wall_s, 3)
        tallies = [board.hear(DRAIN_S) for board in boards]
        for reader in readers:
            reader.tell("end")
        told = [reader.hear(DRAIN_S) for reader in readers]
    finally:
        for party in parties:
            party.process.terminate()
            party.process.wait()
    return {
        "sent": sum(tally["sent"] for tally in tallies),
        "messages_a_s": round(sum(tally["sent"] for tally in tallies) / wall_s, 1),
        "cores": cores,
        "waited_for_a_core": waited,
        "memory_mib": round(_resident_kib(server.process.pid) / 1024, 1),
        "lists": _summed([one["lists"] for one in told]),
        "boards": _summed([one["boards"] for one in told]),
        "cut": sum(one["cut"] for one in told),
        "pages": pages,
    }


def _readers(options: argparse.Namespace, server: Server) -> list[Party]:
    """One process for each session."""
    found, left = [], options.readers
    for place, cookie in enumerate(server.cookies):
        count = min(OF_SESSION, left)
        lists = round(count * LISTS_OF_READERS)
        if count:
            numbers = {"port": server.port, "lists": lists, "boards": count - lists, "live": options.live}
            words = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
            reader = start_party(f"readers-{place}", "service.bench_console_readers", *words)
            reader.tell(cookie)
            found.append(reader)
        left -= count
    for reader in found:
        reader.hear(CONNECT_S)
    return found


def _summed(tallies: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all sessions; of each figure of the delays the worst."""
    delays = {name: max(tally["delay_ms"][name] for tally in tallies) for name in ("median", "p95", "most")}
    counts = {name: sum(tally[name] for tally in tallies) for name in ("streams", "events", "bytes")}
    return {**counts, "delay_ms": delays}


def _waited_s(pid: int) -> float:
    """How long its first thread, which serves, stood in line for a core: others were at work on this machine."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[1]) / 1e9


def _resident_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return int(text.partition("VmRSS:")[2].split()[0])


def _in_browser(server: Server, rounds: int) -> dict[str, Any] | None:
    """From the address to the last byte of scripts run, in a real browser; `None` where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - of developers
    except ImportError:
        return None
    if program is None:
        return None
    say_progress("the same in a browser")
    name, _, value = server.cookies[0].partition("=")
    address = f"http://127.0.0.1:{server.port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context()
        context.add_cookies([{"name": name, "value": value, "url": address}])
        page = context.new_page()
        ready = [_ready(page.goto, page.evaluate, f"{address}/fleet") for _ in range(rounds)]
        typed = [_typed(page, text) for text in ("board-09", "board-012", "board-00001", "simulated")[:rounds]]
        browser.close()
    return {"page ready": _of(ready), "filter shown": _of(typed)}


def _ready(go: Callable[..., Any], evaluate: Callable[[str], Any], address: str) -> float:
    go(address, wait_until="load")
    return float(evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))


def _typed(page: Any, text: str) -> float:  # noqa: ANN401 - of a package that is not always there
    """From the last letter to the rows that answer it."""
    field = page.locator("input[name=q]")
    field.fill("")
    page.wait_for_timeout(1000)
    page.evaluate("performance.clearMarks()")
    begin = float(page.evaluate("performance.now()"))
    field.fill(text)
    shown = "performance.getEntriesByName('fleet-shown')[0]?.startTime ?? 0"
    while not (found := float(page.evaluate(shown))):  # its own waiting is an eval, which our pages do not allow
        if float(page.evaluate("performance.now()")) - begin > 1000 * ANSWER_S:
            raise BoardError("the list does not follow the filter", where=text)
        page.wait_for_timeout(5)
    return found - begin


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    where, live = report["machine"], report["live"]
    print(f"{where['processor']}, {where['cores']} cores, all of it on one machine")
    print(f"{report['devices']} devices in SQLite; the console answers {report['started_s']:.1f} s after its start")
    print("  asked for, ms (median, most; the same while boards talk):")
    for name, found in report["pages_ms"].items():
        busy = report["pages_busy_ms"][name]
        figures = f"{found['median']:8.1f} {found['most']:8.1f}   {busy['median']:8.1f} {busy['most']:8.1f}"
        print(f"    {name:26} {figures}   {found['kib']:g} KiB")
    for name, found in (report["browser_ms"] or {}).items():
        print(f"    {name + ', in a browser':26} {found['median']:8.1f} {found['most']:8.1f}")
    print(f"  {report['readers']} open pages, {live['messages_a_s']:g} messages a second, {report['seconds']} s:")
    waited = f"{100 * live['waited_for_a_core']:.0f} % of the time it waited for one"
    print(f"    cores: console {live['cores']['console']:.2f} ({waited}), broker {live['cores']['broker']:.2f}")
    print(f"    memory of the console {live['memory_mib']:g} MiB; streams that broke: {live['cut']}")
    for kind, words in (("lists", "rows, since the console heard"), ("boards", "readings, since the board spoke")):
        found = live[kind]
        late = found["delay_ms"]
        figures = f"{late['median']:g} ms, 95 %: {late['p95']:g}, most {late['most']:g}"
        print(f"    {found['streams']} {kind}: {found['events']} events, {words}: {figures}")
