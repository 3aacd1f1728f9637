"""temperd-powerd: the one part of temperd that runs as root. It caps clocks, raises fan levels and puts both back.

    python -m agent.board.powerd [--socket PATH] [--allow-user NAME] [--allow-group NAME]

systemd starts it at the first connection (packaging/systemd); with `--socket` it listens by itself. It imports nothing
beyond the standard library and the few modules below `agent` that do neither. docs/powerd.md is its page.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import grp
import os
import pwd
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.board.files import read_text
from agent.board.powerd_firmware import throttled_bits
from agent.board.powerd_limits import Limits
from agent.board.powerd_server import Peer, Server
from agent.durable import make_folder, only_holder
from agent.errors import BoardError, ConfigError, TemperdError

RUNTIME_FOLDER = "/run/temperd-powerd"
IDLE_EXIT_S = 30.0  # nobody connected: systemd starts us again in a fraction of a second
LONGEST_IDLE_EXIT_S = 86_400.0
TURN_S = 5.0  # longest wait: a quarter of the unit's watchdog
_FIRST_PASSED = 3  # sd_listen_fds(3)
_BACKLOG = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: exit code 0 after SIGTERM or idling; 2: called wrongly; 1: something could not be put back."""
    asked = _parser().parse_args(arguments)
    try:
        runtime = Path(asked.runtime_dir)
        make_folder(runtime)
        taken = BoardError("another temperd-powerd uses this runtime folder", where=str(runtime))
        with only_holder(runtime / "lock", taken):
            boot = read_text(Path("/proc/sys/kernel/random/boot_id")) or ""
            limits = Limits(Path(asked.sys_root), runtime / "undo.json", boot)
            return _restored(limits) if asked.restore else _served(asked, limits)
    except TemperdError as error:
        say(str(error))
        return error.exit_code


def say(text: str) -> None:
    """One line for the journal."""
    sys.stderr.write(f"temperd-powerd: {text}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="temperd-powerd", description="Caps clocks and raises fan levels as root.")
    parser.add_argument("--socket", help="listen here instead of on the socket passed by systemd")
    parser.add_argument("--allow-user", action="append", default=[], help="name or number; root always may ask")
    parser.add_argument("--allow-group", action="append", default=[], help="name or number; members may ask")
    parser.add_argument("--runtime-dir", default=RUNTIME_FOLDER, help="where it remembers what it found")
    parser.add_argument("--sys-root", default="/sys", help="where /sys is")
    parser.add_argument("--idle-exit", type=float, help=f"seconds; {IDLE_EXIT_S:.0f} under systemd, else never")
    parser.add_argument("--restore", action="store_true", help="only put back what a killed one left, and end")
    return parser


def _restored(limits: Limits) -> int:
    refused = limits.restore()
    for text in (*limits.warnings, *refused):
        say(text)
    return 1 if refused else 0


def _served(asked: argparse.Namespace, limits: Limits) -> int:
    idle_exit_s = asked.idle_exit if asked.idle_exit is not None else 0.0 if asked.socket else IDLE_EXIT_S
    if not 0.0 <= idle_exit_s <= LONGEST_IDLE_EXIT_S:
        raise ConfigError(f"must be 0 (never) to {LONGEST_IDLE_EXIT_S:.0f} seconds", where="--idle-exit")
    allowed = _allowed(asked.allow_user, asked.allow_group)
    root = Path(asked.sys_root)
    with _endings() as wake, _listener(asked) as listener:
        server = Server(listener, limits, asked.sys_root, lambda: throttled_bits(root), allowed, time.monotonic, say)
        try:
            server.put_back()  # what a killed one left, before anybody is served
            _notify("READY=1")
            while not _readable(wake) and not 0.0 < idle_exit_s <= server.idle_s:
                server.turn(min(TURN_S, idle_exit_s or TURN_S), wake.fileno())
                _notify("WATCHDOG=1")
        finally:
            _notify("STOPPING=1")
            server.close()
    return 1 if limits.held else 0


def _allowed(users: list[str], groups: list[str]) -> Callable[[Peer], bool]:
    """Who may ask: root, the user who runs this, and those named.

    Raises:
        ConfigError: a name is not known.
    """
    uids = {0, os.geteuid(), *(_number(name, lambda n: pwd.getpwnam(n).pw_uid, "--allow-user") for name in users)}
    gids = frozenset(_number(name, lambda n: grp.getgrnam(n).gr_gid, "--allow-group") for name in groups)
    return lambda peer: peer.uid in uids or bool(peer.groups & gids)


def _number(name: str, look_up: Callable[[str], int], option: str) -> int:
    if name.isdecimal():
        return int(name)
    try:
        return look_up(name)
    except KeyError as error:
        raise ConfigError(f"{name!r} is not known on this machine", where=option) from error


@contextlib.contextmanager
def _endings() -> Iterator[socket.socket]:
    """A socket that becomes readable when SIGTERM or SIGINT arrives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)


def _readable(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    except BlockingIOError:
        return False


@contextlib.contextmanager
def _listener(asked: argparse.Namespace) -> Iterator[socket.socket]:
    """The socket passed by systemd, or one of our own, which is removed at the end.

    Raises:
        ConfigError: none was passed, it is of another kind, or the path cannot be used.
    """
    if asked.socket is None:
        with _passed() as listener:
            yield listener
        return
    path = Path(asked.socket)
    with _bound(path, asked.allow_group, open_to_all=bool(asked.allow_user)) as listener:
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _bound(path: Path, groups: list[str], *, open_to_all: bool) -> socket.socket:
    group = _number(groups[0], lambda name: grp.getgrnam(name).gr_gid, "--allow-group") if groups else -1
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)  # nobody may connect before owner and mode are right
    try:
        _remove_abandoned(path)
        listener.bind(str(path))
        os.chown(path, -1, group)
        path.chmod(0o666 if open_to_all else 0o660)  # whoever connects is asked for his name all the same
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen here: {error.strerror or error}", where=str(path)) from error
    finally:
        os.umask(before)
    return listener


def _remove_abandoned(path: Path) -> None:
    """Remove the socket at `path` if nobody listens there any more.

    Raises:
        OSError: somebody does; whatever else is there stays too.
    """
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, "another program listens there")


def _passed() -> socket.socket:
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise ConfigError("no socket was passed", fix="Start temperd-powerd.socket, or give --socket PATH")
    try:
        os.set_inheritable(_FIRST_PASSED, False)
        listener = socket.socket(fileno=_FIRST_PASSED)
    except OSError as error:
        raise ConfigError(f"what was passed is no socket: {error.strerror}") from error
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_SEQPACKET:
        listener.close()
        raise ConfigError("the socket passed is of another kind", fix="Use ListenSequentialPacket= with a path")
    return listener


def _notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out,
        ):
            out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


if __name__ == "__main__":
    sys.exit(main())
