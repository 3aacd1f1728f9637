from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import structlog

from service import logs

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def written(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level, form, stream=stream, clock=lambda: NOON, environ={})
    return stream


def test_json_has_one_object_a_line_with_bound_context() -> None:
    stream = written("json")
    log = logs.logger("job")
    with logs.bind(job_id="j1"):
        log.info("stage", stage="TRAINING", bytes=3)
    log.warning("done")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first == {
        "event": "stage",
        "room": "job",
        "job_id": "j1",
        "stage": "TRAINING",
        "bytes": 3,
        "level": "info",
        "ts": "2026-03-01T12:00:00.000+00:00",
    }
    assert "job_id" not in second


def test_text_is_readable() -> None:
    stream = written("text")
    logs.logger("link").warning("connection lost", reason="no route", tries=2)
    assert stream.getvalue() == (
        '2026-03-01T12:00:00.000+00:00 warning connection lost room=link reason="no route" tries=2\n'
    )


def test_a_hostile_value_cannot_forge_a_line_or_fill_the_log() -> None:
    stream = written("text")
    logs.logger("link").info("refused\nroot", topic="a\nb=c\x1b[2J", body="x" * 100_000, raw=b"\n" * 5000)
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert "(100000 in all)" in line
    assert len(line) < 15_000


def test_lower_levels_are_silent() -> None:
    stream = written("text", "warning")
    logs.logger("x").info("quiet")
    assert stream.getvalue() == ""


def test_exceptions_are_kept_with_a_priority_on_every_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with path.open("w+") as stream:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        logs.configure("debug", "auto", stream=stream, clock=lambda: NOON, environ=environ)
        log = logs.logger("x")
        try:
            int("broken")
        except ValueError:
            log.exception("failed")
        log.debug("detail")
    lines = path.read_text().splitlines()
    assert lines[0].startswith("<3>2026-03-01")
    assert all(line.startswith("<3>") for line in lines[:-1])
    assert any("ValueError: invalid literal" in line for line in lines)
    assert lines[-1].startswith("<7>")


def test_without_a_terminal_auto_means_json(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        logs.configure("info", "auto", stream=stream, environ={"JOURNAL_STREAM": "1:2"})
        logs.logger("x").info("hello")
        stream.seek(0)
        assert json.load(stream)["event"] == "hello"


def test_the_daemon_path_imports_no_heavy_library_and_leaves_rich_usable() -> None:
    code = (
        "import sys, service.config, service.logs, service.commands, service.job, service.journal, service.systemd;"
        "import service.link, service.device_link;"
        "print(sorted({'rich', 'numpy', 'onnx', 'onnxruntime', 'urllib3', 'tuf', 'PIL'} & set(sys.modules)));"
        "import rich.console, structlog; print(rich.console.Console.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nConsole\n"
