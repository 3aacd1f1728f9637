"""`temperd fleet send`: sign a command, send it, follow it."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

from agent.board.profile import policy_names
from agent.errors import SpecError
from agent.keys import load_console_key
from agent.spec import parse_spec, spec_table
from policies.strict import TableError
from service.cli import say_json
from service.cli_policy import read_policy
from service.commands import (
    COMMAND_ID,
    FINE_TUNE,
    MAX_ENVELOPE_BYTES,
    MAX_LIFETIME_S,
    QUALIFY,
    SCRUB,
    SET_POLICY,
    Request,
    new_id,
    sign_command,
)
from service.config import NAME, Mqtt
from service.console_link import ConsoleLink
from service.device_link import Address
from service.logs import configure
from service.qualify_plan import LEAST_MINUTES, MOST_MINUTES
from service.status_lines import deadline_line, energy_line, table

CONNECT_S = 10.0
SILENCE_S = 3.0  # a board that ever was on this broker left retained messages, which come at once
MAX_SPEC_BYTES = 64 << 10
ENDED = {"succeeded": 0, "rejected": 3, "failed": 1, "canceled": 1, "timed_out": 1, "rolled_back": 1}


def read_spec(path: Path) -> dict[str, object]:
    """A fine-tune job from a TOML file, checked, every key written out.

    Raises:
        SpecError: unreadable, too long, or a wrong key or value.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_SPEC_BYTES + 1)
        table = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"the job cannot be read: {told}", where=str(path)) from error
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"the job is longer than {MAX_SPEC_BYTES} bytes", where=str(path))
    try:
        return spec_table(parse_spec(table))
    except SpecError as error:
        raise SpecError(error.what, where=f"{path}: {error.where}", fix=error.fix) from error


def make_request(device: str, kind: str, args: dict[str, object], now: float, valid_s: int) -> Request:
    """A request from now on, for `valid_s` seconds."""
    return Request(new_id(int(now * 1000), os.urandom), device, kind, int(now), int(now) + valid_s, args)


def send(options: argparse.Namespace) -> int:
    """Send one command; with --watch, follow it to its end."""
    configure("warning", "text")
    if not NAME.fullmatch(options.device):
        raise SpecError(f"{options.device!r} is no device name: 1 to 63 of a-z, 0-9 and dash")
    if not 0 < options.valid <= MAX_LIFETIME_S:
        raise SpecError(f"--valid {options.valid} is outside 1..{MAX_LIFETIME_S} seconds")
    args = _arguments(options.type, options.argument)
    request = make_request(options.device, options.type, args, time.time(), options.valid)
    envelope = sign_command(request, load_console_key(Path(options.key)))
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise SpecError(f"the signed command has {len(envelope)} bytes, boards read at most {MAX_ENVELOPE_BYTES}")
    host, _, port = options.broker.partition(":")
    if port and not port.isdecimal():
        raise SpecError("the broker's port is no number", where=options.broker)
    try:
        settings = Mqtt(host=host, port=int(port or 1883))
    except TableError as error:
        raise SpecError(error.what, where=f"--broker {options.broker}") from error
    return asyncio.run(_send(options, settings, request, envelope))


def _arguments(kind: str, argument: str) -> dict[str, object]:
    """Arguments of a command.

    Raises:
        SpecError: `argument` is not what this command needs.
    """
    if kind == FINE_TUNE:
        return read_spec(Path(argument))
    if kind == SCRUB:
        if argument:
            raise SpecError(f"scrub takes no argument, not {argument!r}")
        return {}
    if kind == QUALIFY:
        return _qualify_arguments(argument)
    if kind == SET_POLICY:
        return _policy_arguments(argument)
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


def _policy_arguments(argument: str) -> dict[str, object]:
    """A file's text, checked here so that a slip is seen at once; the name of a policy that ships; or `reset`."""
    if argument == "reset" and not Path(argument).exists():
        return {"reset": True}
    if not argument:
        raise SpecError("set-policy needs a policy: a file, the name of one that ships, or reset")
    if argument in policy_names() and not Path(argument).exists():
        return {"name": argument}
    return {"text": read_policy(argument)[0]}


async def _send(options: argparse.Namespace, settings: Mqtt, request: Request, envelope: bytes) -> int:
    address = Address(options.tenant, options.device)
    async with ConsoleLink(settings, address, f"console-{request.id}") as link:
        await link.wait_connected(CONNECT_S)
        await link.send(request.type, request.id, envelope, expires_s=options.valid)
        if not options.json:
            print(request.id, flush=True)
        elif not options.watch:
            say_json({"id": request.id})
        return await _watch(options, link, request.id) if options.watch else 0


async def _watch(options: argparse.Namespace, link: ConsoleLink, command_id: str) -> int:
    """Follow a command to its end; the exit code of its outcome."""
    silence = asyncio.get_running_loop().call_later(SILENCE_S, _say_silence, options.device)
    try:
        async for seen in link.watch():
            silence.cancel()
            if seen.kind != "status" or seen.command_id != command_id:
                continue
            _show(options, seen.body)
            code = ENDED.get(str(seen.body.get("status")))
            if code is not None:
                return code
    finally:
        silence.cancel()
    return 1


def _say_silence(device: str) -> None:
    print(f"{device} was never seen on this broker; waiting for it", file=sys.stderr)


def _show(options: argparse.Namespace, body: dict[str, object]) -> None:
    if options.json:
        say_json(body)
        return
    share = body.get("progress")
    progress = f" {share:.0%}" if isinstance(share, float) else ""
    step = f" {body.get('step')}" if body.get("step") else ""
    why = f" ({body.get('reason_code')}): {body.get('reason')}" if body.get("reason_code") else ""
    print(f"{body.get('status')}{step}{progress}{why}", flush=True)
    result = body.get("result")
    if isinstance(result, dict):
        metric = result.get("metric")
        for key in (f"{metric}_before", f"{metric}_after", "warnings", "damaged", "repaired", "unrepairable"):
            if result.get(key):
                print(f"  {key}: {result[key]}")
        lines = policy_lines(result)
        if energy := table(result.get("energy")):
            lines.append(energy_line(energy))
        if deadline := table(result.get("deadline")):
            lines.append(deadline_line(deadline, ended=True))
        for line in lines:
            print(f"  {line}")


def policy_lines(result: Mapping[str, object]) -> list[str]:
    """What a `set-policy` changed, one line for each key; empty for the result of another command."""
    changed = result.get("changed")
    if not isinstance(changed, dict):
        return []
    lines = [f"policy in force: {result.get('name')}, by {result.get('source')}"]
    values = ((key, value) for key, value in changed.items() if isinstance(value, dict) and key != "name")
    return [*lines, *(f"{key}: {value.get('from')} -> {value.get('to')}" for key, value in values)]
