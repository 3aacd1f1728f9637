"""`temperd fleet list`, `show`, `watch`, `wait` and `group`: what boards say, for people and programs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from agent.errors import NetworkError, SpecError
from service.cli import say_json
from service.cli_fleet import show
from service.commands import COMMAND_ID
from service.fleet.access import Access, find_access
from service.fleet.boards import Boards, details, number, summary
from service.fleet.fleet_link import ALL, EVERYTHING, FOR_A_LIST, MOST_LOOK_S, FleetLink
from service.fleet.follow import MAX_COMMANDS, Follow
from service.fleet.outcome import DONE, FAILED, exit_code
from service.fleet.state import FleetState, check_name, state_path
from service.fleet.tables import HEADS, aligned, board_cells, detail_lines, urgency
from service.logs import configure

if TYPE_CHECKING:
    from rich.table import Table

Change = Callable[[FleetState, str], int]
REDRAW_S = 0.5  # a table that changes faster is not read
MAX_WAIT_S = 31 * 86400.0  # no command lives longer


def list_boards(options: argparse.Namespace) -> int:
    """Every board, once."""
    configure("error", "text")
    access = _access(options)
    check_seconds(options.wait, "--wait")
    with FleetState(state_path(access.state, os.environ)) as state:
        wanted = frozenset(state.members(access.tenant, options.group)) if options.group else None
        boards = Boards(access.tenant)
        refused = asyncio.run(_look(access, boards, wanted or (ALL,), options.wait, FOR_A_LIST))
        views = _merged(state, access.tenant, boards, wanted)
    if options.offline:
        views = [view for view in views if not view["online"]]
    if options.json:
        say_json(views)
        return DONE
    print("\n".join(aligned(HEADS, (board_cells(view, time.time()) for view in views))))
    if silent := sum(1 for board in boards.boards.values() if board.conn and not board.birth and not board.complaint):
        print(
            f"{silent} boards left no birth, or the broker dropped it: see docs/fleet.md, big fleets", file=sys.stderr
        )
    if refused or boards.left_out:
        print(
            f"{refused} messages could not be read, {boards.left_out} were no board's or did not fit", file=sys.stderr
        )
    return DONE


def show_board(options: argparse.Namespace) -> int:
    """All of one board."""
    configure("error", "text")
    access, name = _access(options), check_name(options.board)
    check_seconds(options.wait, "--wait")
    boards = Boards(access.tenant, whole=True)
    asyncio.run(_look(access, boards, (name,), options.wait, EVERYTHING))
    with FleetState(state_path(access.state, os.environ)) as state:
        view = _merged(state, access.tenant, boards, frozenset((name,)))[0]
    found = boards.boards.get(name)
    if found is None and not view.get("last_seen"):
        raise SpecError(f"{name} was never seen on this broker", fix="temperd fleet list shows all boards")
    known = {**(details(found) if found else {}), **view}
    if options.json:
        say_json(known)
    else:
        print("\n".join(detail_lines(known, time.time())))
    return DONE


def _access(options: argparse.Namespace) -> Access:
    return find_access(options, os.environ)


def check_seconds(seconds: float, option: str) -> None:
    """Refuse a time that is none.

    Raises:
        SpecError: negative, not a number, or longer than a command lives.
    """
    if not 0.0 <= seconds <= MAX_WAIT_S:
        raise SpecError(f"{seconds:g} is outside 0..{MAX_WAIT_S:g} seconds", where=option)


async def _look(access: Access, boards: Boards, names: Collection[str], least_s: float, topics: tuple[str, ...]) -> int:
    """Fold in what the broker has of boards; how many messages could not be read."""

    def take(topic: str, body: Mapping[str, object] | None, retained: bool) -> None:  # noqa: FBT001 - a callback
        boards.take(topic, body, now=time.time(), retained=retained)

    client_id = _client_id()
    async with FleetLink(access.mqtt, access.tenant, client_id, take, boards=names, topics=topics, paced=True) as link:
        await link.wait_connected()
        if not await link.wait_quiet(least_s, least_s + MOST_LOOK_S):
            print(
                f"the broker still sends after {least_s + MOST_LOOK_S:g} s, or is gone: not all is shown",
                file=sys.stderr,
            )
        return link.refused


def _client_id() -> str:
    return f"console-{secrets.token_hex(8)}"


def _merged(state: FleetState, tenant: str, boards: Boards, wanted: frozenset[str] | None) -> list[dict[str, object]]:
    """What is known now, with what was known of boards that are gone; kept for the next look. Sorted by name."""
    now, before = time.time(), state.known_boards(tenant)
    views: dict[str, dict[str, object]] = {}
    for name, board in boards.boards.items():
        view, old = summary(board), before.get(name, {})
        kept = number(old.get("last_seen")) or 0.0
        view["last_seen"] = now if board.online else min(now, max(kept, board.last_seen)) or None
        if view["temperature_celsius"] is None:
            view |= {key: old.get(key) for key in ("temperature_celsius", "temperature_at")}
        views[name] = view | {"on_broker": True}
    state.remember_boards(tenant, views.values())
    for name in (before.keys() if wanted is None else wanted) - views.keys():
        views[name] = {"board": name, "job": None, "alarms": [], **before.get(name, {}), "online": False}
        views[name]["on_broker"] = False
    return [views[name] for name in sorted(views)]


# --- watch -----------------------------------------------------------------------------------------------------------


def watch(options: argparse.Namespace) -> int:
    """A live table, or lines."""
    configure("error", "text")
    access = _access(options)
    check_seconds(options.seconds, "--for")
    names = [check_name(name) for name in options.boards]
    if options.group:
        with FleetState(state_path(access.state, os.environ)) as state:
            names += state.members(access.tenant, options.group)
    return asyncio.run(_watch(options, access, tuple(dict.fromkeys(names)) or (ALL,)))


async def _watch(options: argparse.Namespace, access: Access, names: tuple[str, ...]) -> int:
    boards = Boards(access.tenant)
    changed: dict[str, None] = {}

    def take(topic: str, body: Mapping[str, object] | None, retained: bool) -> None:  # noqa: FBT001 - a callback
        if name := boards.take(topic, body, now=time.time(), retained=retained):
            changed[name] = None

    client_id = _client_id()
    link = FleetLink(access.mqtt, access.tenant, client_id, take, boards=names, topics=FOR_A_LIST, paced=True)
    async with link:
        await link.wait_connected()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(options.seconds or None):
                if options.json or not sys.stdout.isatty():
                    await _lines(boards, changed, as_json=options.json)
                await _live(boards, link)
    return DONE


async def _lines(boards: Boards, changed: dict[str, None], *, as_json: bool) -> None:
    """One line for each change of what a list shows, for ever."""
    said: dict[str, object] = {}
    while True:
        for name in [*changed]:
            del changed[name]
            view = summary(boards.boards[name])
            shown = json.dumps(view) if as_json else "  ".join(board_cells(view, time.time()))
            compared = {key: value for key, value in view.items() if key not in ("last_seen", "temperature_at")}
            if said.get(name) != compared:
                said[name] = compared
                print(shown, flush=True)
        await asyncio.sleep(REDRAW_S / 5)


async def _live(boards: Boards, link: FleetLink) -> None:
    """The table, for ever."""
    from rich.console import Console  # noqa: PLC0415 - only here
    from rich.live import Live  # noqa: PLC0415 - same

    console = Console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(live_table(boards, time.time(), console.height, connected=link.connected), refresh=True)
            await asyncio.sleep(REDRAW_S)


def live_table(boards: Boards, now: float, height: int, *, connected: bool) -> Table:
    """What fits on a screen of so many lines: alarms first, then work, then the rest."""
    from rich.table import Table  # noqa: PLC0415 - only here
    from rich.text import Text  # noqa: PLC0415 - same

    views = sorted(map(summary, boards.boards.values()), key=urgency)
    room = max(1, height - 5)  # head, rule, caption and the prompt below
    online = sum(view["online"] is True for view in views)
    told = f"{len(views)} boards, {online} online" + ("" if connected else "; no broker, trying on")
    if len(views) > room:
        told += f"; {len(views) - room} more are not shown"
    table = Table(*HEADS, box=None, caption=told, caption_justify="left", pad_edge=False)
    for view in views[:room]:
        style = "red" if view["alarms"] else "" if view["online"] else "dim"
        table.add_row(*map(Text, board_cells(view, now)), style=style)
    return table


# --- wait ------------------------------------------------------------------------------------------------------------


def wait(options: argparse.Namespace) -> int:
    """Until commands have ended."""
    configure("error", "text")
    access = _access(options)
    check_seconds(options.timeout, "--timeout")
    if bool(options.ids) == bool(options.roll_out):
        raise SpecError("wait for ids of commands, or for --roll-out ID")
    if options.roll_out:
        from service.cli_fleet_roll_out import wait_roll_out  # noqa: PLC0415 - needs this module

        return wait_roll_out(options, access)
    for command_id in options.ids:
        if not COMMAND_ID.fullmatch(command_id):
            raise SpecError(f"{command_id[:80]!r} is no command's id")
    if len(options.ids) > MAX_COMMANDS:
        raise SpecError(f"{len(options.ids)} commands, at most {MAX_COMMANDS}")
    return asyncio.run(_wait(options, access))


async def _wait(options: argparse.Namespace, access: Access) -> int:
    follow = Follow(dict.fromkeys(options.ids, ""))
    topics = tuple(f"cmd/+/{command_id}/sts" for command_id in follow.outcomes)
    async with FleetLink(access.mqtt, access.tenant, _client_id(), follow.take, topics=topics) as link:
        await link.wait_connected()
        try:
            async with asyncio.timeout(options.timeout or None):
                await follow.to_the_end(lambda told: show(told, as_json=options.json, alone=False))
        except TimeoutError:
            left = follow.open()
            what = f"{len(left)} of {len(follow.outcomes)} commands have not ended within {options.timeout:g} s"
            raise NetworkError(what, where=", ".join(left[:3]), reason="timeout") from None
    return exit_code(follow.outcomes.values())


# --- groups ----------------------------------------------------------------------------------------------------------


def group_add(options: argparse.Namespace) -> int:
    """Put boards into a group."""
    return _group(options, "added", lambda state, tenant: state.add_members(tenant, options.group, options.boards))


def group_remove(options: argparse.Namespace) -> int:
    """Take boards out."""
    return _group(options, "removed", lambda state, tenant: state.remove_members(tenant, options.group, options.boards))


def forget(options: argparse.Namespace) -> int:
    """Drop boards that were taken out of service from what is remembered."""
    access = _access(options)
    names = [check_name(name) for name in options.boards]
    with FleetState(state_path(access.state, os.environ)) as state:
        known = [name for name in names if state.forget_board(access.tenant, name)]
    if options.json:
        say_json({"forgotten": known})
    else:
        print(f"{len(known)} of {len(names)} were known, and are forgotten")
    return DONE if len(known) == len(names) else FAILED


def group_list(options: argparse.Namespace) -> int:
    """Groups and their boards."""
    access = _access(options)
    with FleetState(state_path(access.state, os.environ)) as state:
        groups = state.groups(access.tenant)
        if options.group:
            groups = {options.group: state.members(access.tenant, options.group)}
    if options.json:
        say_json(groups)
    else:
        for name, boards in groups.items():
            print(f"{name}: {' '.join(boards)}")
    return DONE


def _group(options: argparse.Namespace, word: str, change: Change) -> int:
    access = _access(options)
    with FleetState(state_path(access.state, os.environ)) as state:
        count = change(state, access.tenant)
    if options.json:
        say_json({"group": options.group, word: count})
    else:
        print(f"{options.group}: {count} {word}")
    return DONE if count or word == "added" else FAILED
