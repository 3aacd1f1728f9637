"""`temperd fleet roll-out`: one command to many boards in waves; begin, go on, abort, look, wait."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.errors import BoardError, NetworkError, SpecError
from agent.keys import load_console_key
from policies.strict import TableError, build
from service.cli import say_json
from service.cli_fleet import arguments
from service.cli_fleet_roll_out_told import progress, say_begin, say_end, told
from service.cli_fleet_view import check_seconds
from service.cli_fleet_words import TYPES, check_valid, chosen_boards, read_expect, signed
from service.commands import FINE_TUNE, Request, new_id
from service.fleet.access import Access, find_access
from service.fleet.fleet_link import FleetLink
from service.fleet.outcome import DONE, FAILED, Outcome
from service.fleet.plain import plain
from service.fleet.roll_out import Inbox, RollOutRun, Terms
from service.fleet.roll_out_lock import BUSY, held
from service.fleet.roll_out_plan import Rules, canaries, resumed_rules
from service.fleet.state import ABORTED, ENDED, RUNNING, FleetState, RollOut, state_path
from service.fleet.tables import aligned
from service.logs import configure

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_OPTIONS = {"parallel": "--parallel", "stop_at": "--stop-at", "least_ended": "--stop-min"}
POLL_S = 0.5  # between two looks at a roll-out that another process runs


def roll_out(options: argparse.Namespace) -> int:
    """Begin one, or go on with, end, show or list those there are."""
    configure("error", "text")
    access = find_access(options, os.environ)
    with FleetState(state_path(access.state, os.environ)) as state:
        if options.list:
            return _list(options, state, access)
        if options.show:
            chosen = state.roll_out(options.show)
            return say_end(options, chosen, state.commands(chosen.id))
        if options.abort:
            return _abort(options, access, state)
        return _resume(options, access, state) if options.resume else _begin(options, access, state)


# --- begin and go on -------------------------------------------------------------------------------------------------


def _begin(options: argparse.Namespace, access: Access, state: FleetState) -> int:
    kind, argument = _words(options.words)
    boards = chosen_boards(options, access, options.boards)
    rules = _rules(options, len(boards))
    terms = Terms(rules, arguments(kind, argument), read_expect(options.expect))
    if options.valid is not None:
        check_valid(options.valid)
        terms = replace(terms, valid_s=options.valid)
    key = load_console_key(access.key_path())
    now = time.time()
    roll_out_id = new_id(int(now * 1000), os.urandom)
    made = RollOut(roll_out_id, access.tenant, kind, terms.to_table(), now, RUNNING, "")
    # The longest name makes the longest command: too long is said before anything is sent.
    signed(Request(roll_out_id, max(boards, key=len), kind, int(now), int(now), terms.args, terms.expect), key)

    async def play(link: FleetLink, inbox: Inbox) -> int:
        await link.wait_quiet()
        order = sorted(boards, key=lambda board: not inbox.online.get(board, False))
        state.begin(made, order)
        say_begin(options, made, [board for board in order if not inbox.online.get(board)], len(order))
        return await _run(options, state, made, key, link, inbox)

    with held(state, roll_out_id):
        return asyncio.run(_connected(access, play))


def _words(words: list[str]) -> tuple[str, str]:
    """Type and argument; a job's file alone is a fine-tune."""
    if words and words[0] in TYPES:
        kind, rest = words[0], words[1:]
    else:
        kind, rest = FINE_TUNE, words
    if len(rest) > 1 or not words:
        raise SpecError("say what to roll out: JOB.toml, or TYPE [ARGUMENT]", where=" ".join(words)[:200])
    return kind, rest[0] if rest else ""


def _rules(options: argparse.Namespace, boards: int) -> Rules:
    share = read_share(options.canary, "--canary") if options.canary else 0.0
    if not 0 <= options.canary_count <= boards:
        raise SpecError(f"{options.canary_count} canaries of {boards} boards", where="--canary-count")
    rules = {"canary": canaries(boards, share, options.canary_count), **_limits(options)}
    if options.wait_canary is not None:
        check_seconds(options.wait_canary, "--wait-canary")
        rules["wait_canary_s"] = options.wait_canary
    return _checked(rules)


def _limits(options: argparse.Namespace) -> dict[str, object]:
    """The rules that may change on the way, as far as they were given."""
    stop_at = read_share(options.stop_at, "--stop-at") if options.stop_at else None
    given = {"parallel": options.parallel, "stop_at": stop_at, "least_ended": options.stop_min}
    return {name: value for name, value in given.items() if value is not None}


def _checked(rules: Mapping[str, object]) -> Rules:
    try:
        return build(Rules, rules)
    except TableError as error:
        raise SpecError(error.what, where=_OPTIONS.get(error.key, error.key)) from error


def read_share(text: str, option: str) -> float:
    """A share as `10%` or `0.1`.

    Raises:
        SpecError: neither, or outside 0..1.
    """
    try:
        share = float(text[:-1]) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        raise SpecError(f"{text[:40]!r} is no share: say 10% or 0.1", where=option) from None
    if not 0.0 < share <= 1.0:
        raise SpecError(f"{text[:40]!r} is no share: above 0, at most 100%", where=option)
    return share


def _resume(options: argparse.Namespace, access: Access, state: FleetState) -> int:
    fixed = ("words", "boards", "group", "canary", "canary_count", "wait_canary", "expect", "valid")
    if any(getattr(options, name) for name in fixed):
        what = "--resume goes on with the same boards and command; only --stop-at, --stop-min and --parallel may change"
        raise SpecError(what)
    with held(state, _of_tenant(state, access, options.resume).id):
        chosen = state.roll_out(options.resume)  # as whoever had the lock before left it
        if chosen.state == ABORTED:
            raise SpecError("this roll-out was aborted: begin a new one", where=chosen.id)
        terms = Terms.of(chosen)
        terms = replace(terms, rules=_checked(resumed_rules(terms.rules, _limits(options))))
        waits = any(command.outcome == Outcome.WAITING for command in state.commands(chosen.id))
        key = load_console_key(access.key_path()) if waits else None

        async def play(link: FleetLink, inbox: Inbox) -> int:
            state.stand(chosen.id, RUNNING, "", terms.to_table())
            return await _run(options, state, state.roll_out(chosen.id), key, link, inbox, look=True)

        return asyncio.run(_connected(access, play))


def _of_tenant(state: FleetState, access: Access, roll_out_id: str) -> RollOut:
    chosen = state.roll_out(roll_out_id)
    if chosen.tenant != access.tenant:
        raise SpecError(f"this roll-out is of tenant {chosen.tenant}", where=chosen.id, fix="Name it with --tenant")
    return chosen


async def _connected(access: Access, play: Callable[[FleetLink, Inbox], Awaitable[int]]) -> int:
    inbox = Inbox()
    client_id = f"console-{secrets.token_hex(8)}"
    async with FleetLink(access.mqtt, access.tenant, client_id, inbox.take, topics=("conn",)) as link:
        await link.wait_connected()
        return await play(link, inbox)


async def _run(
    options: argparse.Namespace,
    state: FleetState,
    chosen: RollOut,
    key: Ed25519PrivateKey | None,
    link: FleetLink,
    inbox: Inbox,
    *,
    look: bool = False,
) -> int:
    def sign(request: Request) -> bytes:
        if key is None:
            raise SpecError("a command needs a console key", fix="Name it with --key FILE")
        return signed(request, key)

    with progress(options) as tell:
        run = RollOutRun(state, chosen, sign, inbox, now=time.time, tell=tell)
        if look:  # what boards said while nobody looked comes first: less is sent again
            run.listen(link)
            await link.wait_quiet()
        try:
            ended = await run.run(link)
        except asyncio.CancelledError:
            print(f"go on with: temperd fleet roll-out --resume {chosen.id}", file=sys.stderr)
            raise
    return say_end(options, ended, run.commands)


# --- abort, wait, list -----------------------------------------------------------------------------------------------


def _abort(options: argparse.Namespace, access: Access, state: FleetState) -> int:
    check_seconds(options.timeout, "--timeout")
    key = load_console_key(access.key_path())
    with held(state, _of_tenant(state, access, options.abort).id):
        chosen = state.roll_out(options.abort)  # as whoever had the lock before left it
        if chosen.state == ENDED:
            raise SpecError("this roll-out has ended, nothing is left to abort", where=chosen.id)
        return _abort_held(options, access, state, chosen, key)


def _abort_held(
    options: argparse.Namespace, access: Access, state: FleetState, chosen: RollOut, key: Ed25519PrivateKey
) -> int:
    async def play(link: FleetLink, inbox: Inbox) -> int:
        with progress(options) as tell:
            run = RollOutRun(state, chosen, lambda request: signed(request, key), inbox, now=time.time, tell=tell)
            run.listen(link)
            await link.wait_quiet()
            await run.abort(link)
            await run.follow(link, options.timeout)
        say_end(options, run.roll_out, run.commands)
        left = sum(command.outcome == Outcome.OPEN for command in run.commands)
        return FAILED if left else DONE

    return asyncio.run(_connected(access, play))


def wait_roll_out(options: argparse.Namespace, access: Access) -> int:
    """Until nothing of a roll-out is open: look on while another process runs it, else at what it left open.

    Raises:
        NetworkError: the time ran out.
    """
    with FleetState(state_path(access.state, os.environ)) as state:
        chosen = _of_tenant(state, access, options.roll_out)
        end = time.monotonic() + (options.timeout or float("inf"))
        while time.monotonic() < end:
            try:
                with held(state, chosen.id):
                    return _follow(options, access, state, end - time.monotonic())
            except BoardError as error:
                if error.code != BUSY:
                    raise
            time.sleep(POLL_S)
    raise NetworkError(f"the roll-out has not ended within {options.timeout:g} s", where=chosen.id, reason="timeout")


def _follow(options: argparse.Namespace, access: Access, state: FleetState, seconds: float) -> int:
    chosen = state.roll_out(options.roll_out)

    async def play(link: FleetLink, inbox: Inbox) -> int:
        with progress(options) as tell:
            run = RollOutRun(state, chosen, lambda _request: b"", inbox, now=time.time, tell=tell)
            ended = await run.follow(link, seconds)
        if not ended:
            what = f"{run.counts().get('open', 0)} commands have not ended within {options.timeout:g} s"
            raise NetworkError(what, where=chosen.id, reason="timeout")
        return say_end(options, run.roll_out, run.commands)

    return asyncio.run(_connected(access, play))


def _list(options: argparse.Namespace, state: FleetState, access: Access) -> int:
    found = state.roll_outs(access.tenant)
    if options.json:
        say_json([told(item) for item in found])
        return DONE
    rows = [
        (item.id, item.type, item.state, time.strftime("%Y-%m-%d %H:%M", time.localtime(item.created)), plain(item.why))
        for item in found
    ]
    print("\n".join(aligned(("ID", "TYPE", "STATE", "BEGUN", "WHY"), rows)))
    return DONE
