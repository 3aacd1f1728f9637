"""What Prometheus is given: the format held against its grammar, the server against what may come over a network."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BoardError
from policies.governor import RULES
from policies.policy import Policy
from policies.reading import Reading
from policies.strict import TableError
from service.alarms_kinds import KINDS
from service.config import Prometheus, split_address
from service.prometheus import CONTENT_TYPE, METRICS, exposition
from service.prometheus_export import MAX_CONNECTIONS, MAX_REQUEST_BYTES, WRITE_EVERY_S, Exporter
from service.steering import Steering

# The grammar of https://prometheus.io/docs/instrumenting/exposition_formats/#text-format-details
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
VALUE = r"[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|Inf)"
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({VALUE})")
HELP = re.compile(rf"# HELP ({NAME}) \S.*")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge)")
UNITS = ("celsius", "hertz", "ratio", "watts", "bytes", "joules", "seconds", "total")
BARE = frozenset({
    "on_mains", "undervoltage", "throttled", "power_is_modelled", "connected", "job_attempt", "training_epoch",
    "training_samples", "training_loss", "training_score", "training_dropped_steps", "info", "action", "rule", "job",
    "alarm", "sensor_ok", "outbox_messages", "scrub_files", "scrub_damaged_files", "scrub_repaired_files",
    "scrub_unrepairable_files",
})  # fmt: skip
"""Flags, counts and numbers without a unit."""


class Board:
    """A board with every sensor."""

    def read(self, mono_s: float) -> Reading:
        return Reading(
            mono_s, temperature_celsius=61.25, ambient_celsius=25.0, frequency_hz=1_500_000_000, charge=0.5,
            on_mains=True, power_watts=4.5, utilisation=0.25, memory_available_bytes=1 << 40,
            pressure=(("cpu", 0.125),),
        )  # fmt: skip


def live(**changes: object) -> dict[str, Any]:
    steering = Steering(Board(), Policy())  # type: ignore[arg-type]  # reads only
    steering.reading = Board().read(0.0)
    board = steering.board_metrics()
    job = {"id": "x", "status": "running", "attempt": 2, "progress": 0.5}
    training = {"epoch": 3, "samples": 96, "loss": 0.123456789, "step_ms": 12.5, "depth_percent": 75, "dropped": 0}
    store = {"ts": 1_800_000_000.5, "files": 7, "damaged": 1, "repaired": 1, "unrepairable": 0, "duration_s": 2.5}
    waits = {"dropped_total": 3, "backfilled_total": 4, "outbox_messages": 5, "outbox_bytes": 6}
    link = {"connections": 1, "connection_losses": 0, "takeovers": 0, "refused_total": 2}
    changes = {"link": link, "telemetry": waits, **changes}
    view = {"device": "pi-1", "connected": True, "board": board, "job": job, "training": training, "store": store}
    return {
        **view,
        "energy": {"joules": 10.0},
        "policy": {"name": "rpi4"},
        "alarms": [{"type": "overheated"}],
        **changes,
    }


def parse(text: str) -> dict[tuple[str, str], float]:
    """Samples by name and labels; every line must follow the grammar, every family must be whole."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    ended: set[str] = set()
    family = ""
    lines = iter(text[:-1].split("\n"))
    for line in lines:
        if told := HELP.fullmatch(line):
            ended.add(family)
            family = told[1]
            assert family not in ended, "a family stands together"
            kind = TYPE.fullmatch(next(lines))
            assert kind
            assert kind[1] == family
            assert (kind[2] == "counter") == family.endswith("_total")
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == family
        key = sample[1], sample[2] or ""
        assert key not in found, "given twice"
        found[key] = float(sample[3])
    return found


def test_the_page_follows_the_grammar_and_says_what_the_view_says() -> None:
    found = parse(exposition(live()))
    assert found["temperd_die_temperature_celsius", ""] == 61.25
    assert found["temperd_memory_available_bytes", ""] == 1 << 40
    assert found["temperd_on_mains", ""] == 1.0
    assert found["temperd_training_freeze_depth_ratio", ""] == 0.75
    assert found["temperd_training_step_seconds", ""] == 0.0125
    assert found["temperd_training_loss", ""] == 0.123456789
    assert found["temperd_scrub_timestamp_seconds", ""] == 1_800_000_000.5
    assert found["temperd_pressure_ratio", 'resource="cpu"'] == 0.125
    assert found["temperd_job", 'status="running"'] == 1.0
    assert found["temperd_job", 'status="paused"'] == 0.0
    assert found["temperd_alarm", 'type="overheated",severity="warning"'] == 1.0
    assert sum(value for (name, _), value in found.items() if name == "temperd_alarm") == 1.0
    assert len([name for name, _ in found if name == "temperd_alarm"]) == len(KINDS)


def test_names_say_their_unit() -> None:
    for name, _ in parse(exposition(live())):
        short = name.removeprefix("temperd_")
        assert name.startswith("temperd_")
        assert short in BARE or short.rsplit("_", 1)[1] in UNITS


def test_every_key_of_a_metric_is_one_that_the_board_tells() -> None:
    board = live()["board"]
    assert [m.key for m in METRICS if m.section == "board" and m.key not in board] == ["least_depth_ratio"]


def test_what_is_not_known_has_no_line_and_no_view_is_still_a_page() -> None:
    assert ("temperd_power_watts", "") not in parse(exposition(live(board={"power_watts": None})))
    assert ("temperd_connected", "") not in parse(exposition({}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(live())), JSON), JSON, st.text(max_size=20))
def test_no_view_breaks_the_page(changes: dict[str, object], value: object, text: str) -> None:
    board = {"health": {text: "ok"}, "rule": text, "frequency_hz": value, "pressure": {text: value}}
    view = live(board=board) | changes
    parse(exposition(view))


def test_rules_fit_a_label() -> None:
    assert max(map(len, RULES)) < 200


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_file_is_replaced_as_a_whole_and_taken_away_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "temperd.prom"
    views = [live(device="one"), live(device="two")]
    exporter = Exporter(Prometheus(textfile=str(path)), lambda: views[0])
    exporter.tick(100.0)
    assert 'device="one"' in path.read_text("utf-8")
    assert path.stat().st_mode & 0o777 == 0o644, "node_exporter is another user"
    views.reverse()
    exporter.tick(100.0 + WRITE_EVERY_S - 0.5)
    assert 'device="one"' in path.read_text("utf-8")
    before = path.stat().st_ino
    exporter.tick(100.0 + WRITE_EVERY_S)
    assert 'device="two"' in path.read_text("utf-8")
    assert path.stat().st_ino != before
    assert list(tmp_path.iterdir()) == [path]
    exporter.close()
    assert not path.exists()


def test_a_folder_that_is_not_there_costs_nothing_but_a_warning(tmp_path: Path) -> None:
    exporter = Exporter(Prometheus(textfile=str(tmp_path / "none" / "temperd.prom")), live)
    exporter.tick(0.0)
    exporter.tick(WRITE_EVERY_S)
    exporter.close()
    assert not list(tmp_path.iterdir())


def test_a_journal_that_fails_costs_figures_and_nothing_else(tmp_path: Path, free_port: int) -> None:
    def fail() -> dict[str, object]:
        raise BoardError("the disk fails", reason="disk")

    settings = Prometheus(textfile=str(tmp_path / "temperd.prom"), listen=f":{unused(free_port)}")
    exporter = Exporter(settings, fail)
    exporter.tick(0.0)
    assert not list(tmp_path.iterdir())

    async def play() -> None:
        task = await served(exporter)
        answer = await ask(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"the disk fails" in answer
        task.cancel()

    asyncio.run(play())


# --- the server ------------------------------------------------------------------------------------------------------


async def served(exporter: Exporter) -> asyncio.Task[None]:
    task = asyncio.ensure_future(exporter.serve())
    await until(lambda: exporter.port)
    return task


async def until(true: Callable[[], object]) -> None:
    """Wait for a condition, for up to a minute."""
    for _ in range(6000):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def ask(port: int, data: bytes, *, end: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if end:
        writer.write_eof()
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
def free_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def listening(port: int) -> Exporter:
    return Exporter(Prometheus(listen=f":{port}"), live)


def unused(taken: int) -> int:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
    assert port != taken
    return port


def test_the_server_answers_a_scrape_and_nothing_else(free_port: int) -> None:
    async def play() -> None:
        exporter = listening(unused(free_port))
        task = await served(exporter)
        good = await ask(exporter.port, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")
        head, _, page = good.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Type: {CONTENT_TYPE}".encode() in head
        assert f"Content-Length: {len(page)}".encode() in head
        assert parse(page.decode())["temperd_connected", ""] == 1.0
        empty = await ask(exporter.port, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n")
        assert empty.startswith(b"HTTP/1.1 200 OK\r\n")
        assert empty.endswith(b"\r\n\r\n")
        assert (await ask(exporter.port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        assert (await ask(exporter.port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405 ")
        assert (await ask(exporter.port, b"\xff\x00 nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        assert (await ask(exporter.port, b"GET /metrics HTTP/1.1\r\n", end=True)).startswith(b"HTTP/1.1 400 ")
        task.cancel()

    asyncio.run(play())


def test_a_request_without_end_is_cut_and_the_next_is_answered(free_port: int) -> None:
    async def play() -> None:
        exporter = listening(unused(free_port))
        task = await served(exporter)
        try:
            refused = await ask(exporter.port, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (4 * MAX_REQUEST_BYTES))
        except ConnectionError:  # what lay unread is answered by a reset
            refused = b""
        assert not refused.startswith(b"HTTP/1.1 200")
        assert (await ask(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        task.cancel()

    asyncio.run(play())


def test_connections_are_bounded(free_port: int) -> None:
    async def play() -> None:
        exporter = listening(unused(free_port))
        task = await served(exporter)
        idle = [await asyncio.open_connection("127.0.0.1", exporter.port) for _ in range(MAX_CONNECTIONS)]
        answer = await ask(exporter.port, b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        for _, writer in idle:
            writer.close()
        answers = [b""]
        while not answers[-1].startswith(b"HTTP/1.1 200 "):
            assert len(answers) < 1000
            answers.append(await ask(exporter.port, b"GET /metrics HTTP/1.1\r\n\r\n"))
        task.cancel()

    asyncio.run(play())


def test_an_address_that_is_taken_is_said_and_does_not_end_the_daemon(
    free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play() -> None:
        task = asyncio.ensure_future(listening(free_port).serve())
        said: list[str] = []
        await until(lambda: said.append(capsys.readouterr().out) or "metrics are not served" in "".join(said))
        assert str(free_port) in "".join(said)
        assert not task.done()
        task.cancel()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("listen", "address"),
    [(":9469", ("127.0.0.1", 9469)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:65535", ("::1", 65535))],  # noqa: S104 - an example
)
def test_addresses(listen: str, address: tuple[str, int]) -> None:
    assert split_address(listen) == address


@pytest.mark.parametrize("listen", ["9469", "host", ":0", ":65536", ":-1", ":٣", "host:"])
def test_no_addresses(listen: str) -> None:
    with pytest.raises(TableError, match=re.escape(repr(listen))):
        Prometheus(listen=listen)


@pytest.mark.parametrize("host", ["a b", "a..b", "a" * 64])
def test_no_hosts(host: str) -> None:
    with pytest.raises(TableError, match=re.escape(repr(host))):
        Prometheus(listen=f"{host}:1")


def test_a_file_that_node_exporter_would_not_read_is_refused() -> None:
    with pytest.raises(TableError, match=r"\.prom"):
        Prometheus(textfile="/tmp/temperd.txt")  # noqa: S108 - never written
