"""`temperd console`: the fleet in a browser."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import ipaddress
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import SpecError
from agent.private_memory import keep_memory_private
from service.cli_ingest import DAY_S, MAX_DAYS, MAX_GIB
from service.fleet.access import find_access, split_broker
from service.fleet.state import state_path

if TYPE_CHECKING:
    from service.console.room import Settings
    from service.console.serve import Listening

EXTRA = ("argon2", "jinja2", "starlette", "uvicorn")
DEMO = ("onnxruntime", "sklearn")
STORE_NAME = "store.sqlite"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8750
MAX_PORT = 65535
MAX_NAMES = 20  # of one server


def console(options: argparse.Namespace) -> int:
    """Serve until interrupted."""
    need_extra(demo=options.demo)
    if options.demo:
        from service.demo_fleet import play  # noqa: PLC0415 - a demo of its own

        return play(Path(options.out).absolute(), options.model, say)
    from service.console.serve import serve  # noqa: PLC0415 - needs the extra
    from service.logs import configure  # noqa: PLC0415 - beside it

    configure()
    settings, listening = settings_of(options, os.environ), listening_of(options)
    keep_memory_private()  # of the key
    os.umask(0o077)  # what boards said and which commands were sent, wherever --store and --fleet-state lie
    asyncio.run(serve(settings, listening, now=time.time, monotonic=time.monotonic, say=say))
    return 0


def say(line: str) -> None:
    """A line for whoever started it, at once."""
    print(line, flush=True)


def need_extra(*, demo: bool = False) -> None:
    """Refuse to start where the extra was not installed; with `demo` also what its boards and data need.

    Raises:
        SpecError: with what to install.
    """
    missing = [name for name in (*EXTRA, *(DEMO if demo else ())) if importlib.util.find_spec(name) is None]
    if missing:
        what = f"the {'demo' if demo else 'console'} needs packages that are not installed: {', '.join(missing)}"
        runtime = ",ort" if "onnxruntime" in missing else ""  # one environment holds one runtime
        fix = f"pip install 'temperd[console{',demo' if demo else ''}{runtime}]'"
        raise SpecError(what, fix=fix, reason="extra-missing")


def folder_of(named: str, environ: Mapping[str, str]) -> Path:
    """The console's folder: the one named, else `temperd/console` in XDG_STATE_HOME or ~/.local/state."""
    return Path(named) if named else state_path("", environ).with_name("console")


def settings_of(options: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """What the options say.

    Raises:
        SpecError, ConfigError: something does not fit.
    """
    from service.console.guard_rules import LOOPBACK_NAMES  # noqa: PLC0415 - only where the console is used
    from service.console.room import Settings  # noqa: PLC0415

    for key, most in (("keep_days", MAX_DAYS), ("keep_gib", MAX_GIB)):
        if not 0 < getattr(options, key) <= most:
            raise SpecError(f"{getattr(options, key)} is outside 0..{most}", where=f"--{key.replace('_', '-')}")
    if len(options.names) > MAX_NAMES or any(not _is_name(name) for name in options.names):
        raise SpecError(f"names are those of machines, at most {MAX_NAMES}", where="--name")
    host, _ = split_listen(options.listen)
    folder = folder_of(options.state, environ)
    # `state` means the fleet's file to the profile, and the console's folder here.
    access = find_access(argparse.Namespace(**{**vars(options), "state": options.fleet_state}), environ)
    own = () if _is_any(host) else (host,)
    return Settings(
        mqtt=access.mqtt,
        tenant=access.tenant,
        store=options.store or str(folder / STORE_NAME),
        state=folder,
        fleet_state=state_path(access.state, environ),
        key=access.key,
        consume=not options.no_consume,
        secure=bool(options.tls_cert or options.behind_proxy),
        names=tuple(dict.fromkeys((*options.names, *own, *LOOPBACK_NAMES))),
        keep_s=options.keep_days * DAY_S,
        keep_bytes=int(options.keep_gib * (1 << 30)),
    )


def listening_of(options: argparse.Namespace) -> Listening:
    """Where to listen.

    Raises:
        SpecError: no address, or one that others reach without TLS.
    """
    from service.console.serve import Listening  # noqa: PLC0415 - needs the extra

    host, port = split_listen(options.listen)
    if bool(options.tls_cert) != bool(options.tls_key):
        raise SpecError("--tls-cert and --tls-key go together", where="--tls-cert")
    if not (_is_loopback(host) or options.tls_cert or options.behind_proxy):
        fix = (
            "Give --tls-cert and --tls-key, or --behind-proxy where a reverse proxy speaks TLS, or listen on 127.0.0.1"
        )
        what = "without TLS, passwords and sessions would pass the network in plain"
        raise SpecError(what, where=f"--listen {options.listen[:80]}", fix=fix, reason="no-tls")
    if options.behind_proxy and not (options.names and all(map(_is_address, options.behind_proxy.split(",")))):
        fix = "Give --name HOST, and the proxy's address, such as --behind-proxy 127.0.0.1"
        raise SpecError("behind a proxy the console must know its name and the proxy", where="--behind-proxy", fix=fix)
    if _is_any(host) and not options.names:
        what = "listening at every address, the console must know by which name people reach it"
        raise SpecError(what, where=f"--listen {options.listen[:80]}", fix="Give --name HOST", reason="no-name")
    return Listening(host, port, options.tls_cert, options.tls_key, options.behind_proxy)


def split_listen(text: str) -> tuple[str, int]:
    """`ADDRESS:PORT`, `[ADDRESS]:PORT` or an address alone; `localhost` is one.

    Raises:
        SpecError: it is none.
    """
    try:
        parts = split_broker(text)
    except SpecError as error:
        raise SpecError("the port is no number", where=f"--listen {text[:80]}") from error
    host, port = str(parts["host"]), parts.get("port", DEFAULT_PORT)
    assert isinstance(port, int)
    host = DEFAULT_HOST if host == "localhost" else host
    if not _is_address(host) or not 0 <= port <= MAX_PORT:
        fix = "Such as 127.0.0.1:8750, 0.0.0.0:8750 or [::1]:8750"
        raise SpecError("not an address and a port", where=f"--listen {text[:80]}", fix=fix)
    return host, port


def _is_name(text: str) -> bool:
    return 0 < len(text) <= 253 and text.isascii() and text.replace("-", "a").replace(".", "a").isalnum()  # noqa: PLR2004 - RFC 1035


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _is_any(host: str) -> bool:
    return ipaddress.ip_address(host).is_unspecified
