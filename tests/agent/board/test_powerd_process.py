"""temperd-powerd as a process: killed at every step, called by dying clients, passed its socket, kept small."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.board import powerd
from tests.simulators.kill_matrix import kill_matrix
from tests.simulators.powerd_board import (
    CAP,
    FAN,
    FOUND,
    ROOT,
    Client,
    HelperProcess,
    LeverTree,
    SteppedHelper,
    eventually,
)

pytestmark = pytest.mark.once
VERB_ROWS = [
    ("hello", {}),
    ("throttled", {}),
    ("set-cap", {"policy": 0, "khz": 600_000}),
    ("set-cooling", {"device": 0, "level": 4}),
    ("set-cap", {"policy": 0, "khz": 1_000_000}),
    ("set-cap", {"policy": 0, "khz": 1_800_000}),
    ("restore", {}),
]
CLIENT = """
import json, socket, sys, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
for number, verb in enumerate([{"verb": "set-cap", "policy": 0, "khz": 600000},
                               {"verb": "set-cooling", "device": 0, "level": 4}]):
    sock.send(json.dumps({"id": number} | verb).encode())
    assert json.loads(sock.recv(2048))["ok"]
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def tree(tmp_path: Path) -> LeverTree:
    return LeverTree(tmp_path / "t")


@pytest.fixture
def helper(tree: LeverTree) -> Iterator[HelperProcess]:
    started = HelperProcess(tree)
    yield started
    if started.child.poll() is None:
        started.stop()


def speak(folder: Path) -> None:
    """Every verb, a client that is gone while it holds, and a stop."""
    helper = SteppedHelper(LeverTree.again(folder))
    first = helper.client()
    for verb, arguments in VERB_ROWS:
        first.ask(verb, **arguments)
    first.ask("set-cap", policy=4, khz=600_000)
    first.close()
    second = helper.client()
    second.ask("set-cooling", device=1, level=2)
    helper.close()


def boots_as_found(folder: Path) -> None:
    tree = LeverTree.again(folder)
    SteppedHelper(tree).close()
    assert tree.values() == FOUND
    assert sorted(path.name for path in tree.run.iterdir()) == []


def test_killed_before_any_step_the_next_start_puts_everything_back(tmp_path: Path) -> None:
    LeverTree(tmp_path / "prepared")
    (tmp_path / "cells").mkdir()
    cells = kill_matrix(tmp_path / "prepared", tmp_path / "cells", speak, boots_as_found)
    assert cells > 40
    print(f"{cells} steps of temperd-powerd killed")  # noqa: T201 - the figure wanted


@pytest.mark.parametrize("last", range(len(VERB_ROWS)), ids=[verb for verb, _ in VERB_ROWS])
def test_killed_after_any_verb_the_next_start_puts_everything_back(
    tree: LeverTree, helper: HelperProcess, last: int
) -> None:
    client = Client(helper.address)
    for verb, arguments in VERB_ROWS[: last + 1]:
        client.ask(verb, **arguments)
    helper.kill()
    client.close()
    helper.start()
    assert tree.values() == FOUND
    assert helper.stop() == ""


def test_restore_alone_puts_back_what_a_killed_one_left(tree: LeverTree, helper: HelperProcess) -> None:
    client = Client(helper.address)
    client.ask("set-cap", policy=0, khz=600_000)
    refused = subprocess.run(helper.command("--restore"), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (refused.returncode, "another temperd-powerd" in refused.stderr) == (1, True)
    assert tree.get(CAP) == "600000"
    helper.kill()
    client.close()
    subprocess.run(helper.command("--restore"), cwd=ROOT, check=True)
    assert tree.values() == FOUND


def test_limits_come_back_when_the_client_is_killed(tree: LeverTree, helper: HelperProcess) -> None:
    child = subprocess.Popen([sys.executable, "-c", CLIENT, helper.address], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    assert tree.values() == FOUND | {CAP: "600000", FAN: "4"}
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert eventually(lambda: tree.values() == FOUND)
    assert "put back" in helper.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_limits_come_back_when_the_helper_is_stopped(
    tree: LeverTree, helper: HelperProcess, number: signal.Signals
) -> None:
    client = Client(helper.address)
    client.ask("set-cap", policy=0, khz=600_000)
    helper.child.send_signal(number)
    assert helper.child.wait(20) == 0
    assert helper.child.stderr
    helper.child.stderr.close()
    assert tree.values() == FOUND
    assert client.sock.recv(10) == b""
    client.close()
    assert not Path(helper.address).exists()


def passed_socket(tree: LeverTree, kind: int, *options: str) -> subprocess.Popen[str]:
    """The helper started as systemd does it: a listening socket as descriptor 3, LISTEN_FDS, NOTIFY_SOCKET."""
    program = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'agent.board.powerd', *sys.argv[1:]])\n"
    )
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind(str(tree.folder / "s"))
        listener.listen(4)

        def as_three() -> None:
            os.dup2(listener.fileno(), 3)
            os.set_inheritable(3, True)  # also where it was 3 already

        return subprocess.Popen(
            [sys.executable, "-c", program, "--sys-root", tree.sys, "--runtime-dir", tree.run, *options],
            cwd=ROOT,
            env=os.environ | {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(tree.folder / "n")},
            stderr=subprocess.PIPE,
            text=True,
            close_fds=False,
            preexec_fn=as_three,  # noqa: PLW1509 - no thread of this process holds a lock
        )


def test_a_passed_socket_is_served_and_idling_ends_it(tree: LeverTree) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tree.folder / "n"))
        notified.settimeout(20)
        child = passed_socket(tree, socket.SOCK_SEQPACKET, "--idle-exit", "0.3")
        client = Client(str(tree.folder / "s"))  # before it runs: the kernel keeps the connection for it
        assert client.ask("set-cap", policy=0, khz=600_000)["ok"]
        assert notified.recv(100) == b"READY=1"
        assert notified.recv(100) == b"WATCHDOG=1"
        assert tree.get(CAP) == "600000"
        client.close()
        assert child.wait(20) == 0  # idle
    said = child.communicate()[1]
    assert "its limits are put back" in said
    assert tree.values() == FOUND


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "no socket was passed"),
        (["--socket", "/nonexistent/folder/s"], 2, "cannot listen here"),
        (["--socket", "s", "--allow-user", "no-such-user"], 2, "'no-such-user' is not known"),
        (["--socket", "s", "--allow-group", "no-such-group"], 2, "'no-such-group' is not known"),
        (["--socket", "s", "--idle-exit", "-1"], 2, "--idle-exit"),
        (["--socket", "s", "--idle-exit", "nan"], 2, "--idle-exit"),
        (["--restore", "--runtime-dir", "/dev/null/x"], 1, "/dev/null"),
    ],
)
def test_a_wrong_call_is_named(
    tree: LeverTree, capsys: pytest.CaptureFixture[str], options: list[str], code: int, says: str
) -> None:
    assert powerd.main(["--sys-root", str(tree.sys), "--runtime-dir", str(tree.run), *options]) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_the_socket_of_a_program_that_lives_is_not_taken(
    tree: LeverTree, capsys: pytest.CaptureFixture[str], kind: int
) -> None:
    path = tree.folder / "s"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        other.listen()
        options = ["--socket", str(path), "--sys-root", str(tree.sys), "--runtime-dir", str(tree.run)]
        assert powerd.main(options) == 2
        assert "cannot listen here" in capsys.readouterr().err
        assert path.exists()


def test_a_file_in_the_sockets_place_stays(tree: LeverTree, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree.folder / "s"
    path.write_text("mine")
    options = ["--socket", str(path), "--sys-root", str(tree.sys), "--runtime-dir", str(tree.run)]
    assert powerd.main(options) == 2
    assert "cannot listen here" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_a_passed_socket_of_another_kind_is_refused(tree: LeverTree) -> None:
    child = passed_socket(tree, socket.SOCK_STREAM)
    said = child.communicate(timeout=20)[1]
    assert (child.returncode, "another kind" in said) == (2, True)


def test_it_loads_the_standard_library_and_few_modules_of_ours() -> None:
    program = (
        "import sys, json\nbefore = set(sys.modules)\nimport agent.board.powerd\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    foreign = [name for name in json.loads(done.stdout) if name.partition(".")[0] not in sys.stdlib_module_names]
    ours = {
        *("agent", "agent.board", "agent.board.files", "agent.board.lever_files", "agent.board.powerd"),
        *(f"agent.board.powerd_{part}" for part in ("firmware", "limits", "server", "wire")),
        *("agent.durable", "agent.errors", "agent.strict_json"),
    }
    assert set(foreign) == ours
