#!/usr/bin/env python3
"""The story of a board in an emulated arm64 machine: installed, commanded, out of memory, without power, up again.

python3 drive.py FOLDER KERNEL     # FOLDER holds `disk` and `initramfs.gz`, see test.sh

Prints a line for each thing that held, with seconds; ends with 1 at the first that did not, with what the machine said.
"""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from machine import Machine, MachineError  # noqa: E402 - needs the path above
from outside import DATA, SAMPLES_LEARNT, Outside, green_image, job, samples  # noqa: E402 - same

BOARD = "arm64-board"  # the host name that test.sh gives: the package names the board after it
CONFIG = "/etc/temperd/temperd.toml"
STATE = "/var/lib/temperd"
GROUP = "/sys/fs/cgroup/system.slice/temperd.service"
CONSOLE_KEY, ROOT_OF_TRUST, GREEN = "/srv/alice.pub.json", "/srv/root.json", "/srv/green.png"
SHORT, LONG = 40, 200  # epochs; the long one lasts past its first checkpoint, which comes after 30 s
JOB_S = 1800.0  # a job by emulation on a busy machine; a minute on an idle one
AS_TEMPERD = "runuser -u temperd -- "
TOO_LITTLE = "80M"  # the daemon and its emulated board hold 40, a worker needs 60 more before it has begun


class Story:
    """One board and the world around it; each step needs the one before."""

    def __init__(self, folder: Path, kernel: Path) -> None:
        self._folder = folder
        self.machine = Machine(kernel, folder / "initramfs.gz", folder / "disk", folder / "console")
        self.outside = Outside(folder / "outside")
        self._begun = time.monotonic()

    def tell(self, what: str, **figures: object) -> None:
        """Say what held."""
        said = ", ".join(f"{name} {value}" for name, value in figures.items())
        sys.stdout.write(f"ok   {what}{': ' if said else ''}{said}  [{time.monotonic() - self._begun:.0f} s]\n")
        sys.stdout.flush()

    def close(self) -> None:
        """End all of it."""
        self.machine.cut_power()
        self.outside.close()

    # --- the board -------------------------------------------------------------------------------------------------

    def put(self, path: str, content: bytes) -> None:
        """Write a file in the machine."""
        text = base64.b64encode(content).decode()
        self.machine.run(f"base64 -d >{path} <<'END'\n{text}\nEND\n")

    def ask(self, verb: str) -> Any:  # noqa: ANN401 - JSON
        """What a verb of the board's temperd answers, as its user."""
        return json.loads(self.machine.run(f"{AS_TEMPERD}temperd {verb} --json"))

    def unit(self, *names: str) -> dict[str, str]:
        """Properties of the daemon's unit."""
        said = self.machine.run(f"systemctl show temperd {' '.join(f'-p {name}' for name in names)}")
        return dict(line.split("=", 1) for line in said.split("\n") if "=" in line)

    def ready(self) -> str:
        """Wait until the daemon is ready; the time from its start to READY by the machine's own clock."""
        self.machine.run("until systemctl is-active --quiet temperd; do sleep 1; done")
        at = self.unit("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic", "NRestarts")
        took = int(at["ActiveEnterTimestampMonotonic"]) - int(at["InactiveExitTimestampMonotonic"])
        if at["NRestarts"] != "0":
            raise MachineError(f"the daemon was restarted {at['NRestarts']} times on its way")
        return f"{took / 1e6:.1f} s"

    # --- the steps -------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Boot a fresh Debian and install the package: the daemon is ready with what the package brings."""
        self.tell("booted", after=f"{self.machine.boot():.1f} s", kernel=self.machine.run("uname -rm").strip())
        begun = time.monotonic()
        self.machine.run("DEBIAN_FRONTEND=noninteractive apt-get install -y /root/temperd.deb")
        took = time.monotonic() - begun
        start = self.ready()
        self.tell("installed", took=f"{took:.1f} s", from_start_to_ready=start)

    def configure(self) -> None:
        """As an owner does: name, broker, repository, whose commands are obeyed."""
        self.machine.run("systemctl stop temperd")
        text = (
            f'[device]\nname = "{BOARD}"\n{self.outside.settings()}[board]\nemulated = "raspberry-pi-4"\n'
            "emulated_speed = 20\n[worker]\nthreads = 1\n"
        )
        self.put(CONFIG, text.encode())  # in place: owner and mode stay those of the package
        root = self.outside.publish(self.ask("keys show")["document"])
        self.put(ROOT_OF_TRUST, root.encode())
        self.put(CONSOLE_KEY, self.outside.console.encode())
        self.machine.run(f"temperd keys trust-repository {ROOT_OF_TRUST}")
        self.machine.run(f"temperd keys trust {CONSOLE_KEY}")
        self.put(DATA, samples())
        self.put(GREEN, green_image())
        self.machine.run("sync; systemctl start --no-block temperd")
        self.tell("configured", from_start_to_ready=self.ready())

    def work(self) -> None:
        """A signed command over MQTT becomes a better model, which answers."""
        begun = time.monotonic()
        status = self.outside.ended(self.outside.send(BOARD, "fine-tune", job(SHORT)), JOB_S)
        if status["status"] != "succeeded":
            raise MachineError(f"the job: {status}")
        result = status["result"]
        answer = self.ask(f"predict {GREEN}")
        if (answer["model_sha256"], answer["predictions"][0]["label"]) != (result["model_sha256"], "green"):
            raise MachineError(f"the tuned model is not the one that answers, or answers wrong: {answer}")
        before, after = result["accuracy_before"], result["accuracy_after"]
        self.tell("a job", took=f"{time.monotonic() - begun:.1f} s", accuracy=f"{before:.2f} -> {after:.2f}")

    def run_out_of_memory(self) -> None:
        """Fault 43: the kernel kills the worker at the limit of the unit; the daemon goes on and ends the job."""
        pid = self.unit("MainPID")["MainPID"]
        self.machine.run(f"systemctl set-property --runtime temperd MemoryMax={TOO_LITTLE}")
        status = self.outside.ended(self.outside.send(BOARD, "fine-tune", job(SHORT)), JOB_S)
        killed = int(self.machine.run(f"sed -n 's/^oom_kill //p' {GROUP}/memory.events"))
        if (status["status"], status["reason_code"]) != ("failed", "out-of-memory") or killed == 0:
            raise MachineError(f"{killed} killed by the kernel: {status}")
        if (after := self.unit("MainPID", "ActiveState")) != {"MainPID": pid, "ActiveState": "active"}:
            why = self.machine.run("dmesg | grep -i 'killed process'; journalctl -u temperd -n 40 --no-pager")
            raise MachineError(f"the daemon ended too: {after}, it was {pid}:\n{why}")
        self.machine.run("systemctl set-property --runtime temperd MemoryMax=70%")
        self.tell("a worker out of memory", killed_by_kernel=killed, job=status["reason_code"], daemon="goes on")

    def lose_power(self) -> None:
        """In the middle of a job; the board boots from the same disk and the job goes on from its checkpoint."""
        command = self.outside.send(BOARD, "fine-tune", job(LONG))
        self.machine.run(f"until [ -e {STATE}/store/checkpoints/{command}.sealed ]; do sleep 1; done", JOB_S)
        self.machine.cut_power()
        boot = self.machine.boot()
        replayed = self.machine.run("dmesg | grep -o 'EXT4-fs (vda): recovery complete'").strip()
        start = self.ready()
        status = self.outside.ended(command, JOB_S)
        if status["status"] != "succeeded" or status["attempt"] == 1:
            raise MachineError(f"the job: {status}")
        if (learnt := status["result"]["samples"]) != LONG * SAMPLES_LEARNT:
            raise MachineError(f"{learnt} samples were counted, not {LONG * SAMPLES_LEARNT}")
        self.tell("power lost in a job", disk=replayed, booted=f"{boot:.1f} s", ready=start, attempt=status["attempt"])

    def switch_off(self) -> None:
        """By its owner; journal, state and file system are whole."""
        check = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('pragma integrity_check').fetchone())"
        said = self.machine.run(f'{AS_TEMPERD}python3 -c "{check}" {STATE}/journal.sqlite').strip()
        if said != "ok":
            raise MachineError(f"the journal: {said}")
        seconds = self.machine.switch_off()
        disk = subprocess.run(  # noqa: S603 - constants and our own path
            ["/sbin/e2fsck", "-fn", str(self._folder / "disk")], capture_output=True, text=True, check=False
        )
        if disk.returncode != 0:
            raise MachineError(f"the file system: {disk.stdout}{disk.stderr}")
        self.tell("switched off", took=f"{seconds:.1f} s", journal=said, file_system="clean")

    def judge_what_was_said(self) -> None:
        """All messages since the beginning, held against docs/asyncapi.yaml."""
        if faults := self.outside.faults():
            raise MachineError("against docs/asyncapi.yaml:\n" + "\n".join(faults))
        self.tell("all that was said is as documented", messages=len(self.outside.tap.heard))


def main() -> int:
    """Play it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the machine and the broker end with us
    story = Story(Path(sys.argv[1]), Path(sys.argv[2]))
    try:
        story.install()
        story.configure()
        story.work()
        story.lose_power()
        story.run_out_of_memory()
        story.switch_off()
        story.judge_what_was_said()
    except (MachineError, AssertionError) as error:
        sys.stdout.write(f"FAIL {error}\n")
        return 1
    finally:
        story.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
