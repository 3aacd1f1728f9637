"""What `temperd doctor` says of the daemon as a service: is it there and watched, what limits it, what updates it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.agent_slots import read_standing
from agent.errors import BoardError
from policies.trial_standing import SLOTS, Stage
from service.doctor import Finding, Scene, bad, ok, warn

CGROUPS = Path("/sys/fs/cgroup")
LITTLE_MEMORY_BYTES = 384 << 20  # the daemon's 35 MiB and a worker of up to 300; see docs/bench.md
MAX_FILE_CHARACTERS = 4096  # of a cgroup's file: a number or a word
ALARMS_TOLD = 5


def daemon(scene: Scene) -> Iterator[Finding]:
    """Whether it runs, and what it complains of itself."""
    live = scene.live
    if live is None:
        yield bad("daemon", "temperd does not run", "no job, no command, no telemetry", _start(scene.unit))
        return
    yield ok("daemon", f"runs, process {live.get('pid')}")
    link = live.get("link")
    if not live.get("connected"):
        why = link.get("why", "") if isinstance(link, Mapping) else ""
        yield warn("link", f"the daemon has no broker: {why}", "statuses wait on the disk", "see `broker` here")
    alarms = live.get("alarms")
    for alarm in alarms[:ALARMS_TOLD] if isinstance(alarms, list) else []:
        if isinstance(alarm, Mapping):
            kind, severity = alarm.get("type"), alarm.get("severity")
            tell = bad if severity == "critical" else warn
            yield tell("alarm", f"{kind} ({severity})", "the daemon raised it", "docs/alarms.md#what-to-do")


def _start(unit: Mapping[str, str]) -> str:
    if unit.get("LoadState") == "loaded":
        return "sudo systemctl start temperd, then journalctl -u temperd -n 50"
    return "temperd run"


def unit(scene: Scene) -> Iterator[Finding]:
    """The service as systemd sees it."""
    told = scene.unit
    if not told:
        yield ok("systemd", "not here")
        return
    if told.get("LoadState") != "loaded":
        what = f"temperd.service is {told.get('LoadState', 'unknown')}"
        yield warn("systemd", what, "nothing starts the daemon after a restart of the board", "docs/install.md")
        return
    state, result = told.get("ActiveState", ""), told.get("Result", "")
    restarts = told.get("NRestarts", "0")
    if state == "failed":
        what = f"failed ({result}, exit code {told.get('ExecMainStatus')})"
        why = (
            "exit code 78 says that the configuration is wrong" if told.get("ExecMainStatus") == "78" else "see the log"
        )
        yield bad("systemd", what, why, "journalctl -u temperd -n 50; then sudo systemctl restart temperd")
    elif told.get("UnitFileState") not in ("enabled", "static", "enabled-runtime"):
        what = f"{state}, {told.get('UnitFileState') or 'not enabled'}"
        yield warn("systemd", what, "it does not start with the board", "sudo systemctl enable temperd")
    elif restarts != "0":
        yield warn(
            "systemd", f"{state}; restarted {restarts} times", "it ended by itself", "journalctl -u temperd -p err"
        )
    else:
        yield ok("systemd", f"{state}, {told.get('UnitFileState')}")
    yield from _watchdogs(told)


def _watchdogs(told: Mapping[str, str]) -> Iterator[Finding]:
    if told.get("WatchdogUSec", "0") in ("0", "infinity", ""):
        why = "a daemon that hangs is not restarted"
        yield warn("watchdog", "the unit has none", why, "WatchdogSec=30 (sudo systemctl edit temperd)")
    elif told.get("Manager.RuntimeWatchdogUSec", "0") in ("0", "infinity", "") and Path("/dev/watchdog0").exists():
        why = "a kernel that hangs is not restarted, though the board could"
        mend = "RuntimeWatchdogSec=15 below [Manager] in /etc/systemd/system.conf.d/watchdog.conf"
        yield warn("watchdog", "the board's own is not used", why, mend)
    else:
        yield ok("watchdog", f"{told['WatchdogUSec']} for the daemon")


def limits(scene: Scene) -> Iterator[Finding]:
    """Memory that the daemon and its worker may take together."""
    folder = _cgroup(scene)
    if folder is None:
        return
    for name in ("memory.max", "memory.high"):
        text = _read(folder / name)
        if text.isdigit() and int(text) < LITTLE_MEMORY_BYTES:
            what = f"{name} is {int(text) >> 20} MiB"
            why = "a worker that needs more is ended by the kernel (worker-killed)"
            yield warn("limits", what, why, "MemoryMax= and MemoryHigh= (sudo systemctl edit temperd)")
            return
    words = [f"{name} {text}" for name in ("memory.max", "pids.max", "cpu.max") if (text := _read(folder / name))]
    yield ok("limits", ", ".join(words) or "none")


def _cgroup(scene: Scene) -> Path | None:
    """That of the daemon where it runs, else ours: in a container they are the same."""
    pid = (scene.live or {}).get("pid")
    lines = _read(Path(f"/proc/{pid if isinstance(pid, int) else 'self'}/cgroup")).splitlines()
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None or ".." in own:
        return None
    folder = CGROUPS / own
    return folder if folder.is_dir() else None


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            return stream.read(MAX_FILE_CHARACTERS).strip()
    except OSError:
        return ""


def updates(scene: Scene) -> Iterator[Finding]:
    """Which release of temperd runs, and whether a slot is free for the next one."""
    try:
        standing, broken = read_standing(scene.state)
    except BoardError as error:
        yield warn("updates", str(error), f"this is what {scene.user} sees", "sudo temperd doctor")
        return
    if broken:
        what = f"the standing of releases cannot be read: {broken}"
        yield warn("updates", what, "the installed release starts, as on a board that was never updated")
    elif standing.safe_mode:
        mend = "journalctl -u temperd -n 100; then publish a release that works (docs/updates.md)"
        yield bad("updates", f"safe mode: {standing.safe_mode}", "the link and alarms work, nothing trains", mend)
    elif standing.trial is not None and standing.trial.stage is not Stage.STAGED:
        yield warn("updates", f"{standing.trial.version} is on trial", "it is kept or left by itself; wait")
    elif standing.last is not None and standing.last.status == "rolled_back":
        what = f"{standing.last.version} was rolled back: {standing.last.code}"
        yield warn("updates", what, standing.last.reason, "docs/updates.md says what each code means")
    else:
        free = [slot for slot in SLOTS if slot != standing.active]
        yield ok("updates", f"runs from {standing.active}; free for the next release: {free[0]}")


def rauc(_scene: Scene) -> Iterator[Finding]:
    """Whether system images can be updated."""
    if shutil.which("rauc") is None:
        yield ok("rauc", "not here: update-system is refused, all else works")
    else:
        yield ok("rauc", "there")
