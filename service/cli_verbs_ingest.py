"""The parser of `temperd ingest` and of the benches that need a broker."""

from __future__ import annotations

from service.cli_verbs import Verbs, add_broker_options, add_verb

_TEXT = """Keep what boards say: telemetry, presence, births, statuses and alarms, in SQLite or PostgreSQL.
Start any number side by side with one --group: each telemetry message goes to one of them. docs/scale.md has sizes.
examples:
  temperd ingest --broker broker.local --store fleet.sqlite
  temperd ingest --broker broker.local --store postgresql://temperd@db.local/fleet --name ingest-2"""


def ingest_verbs(verbs: Verbs) -> None:
    """Add `ingest`."""
    ingest = add_verb(verbs, "ingest", "cli_ingest:ingest", _TEXT, config=False)
    ingest.add_argument("--store", default="temperd-fleet.sqlite", metavar="PATH|URL", help="file or postgresql:// URL")
    ingest.add_argument("--group", default="temperd", metavar="NAME", help="who shares the telemetry (temperd)")
    ingest.add_argument("--name", default="", metavar="NAME", help="of this consumer in its group (the machine's name)")
    ingest.add_argument("--all-tenants", action="store_true", help="not one tenant's boards but everybody's")
    ingest.add_argument("--keep-days", type=float, default=90.0, metavar="N", help="forget older telemetry (90)")
    ingest.add_argument("--keep-gib", type=float, default=50.0, metavar="N", help="forget the oldest beyond it (50)")
    ingest.add_argument("--leave", action="store_true", help="take what waits for this --name, then leave the group")
    ingest.add_argument("--every", type=float, default=10.0, metavar="S", help="seconds between two lines (10)")
    add_broker_options(ingest)


def link_benches(kinds: Verbs) -> None:
    """Add `bench ingest`, `bench console` and `bench link`."""
    text = "Simulated boards, a real broker, real consumers: is anything lost, does the queue stay?"
    ingest = add_verb(kinds, "ingest", "bench_ingest:ingest", text, config=False)
    ingest.add_argument("--devices", type=int, default=10_000, metavar="N", help="simulated boards (10000)")
    ingest.add_argument("--period", type=float, default=10.0, metavar="S", help="between two messages of one (10)")
    ingest.add_argument("--seconds", type=int, default=60, metavar="N", help="measured, after all are connected (60)")
    ingest.add_argument("--consumers", type=int, default=1, metavar="N", help="side by side in one group (1)")
    ingest.add_argument("--processes", type=int, default=2, metavar="N", help="that hold the boards (2)")
    ingest.add_argument("--store", default="", metavar="PATH|URL", help="an empty one (SQLite in a temporary folder)")
    ingest.add_argument("--format", choices=("json", "cbor"), default="json", help="of the telemetry (json)")
    text = "The console with many devices: pages, filters, a chart of a day, and what open pages cost."
    console = add_verb(kinds, "console", "bench_console:console", text, config=False)
    console.add_argument("--devices", type=int, default=10_000, metavar="N", help="in the store (10000)")
    console.add_argument("--live", type=int, default=1000, metavar="N", help="of them, boards that talk (1000)")
    console.add_argument("--period", type=float, default=1.0, metavar="S", help="between two messages of one (1)")
    console.add_argument("--seconds", type=int, default=60, metavar="N", help="measured while they talk (60)")
    console.add_argument("--readers", type=int, default=50, metavar="N", help="open pages (50)")
    console.add_argument("--rounds", type=int, default=20, metavar="N", help="how often each page is asked for (20)")
    console.add_argument("--processes", type=int, default=1, metavar="N", help="that hold the boards (1)")
    console.add_argument("--no-browser", dest="browser", action="store_false", help="leave the browser out")
    console.set_defaults(format="json")
    link = add_verb(kinds, "link", "bench_link:link", "Round trip of a command, cost of an idle link.", config=False)
    link.add_argument("--commands", type=int, default=200, metavar="N", help="sent one after the other (200)")
    link.add_argument("--seconds", type=int, default=60, metavar="N", help="of an idle daemon that are measured (60)")
