"""Open pages of `temperd bench console`: many streams of one session in one process, read as a browser would.

Says JSON lines on standard output: when all are open; and at the end of standard input what came and how late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LIMIT = 1 << 20  # of a line: 50 rows have some 30 KiB
PAGE = 50  # rows of a page, as many as it shows


@dataclass(slots=True)
class Tally:
    """What the streams of one kind brought."""

    streams: int = 0
    events: int = 0
    bytes: int = 0
    delays_ms: list[float] = field(default_factory=list)

    def table(self) -> dict[str, object]:
        """As JSON has it."""
        delays = sorted(self.delays_ms) or [0.0]
        found = {"median": delays[len(delays) // 2], "p95": delays[len(delays) * 95 // 100], "most": delays[-1]}
        rounded = {name: round(value, 1) for name, value in found.items()}
        return {"streams": self.streams, "events": self.events, "bytes": self.bytes, "delay_ms": rounded}


class Readers:
    """All streams."""

    def __init__(self, port: int, cookie: str) -> None:
        self._port, self._cookie = port, cookie
        self.lists, self.boards = Tally(), Tally()
        self.counting = False
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self, query: str) -> asyncio.StreamReader:
        """A stream whose first event has come."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=LIMIT)
        head = f"GET /live?{query} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nCookie: {self._cookie}\r\n\r\n"
        self._writers.append(writer)  # one that nobody holds closes its connection
        writer.write(head.encode())
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"no stream: {status!r}")
        while not (await reader.readline()).startswith(b"event: hello"):
            pass
        return reader

    async def read(self, reader: asyncio.StreamReader, tally: Tally) -> None:
        """Until the end."""
        name = b""
        while line := await reader.readline():
            tally.bytes += len(line) if self.counting else 0
            if line.startswith(b"event: "):
                name = line[7:].strip()
            elif line.startswith(b"data: ") and self.counting and name in (b"rows", b"metrics"):
                self._count(json.loads(line[6:]), tally)

    def _count(self, data: dict[str, Any], tally: Tally) -> None:
        """A list tells when the console heard, a board's page when the board said it."""
        now = time.time()
        rows = data.get("rows")
        said = [row["last_seen"] for row in rows if row["last_seen"]] if isinstance(rows, list) else [data["ts"]]
        if said:
            tally.events += 1
            tally.delays_ms.append(1000 * (now - min(said)))


def names(first: int, count: int) -> list[str]:
    """Boards of the bench, as `bench_ingest_devices` names them."""
    return [f"board-{number:05}" for number in range(first, first + count)]


def queries(lists: int, boards: int, live: int) -> tuple[list[str], list[str]]:
    """What lists and pages of boards ask for: other pages of the list, other boards."""
    pages = max(1, live // PAGE)
    shown = [",".join(names(place % pages * PAGE, min(PAGE, live))) for place in range(lists)]
    return [f"boards={page}" for page in shown], [f"board={names(place % live, 1)[0]}" for place in range(boards)]


async def _run(options: argparse.Namespace) -> None:
    cookie = sys.stdin.readline().strip()  # not on the command line, which others can read
    readers = Readers(options.port, cookie)
    asked = queries(options.lists, options.boards, options.live)
    tasks = []
    for tally, wanted in zip((readers.lists, readers.boards), asked, strict=True):
        for query in wanted:
            tasks.append(asyncio.create_task(readers.read(await readers.open(query), tally)))
            tally.streams += 1
    _say({"open": len(tasks)})
    await asyncio.to_thread(sys.stdin.readline)  # `go`
    readers.counting = True
    await asyncio.to_thread(sys.stdin.readline)  # `end`
    readers.counting = False
    cut = sum(task.done() for task in tasks)
    _say({"lists": readers.lists.table(), "boards": readers.boards.table(), "cut": cut})
    for task in tasks:
        task.cancel()


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    for name in ("port", "lists", "boards", "live"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
