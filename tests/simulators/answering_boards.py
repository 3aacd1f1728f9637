"""Boards that only answer: the production link and the production judge of commands, and work that ends at once.

Each command that a board carries out is a line `BOARD ID` in a file, so that a test can count. By hand:
python -m tests.simulators.answering_boards PORT TRUSTED_FOLDER FILE BOARD[=ENDING]...
ENDING: succeeded (default), failed, refuse (rejects with not-permitted), slow (runs until it is canceled), mute (takes
commands and says nothing).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import CommandError
from agent.keys_consoles import load_trusted_consoles
from service.commands import CANCEL, Command, Refusal, open_command
from service.config import Mqtt
from service.device_link import Address, Connected, Incoming, Link

ROOT = Path(__file__).parents[2]
BIRTH = {
    "schema": 1,
    "agent": "0.1.0",
    "release": {"slot": "installed", "trial": "", "safe_mode": ""},
    "board": {"model": "Raspberry Pi 4 Model B", "profile": "raspberry-pi-4"},
    "active_model": {"name": "colours", "version": "1.0", "model_sha256": "ab" * 32},
    "policy": {"name": "raspberry-pi-4", "sha256": "cd" * 32},
    "state_version": 3,
    "metrics": {"board": {"temperature_celsius": {"unit": "Cel", "type": "number"}}},
    "clock": "synchronised",
}


class AnsweringBoard:
    """One board; remembers its commands for as long as it lives."""

    def __init__(self, port: int, name: str, ending: str, trusted: Path, log: Path) -> None:
        self._name, self._ending, self._trusted, self._log = name, ending, trusted, log
        self._known: dict[str, tuple[str, str, dict[str, object]]] = {}
        self._link = Link(
            Mqtt(host="127.0.0.1", port=port),
            Address("default", name),
            session=int(time.time()),
            boot_id=name,
            capabilities={"fine-tune": {"type": "fine-tune"}},
            birth=BIRTH,
            now=time.time,
        )

    async def serve(self) -> None:
        self._link.start()
        while True:
            event = await self._link.receive()
            if isinstance(event, Connected):
                body: dict[str, object] = {
                    "seq": 1,
                    "boot_id": self._name,
                    "ts": time.time(),
                    "mono_ms": 1,
                    "dropped_total": 0,
                }
                body["values"] = {"temperature_celsius": 51.5}
                self._link.publish_lossy("board", json.dumps(body).encode(), "application/json")
            if isinstance(event, Incoming):
                self._take(event)
                event.ack()

    def _take(self, event: Incoming) -> None:
        try:
            command = open_command(
                event.envelope,
                topic_type=event.type,
                topic_id=event.id,
                trusted=load_trusted_consoles(self._trusted),
                device=self._name,
                now=time.time(),
                clock_synchronised=True,
            )
        except CommandError as error:
            self._say(event.type, event.id, 1, "rejected", error.code, str(error))
            return
        known = self._known.get(command.id)
        if known is None:
            self._carry_out(command)
        elif known[0] == command.digest:
            if self._ending != "mute":
                self._link.publish_status(known[1], command.id, known[2])
        else:
            self._say(event.type, event.id, 1, "rejected", Refusal.REPLAY, "other bytes")

    def _carry_out(self, command: Command) -> None:
        with self._log.open("a") as log:
            log.write(f"{self._name} {command.id}\n")
        self._known[command.id] = (command.digest, command.type, {})
        if command.type == CANCEL:
            job = self._known.get(command.job)
            if job:
                self._say(job[1], command.job, 9, "canceled", "canceled", "canceled by an operator")
            self._say(CANCEL, command.id, 2, "succeeded" if job else "rejected", "" if job else "wrong-state", "")
        elif self._ending == "refuse":
            self._say(command.type, command.id, 1, "rejected", "not-permitted", "a viewer may not fine-tune\x1b[2J")
        elif self._ending != "mute":
            self._say(command.type, command.id, 1, "accepted")
            self._say(command.type, command.id, 2, "running")
            if self._ending != "slow":
                code = "" if self._ending == "succeeded" else "worker-failed"
                self._say(command.type, command.id, 3, self._ending, code, code and "the worker ended")

    def _say(self, kind: str, command_id: str, version: int, status: str, code: str = "", reason: str = "") -> None:
        body: dict[str, object] = {"id": command_id, "status": status, "step": "", "version": version, "attempt": 1}
        body |= {"reason_code": code, "reason": reason, "progress": None, "ts": time.time(), "clock": "synchronised"}
        body |= {"energy_j": None, "result": None, "eta_s": None, "until": None}
        if command_id in self._known:
            self._known[command_id] = (*self._known[command_id][:2], body)
        self._link.publish_status(kind, command_id, body)


async def serve(port: int, trusted: Path, log: Path, boards: list[str]) -> None:
    """Serve `NAME[=ENDING]` until killed."""
    async with asyncio.TaskGroup() as group:
        for word in boards:
            name, _, ending = word.partition("=")
            group.create_task(AnsweringBoard(port, name, ending or "succeeded", trusted, log).serve())


@contextmanager
def answering_boards(port: int, trusted: Path, log: Path, *boards: str) -> Iterator[subprocess.Popen[bytes]]:
    """The boards as a process of their own."""
    log.touch()
    arguments = [sys.executable, "-m", "tests.simulators.answering_boards", str(port), str(trusted), str(log), *boards]
    process = subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
