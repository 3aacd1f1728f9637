"""An emulated arm64 machine: the whole of it, with kernel and systemd, in one process of qemu."""
# ruff: noqa: INP001 - beside its script, in no package

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

CPU = "cortex-a72"  # a Raspberry Pi 4's
CORES = 2
MEMORY_MIB = 2048
BOOT_S = 600.0  # half a minute on an idle machine
RUN_S = 600.0


class MachineError(Exception):
    """The machine, or a command in it, did not do what the test needs."""


@dataclass(slots=True)
class Machine:
    """A board on `disk`, with what it says on its serial line appended to `console`."""

    kernel: Path
    initramfs: Path
    disk: Path
    console: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _line: socket.socket | None = field(default=None, init=False)
    _rest: bytes = field(default=b"", init=False)

    def boot(self) -> float:
        """Switch on; seconds until a program in it answers.

        Raises:
            MachineError: it ended, or nothing answered in time.
        """
        begun = time.monotonic()
        ours, theirs = socket.socketpair()
        with self.console.open("ab") as console, theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                self._command(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=[theirs.fileno()],
            )
        self._line, self._rest = ours, b""
        self._answer(BOOT_S)
        return time.monotonic() - begun

    def _command(self, line: int) -> list[str]:
        """Arguments of qemu; a flush of the disk reaches the file: `cache=unsafe` would swallow it."""
        return [
            "qemu-system-aarch64", "-M", "virt", "-cpu", CPU, "-smp", str(CORES), "-m", str(MEMORY_MIB),
            "-accel", "tcg,thread=multi", "-nodefaults", "-display", "none", "-no-reboot",
            "-serial", "stdio",
            "-kernel", str(self.kernel), "-initrd", str(self.initramfs),
            "-append", "console=ttyAMA0 quiet rootwait panic=-1 systemd.show_status=no",
            "-drive", f"if=none,id=disk,format=raw,cache=writeback,file={self.disk}",
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", "user,id=net,net=10.0.2.0/24", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
            "-chardev", f"socket,id=line,fd={line}", "-device", "virtio-serial-pci",
            "-device", "virtserialport,chardev=line,name=temperd.test",
        ]  # fmt: skip

    def run(self, script: str, seconds: float = RUN_S, *, codes: tuple[int, ...] = (0,)) -> str:
        """What a shell script in it writes.

        Raises:
            MachineError: it ends with none of `codes`, or the machine no longer answers.
        """
        assert self._line is not None, "it is off"
        try:
            self._line.sendall(json.dumps({"run": script, "seconds": seconds}).encode() + b"\n")
        except ConnectionError as error:
            raise MachineError(f"the machine ended:\n{self._last_words()}") from error
        told = self._answer(seconds + 60)
        if told["code"] not in codes:
            raise MachineError(f"{script!r} ended with {told['code']}:\n{told['output']}")
        return str(told["output"])

    def _answer(self, seconds: float) -> dict[str, object]:
        """The next line from inside."""
        assert self._line is not None
        self._line.settimeout(seconds)
        try:
            while b"\n" not in self._rest:
                chunk = self._line.recv(1 << 16)
                if not chunk:
                    raise MachineError(f"the machine ended:\n{self._last_words()}")
                self._rest += chunk
        except (TimeoutError, ConnectionError) as error:
            raise MachineError(f"no answer within {seconds:.0f} s: {error}\n{self._last_words()}") from error
        line, _, self._rest = self._rest.partition(b"\n")
        told = json.loads(line)
        assert isinstance(told, dict)
        return told

    def _last_words(self) -> str:
        return self.console.read_text("utf-8", "replace")[-3000:]

    def cut_power(self) -> None:
        """Kill -9: what the kernel in it had not written to the disk is lost."""
        self._end(signal.SIGKILL)

    def switch_off(self) -> float:
        """As its owner does; seconds until it was off."""
        assert self._line is not None
        assert self._process is not None
        begun = time.monotonic()
        self._line.sendall(json.dumps({"run": "systemctl poweroff --no-block", "seconds": 60}).encode() + b"\n")
        self._process.wait(BOOT_S)
        self._end(signal.SIGKILL)
        return time.monotonic() - begun

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(how)
            self._process.wait()
            self._process = None
        if self._line is not None:
            self._line.close()
            self._line = None
