"""What becomes of a Debian system when temperd's package is installed, upgraded, removed and purged: test.sh starts it.

drive.py SUITE ROOT FIRST SECOND FOREIGN...

ROOT is an unpacked root file system of that suite, FIRST and SECOND are two versions of the package for it, each
FOREIGN one a package that does not belong there.
"""
# ruff: noqa: INP001 - a program beside what it tries, in no package

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "systemd"))
from machine import Machine, holds, say, until

DEBS = "/debs"
CONFIG = "/etc/temperd/temperd.toml"
STATE = "/var/lib/temperd"
APT = "DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -y"
FULL_MIB = 20  # far too little for the package
EX_CONFIG = "78"


class Board:
    """One booted Debian and the packages that lie in it."""

    def __init__(self, machine: Machine, first: str, second: str) -> None:
        self.machine, self.first, self.second = machine, first, second

    def apt(self, words: str) -> tuple[int, str]:
        """Exit code of apt-get and what it said."""
        told = self.machine.run("bash", "-c", f"{APT} {words} 2>&1; echo exit=$?", check=False)
        said, _, code = told.rpartition("exit=")
        return int(code), said

    def apt_does(self, words: str) -> str:
        """What apt-get said; exit where it failed."""
        code, said = self.apt(words)
        if code:
            raise SystemExit(f"NOT: apt-get {words}\n{said}{self.machine.journal()[-3000:]}")
        return said

    def active(self) -> bool:
        """Whether the daemon has reported readiness."""
        return self.machine.shown("ActiveState") == "active"

    def fingerprint(self) -> str:
        """Of the board's identity."""
        return self.machine.shell("temperd keys show --json | grep -m 1 fingerprint").strip()

    def version(self) -> str:
        """Version and state of the package, as dpkg keeps them."""
        return self.machine.run("dpkg-query", "-W", "-f=${db:Status-Abbrev}${Version}", "temperd", check=False).strip()

    def there(self, path: str) -> bool:
        """Whether a path exists."""
        return self.machine.run("bash", "-c", f"test -e {path} && echo yes", check=False).strip() == "yes"


def in_an_image(root: Path, first: str) -> None:
    """Install where no systemd runs, as who makes an image does."""
    shell = f"{APT} install {DEBS}/{first}"
    done = subprocess.run(  # noqa: S603 - the words are those of the test
        ["chroot", str(root), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "bash", "-c", shell],  # noqa: S607
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    holds(f"an image without a running systemd takes the package{done.stderr[-800:] if done.returncode else ''}",
          true=not done.returncode)  # fmt: skip
    holds("it gets no identity: a copied image must not carry one to many boards",
          true=not (root / "var/lib/temperd/keys").exists())  # fmt: skip


def first_boot_of_the_image(board: Board) -> None:
    """The owner makes the identity on the board."""
    machine = board.machine
    until("the image's daemon ends, as it has no identity", lambda: machine.shown("ActiveState") == "failed")
    holds("with exit code 78", true=machine.shown("ExecMainStatus") == EX_CONFIG)
    holds("and a line that says what to do", true="temperd keys init" in machine.journal())
    machine.shell("cd /root && temperd keys init")
    owner = machine.shell(f"stat -c %U {STATE}/keys/identity.json").strip()
    holds("temperd keys init, by root in a private folder, makes the user's identity and leaves the document there",
          true=owner == "temperd" and machine.shell("ls /root/*.device.json"))  # fmt: skip
    machine.run("systemctl", "restart", "temperd.service")
    holds("then it is ready", true=board.active())
    board.apt_does("purge temperd")


def fresh(board: Board) -> None:
    """Install on a running board."""
    machine = board.machine
    begun = time.monotonic()
    said = board.apt_does(f"install {DEBS}/{board.first}")
    took = time.monotonic() - begun
    holds(f"apt install to READY took {took:.1f} s; asked are at most 60", true=board.active())
    holds("the installation says so", true="the daemon is ready" in said)
    started = [
        int(machine.shown(name)) for name in ("ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    ]
    say(f"     ok   start to READY took {(started[1] - started[0]) / 1e6:.2f} s; asked are at most 2")
    holds("temperd status works as root", true=machine.run("temperd", "status"))
    holds("and as the service's user", true=machine.run("runuser", "-u", "temperd", "--", "temperd", "status"))
    owners = machine.shell(
        f"cd / && stat -c '%U:%G %a %n' {STATE} {STATE}/keys {STATE}/keys/identity.json /etc/temperd {CONFIG}"
    ).splitlines()
    wanted = [
        f"temperd:temperd 700 {STATE}",
        f"temperd:temperd 700 {STATE}/keys",
        f"temperd:temperd 600 {STATE}/keys/identity.json",
        "root:temperd 750 /etc/temperd",
        f"root:temperd 640 {CONFIG}",
    ]
    holds(f"state and identity are the user's, the configuration is root's {'' if owners == wanted else owners}",
          true=owners == wanted)  # fmt: skip
    name = machine.shell(f'sed -n \'s/^name = "\\([^"]*\\)".*/\\1/p\' {CONFIG}').strip()
    host = machine.run("uname", "-n").strip()
    holds(f"the board is named after its host: {name}", true=name == re.sub(r"[^a-z0-9-]", "-", host.lower()))
    enabled = machine.run("systemctl", "is-enabled", "temperd.service", "temperd-powerd.socket").split()
    holds("both units are enabled", true=enabled == ["enabled", "enabled"])
    machine.shell("cd /root && umask 077 && temperd keys console alice --out . && temperd keys trust alice.pub.json")
    holds("root trusts a console with one command", true=board.there("/etc/temperd/consoles/alice.pub.json"))
    shown = machine.run("runuser", "-u", "temperd", "--", "temperd", "keys", "show")
    holds("the daemon's user reads whom the board trusts", true="alice" in shown)
    written = machine.run("runuser", "-u", "temperd", "--", "sh", "-c", "touch /etc/temperd/mine 2>&1", check=False)
    holds("and cannot change it", true="Permission denied" in written)
    holds("no file of the package differs from what was installed", true=not machine.run("dpkg", "-V", "temperd"))


def upgrade(board: Board) -> None:
    """To a newer version and back, with a configuration that the owner changed."""
    machine = board.machine
    machine.shell(f"sed -i 's/^level = \"info\"/level = \"debug\"/' {CONFIG} && echo '# mine' >>{CONFIG}")
    mine = machine.run("sha256sum", CONFIG)
    before = (
        board.fingerprint(),
        machine.shown("InvocationID"),
        machine.run("stat", "-c", "%i", f"{STATE}/journal.sqlite"),
    )
    board.apt_does(f"install {DEBS}/{board.second}")
    holds("an upgrade ends with the daemon ready", true=board.active())
    holds(f"it is the new version: {board.version()}", true=board.second.split("_")[1] in board.version())
    holds("the changed configuration was kept, and nobody was asked", true=machine.run("sha256sum", CONFIG) == mine)
    after = (
        board.fingerprint(),
        machine.shown("InvocationID"),
        machine.run("stat", "-c", "%i", f"{STATE}/journal.sqlite"),
    )
    holds("identity and journal are the same", true=(before[0], before[2]) == (after[0], after[2]))
    holds("the daemon is another one", true=before[1] != after[1])
    holds("the console is still trusted", true="alice" in machine.run("temperd", "keys", "show"))
    board.apt_does(f"install --allow-downgrades {DEBS}/{board.first}")
    holds(f"a downgrade works: {board.version()}", true=board.active() and board.first.split("_")[1] in board.version())
    holds("and keeps the identity", true=board.fingerprint() == before[0])


def removed(board: Board) -> None:
    """Remove, install again."""
    machine, kept = board.machine, board.fingerprint()
    mine = machine.run("sha256sum", CONFIG)
    board.apt_does("remove temperd")
    holds("remove stops the daemon and the helper's socket",
          true=machine.shown("ActiveState") == "inactive" and not board.there("/run/temperd-powerd.sock"))  # fmt: skip
    holds("of the environment nothing is left", true=not board.there("/opt/temperd"))
    holds("state and configuration stay", true=board.there(f"{STATE}/keys/identity.json") and board.there(CONFIG))
    board.apt_does(f"install {DEBS}/{board.first}")
    holds("installed again it goes on where it was", true=board.active() and board.fingerprint() == kept)
    holds("with the owner's configuration", true=machine.run("sha256sum", CONFIG) == mine)


def wrong_configuration(board: Board) -> None:
    """Exit code 78, told by systemctl; dpkg is not held up."""
    machine = board.machine
    machine.shell(f"sed -i 's/^port = 1883/port = \"many\"/' {CONFIG}")
    machine.run("systemctl", "restart", "temperd.service", check=False)
    until("a wrong configuration ends the daemon", lambda: machine.shown("ActiveState") == "failed")
    holds("with exit code 78", true=machine.shown("ExecMainStatus") == EX_CONFIG)
    told = machine.run("systemctl", "status", "--no-pager", "--full", "temperd.service", check=False)
    holds("systemctl status shows which key it is", true="mqtt.port" in told)
    said = board.apt_does(f"install {DEBS}/{board.second}")
    holds("an upgrade meanwhile is whole", true=board.version().startswith("ii"))
    holds("and says that the daemon did not start", true="did not start" in said)
    machine.shell(f"sed -i 's/^port = \"many\"/port = 1883/' {CONFIG} && systemctl restart temperd.service")
    holds("with the key right it is ready again", true=board.active())


def refused(board: Board, foreign: list[str]) -> None:
    """Packages for another machine or another Debian."""
    before = board.version()
    for name in foreign:
        code, said = board.apt(f"install {DEBS}/{name}")
        reason = [line.strip() for line in said.splitlines() if re.search(r"Depends|E:|does not match", line)]
        holds(f"apt refuses {name}: {' | '.join(reason)[:160]}", true=code and reason)
    holds("and what was installed still runs", true=board.version() == before and board.active())


def full_disk(board: Board) -> None:
    """No room for the files, at the first installation and at an upgrade."""
    machine = board.machine
    board.apt_does("purge temperd")
    machine.shell(f"mkdir -p /opt && mount -t tmpfs -o size={FULL_MIB}m tmpfs /opt")
    code, said = board.apt(f"install {DEBS}/{board.first}")
    holds("a full disk stops the installation and is named", true=code and "No space left on device" in said)
    holds("nothing runs and nothing is half configured", true=board.version()[:2] not in ("ii", "iF", "iU"))
    machine.shell("mount -o remount,size=1g /opt")
    board.apt_does(f"install {DEBS}/{board.first}")
    holds("with room it installs and is ready", true=board.active())
    kept = board.fingerprint()
    machine.shell(f"used=$(df --output=used -m /opt | tail -n 1); mount -o remount,size=$((used + {FULL_MIB}))m /opt")
    code, said = board.apt(f"install {DEBS}/{board.second}")
    holds("a full disk stops an upgrade", true=code and "No space left on device" in said)
    until("the version before runs again by itself", board.active)
    holds(f"dpkg says so too: {board.version()}", true=board.version() == f"ii {board.first.split('_')[1]}")
    machine.shell("mount -o remount,size=1g /opt")
    board.apt_does(f"install {DEBS}/{board.second}")
    holds("with room the upgrade works", true=board.active() and board.fingerprint() == kept)


def purged(board: Board) -> None:
    """Nothing is left but the user."""
    machine = board.machine
    board.apt_does("purge temperd")
    machine.run("umount", "/opt")
    left = machine.shell(
        "find / -xdev -name '*temperd*' -not -path '/debs/*' -not -path '/proc/*' -not -path '/tmp/*'"
        " -not -path '/var/log/*' | sort"
    ).split()
    holds(f"after a purge nothing is left {' '.join(left)}", true=not left)
    holds("but the user", true=machine.run("getent", "passwd", "temperd"))
    board.apt_does(f"install {DEBS}/{board.first}")
    holds("and the package can be installed anew", true=board.active())


def main(words: list[str]) -> None:
    """Drive one suite."""
    suite, folder, first, second, *foreign = words
    root = Path(folder)
    begun = time.monotonic()
    in_an_image(root, first)
    machine = Machine(root, root.parent / f"{suite}.log")
    board = Board(machine, first, second)
    try:
        machine.boot()
        first_boot_of_the_image(board)
        fresh(board)
        upgrade(board)
        removed(board)
        wrong_configuration(board)
        refused(board, foreign)
        full_disk(board)
        purged(board)
    finally:
        machine.stop()
    say(f"{time.monotonic() - begun:6.1f} s  {suite} in all")


if __name__ == "__main__":
    main(sys.argv[1:])
