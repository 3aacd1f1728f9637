"""`temperd fleet send`: sign a command, send it, follow it."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import tomllib
from pathlib import Path

from agent.errors import SpecError
from agent.keys import load_console_key
from agent.spec import parse_spec, spec_table
from policies.strict import TableError
from service.cli import say_json
from service.commands import Request, new_id, sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink
from service.device_link import Address
from service.logs import configure

CONNECT_S = 10.0
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
        raise SpecError(f"the job cannot be read: {error}", where=str(path)) from error
    if len(data) > MAX_SPEC_BYTES:
        raise SpecError(f"the job is longer than {MAX_SPEC_BYTES} bytes", where=str(path))
    return spec_table(parse_spec(table))


def make_request(device: str, kind: str, args: dict[str, object], now: float, valid_s: int) -> Request:
    """A request from now on, for `valid_s` seconds."""
    return Request(new_id(int(now * 1000), os.urandom), device, kind, int(now), int(now) + valid_s, args)


def send(options: argparse.Namespace) -> int:
    """Send one command; with --watch, follow it to its end."""
    args = read_spec(Path(options.argument)) if options.type == "fine-tune" else {"job": options.argument}
    configure("warning", "text")
    request = make_request(options.device, options.type, args, time.time(), options.valid)
    envelope = sign_command(request, load_console_key(Path(options.key)))
    host, _, port = options.broker.partition(":")
    if port and not port.isdecimal():
        raise SpecError("the broker's port is no number", where=options.broker)
    try:
        settings = Mqtt(host=host, port=int(port or 1883))
    except TableError as error:
        raise SpecError(error.what, where=f"--broker {options.broker}") from error
    return asyncio.run(_send(options, settings, request, envelope))


async def _send(options: argparse.Namespace, settings: Mqtt, request: Request, envelope: bytes) -> int:
    address = Address(options.tenant, options.device)
    async with ConsoleLink(settings, address, f"console-{request.id}") as link:
        await link.wait_connected(CONNECT_S)
        await link.send(request.type, request.id, envelope, expires_s=options.valid)
        if not options.watch:
            if options.json:
                say_json({"id": request.id})
            else:
                print(request.id)
            return 0
        async for seen in link.watch():
            if seen.kind != "status" or seen.command_id != request.id:
                continue
            _show(options, seen.body)
            code = ENDED.get(str(seen.body.get("status")))
            if code is not None:
                return code
    return 1


def _show(options: argparse.Namespace, body: dict[str, object]) -> None:
    if options.json:
        say_json(body)
        return
    share = body.get("progress")
    progress = f" {share:.0%}" if isinstance(share, float) else ""
    why = f": {body.get('reason_code')} {body.get('reason')}" if body.get("reason_code") else ""
    print(f"{body.get('status')} {body.get('step')}{progress}{why}", flush=True)
