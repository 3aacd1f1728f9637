"""Programs that `temperd doctor` asks: its probes, and systemd. All run at once, and none beyond its time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from agent.errors import ArtifactError
from agent.strict_json import loads
from policies.strict import TableError, build
from service.doctor import Finding, Grade, bad, warn

PROBES = ("runtime", "broker", "repository")
PROBE_LIMIT_S = 11.0  # with what else is looked at, the whole stays below 15 s on a dead network
SYSTEMD_LIMIT_S = 3.0
MAX_ANSWER_BYTES = 64 << 10
_PROPERTIES = (
    *("LoadState", "ActiveState", "SubState", "Result", "ExecMainStatus", "NRestarts", "UnitFileState", "MainPID"),
    *("WatchdogUSec", "MemoryMax", "MemoryHigh", "MemorySwapMax", "User"),
    *("LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted", "ImportCredential"),
)
_SECRET = frozenset({"SetCredential", "SetCredentialEncrypted"})  # their values are the credentials themselves


class Probe(NamedTuple):
    """One that runs, or why it does not."""

    name: str
    process: subprocess.Popen[bytes] | None
    why: str = ""


def begin(config: Path) -> list[Probe]:
    """Start all probes."""
    return [_started(name, [sys.executable, "-P", "-m", "service.doctor_probe", name, str(config)]) for name in PROBES]


def _started(name: str, words: list[str]) -> Probe:
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        )
    except OSError as error:  # an environment below /root, say, and we became the daemon's user
        return Probe(name, None, f"{words[0]} cannot be started by this user: {error.strerror}")
    return Probe(name, process)


def environment() -> dict[str, str]:
    """Ours, and where we lie: a program that was started from its folder finds itself again."""
    here = str(Path(__file__).parents[1])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([here, *others]))}


def collect(probes: list[Probe], mono: Callable[[], float], limit_s: float = PROBE_LIMIT_S) -> list[Finding]:
    """What they found; one that is not done in time is ended and told."""
    until = mono() + limit_s
    found: list[Finding] = []
    for name, process, why in probes:
        if process is None:
            found.append(bad(name, why, "the daemon's user needs it", f"ls -ld {sys.prefix}, and the folders above"))
            continue
        try:
            answer, _ = process.communicate(timeout=max(0.1, until - mono()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            what = f"no answer within {limit_s:.0f} s"
            found.append(
                warn(name, what, _LATE[name], "try again, or look at the network: ip route; resolvectl status")
            )
            continue
        found += _read(name, answer, process.returncode)
    return found


_LATE = {
    "runtime": "the machine is very busy, or its disk is slow",
    "broker": "no command arrives, and statuses wait on the disk",
    "repository": "a job whose model is not on the board ends with `network`",
}


def _read(name: str, answer: bytes, code: int) -> list[Finding]:
    try:
        rows = loads(answer, what="answer of a probe", max_bytes=MAX_ANSWER_BYTES)
        return [build(Finding, {**row, "grade": Grade(row["grade"])}) for row in rows] if isinstance(rows, list) else []
    except (ArtifactError, TableError, ValueError, KeyError, TypeError):
        mend = f"{sys.executable} -m service.doctor_probe {name} CONFIG says it whole"
        return [Finding(name, Grade.BAD, f"the probe ended with code {code}", "it broke off", mend)]


def systemd() -> Mapping[str, str]:
    """Properties of temperd.service, and `Manager.RuntimeWatchdogUSec`; empty where there is no systemd."""
    if not Path("/run/systemd/system").is_dir():
        return {}
    found = _show("temperd.service", *_PROPERTIES)
    manager = _show("", "RuntimeWatchdogUSec")
    return found | {f"Manager.{name}": value for name, value in manager.items()}


def _show(name: str, *properties: str) -> dict[str, str]:
    words = ["systemctl", "show", *([name] if name else []), "--no-pager", f"--property={','.join(properties)}"]
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=SYSTEMD_LIMIT_S)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired):
        return {}
    lines = done.stdout[:MAX_ANSWER_BYTES].decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines)
    found: dict[str, str] = {}
    for key, equals, value in pairs:
        if equals:  # a property of several values has several lines
            shown = value.partition(":")[0] if key in _SECRET else value
            found[key] = f"{found[key]} {shown}" if key in found else shown
    return found
