"""The worker as a real process, started the way the daemon starts it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from agent.errors import EngineError
from agent.finetune import identity_folder
from agent.keys import create_identity
from agent.messages import MAX_LINE_BYTES, Failed, Go, Message, Order, Stage, Steer
from agent.worker import EXIT_ORPHANED
from service.worker_process import WorkerProcess

ROOT = Path(__file__).parents[2]
BOUND_S = 60.0  # only a hang takes this long


def order_in(state: Path, **more: Any) -> Order:
    """An order that reaches its first question: the device has keys and a pinned root."""
    create_identity(identity_folder(state), "pi-1")
    (state / "root.json").write_bytes(b"read after the first question")
    fields: dict[str, Any] = {
        "job_id": "job-1",
        "spec": {"model": "net", "data": str(state)},
        "state_dir": str(state),
        "repository_url": "http://127.0.0.1:1",
        "repository_root": str(state / "root.json"),
        "policy": str(state / "policy.toml"),
        "threads": 1,
    }
    return Order(**fields | more)


def conversation(
    first: Message, talk: Callable[[WorkerProcess, Message], Coroutine[Any, Any, None]] | None = None, nice: int = 0
) -> tuple[list[Message], int, str]:
    """Start a worker, answer its first message with `talk`; its messages, exit code and log."""

    async def run() -> tuple[list[Message], int, str]:
        log: list[str] = []
        worker = await WorkerProcess.start(cast("Order", first), nice, log.append)
        said: list[Message] = []
        async for message in worker.messages():
            said.append(message)
            if talk and len(said) == 1:
                await talk(worker, message)
        return said, await worker.end(BOUND_S), "\n".join(log)

    return asyncio.run(asyncio.wait_for(run(), BOUND_S))


def test_the_first_line_must_be_an_order() -> None:
    said, code, log = conversation(Go("TRAINING"))
    assert said == []
    assert code == 75
    assert "the first line is not an order" in log


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"spec": {"model": "net", "data": "/d", "epochs": 0}}, "bad-spec", "0 is outside 1..1000 (epochs)"),
        ({"spec": {}}, "bad-spec", "missing (model)"),
        ({"state_dir": "/nonexistent/state"}, "key-missing", "/nonexistent"),
    ],
)
def test_an_error_in_the_job_comes_back_as_failed_with_its_code(
    tmp_path: Path, change: dict[str, Any], code: str, says: str
) -> None:
    said, exit_code, log = conversation(order_in(tmp_path, **change))
    assert len(said) == 1
    failed = said[0]
    assert isinstance(failed, Failed)
    assert failed.outcome == "FAILED"
    assert says in failed.message
    assert (failed.code, exit_code, log) == (code, 1, "")


def test_a_fault_of_ours_is_told_too_and_its_trace_is_logged(tmp_path: Path) -> None:
    said, exit_code, log = conversation(order_in(tmp_path, state_dir="a\0b"))
    assert [type(message) for message in said] == [Failed]
    assert cast("Failed", said[0]).code == "internal"
    assert exit_code == 1
    assert "Traceback" in log


def test_a_stage_is_entered_only_when_the_daemon_says_go(tmp_path: Path) -> None:
    async def go(worker: WorkerProcess, message: Message) -> None:
        assert message == Stage("PULLING", "net latest")
        await worker.send(Go("TRAINING"))  # another stage's leave is not this one's
        await worker.send(Go("PULLING"))

    said, code, _ = conversation(order_in(tmp_path), go)
    assert [type(message) for message in said] == [Stage, Failed]
    assert cast("Failed", said[1]).outcome == "FAILED"  # the pinned root is no root document
    assert "root.json" in cast("Failed", said[1]).message
    assert code == 1


@pytest.mark.parametrize(("rule", "outcome"), [("canceled", "CANCELED"), ("thermal.abort", "FAILED")])
def test_an_abort_ends_a_worker_that_waits(tmp_path: Path, rule: str, outcome: str) -> None:
    async def abort(worker: WorkerProcess, _: Message) -> None:
        await worker.send(Steer("RUN", 1.0, 0, reverify=False, rule="run"))
        await worker.send(Steer("ABORT", 0.0, 0, reverify=False, rule=rule))

    said, code, _ = conversation(order_in(tmp_path), abort)
    failed = cast("Failed", said[1])
    assert (failed.code, failed.message, failed.outcome) == (rule, f"the job was ended ({rule})", outcome)
    assert code == 1


async def hang_up(worker: WorkerProcess, _: Message) -> None:
    assert worker._child.stdin is not None
    worker._child.stdin.close()


async def send_noise(worker: WorkerProcess, _: Message) -> None:
    assert worker._child.stdin is not None
    worker._child.stdin.write(b"noise\n")


async def send_overlong(worker: WorkerProcess, _: Message) -> None:
    assert worker._child.stdin is not None
    worker._child.stdin.write(b"x" * (2 * MAX_LINE_BYTES))


@pytest.mark.parametrize("fault", [hang_up, send_noise, send_overlong])
def test_a_worker_whose_daemon_went_away_or_mad_ends_itself(
    tmp_path: Path, fault: Callable[[WorkerProcess, Message], Coroutine[Any, Any, None]]
) -> None:
    said, code, _ = conversation(order_in(tmp_path), fault)
    assert [type(message) for message in said] == [Stage]
    assert code == EXIT_ORPHANED


def test_the_worker_is_nice_and_a_stopped_one_is_killed_after_its_grace(tmp_path: Path) -> None:
    async def run() -> int:
        worker = await WorkerProcess.start(order_in(tmp_path), 7, lambda _: None)
        assert isinstance(await anext(worker.messages()), Stage)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == os.getpriority(os.PRIO_PROCESS, 0) + 7
        os.kill(worker.pid, signal.SIGSTOP)
        code = await worker.end(grace_s=0.0)
        await worker.send(Go("PULLING"))  # without effect
        return code

    assert asyncio.run(asyncio.wait_for(run(), BOUND_S)) == -signal.SIGKILL


DAEMON = """
import asyncio, json, os, signal, sys
from agent.messages import Order
from service.worker_process import WorkerProcess

async def main():
    worker = await WorkerProcess.start(Order(**json.loads(sys.argv[1])), 0, lambda _: None)
    await anext(worker.messages())
    os.kill(worker.pid, signal.SIGSTOP)
    print(worker.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_kernel_ends_a_worker_whose_daemon_is_killed(tmp_path: Path) -> None:
    """A stopped worker cannot notice that its input has ended: it goes only because the kernel was asked to end it."""
    order = json.dumps(asdict(order_in(tmp_path)))
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, order], stdout=subprocess.PIPE, cwd=ROOT)
    assert daemon.stdout is not None
    try:
        watch = os.pidfd_open(int(daemon.stdout.readline()))
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    try:
        ended, _, _ = select.select([watch], [], [], BOUND_S)
    finally:
        os.close(watch)
    assert ended == [watch]


SHORT_OF_MEMORY = """
import resource
import numpy as np
from agent.engine.infer import Inference
from agent.engine.ir import Graph, Node
from agent.worker import _last_word

relu = Graph((Node("Relu", ("x",), ("y",), {}, "relu"),), {}, "x", (1 << 22,), "y")
inference = Inference(relu, 1)
samples = np.ones((16, 1 << 22), np.float32)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    inference.run(samples)
except Exception as error:
    print(_last_word(error).code)
try:
    bytearray(1 << 30)
except MemoryError as error:
    print(_last_word(error).code)
"""


def test_memory_that_runs_out_in_the_runtime_or_in_python_has_a_code_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY], capture_output=True, text=True, cwd=ROOT, timeout=BOUND_S, check=False
    )
    assert done.stdout.split() == ["out-of-memory"] * 2, done.stderr


def test_a_worker_that_writes_nonsense_is_an_engine_error() -> None:
    """The reading side, on a program that is no worker."""

    async def read(line: str) -> Message:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"print({line}); print('a word', file=__import__('sys').stderr)"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, limit=MAX_LINE_BYTES,
        )  # fmt: skip
        log: list[str] = []
        worker = WorkerProcess(child, log.append)
        try:
            return await anext(worker.messages())
        finally:
            while await child.stdout.read(1 << 16):  # type: ignore[union-attr]
                pass
            assert await worker.end(BOUND_S) == 0
            assert log == ["a word"]

    assert asyncio.run(read("""'{"type":"go","stage":"A"}'""")) == Go("A")
    with pytest.raises(EngineError, match="unreadable message"):
        asyncio.run(read("'hello'"))
    with pytest.raises(EngineError, match="overlong"):
        asyncio.run(read(f"'x' * {2 * MAX_LINE_BYTES}"))
