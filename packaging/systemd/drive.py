"""Drives temperd-powerd's units from inside the systemd that test.sh boots; prints what held, exits 1 where not."""
# ruff: noqa: INP001 - a program beside its units, in no package

from __future__ import annotations

import grp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.board.levers import Levers
from agent.board.powerd_link import PowerdLink

SYS = Path("/sys")
CAP = SYS / "devices/system/cpu/cpufreq/policy0/scaling_max_freq"
FAN = SYS / "class/thermal/cooling_device0/cur_state"
FOUND, HELD = ("1800000", "1"), ("600000", "4")
SOCKET = Path("/run/temperd-powerd.sock")
NOBODY = 65534
PATIENCE_S = 90.0  # the watchdog takes 20, idling 40


def values() -> tuple[str, str]:
    """The clock cap and the fan level now."""
    return CAP.read_text().strip(), FAN.read_text().strip()


def shown(name: str) -> str:
    """A property of the service."""
    command = ["systemctl", "show", "-p", name, "--value", "temperd-powerd.service"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603 - constants


def until(what: str, true: Callable[[], bool]) -> None:
    """Wait until it is true; exit where it never is."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > PATIENCE_S:
            sys.exit(f"NOT: {what}; levers {values()}, helper {shown('ActiveState')} {shown('Result')}")
        time.sleep(0.05)
    sys.stdout.write(f"{time.monotonic() - begun:5.1f} s  {what}\n")
    sys.stdout.flush()


def become(groups: list[int]) -> None:
    """Be nobody, in these groups."""
    os.setgroups(groups)
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def daemon() -> int:
    """A member of the group that holds limits once a second, as the governor does; its process id."""
    child = os.fork()
    if child == 0:
        become([grp.getgrnam("temperd").gr_gid])
        levers = Levers(SYS, None, "", PowerdLink(SOCKET, SYS))
        while True:
            levers.hold_down(CAP, 600_000)
            levers.hold_up(FAN, 4)
            for complaint in levers.complaints():
                sys.stdout.write(f"         {complaint}\n")
                sys.stdout.flush()
            time.sleep(1)
    return child


def stranger_is_refused() -> bool:
    """Whether a user outside the group cannot ask."""
    child = os.fork()
    if child == 0:
        become([])
        link = PowerdLink(SOCKET, SYS)
        try:
            link.set("devices/system/cpu/cpufreq/policy0/scaling_max_freq", 600_000)
        except Exception as error:  # noqa: BLE001 - told by the exit code
            os._exit(0 if "may not be asked" in str(error) else 1)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def kill_helper(number: int) -> None:
    """Send the helper a signal."""
    os.kill(int(shown("MainPID")), number)


def main() -> None:
    """Every life and death of the helper, in order."""
    until("a stranger is refused", stranger_is_refused)
    until("nothing runs before it is needed", lambda: shown("ActiveState") == "inactive")
    holder = daemon()
    until("the first question starts the helper and limits hold", lambda: values() == HELD)
    status = Path(f"/proc/{shown('MainPID')}/status").read_text(encoding="ascii").split()
    rights = {name: status[status.index(name) + 1] for name in ("CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:")}
    until(f"the helper has no capability: {rights}", lambda: set(rights.values()) == {"0" * 16, "1", "2"})
    kill_helper(signal.SIGKILL)
    until("killed with -9: limits come back", lambda: values() == FOUND)
    until("and hold again", lambda: values() == HELD)
    kill_helper(signal.SIGSTOP)
    until("hung: the watchdog ends it, limits come back", lambda: values() == FOUND)
    until("and hold again", lambda: values() == HELD)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    until("client killed with -9: limits come back", lambda: values() == FOUND)
    until("idle: the helper ends", lambda: shown("ActiveState") == "inactive")
    holder = daemon()
    until("and starts again", lambda: values() == HELD)
    units = ["temperd-powerd.socket", "temperd-powerd.service"]
    subprocess.run(["systemctl", "stop", *units], check=True)  # noqa: S603, S607 - constants, inside test.sh
    until("stopped by the owner: limits come back", lambda: values() == FOUND)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    until("at the end all is as found", lambda: values() == FOUND)


if __name__ == "__main__":
    main()
