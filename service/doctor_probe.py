"""One look outside, as a process of its own: it can be ended after its time, whatever the network does.

    python -m service.doctor_probe runtime|broker|repository CONFIG

It prints a list of findings as JSON.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from agent.errors import NetworkError, TemperdError
from service.config import Config, Mqtt, load_config
from service.doctor import Finding, bad, ok, refused, warn

CONNECT_LIMIT_S = 8.0  # for TLS and the broker's answer; who started us gives ten for all
_NO_BROKER = "no command arrives, and statuses wait on the disk"
_NO_REPOSITORY = (
    "a job whose model is not on the board ends with `network`; one whose model is here runs with a warning"
)


def main(words: list[str]) -> int:
    """See the module."""
    kind, path = words
    findings = list(_PROBES[kind](Path(path)))
    sys.stdout.write(json.dumps([asdict(one) for one in findings]))
    return 0


# --- the runtime -----------------------------------------------------------------------------------------------------


def _runtime(_path: Path) -> Iterator[Finding]:
    version = sys.version.partition(" ")[0]
    try:
        from agent.engine import choose_engine  # noqa: PLC0415 - loads the numeric stack

        engine = choose_engine("auto")
        from agent.engine.native import library  # noqa: PLC0415 - same
    except TemperdError as error:
        yield refused("runtime", error, "no job can train")
        return
    except ImportError as error:
        mend = f'{sys.executable} -m pip install "temperd[ort]"; in a package: apt install --reinstall temperd'
        yield bad("runtime", f"it cannot be loaded: {error}", "no job can train", mend)
        return
    from service.views import installed_runtime  # noqa: PLC0415 - same

    told = f"Python {version}, {installed_runtime()}, engine {engine.name}"
    if library() is None:
        why = "training is slower without it; answers are the same"
        mend = "install from a wheel of this architecture, or with a C compiler (docs/install.md)"
        yield warn("runtime", f"{told}, without the library of kernels", why, mend)
    else:
        yield ok("runtime", f"{told}, with the library of kernels")


# --- the broker ------------------------------------------------------------------------------------------------------


def _broker(path: Path) -> Iterator[Finding]:
    config = load_config(path)
    mqtt = config.mqtt
    where = f"{mqtt.host} port {mqtt.port}{', TLS' if mqtt.encrypted else ''}"
    try:
        why = asyncio.run(_connect(config))
    except TemperdError as error:
        yield refused("broker", error, _NO_BROKER)
        return
    if why:
        yield bad("broker", f"{where}: {why}", _NO_BROKER, f"docs/operate.md#the-broker; [mqtt] in {path}")
    elif not mqtt.encrypted and not _is_near(mqtt):
        mend = f"tls = true or ca_file in [mqtt] of {path}"
        yield warn("broker", f"{where}: lets us in, without TLS", "who is in between reads all, and passwords", mend)
    else:
        yield ok("broker", f"{where}: lets us in")


async def _connect(config: Config) -> str:
    """Connect with the daemon's settings and another client id, say nothing, and leave; why not, or an empty text."""
    from service import logs  # noqa: PLC0415 - paho and structlog are the probe's alone
    from service.link import Connection  # noqa: PLC0415 - same

    logs.configure("error", "json")
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def tell(why: str) -> None:
        if not done.done():
            done.set_result(why)

    device = config.device
    link = Connection(
        config.mqtt,
        f"temperd-doctor-{device.tenant}-{device.name}-{secrets.token_hex(4)}",  # the daemon's own would throw it out
        keep_session=False,
        on_up=lambda _present: tell(""),
        on_down=tell,
        on_message=lambda _message: None,
        on_trouble=tell,
        limit_s=CONNECT_LIMIT_S,
    )
    link.start()
    try:
        return await done
    finally:
        await link.stop()


def _is_near(mqtt: Mqtt) -> bool:
    return mqtt.host in ("localhost", "::1") or mqtt.host.startswith("127.")


# --- the repository --------------------------------------------------------------------------------------------------


def _repository(path: Path) -> Iterator[Finding]:
    from agent.trust import ModelRepository  # noqa: PLC0415 - loads the TUF library

    config = load_config(path)
    url = config.repository.url
    with tempfile.TemporaryDirectory(prefix="temperd-doctor-") as scratch:
        seen = Path(config.device.state_dir, "repository", "metadata")
        if seen.is_dir():  # what the board has seen counts, and must not be changed from here
            shutil.copytree(seen, Path(scratch, "metadata"), ignore=shutil.ignore_patterns("*.lock", ".*"))
        try:
            ModelRepository(url, Path(config.repository.root), Path(scratch), pause=_no_second_try).refresh()
        except NetworkError as error:
            yield bad(
                "repository",
                f"{error.what} ({error.where or url})",
                _NO_REPOSITORY,
                f"curl -fI {url.rstrip('/')}/metadata/timestamp.json",
            )
            return
        except TemperdError as error:
            yield refused("repository", error, _NO_REPOSITORY, "docs/troubleshoot.md#while-pulling-the-model")
            return
    yield ok("repository", f"{url}: answers, and its metadata is signed and in date")


def _no_second_try(_seconds: float) -> None:
    raise NetworkError("unreachable, or it broke off")


_PROBES: Mapping[str, Callable[[Path], Iterator[Finding]]] = {
    "runtime": _runtime,
    "broker": _broker,
    "repository": _repository,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
