"""Boots a root file system with temperd's package in it and tries its units by what they do; exits 1 where one fails.

drive_daemon.py ROOT PACKAGE.deb SCRATCH
"""
# ruff: noqa: INP001 - a program beside its units, in no package

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from board import HERE, STATE, Board, levers, little_memory
from machine import UNIT, Machine, holds, say, until
from world import CREDENTIAL, LONG_SPEC, PORT, lay_down

READY_MOST_S, STARTS = 2.0, 10  # what is promised, and how often it is tried: others may work on this machine
HELPER = "temperd-powerd.service"
EXPOSURE_TENTHS = 15  # as in tests/service/test_units.py, by this Debian's systemd
FULL_MIB, NICENESS = 2, 10
CAP, FAN = "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "/sys/class/thermal/cooling_device0/cur_state"
FOUND, HOT_CELSIUS = ("1800000", "0"), 72  # beyond the policy's first stage, where work goes on
WITHOUT = {
    "CapEff": "0" * 16,
    "CapPrm": "0" * 16,
    "CapBnd": "0" * 16,
    "CapAmb": "0" * 16,
    "NoNewPrivs": "1",
    "Seccomp": "2",
}


# --- what is tried, in this order ------------------------------------------------------------------------------------


def judged(board: Board) -> None:
    """What the systemd of this Debian thinks of the units."""
    version = board.machine.run("systemctl", "--version").split()[1]
    paths = [board.machine.shown("FragmentPath", unit) for unit in (UNIT, HELPER, "temperd-powerd.socket")]
    said = board.machine.run("systemd-analyze", "verify", *paths, told=True)
    holds(f"systemd {version} finds nothing wrong with the units {said}", true=not said)
    for path in paths[:2]:
        told = board.machine.run(
            "systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", path
        )
        say(f"         {told.strip().splitlines()[-1].removeprefix('→ ')}")


def missing_key(board: Board) -> None:
    """Fault 45: it says what is missing, ends with 78 and is left in peace until somebody has brought the key."""
    kept = board.root / CREDENTIAL
    kept.rename(kept.with_suffix(".away"))
    mark = board.machine.mark()
    board.machine.run("systemctl", "start", UNIT, check=False)
    told = board.machine.journal(since=mark)
    holds("key missing: exit code 78", true=board.machine.shown("ExecMainStatus") == "78")
    line = next((line for line in told.splitlines() if line.startswith("temperd: ")), "")
    holds(f"key missing, the journal says: {line}", true="no identity yet" in line and "temperd keys init" in line)
    quiet = (board.machine.shown("ActiveState"), board.restarts()) == ("failed", 0)
    holds("key missing: it is not started again", true=quiet)
    kept.with_suffix(".away").rename(kept)


def starts(board: Board) -> None:
    """Readiness, and how long it takes."""
    board.machine.run("systemctl", "reset-failed", UNIT, check=False)
    took: list[float] = []
    while len(took) < STARTS and min(took, default=READY_MOST_S + 1) > READY_MOST_S:
        took.append(board.start())
    holds(f"from start to READY: {', '.join(f'{s:.2f} s' for s in took)}", true=min(took) <= READY_MOST_S)
    holds("READY comes from its main process", true=board.machine.shown("NotifyAccess") == "main" and board.active())


def credentials(board: Board) -> None:
    """The identity comes from systemd, in plain or encrypted, and lies nowhere in the state."""
    plain, locked = f"/{CREDENTIAL}", "/etc/credstore.encrypted/temperd-identity"
    holds("the identity is a credential alone", true=board.active() and not (board.root / STATE / "keys").exists())
    board.machine.shell(
        f"install -d -m 0700 {Path(locked).parent}; "
        f"systemd-creds encrypt --with-key=host --name=temperd-identity {plain} {locked} 2>&1; mv {plain} {plain}.away"
    )
    board.dropin("identity", (HERE / "examples/identity.conf").read_text("utf-8"))
    board.start()
    given = "/run/credentials/temperd.service/temperd-identity"
    same = board.machine.shell(f"cmp {given} {plain}.away && stat -c %a {Path(given).parent}")
    holds(f"encrypted: systemd hands it over in memory, its folder has mode {same.strip()}", true=board.active())
    board.dropin("identity")
    board.machine.shell(
        f"rm {locked}; mv {plain}.away {plain}"
    )  # without the drop-in it would come as it is, encrypted


def missing_secret(board: Board) -> None:
    """A credential that a drop-in names and that is not there: systemd says so and tries again until it is."""
    board.dropin("broker", (HERE / "examples/broker.conf").read_text("utf-8"))
    mark = board.machine.mark()
    board.machine.run("systemctl", "restart", UNIT, check=False)
    until("secret missing: it is tried again", lambda: board.restarts() > 0)
    line = next((line for line in board.machine.journal(since=mark).splitlines() if "redential" in line), "")
    holds(f"secret missing, the journal says: {line}", true=line)
    board.machine.shell("cd /etc/temperd; install -m 0600 /dev/null mqtt.password; install -m 0600 /dev/null mqtt.key")
    until("secret there: it is ready by itself", board.active)
    board.dropin("broker")


def sandbox(board: Board) -> None:
    """What the unit's processes may and may not do."""
    board.emulate(yes=False)
    shutil.copy(HERE / "probe.py", board.root / "opt/probe.py")
    board.dropin("probe", "[Service]\nExecStartPre=/bin/sh -c 'python3 -I /opt/probe.py >/run/temperd/probe.json'\n")
    board.start()
    found = json.loads(board.machine.run("cat", "/run/temperd/probe.json"))
    board.dropin("probe")
    went = [name for name, answer in found["refused"].items() if answer is True]
    holds(f"sandbox: {len(found['refused'])} trespasses are refused {went or ''}", true=not went)
    failed = {name: answer for name, answer in found["allowed"].items() if answer is not True}
    holds(f"sandbox: {len(found['allowed'])} things that work needs go {failed or ''}", true=not failed)
    holds(f"sandbox: {found['rights']}", true=found["rights"] == WITHOUT)


def training(board: Board) -> None:
    """The runtime, its threads and its niceness under the sandbox, on an emulated board."""
    job = board.fine_tune()
    daemon = board.machine.find("-m service run")
    worker, own = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (board.worker(), daemon))
    holds("the worker gives way: niceness 10 above the daemon's", true=worker - own == NICENESS)
    until("and succeeds under the sandbox", lambda: board.state(job) == "SUCCEEDED")


def worker_dies(board: Board) -> None:
    """Fault 43: what takes a worker away takes nothing with it."""
    job, before = board.fine_tune(), board.machine.pid()
    worker = board.worker()
    with little_memory(worker) as killed:
        until("out of memory: the kernel kills the worker", lambda: killed() or not Path(f"/proc/{worker}").exists())
    until("and another one ends the job", lambda: board.state(job) == "SUCCEEDED")
    record = board.job(job)
    holds("in a second attempt", true=record is not None and record.standing.attempt > 1)
    alone = board.active() and (board.machine.pid(), board.restarts()) == (before, 0)
    holds("the daemon never ended", true=alone and board.machine.shown("OOMPolicy") == "continue")


def watchdog(board: Board) -> None:
    """Fault 44: a daemon that hangs is ended and started again, and its job goes on."""
    job = board.fine_tune()
    before, mark = board.machine.pid(), board.machine.mark()
    board.machine.signal("STOP")
    until("hung: the watchdog ends it", lambda: board.machine.pid() != before)
    until("and it is ready again", board.active)
    told = board.machine.run("journalctl", "--no-pager", "-o", "cat", f"--after-cursor={mark}", "-u", UNIT)
    holds("by SIGABRT, once", true="Watchdog timeout" in told and "status=6/ABRT" in told and board.restarts() == 1)
    until("and its job ends well", lambda: board.state(job) == "SUCCEEDED")
    holds("no core of it is left", true=not list(board.root.glob("var/lib/systemd/coredump/*")))


def stops(board: Board) -> None:
    """A stop is a clean one in the midst of a job, which goes on afterwards."""
    job = board.fine_tune()
    took = until("stopped in the midst of it", lambda: board.machine.run("systemctl", "stop", UNIT) is not None)
    clean = board.machine.shown("Result") == "success" and board.machine.shown("ExecMainStatus") == "0"
    holds(f"cleanly, within {took:.1f} s, and nothing runs on", true=clean and board.worker() == 0)
    holds("its job waits", true=board.state(job) in {"PAUSED", "DEFERRED", "SUSPENDED", "TRAINING"})
    board.start()
    until("started again: the job ends well", lambda: board.state(job) == "SUCCEEDED")


def reload(board: Board) -> None:
    """`systemctl reload` reads the policy, and the daemon goes on."""
    board.works()
    before, mark = board.machine.pid(), board.machine.mark()
    path = board.root / "etc/temperd/policy.toml"
    path.write_text(path.read_text("utf-8").replace('name = "tried"', 'name = "tried-again"'), "utf-8")
    board.machine.run("systemctl", "reload", UNIT)
    until("reload: the new policy holds", lambda: "tried-again" in board.machine.journal(since=mark))
    holds("in the same process", true=board.machine.pid() == before)


def full_disk(board: Board) -> None:
    """It comes back by itself once there is room."""
    board.machine.run("systemctl", "stop", UNIT)
    owner = board.machine.shell("id -u temperd").strip()
    state = f"/{STATE}"
    board.machine.shell(f"mount -t tmpfs -o size={FULL_MIB}m,mode=0700,uid={owner} tmpfs {state}; chmod 0700 {state}")
    board.machine.shell(f"head -c {FULL_MIB}M /dev/zero >{state}/rubbish || true")
    board.machine.run("systemctl", "start", UNIT, check=False)
    if board.active():
        say("         a full disk does not keep it from starting")
    until("full disk: it is tried again and again", lambda: board.active() or board.restarts() > 1)
    board.machine.shell(f"rm {state}/rubbish")
    until("room again: it is ready by itself", board.active)
    board.machine.run("systemctl", "stop", UNIT)
    board.machine.run("umount", state)


def helper(board: Board) -> None:
    """The daemon has limits held by temperd-powerd, and they come back whatever ends."""

    def values() -> tuple[str, ...]:
        return tuple(board.machine.run("cat", CAP, FAN).split())

    board.emulate(yes=False)
    board.machine.run("systemctl", "stop", UNIT, HELPER)
    with levers(board) as heat:
        holds(
            "helper: it does not run before it is needed", true=board.machine.shown("ActiveState", HELPER) == "inactive"
        )
        board.start()
        job = board.send("fine-tune", LONG_SPEC)
        until("a long job trains", lambda: board.trains(job))
        heat(HOT_CELSIUS)
        until("helper: it is hot, and the daemon has clock and fan limited", lambda: values() != FOUND)
        held = values()
        holds(f"helper: {held} by a process that the socket started", true=board.machine.pid(HELPER))
        board.machine.signal("KILL", HELPER)
        until("helper killed with -9: limits come back", lambda: values() == FOUND)
        until("and hold again", lambda: values() == held)
        board.machine.signal("KILL")
        until("daemon killed with -9: limits come back", lambda: values() == FOUND)
        until("it is started again, and limits hold again", lambda: values() == held)
        board.machine.run("systemctl", "stop", UNIT)
        until("daemon stopped: limits are as found", lambda: values() == FOUND)


TRIED = (
    judged,
    missing_key,
    starts,
    credentials,
    missing_secret,
    sandbox,
    training,
    worker_dies,
    watchdog,
    stops,
    reload,
    full_disk,
    helper,
)


def install(machine: Machine, package: Path) -> None:
    """The package, as its owner installs it; whatever it started ends."""
    shutil.copy(package, machine.root / "root/temperd.deb")
    machine.run("dpkg", "--install", "/root/temperd.deb", told=True)
    machine.run("systemctl", "stop", UNIT, check=False)
    shutil.rmtree(machine.root / STATE, ignore_errors=True)
    (machine.root / "root/temperd.deb").unlink()


def main(root: Path, package: Path, scratch: Path, *names: str) -> None:
    """Everything, in order, or the trials with these names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = Machine(root, scratch / "console.log")
    try:
        machine.boot()
        install(machine, package)
        lay_down(root, scratch, 'name = "tried"\n')
        board = Board(machine)
        machine.run("systemctl", "start", "mosquitto")
        machine.run(
            "systemd-run", "--quiet", "python3", "-m", "http.server", "--directory", "/srv/repository", str(PORT)
        )
        for trial in TRIED:
            if not names or trial.__name__ in names:
                trial(board)
    finally:
        machine.stop()


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:4]), *sys.argv[4:])
