"""RAUC and logind on a bus of their own: a stand-in with the real signatures, and the real RAUC where it is installed.

Both write a bundle into the other one of two slots and say what was booted; what a boot loader does, `boot` does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import Proxy, open_dbus_connection

from service.rauc import INSTALLER, LOGIND, LOGIND_MANAGER, NAME, PATH, PROPERTIES

BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*"/><allow send_type="signal"/><allow receive_sender="*"/><allow own="*"/>
</policy>
</busconfig>
"""
METHODS = {
    "Install": ("s", ""),
    "InstallBundle": ("sa{sv}", ""),
    "Info": ("s", "ss"),
    "Mark": ("ss", "ss"),
    "GetSlotStatus": ("", "a(sa{sv})"),
    "GetPrimary": ("", "s"),
}
"""Of RAUC 1.8, in and out; the contract test holds them against the real one."""
SIGNALS = {"Completed": "i"}
READABLE = {"Operation": "s", "LastError": "s", "Progress": "(isi)", "Compatible": "s", "Variant": "s", "BootSlot": "s"}
COMPATIBLE = "board-x"
START_S = 60.0


@contextlib.contextmanager
def private_bus(folder: Path) -> Iterator[str]:
    """The address of a bus for this test alone."""
    path = folder / "bus"
    config = folder / "bus.conf"
    config.write_text(BUS.format(path=path))
    daemon = subprocess.Popen(["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"])
    try:
        _wait(path.exists, "the bus")
        yield f"unix:path={path}"
    finally:
        daemon.kill()
        daemon.wait()


class Slots:
    """Two slots and the boot loader's own notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("A", "B"):
            (folder / name).write_bytes(bytes(1 << 16))
            self.set_state(name, "good")
        self.set_primary("A")
        self.booted = "A"

    @property
    def primary(self) -> str:
        return (self.folder / "primary").read_text().strip()

    @property
    def other(self) -> str:
        return "B" if self.booted == "A" else "A"

    def set_primary(self, name: str) -> None:
        (self.folder / "primary").write_text(name)

    def state(self, name: str) -> str:
        return (self.folder / f"{name}.state").read_text().strip()

    def set_state(self, name: str, state: str) -> None:
        (self.folder / f"{name}.state").write_text(state)

    def choose(self) -> str:
        """What a boot loader boots: the primary slot unless it is bad."""
        first = self.primary
        second = "B" if first == "A" else "A"
        return first if self.state(first) != "bad" else second


class StandInRauc:
    """RAUC and logind as this project uses them, in a thread.

    Attributes:
        error: what the next installation fails with; empty: it works.
        hangs: an installation goes on until `release`.
        reboots: how often the board was told to restart.
        denied: logind does not let anybody restart the board.
        marks: what slots were marked with.
        version: what bundles say of themselves, by their bytes.

    Args:
        address: of the bus.
        slots: of the board.
        names: what to be on the bus; logind alone beside the real RAUC.
    """

    def __init__(self, address: str, slots: Slots, names: tuple[str, ...] = (NAME, LOGIND)) -> None:
        self._address, self.slots = address, slots
        self.error, self.hangs, self.denied = "", False, False
        self.reboots, self.marks = 0, list[tuple[str, str]]()
        self.versions: dict[str, str] = {}
        self._operation, self._last_error = "idle", ""
        self._release = threading.Event()
        self._up = threading.Event()
        self._bus = open_dbus_connection(address)
        proxy = Proxy(message_bus, self._bus)
        for name in names:
            proxy.RequestName(name)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let an installation that hangs end."""
        self._release.set()

    def boot(self) -> str:
        """Restart the board: what it came up with."""
        self.slots.booted = self.slots.choose()
        self._operation = "idle"
        return self.slots.booted

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bus.close()
        self._release.set()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                message = self._bus.receive()
                if message.header.message_type is MessageType.method_call:
                    self._answer(message)

    def _answer(self, message: Any) -> None:
        fields = message.header.fields
        interface, member = fields.get(HeaderFields.interface), fields[HeaderFields.member]
        given = fields.get(HeaderFields.signature, "")
        if interface == PROPERTIES and member == "GetAll":
            values = self._values().items()
            self._reply(message, "a{sv}", ({key: (READABLE[key], value) for key, value in values},))
        elif interface == LOGIND_MANAGER and member == "Reboot":
            self._reboot(message)
        elif interface != INSTALLER or member not in METHODS:
            self._refuse(message, "org.freedesktop.DBus.Error.UnknownMethod", f"no method {member}")
        elif given != METHODS[member][0]:
            self._refuse(message, "org.freedesktop.DBus.Error.InvalidArgs", f"{given} is not {METHODS[member][0]}")
        else:
            getattr(self, f"_do_{member.lower()}")(message, *message.body)

    def _reboot(self, message: Any) -> None:
        if self.denied:
            self._refuse(message, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "not you")
            return
        self.reboots += 1
        self._reply(message, "", ())

    def _do_installbundle(self, message: Any, source: str, _options: dict[str, Any]) -> None:
        if self._operation != "idle":
            self._refuse(message, "org.gtk.GDBus.UnmappedGError.Quark._g_2dio_2derror_2dquark.Code30", "busy")
            return
        self._operation, self._last_error = "installing", ""
        self._reply(message, "", ())
        threading.Thread(target=self._install, args=(source,), daemon=True).start()

    def _install(self, source: str) -> None:
        slots, target = self.slots, self.slots.other
        slots.set_state(target, "bad")  # half a slot must not be booted
        if self.hangs:
            self._release.wait()
        if not self.error:
            data = Path(source).read_bytes()
            (slots.folder / target).write_bytes(data)
            self.versions[target] = data.split(b" ")[1].decode() if data.count(b" ") > 1 else ""
            slots.set_state(target, "good")
            slots.set_primary(target)
        self._last_error, self._operation = self.error, "idle"
        address = DBusAddress(PATH, interface=INSTALLER)
        with contextlib.suppress(OSError):
            self._bus.send(new_signal(address, "Completed", "i", (1 if self.error else 0,)))

    def _do_mark(self, message: Any, state: str, slot: str) -> None:
        assert slot == "booted"
        self.marks.append((state, self.slots.booted))
        self.slots.set_state(self.slots.booted, state)
        self._reply(message, "ss", (f"rootfs.{self.slots.booted}", f"marked slot {self.slots.booted} as {state}"))

    def _do_getslotstatus(self, message: Any) -> None:
        found = []
        for name in ("A", "B"):
            state = "booted" if name == self.slots.booted else "inactive"
            table = {"state": ("s", state), "bootname": ("s", name)}
            if version := self.versions.get(name):
                table["bundle.version"] = ("s", version)
            found.append((f"rootfs.{'AB'.index(name)}", table))
        self._reply(message, "a(sa{sv})", (found,))

    def _values(self) -> dict[str, Any]:
        told = {"Operation": self._operation, "LastError": self._last_error, "Progress": (50, "Updating slots", 1)}
        return {**told, "Compatible": COMPATIBLE, "Variant": "", "BootSlot": self.slots.booted}

    def _reply(self, message: Any, signature: str, body: tuple[Any, ...]) -> None:
        self._bus.send(new_method_return(message, signature or None, body))

    def _refuse(self, message: Any, name: str, words: str) -> None:
        self._bus.send(new_error(message, name, "s", (words,)))


def say_completed(address: str) -> None:
    """Any user of the bus tells everybody on it, to their face, that RAUC is done and all is well."""
    with open_dbus_connection(address) as bus:
        for name in Proxy(message_bus, bus).ListNames()[0]:
            if name.startswith(":"):
                signal = new_signal(DBusAddress(PATH, interface=INSTALLER), "Completed", "i", (0,))
                signal.header.fields[HeaderFields.destination] = name
                bus.send(signal)
        Proxy(message_bus, bus).ListNames()  # the bus has passed them on


def lacks_rauc() -> str:
    """Why the real RAUC cannot be run here; empty: it can."""
    tools = [tool for tool in ("rauc", "mksquashfs", "openssl") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed (apt install rauc squashfs-tools openssl)"
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return "RAUC mounts bundles: needs root and loop devices"
    return ""


class RealRauc:
    """Debian's RAUC as a service on a private bus, with files as slots and a script as boot loader."""

    def __init__(self, address: str, slots: Slots, folder: Path) -> None:
        self._address, self.slots, self._folder = address, slots, folder
        (folder / "mnt").mkdir()
        self._key, self._cert = folder / "key.pem", folder / "cert.pem"
        _run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=test",
            "-keyout", str(self._key), "-out", str(self._cert),
        )  # fmt: skip
        script = folder / "boot-loader"
        notes = slots.folder
        script.write_text(
            "#!/bin/sh\ncase $1 in\n"
            f"get-primary) cat {notes}/primary;;\n"
            f"set-primary) echo $2 >{notes}/primary; echo good >{notes}/$2.state;;\n"
            f"get-state) cat {notes}/$2.state;;\nset-state) echo $3 >{notes}/$2.state;;\nesac\n"
        )
        script.chmod(0o755)
        parts = [
            f"[system]\ncompatible={COMPATIBLE}\nbootloader=custom\nmountprefix={folder / 'mnt'}\n",
            f"statusfile={folder / 'status'}\n",
            f"[keyring]\npath={self._cert}\n[handlers]\nbootloader-custom-backend={script}\n",
            *(
                f"[slot.rootfs.{number}]\ndevice={notes / name}\ntype=raw\nbootname={name}\n"
                for number, name in enumerate(("A", "B"))
            ),
        ]
        (folder / "system.conf").write_text("".join(parts))
        self._service: subprocess.Popen[bytes] | None = None
        self._start()

    def bundle(self, version: str, content: bytes, compatible: str = COMPATIBLE) -> Path:
        """A signed bundle."""
        source, path = self._folder / f"content-{version}", self._folder / f"{compatible}-{version}.raucb"
        source.mkdir(exist_ok=True)
        (source / "root.img").write_bytes(content)
        text = f"[update]\ncompatible={compatible}\nversion={version}\n[image.rootfs]\nfilename=root.img\n"
        (source / "manifest.raucm").write_text(text)
        keys = (f"--cert={self._cert}", f"--key={self._key}", f"--keyring={self._cert}")
        _run("rauc", *keys, "bundle", str(source), str(path))
        return path

    def boot(self) -> str:
        """Restart the board: what it came up with."""
        self.close()
        self.slots.booted = self.slots.choose()
        self._start()
        return self.slots.booted

    def introspected(self) -> dict[str, Any]:
        """Signatures by kind and name, as the service itself tells them."""
        with open_dbus_connection(self._address) as bus:
            address = DBusAddress(PATH, NAME, "org.freedesktop.DBus.Introspectable")
            text = bus.send_and_get_reply(new_method_call(address, "Introspect")).body[0]
        found: dict[str, Any] = {"method": {}, "signal": {}, "property": {}}
        for node in ET.fromstring(text).iterfind(f"./interface[@name='{INSTALLER}']/*"):  # noqa: S314 - of a program of this machine
            args = dict.fromkeys(("in", "out"), "")
            for arg in node.iterfind("arg"):
                args[arg.get("direction", "out")] += arg.get("type", "")
            name = node.get("name", "")
            if node.tag == "method":
                found["method"][name] = (args["in"], args["out"])
            elif node.tag == "signal":
                found["signal"][name] = args["out"]
            else:
                found["property"][name] = node.get("type")
        return found

    def close(self) -> None:
        if self._service is not None:
            self._service.terminate()
            self._service.wait()

    def _start(self) -> None:
        with (self._folder / "rauc.log").open("ab") as log:
            self._service = subprocess.Popen(
                [
                    "rauc",
                    f"--conf={self._folder / 'system.conf'}",
                    "service",
                    f"--override-boot-slot={self.slots.booted}",
                ],
                env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": self._address},
                stdout=log,
                stderr=log,
            )
        with open_dbus_connection(self._address) as bus:
            _wait(lambda: Proxy(message_bus, bus).NameHasOwner(NAME)[0], "RAUC")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _wait(true: Any, what: str) -> None:
    end = time.monotonic() + START_S
    while not true():
        assert time.monotonic() < end, f"{what} does not come up"
        time.sleep(0.02)
