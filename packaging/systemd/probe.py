"""What a process of temperd.service may do; run by ExecStartPre= within all of its sandbox. Prints one JSON table.

Every entry is a question whose answer is true, false, or the name of the error with which the kernel refused.
"""
# ruff: noqa: INP001, S108 - it asks for folders by name and trusts none; run by path inside the machine; its python3 has the standard library alone

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, PTRACE_ATTACH, TIMEX_BYTES, ADJ_OFFSET = 0x10000000, 16, 512, 1
WRITES = ("/", "/etc", "/etc/temperd", "/usr", "/opt/temperd", "/var", "/var/log", "/srv", "/mnt", "/boot", "/run")
OWN = ("/var/lib/temperd", "/var/cache/temperd", "/run/temperd", "/tmp", "/var/tmp", "/dev/shm")
LISTS = ("/home", "/home/anna", "/root")
SECRETS = ("/etc/shadow", "/home/anna/diary", "/root/secret")
READS = (
    "/etc/temperd/temperd.toml",
    "/srv/images",
    "/mnt",
    "/media",
    "/sys/class/thermal",
)
KERNEL = ("/sys/class/power_supply", "/proc/stat", "/proc/meminfo", "/proc/cpuinfo", "/proc/sys/kernel/random/boot_id")
TUNES = (
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/swappiness",
    "/proc/sysrq-trigger",
    "/sys/power/state",
    "/sys/fs/cgroup/cgroup.procs",
)


def tried(deed: Callable[[], object]) -> bool | str:
    """True where it goes, else the error's name."""
    try:
        return deed() is not False
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "error")


def write(folder: str) -> None:
    """Leave a file there and take it away."""
    path = Path(folder, f"probe-{os.getpid()}")
    path.write_text("x")
    path.unlink()


def read(name: str) -> object:
    """Read a file, or list a folder."""
    path = Path(name)
    return list(path.iterdir()) if path.is_dir() else path.read_bytes()


def tune(name: str) -> None:
    """Open for writing, and write nothing."""
    os.close(os.open(name, os.O_WRONLY))


def call(name: str, *arguments: object) -> int:
    """A function of the C library.

    Raises:
        OSError: it gave -1.
    """
    found = int(getattr(LIBC, name)(*arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), name)
    return found


def change_clock() -> int:
    """Ask the kernel to slew the clock by nothing."""
    timex = bytearray(TIMEX_BYTES)
    timex[0] = ADJ_OFFSET
    return call("adjtimex", (ctypes.c_char * TIMEX_BYTES).from_buffer(timex))


def set_user_bit() -> bool:
    """Whether a file of one's own can be made one that others run as its owner."""
    path = Path("/run/temperd/suid")
    path.write_text("x")
    try:
        path.chmod(0o4755)
        return bool(path.stat().st_mode & stat.S_ISUID)
    finally:
        path.unlink()


def sandbox_holds() -> dict[str, bool | str]:
    """What must not go."""
    found: dict[str, bool | str] = {f"write {name}": tried(lambda name=name: write(name)) for name in WRITES}
    found |= {f"list {name}": tried(lambda name=name: list(Path(name).iterdir())) for name in LISTS}
    found |= {f"write {name}": tried(lambda name=name: tune(name)) for name in TUNES}
    found |= {f"read {name}": tried(lambda name=name: read(name)) for name in SECRETS}
    netlink, packet = socket.AF_NETLINK, socket.AF_PACKET
    found["raw packets"] = tried(lambda: socket.socket(packet, socket.SOCK_RAW))
    found["netlink"] = tried(lambda: socket.socket(netlink, socket.SOCK_RAW))
    found["new namespace"] = tried(lambda: call("unshare", CLONE_NEWUSER))
    found["become root"] = tried(lambda: os.setuid(0))
    found["make a device"] = tried(lambda: os.mknod("/run/temperd/null", stat.S_IFCHR, os.makedev(1, 3)))
    found["a program that runs as its owner"] = tried(set_user_bit)
    found["memory to write and to run"] = tried(
        lambda: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    )
    found["trace process 1"] = tried(lambda: call("ptrace", PTRACE_ATTACH, 1, 0, 0))
    found["see process 1"] = tried(lambda: read("/proc/1/stat"))
    found["change the clock"] = tried(change_clock)
    found["mount"] = tried(lambda: call("mount", b"none", b"/run/temperd", b"tmpfs", 0, None))
    found["disks in /dev"] = any(stat.S_ISBLK(node.lstat().st_mode) for node in Path("/dev").iterdir())
    return found


def work_goes() -> dict[str, bool | str]:
    """What the daemon and its workers live on."""
    found: dict[str, bool | str] = {f"write {name}": tried(lambda name=name: write(name)) for name in OWN}
    found |= {f"read {name}": tried(lambda name=name: read(name)) for name in READS + KERNEL}
    found["give way to others"] = tried(lambda: os.setpriority(os.PRIO_PROCESS, 0, 10))
    found["bind threads to cores"] = tried(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)))
    found["is the clock right"] = tried(lambda: call("adjtimex", ctypes.create_string_buffer(TIMEX_BYTES)))
    found["system bus"] = tried(bus)
    found["a server on the loopback"] = tried(lambda: socket.create_server(("127.0.0.1", 0)).close())
    found["socket of the helper"] = tried(helper)
    return found


def bus() -> bool:
    """Whether the system bus takes this user at its word."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("/run/dbus/system_bus_socket")
        client.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
        return client.recv(100).startswith(b"OK ")


def helper() -> bool:
    """Whether temperd-powerd answers this user."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(60)
        client.connect("/run/temperd-powerd.sock")
        client.send(b'{"id":1,"verb":"hello"}')
        return b'"ok": true' in client.recv(2048)


def main() -> None:
    """Ask everything."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    rights = {name: status[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")}
    json.dump({"refused": sandbox_holds(), "allowed": work_goes(), "rights": rights}, sys.stdout)


if __name__ == "__main__":
    main()
