"""Structured logs on standard error: readable `key=value` text or one JSON object a line.

Context bound once (`with bind(job_id=...)`) is carried by every event below it, across tasks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from service.footprint import without_pickle
from service.report_log import RECENT

MAX_VALUE_CHARACTERS = 2000  # one hostile value must not fill the log; journald splits lines near 48 KB
_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3)
_SEVERITY = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/+@%,")

Event = MutableMapping[str, Any]
_HIDDEN = ("rich",)


@contextmanager
def _without_rich() -> Iterator[None]:
    """Keep structlog from importing rich for tracebacks: 6 MB that an idle board would pay and never use.

    Only this one import is affected: the command line may import rich before or after.
    """
    absent = [name for name in _HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: "not to be found"
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _without_rich(), without_pickle():
    import structlog
    from structlog.typing import Processor


def configure(
    level: str = "info",
    form: str = "auto",
    *,
    stream: TextIO | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Set level, format and stream for the whole program; may be called again.

    Args:
        level: debug, info, warning or error; lower events cost one comparison.
        form: `text`, `json`, or `auto`: text in a terminal and under systemd, else JSON. Text under systemd carries
            the `<n>` priority prefix of sd-daemon(3).
        stream: standard error by default.
        clock: wall clock of the events, with a time zone.
        environ: read for JOURNAL_STREAM only.
    """
    target = stream or sys.stderr
    journal = _is_journal(target, environ)
    as_text = form == "text" or (form == "auto" and (journal or target.isatty()))

    def stamp(_logger: object, _name: str, event: Event) -> Event:
        event["ts"] = clock().isoformat(timespec="milliseconds")
        return event

    render: Processor = _TextRenderer(journal) if as_text else structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.format_exc_info,
            RECENT,
            _shorten,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_SEVERITY[level]),
        logger_factory=structlog.WriteLoggerFactory(target),
        cache_logger_on_first_use=False,
    )


def logger(room: str) -> Any:  # noqa: ANN401 - structlog's loggers are made at run time
    """A logger whose events carry `room`; picks up later calls of `configure`."""
    return structlog.get_logger(room=room)


def bind(**context: object) -> AbstractContextManager[None]:
    """Within the `with` block, every event of this task carries `context`."""
    return structlog.contextvars.bound_contextvars(**context)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether systemd connected this stream to the journal: JOURNAL_STREAM names its device and inode."""
    wanted = environ.get("JOURNAL_STREAM", "")
    if not wanted:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return wanted == f"{found.st_dev}:{found.st_ino}"


def _shorten(_logger: object, _name: str, event: Event) -> Event:
    for key, value in event.items():
        if isinstance(value, str | bytes) and len(value) > MAX_VALUE_CHARACTERS:
            event[key] = f"{value[:MAX_VALUE_CHARACTERS]!r}... ({len(value)} in all)"
    return event


class _TextRenderer:
    """`<ts> <level> <event> key=value ...`; values that could forge a line or a field are quoted as JSON."""

    def __init__(self, priorities: bool) -> None:  # noqa: FBT001 - private, one caller
        self._priorities = priorities

    def __call__(self, _logger: Any, _name: str, event: Event, /) -> str:  # noqa: ANN401 - what structlog passes
        level = str(event.pop("level", "info"))
        trace = str(event.pop("exception", ""))
        head = f"{event.pop('ts', '')} {level:<7} {_quiet(event.pop('event', ''))}"
        line = " ".join([head, *(f"{_quiet(key)}={_value(value)}" for key, value in event.items())])
        prefix = f"<{_PRIORITY.get(level, 6)}>" if self._priorities else ""
        return "\n".join(prefix + part for part in [line, *(f"    {t}" for t in trace.splitlines())])


def _quiet(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=True)
    if isinstance(value, str) and not (text and _PLAIN.issuperset(text)):
        return json.dumps(text, ensure_ascii=True)
    return text
