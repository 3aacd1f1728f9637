#!/usr/bin/env python3
"""Drives the virtual machine of packaging/kernel/test.sh: sensors are written and levers read in its memory.

Broker, repository and console are those of the tests (tests/simulators/fleet.py) on this machine; the board is the one
in the virtual machine. What is compared: what this process put into guest memory with what temperd tells over MQTT, and
what temperd decided with what the guest's kernel set its hardware to.
"""

from __future__ import annotations

import json
import mmap
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.commands import sign_command
from tests.simulators.fleet import DEVICE, World

MEMORY = 1536 << 20
BASE, FIELDS = 0x3F000000, struct.Struct("<8I")  # as board.asl has it
PORT = 0x5652
LEVELS = {0x30: 2_400_000_000, 0x31: 1_800_000_000, 0x32: 1_200_000_000, 0x33: 600_000_000}
WAIT_S, JOB_S = 900.0, 1800.0  # by emulation, beside other work
KELVIN, STEP = 2732, 0.11  # ACPI counts tenths of a kelvin: 0 °C, and what a step may be off in °C
FASTEST = 3  # level of the fan
EPOCHS = 1000  # more than this test takes, on any machine
MOST_STEP = 10.0  # °C between two readings: what jumps farther is not believed


class Board:
    """The hardware of the guest."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self.ports = work / "ports"
        with (work / "memory").open("wb") as file:
            file.truncate(MEMORY)
        with (work / "memory").open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), MEMORY)
        self.celsius, self.mains, self.charge = 42.0, 1.0, 0.75
        self.show()

    def show(self, **values: float) -> None:
        """Let the sensors say something."""
        for name, value in values.items():
            setattr(self, name, value)
        state, rate = (2, 8000) if self.mains else (1, 9000)
        sensors = (round(self.celsius * 10) + KELVIN, int(self.mains), state, rate, round(self.charge * 20_000), 11_800)
        self._memory[BASE : BASE + 24] = struct.pack("<6I", *sensors)

    @property
    def fan(self) -> tuple[int, int]:
        """Level that the kernel set, and how often it set one."""
        level, moves = struct.unpack("<2I", self._memory[BASE + 24 : BASE + 32])
        return level, moves

    @property
    def clocks(self) -> list[int]:
        """Every P-state that the kernel set, as a clock in Hz."""
        return [LEVELS[value] for value in self.ports.read_bytes() if value in LEVELS]

    def start(self) -> subprocess.Popen[bytes]:
        """Switch the machine on."""
        work = self._work
        kernel = "console=ttyS0 root=/dev/vda quiet panic=-1 memmap=1M$0x3f000000"
        return subprocess.Popen([  # noqa: S603, S607 - the machine of this test, by apt
            "qemu-system-x86_64", "-machine", "pc,memory-backend=ram", "-accel", "tcg", "-m", f"{MEMORY >> 20}M",
            "-object", f"memory-backend-file,id=ram,size={MEMORY},mem-path={work / 'memory'},share=on",
            "-cpu", "max,vendor=GenuineIntel", "-smp", "1", "-display", "none", "-no-reboot",
            "-serial", f"file:{work / 'console'}", "-acpitable", f"file={work / 'board.aml'}",
            "-chardev", f"file,id=ports,path={self.ports}", "-device", f"isa-debugcon,iobase={PORT:#x},chardev=ports",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
            "-drive", f"file={work / 'disk'},if=virtio,format=raw,cache=unsafe",
            "-kernel", str(work / "vmlinuz"), "-initrd", str(work / "initrd"), "-append", kernel,
        ])  # fmt: skip


class Drive:
    """The test, step by step."""

    def __init__(self, work: Path) -> None:
        self.work, self.began_s = work, time.monotonic()
        self.world = World(work / "world")
        self.world.broker.start()
        self.world.publish()
        self.board = Board(work)
        self.machine: subprocess.Popen[bytes] | None = None

    def passed(self, what: str) -> None:
        """Tell a step that went well."""
        print(f"ok   {what:70} {time.monotonic() - self.began_s:4.0f}s", flush=True)  # noqa: T201 - a script's report

    def wait(self, true: Callable[[], Any], what: str, seconds: float = WAIT_S) -> Any:  # noqa: ANN401 - what was found
        """Poll until `true()` is truthy."""
        end = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > end or (self.machine and self.machine.poll() is not None):
                console = (self.work / "console").read_bytes()[-6000:].decode(errors="replace")
                raise SystemExit(f"{console}\nlast: {self.values()}\nfan {self.board.fan}\nwaited in vain: {what}")
            time.sleep(0.1)
        return found

    def install(self) -> None:
        """The board's configuration, keys and data, and a disk of it all."""
        root, world = self.work / "root", self.world
        user = next(
            line.split(":") for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("temperd:")
        )
        state, settings = root / "var/lib/temperd", root / "etc/temperd"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(world.state / "keys", state / "keys")
        shutil.copytree(world.folder / "trusted", settings / "trusted", dirs_exist_ok=True)
        shutil.copytree(world.images(samples=120), root / "srv/images")
        (settings / "root.json").write_bytes((world.folder / "root.json").read_bytes())
        (settings / "temperd.toml").write_text(
            f'[device]\nname = "{DEVICE}"\nstate_dir = "/var/lib/temperd"\n'
            f'[mqtt]\nhost = "10.0.2.2"\nport = {world.broker.port}\n'
            f'[repository]\nurl = "http://10.0.2.2:{world.web.server_port}"\nroot = "/etc/temperd/root.json"\n'
            '[worker]\nthreads = 1\n[commands]\ntrusted_consoles = "/etc/temperd/trusted"\n'
            "[telemetry]\nidle_s = 1\n"
        )
        for path in (state, *state.rglob("*"), settings, *settings.rglob("*")):
            shutil.chown(path, int(user[2]), int(user[3]))
            path.chmod(0o700 if path.is_dir() else 0o600)
        with (self.work / "disk").open("wb") as disk:
            disk.truncate(3 << 30)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(self.work / "disk")], check=True)  # noqa: S603, S607 - by apt
        self.passed("a disk of it")

    def values(self) -> dict[str, Any]:
        """The latest telemetry of the group `board`."""
        assert self.world.tap is not None
        topic = f"temper/v1/default/{DEVICE}/m/board"
        for heard in reversed(self.world.tap.heard):
            if heard.topic == topic and heard.payload:
                found: dict[str, Any] = json.loads(heard.payload)["values"]
                return found
        return {}

    def told(self, celsius: float, charge: float, *, on_mains: bool) -> None:
        """Wait until the telemetry says so."""

        def holds() -> bool:
            values = self.values()
            found = (values.get("temperature_celsius"), values.get("charge"), values.get("on_mains"))
            return None not in found and abs(found[0] - celsius) <= STEP and found[1:] == (charge, on_mains)

        self.wait(holds, f"telemetry of {celsius} °C, {charge}, {on_mains}")

    def run(self) -> None:
        """All of it."""
        self.install()
        self.world.listen()
        began = time.monotonic()
        self.machine = self.board.start()
        self.wait(self.values, "the board's first telemetry")
        self.passed(f"booted, temperd ready and on the broker after {time.monotonic() - began:.0f} s")
        self.readings()
        self.bus()
        self.levers()

    def bus(self) -> None:
        """The unit's sandbox lets the daemon ask the system bus: it finds no RAUC, instead of no bus."""
        request = self.world.request("update-system", {"name": "image"})
        envelope = sign_command(request, self.world.console_key)
        told = self.world.send_envelope("update-system", request.id, envelope, until=("rejected",), seconds=WAIT_S)
        assert (told["reason_code"], "no RAUC" in told["reason"]) == ("not-updatable", True), told
        self.passed(f"update-system is refused: {told['reason'][:50]}")

    def warm(self, celsius: float) -> None:
        """Let the die become so warm, no faster than a die can."""
        while self.board.celsius != celsius:
            step = max(-MOST_STEP, min(MOST_STEP, celsius - self.board.celsius))
            self.board.show(celsius=self.board.celsius + step)
            now = self.board.celsius
            self.wait(lambda now=now: abs(self.values()["temperature_celsius"] - now) <= STEP, f"{now} °C")

    def readings(self) -> None:
        """What the host put into guest memory comes out of temperd."""
        self.told(42.0, 0.75, on_mains=True)
        self.board.show(celsius=47.5, charge=0.5, mains=0)
        self.told(47.5, 0.5, on_mains=False)
        self.board.show(celsius=42.0, charge=0.8, mains=1)
        self.told(42.0, 0.8, on_mains=True)
        values = self.values()
        assert values["frequency_cap_found_hz"] == LEVELS[0x30], values
        assert values["frequency_hz"] in LEVELS.values(), values
        assert not {"temperature", "charge"} & {k for k, v in values["health"].items() if v != "ok"}, values
        self.passed("temperature, charge, supply and clock are those of the hardware")

    def levers(self) -> None:
        """A job, a wave of heat, and all put back."""
        world, board = self.world, self.board
        fan_before, moves_before = board.fan
        request = world.request("fine-tune", world.job("/srv/images", epochs=EPOCHS))
        self.send(request)
        self.wait(
            lambda: self.values().get("utilisation") is not None and self.status(request.id) == "running",
            "the job runs",
        )
        self.wait(self.training, "training begins", JOB_S)
        self.passed("a signed fine-tune trains in the guest")
        self.warm(72.0)
        self.wait(
            lambda: self.values().get("action") == "SLOW" and "slow" in self.values()["rule"], "the governor slows down"
        )
        slow = self.values()
        self.wait(lambda: board.fan[0] > fan_before, "the fan turns up")
        self.wait(lambda: board.clocks and board.clocks[-1] < LEVELS[0x30], "the kernel lowers the clock")
        self.wait(
            lambda: self.values().get("frequency_cap_found_hz", 0) < LEVELS[0x30], "the cap stands in scaling_max_freq"
        )
        self.passed(f"72 °C: {slow['rule']}; fan at {board.fan[0]}, clock set to {board.clocks[-1] / 1e6:.0f} MHz")
        self.warm(83.0)
        self.wait(lambda: self.values().get("action") == "PAUSE", "the governor pauses")
        self.wait(lambda: self.status(request.id) == "paused", "the job is paused")
        self.wait(lambda: board.fan[0] == FASTEST, "the fan runs at its maximum")
        self.wait(lambda: board.clocks[-1] == LEVELS[0x33], "the lowest clock")
        self.passed(f"83 °C: {self.values()['rule']}; fan at {FASTEST}, clock set to 600 MHz, the job rests")
        self.warm(42.0)
        self.wait(lambda: self.status(request.id) == "running", "the job goes on")
        self.passed("42 °C: the job goes on")
        board.show(mains=0, charge=0.08)
        self.wait(lambda: self.values().get("rule") == "battery.pause", "the governor spares the battery")
        board.show(mains=1, charge=0.8)
        self.wait(lambda: self.status(request.id) == "running", "the job goes on")
        self.passed("8 % without mains: battery.pause; and with mains the job goes on")
        self.send(world.request("cancel", {"job": request.id}))
        self.wait(lambda: self.status(request.id) == "canceled", "the job ends")
        self.wait(lambda: board.fan[0] == fan_before, "the fan is put back")
        self.wait(lambda: self.values().get("frequency_cap_found_hz") == LEVELS[0x30], "the cap is put back")
        assert board.fan[1] > moves_before
        self.passed("the job ended: fan and clock are as they were found")

    def send(self, request: Any) -> None:  # noqa: ANN401 - a Request
        """Publish a command, and do not wait for its end."""
        self.world.send_envelope(
            request.type, request.id, sign_command(request, self.world.console_key),
            until=("accepted", "running", "succeeded", "rejected"),
        )  # fmt: skip

    def status(self, command_id: str) -> str:
        """Of a command, as told last."""
        assert self.world.tap is not None
        for heard in reversed(self.world.tap.heard):
            if heard.topic.endswith(f"/{command_id}/sts") and heard.payload:
                return str(json.loads(heard.payload)["status"])
        return ""

    def training(self) -> bool:
        """Whether steps were done."""
        assert self.world.tap is not None
        return any(heard.topic.endswith("/m/training") for heard in self.world.tap.heard)

    def close(self) -> None:
        """Switch everything off."""
        if self.machine is not None:
            self.machine.kill()
            self.machine.wait()
        self.world.close()


def main() -> int:
    """Entry point."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the machine and the broker end with us
    work = Path(sys.argv[1])
    (work / "world").mkdir()
    drive = Drive(work)
    try:
        drive.run()
    finally:
        drive.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
