"""`temperd fleet send`: sign a command, send it, follow it."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from agent.board.profile import policy_names
from agent.errors import SpecError
from agent.keys import load_console_key
from agent.spec import EvaluateSpec, parse_spec, spec_table
from policies.strict import TableError, build
from service.cli import say_json
from service.cli_fleet_words import WITHOUT_ARGUMENTS, check_valid, chosen_boards, read_expect, signed, split_words
from service.cli_policy import read_policy
from service.commands import (
    COMMAND_ID,
    EVALUATE,
    FINE_TUNE,
    QUALIFY,
    ROLLBACK,
    SET_POLICY,
    UPDATE_AGENT,
    UPDATE_SYSTEM,
    Request,
    RollbackArguments,
    new_id,
)
from service.fleet.access import Access, find_access
from service.fleet.fleet_link import CONNECT_S, FleetLink
from service.fleet.follow import Follow, Told
from service.fleet.outcome import exit_code
from service.fleet.plain import plain
from service.logs import configure
from service.qualify_plan import LEAST_MINUTES, MOST_MINUTES
from service.status_lines import deadline_line, energy_line, table
from service.update_arguments import AgentArguments, SystemArguments

T = TypeVar("T")

SILENCE_S = 3.0  # a board that ever was on this broker left retained messages, which come at once
MAX_SPEC_BYTES = 64 << 10
MAX_REASON = 600  # characters of a line that a board wrote; reasons have 500
AT_ONCE = 50  # publications on their way; the link takes a hundred


def read_spec(path: Path) -> dict[str, object]:
    """A fine-tune job from a TOML file, checked, every key written out.

    Raises:
        SpecError: unreadable, too long, or a wrong key or value.
    """
    table = _read_table(path)
    try:
        return spec_table(parse_spec(table))
    except SpecError as error:
        raise SpecError(error.what, where=f"{path}: {error.where}", fix=error.fix) from error


def _read_table(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SPEC_BYTES + 1)
        table = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"the job cannot be read: {told}", where=str(path)) from error
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"the job is longer than {MAX_SPEC_BYTES} bytes", where=str(path))
    return table


def make_request(
    device: str,
    kind: str,
    args: dict[str, object],
    now: float,
    valid_s: int,
    expect: dict[str, object] | None = None,
) -> Request:
    """A request from now on, for `valid_s` seconds."""
    command_id = new_id(int(now * 1000), os.urandom)
    return Request(command_id, device, kind, int(now), int(now) + valid_s, args, expect or {})


def send(options: argparse.Namespace) -> int:
    """Send one command to one board or several; with --watch, follow it to its end."""
    configure("warning", "text")
    named, kind, argument = split_words(options.words, grouped=bool(options.group))
    access = find_access(options, os.environ)
    boards = chosen_boards(options, access, named)
    check_valid(options.valid)
    args, expect = arguments(kind, argument), read_expect(options.expect)
    key = load_console_key(access.key_path())
    requests = [make_request(board, kind, args, time.time(), options.valid, expect) for board in boards]
    envelopes = [(request, signed(request, key)) for request in requests]
    return asyncio.run(_send(options, access, envelopes))


def arguments(kind: str, argument: str) -> dict[str, object]:
    """Arguments of a command.

    Raises:
        SpecError: `argument` is not what this command needs.
    """
    if kind in WITHOUT_ARGUMENTS:
        if argument:
            raise SpecError(f"{kind} takes no argument, not {argument!r}")
        return {}
    if kind in _READERS:
        return _READERS[kind](argument)
    if not COMMAND_ID.fullmatch(argument):
        raise SpecError(f"{argument!r} is no job id", fix="A job has the id that `fleet send` printed")
    return {"job": argument}


def _qualify_arguments(argument: str) -> dict[str, object]:
    """Minutes of the run, the board's default where none are given."""
    if not argument:
        return {}
    if not re.fullmatch("[0-9]{1,2}", argument) or not LEAST_MINUTES <= int(argument) <= MOST_MINUTES:
        raise SpecError(f"qualify takes minutes, {LEAST_MINUTES} to {MOST_MINUTES}, not {argument[:64]!r}")
    return {"minutes": int(argument)}


def _rollback_arguments(argument: str) -> dict[str, object]:
    """The model to go back to, the one before where none is given."""
    try:
        build(RollbackArguments, {"to": argument})
    except TableError as error:
        raise SpecError(f"{argument[:64]!r} {error.what}", where="rollback") from error
    return {"to": argument} if argument else {}


def _evaluate_arguments(argument: str) -> dict[str, object]:
    """A path on the board; or a TOML file of this machine with `data` and whatever else."""
    table, spec = _named_or_file(EvaluateSpec, argument, {"data": argument})
    if not spec.data:
        raise SpecError("evaluate needs data: a path on the board, or a TOML file with `data`")
    return table


def _update_arguments(argument: str) -> dict[str, object]:
    """A version, `latest` where none is given; or a TOML file with that and whatever else."""
    return _named_or_file(AgentArguments, argument, {"version": argument} if argument else {})[0]


def _system_arguments(argument: str) -> dict[str, object]:
    """An image's name, with `=` and a version where it is not to be the latest; or a TOML file with that and more."""
    name, _, version = argument.partition("=")
    named: dict[str, object] = {"name": name, **({"version": version} if version else {})}
    return _named_or_file(SystemArguments, argument, named)[0]


def _named_or_file(cls: type[T], argument: str, named: dict[str, object]) -> tuple[dict[str, object], T]:
    """What `argument` names, or the TOML file that it is; as a table, and checked."""
    table = _read_table(Path(argument)) if argument.endswith(".toml") else named
    try:
        return table, build(cls, table)
    except TableError as error:
        raise SpecError(f"{error.key}: {error.what}", where=argument[:200]) from error


def _policy_arguments(argument: str) -> dict[str, object]:
    """A file's text, checked here so that a slip is seen at once; the name of a policy that ships; or `reset`."""
    if argument == "reset" and not Path(argument).exists():
        return {"reset": True}
    if not argument:
        raise SpecError("set-policy needs a policy: a file, the name of one that ships, or reset")
    if argument in policy_names() and not Path(argument).exists():
        return {"name": argument}
    return {"text": read_policy(argument)[0]}


_READERS: Mapping[str, Callable[[str], dict[str, object]]] = {
    FINE_TUNE: lambda argument: read_spec(Path(argument)),
    QUALIFY: _qualify_arguments,
    SET_POLICY: _policy_arguments,
    ROLLBACK: _rollback_arguments,
    EVALUATE: _evaluate_arguments,
    UPDATE_AGENT: _update_arguments,
    UPDATE_SYSTEM: _system_arguments,
}


async def _send(options: argparse.Namespace, access: Access, envelopes: Sequence[tuple[Request, bytes]]) -> int:
    follow = Follow({request.id: request.device for request, _ in envelopes})
    boards = {request.device for request, _ in envelopes}
    client_id = f"console-{envelopes[0][0].id}"
    link = FleetLink(access.mqtt, access.tenant, client_id, follow.take, topics=())
    async with link:
        if options.watch:
            for board in boards:
                link.listen(board, "conn")
            for request, _ in envelopes:
                link.listen(request.device, f"cmd/{request.type}/{request.id}/sts")
        await link.wait_connected(CONNECT_S)
        await _send_all(options, link, envelopes)
        return await _watch(options, follow, boards) if options.watch else 0


async def _send_all(options: argparse.Namespace, link: FleetLink, envelopes: Sequence[tuple[Request, bytes]]) -> None:
    """Send, and tell what was sent, also where the broker does not take all of it."""
    sent: list[Request] = []
    failures: list[BaseException] = []
    for start in range(0, len(envelopes), AT_ONCE):
        batch = envelopes[start : start + AT_ONCE]
        sending = (
            link.send(request.device, request.type, request.id, envelope, expires_s=options.valid)
            for request, envelope in batch
        )
        done = await asyncio.gather(*sending, return_exceptions=True)
        failures = [outcome for outcome in done if outcome is not None]
        sent += [request for (request, _), outcome in zip(batch, done, strict=True) if outcome is None]
        if failures:
            break
    _say_sent(options, sent, alone=len(envelopes) == 1)
    for failure in failures:
        raise failure


def _say_sent(options: argparse.Namespace, requests: Sequence[Request], *, alone: bool) -> None:
    if not options.json:
        for request in requests:
            print(request.id if alone else f"{request.device} {request.id}", flush=True)
    elif not options.watch:
        ids = [{"board": request.device, "id": request.id} for request in requests]
        say_json(ids if not alone else {"id": requests[0].id} if requests else {})


async def _watch(options: argparse.Namespace, follow: Follow, boards: set[str]) -> int:
    """Follow commands to their ends; the exit code of their outcomes."""
    silence = asyncio.get_running_loop().call_later(SILENCE_S, _say_silence, follow, boards)
    try:
        await follow.to_the_end(lambda told: show(told, as_json=options.json, alone=len(boards) == 1))
    finally:
        silence.cancel()
    return exit_code(follow.outcomes.values())


def _say_silence(follow: Follow, boards: set[str]) -> None:
    if silent := sorted(boards - follow.seen):
        print(f"{', '.join(silent)[:500]} was never seen on this broker; waiting for it", file=sys.stderr)


def show(told: Told, *, as_json: bool, alone: bool) -> None:
    """One status of a command, for people or as JSON; `alone`: there is one board, so it is not named."""
    if as_json:
        say_json(told.body if alone else {"board": told.board, **told.body})
        return
    _show(told.body, "" if alone else f"{told.board}: ")


def _show(body: Mapping[str, object], before: str) -> None:
    share = body.get("progress")
    progress = f" {share:.0%}" if isinstance(share, float) and 0.0 <= share <= 1.0 else ""
    words = [body.get("status"), body.get("step")]
    said = " ".join(plain(word) for word in words if word)
    why = (
        f" ({plain(body.get('reason_code'))}): {plain(body.get('reason'), MAX_REASON)}"
        if body.get("reason_code")
        else ""
    )
    print(f"{before}{said}{progress}{why}", flush=True)
    result = body.get("result")
    if isinstance(result, dict):
        metric = result.get("metric")
        for key in (f"{metric}_before", f"{metric}_after", "warnings", "damaged", "repaired", "unrepairable"):
            if result.get(key):
                print(f"  {plain(key)}: {plain(result[key], MAX_REASON)}")
        lines = policy_lines(result)
        if energy := table(result.get("energy")):
            lines.append(energy_line(energy))
        if deadline := table(result.get("deadline")):
            lines.append(deadline_line(deadline, ended=True))
        for line in lines:
            print(f"  {plain(line, MAX_REASON)}")


def policy_lines(result: Mapping[str, object]) -> list[str]:
    """What a `set-policy` changed, one line for each key; empty for the result of another command."""
    changed = result.get("changed")
    if not isinstance(changed, dict):
        return []
    lines = [f"policy in force: {result.get('name')}, by {result.get('source')}"]
    values = ((key, value) for key, value in changed.items() if isinstance(value, dict) and key != "name")
    return [*lines, *(f"{key}: {value.get('from')} -> {value.get('to')}" for key, value in values)]
