"""A board's levers as plain files, and temperd-powerd over them: in this process step by step, or as a process."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.board.lever_files import cap_file, cooling_file
from agent.board.powerd_firmware import throttled_bits
from agent.board.powerd_limits import Limits
from agent.board.powerd_server import Peer, Server

ROOT = Path(__file__).parents[2]
BOOT = "boot-1"
TABLE = (600_000, 1_000_000, 1_300_000, 1_800_000)
CAP, CAP4, FAN = cap_file(0), cap_file(4), cooling_file(0)
FOUND = {CAP: "1800000", CAP4: "1300000", FAN: "1", cooling_file(1): "0"}
"""Two clusters, the second one already capped; a fan with levels to 4; a frequency cooling device with levels to 3."""
READY_S = 20.0


class LeverTree:
    """The files, below `folder`/sys."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sys, self.run = folder, folder / "sys", folder / "run"
        self.run.mkdir(parents=True)
        table = " ".join(map(str, TABLE))
        for policy in (CAP, CAP4):
            self.put(policy.replace("scaling_max_freq", "scaling_available_frequencies"), table)
        self.put(FAN.replace("cur_state", "max_state"), "4")
        self.put(cooling_file(1).replace("cur_state", "max_state"), "3")
        for key, text in FOUND.items():
            self.put(key, text)

    @classmethod
    def again(cls, folder: Path) -> LeverTree:
        """A tree that is there already."""
        tree = cls.__new__(cls)
        tree.folder, tree.sys, tree.run = folder, folder / "sys", folder / "run"
        return tree

    def put(self, key: str, text: str) -> None:
        path = self.sys / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def get(self, key: str) -> str:
        return (self.sys / key).read_text().strip()

    def values(self) -> dict[str, str]:
        return {key: self.get(key) for key in FOUND}


class Client:
    """One connection.

    Args:
        address: of the helper.
        between: called between a question and its answer: a helper in this process works then.
    """

    def __init__(self, address: str, between: Callable[[], object] = lambda: None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(READY_S)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        self._between, self._last = between, 0
        between()

    def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        self._last += 1
        return self.raw(json.dumps({"id": self._last, "verb": verb, **arguments}).encode())

    def raw(self, packet: bytes) -> dict[str, Any]:
        """The answer to any bytes; empty when the helper hung up."""
        try:
            self.sock.send(packet)
        except BrokenPipeError:
            return {}
        self._between()
        answer: dict[str, Any] = json.loads(self.sock.recv(4096) or b"{}")
        return answer

    def close(self) -> None:
        self.sock.close()
        self._between()


class SteppedHelper:
    """The helper in this process; it works when `turn` is called.

    Attributes:
        now: its clock, monotonic seconds.
        said: what it wrote for the journal.
    """

    def __init__(self, tree: LeverTree, allowed: Callable[[Peer], bool] = lambda _: True, boot: str = BOOT) -> None:
        self.now, self.said = 0.0, list[str]()
        self._clients: list[Client] = []
        self.address = "\0temperd-" + secrets.token_hex(8)  # no file: also where the tree is copied
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.address)
        self.listener.listen(8)
        self.limits = Limits(tree.sys, tree.run / "undo.json", boot)
        self.server = Server(
            self.listener,
            self.limits,
            str(tree.sys),
            lambda: throttled_bits(tree.sys, Path("/dev/null")),
            allowed,
            lambda: self.now,
            self.said.append,
        )
        self.server.put_back()

    def turn(self) -> None:
        self.server.turn(0.0)

    def client(self) -> Client:
        self._clients.append(Client(self.address, self.turn))
        return self._clients[-1]

    def close(self) -> None:
        self.server.close()
        self.listener.close()
        self._let_go()

    def crash(self) -> None:
        """Be gone as after kill -9: nothing is put back, the kernel closes everything."""
        for connection in self.server._connections.values():
            connection.sock.close()
        self.listener.close()
        self._let_go()

    def _let_go(self) -> None:
        for client in self._clients:
            client.sock.close()


class HelperProcess:
    """`python -m agent.board.powerd --socket`, for real.

    Args:
        tree: its levers.
        options: further options of the command line.
    """

    def __init__(self, tree: LeverTree, *options: str) -> None:
        self._tree, self._options = tree, options
        self.address = str(tree.folder / "s")
        self.start()

    def command(self, *options: str) -> list[str]:
        tree = self._tree
        return [
            *(sys.executable, "-m", "agent.board.powerd", *options),
            *("--sys-root", str(tree.sys), "--runtime-dir", str(tree.run)),
        ]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.child = subprocess.Popen(
            self.command("--socket", self.address, *self._options), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + READY_S
        while True:
            try:
                client = Client(self.address)
            except OSError:
                assert self.child.poll() is None, self.child.communicate()[1]
                assert time.monotonic() < deadline, "the helper does not start"
                time.sleep(0.01)
            else:
                client.ask("hello")
                client.close()
                return

    def kill(self) -> None:
        """Kill -9."""
        self.child.kill()
        self._reap()

    def stop(self) -> str:
        """SIGTERM; what it had said."""
        self.child.terminate()
        said = self._reap()
        assert self.child.returncode == 0, said
        return said

    def _reap(self) -> str:
        return self.child.communicate(timeout=READY_S)[1]


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + READY_S
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def as_user(uid: int, groups: list[int], act: Callable[[], object]) -> Any:
    """What `act` gives as another user, in a forked child, through JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            answer = {"gave": act()}
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = {"raised": repr(error)}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = json.loads(stream.read())
    os.waitpid(child, 0)
    assert "gave" in answer, answer
    return answer["gave"]
