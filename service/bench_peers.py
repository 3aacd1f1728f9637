"""The sides of a bench as processes: who takes part, and how they take turns.

A side that waits is stopped (SIGSTOP), not asked to idle: no thread pool of one spins while another is measured, and
no pool needs an environment setting that would slow its own side down.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import EngineError, SpecError

SOURCE = Path(__file__).parents[1]
TORCH_PROGRAM = SOURCE / "packaging" / "bench" / "torch_peer.py"
REPLY_S = 900.0  # a block of the slowest side takes seconds; what is silent for so long hangs
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
"""glibc keeps large blocks instead of giving them back to the kernel after every tensor: worth up to a third of a step
to PyTorch, whose tensors come from malloc."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One side that can take part.

    Attributes:
        name: what its figures stand under; of the entries of one name the best counts.
        variant: what distinguishes those.
        command: the program.
        environment: variables it gets on top of ours.
        request: fields of its own for `open`.
        needs: file without which it cannot run.
    """

    name: str
    variant: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    request: Mapping[str, object] = field(default_factory=dict)
    needs: Path = SOURCE


def entries(peers: Sequence[str], environments: Path) -> list[Entry]:
    """Temperd and the peers asked for, PyTorch in both memory formats and with both settings of malloc.

    Args:
        peers: `torch`, `ort-training`.
        environments: folder of the environments that `make bench` sets up.

    Raises:
        SpecError: a peer has no environment there.
    """
    found = [Entry("temperd", "graph", (sys.executable, "-m", "service.bench_side", "graph"))]
    if "torch" in peers:
        python = environments / ".venv-bench-torch" / "bin" / "python"
        for name, environment in (("torch", {}), ("torch+malloc", KEEPING)):
            for layout in ("channels-first", "channels-last"):
                program = (str(python), str(TORCH_PROGRAM))
                found.append(Entry(name, layout, program, environment, {"layout": layout}, python))
    if "ort-training" in peers:
        python = environments / ".venv-bench-ort-training" / "bin" / "python"
        command = (str(python), "-m", "service.bench_side", "ort-training")
        found.append(Entry("ort-training", "", command, needs=python))
    for entry in found:
        if not entry.needs.exists():
            raise SpecError(
                f"{entry.name} has no environment here",
                where=str(entry.needs),
                fix="`make bench` sets it up; or leave it out of --vs",
            )
    return found


class Side:
    """One side's process; it runs only while it is asked something."""

    def __init__(self, entry: Entry, folder: Path) -> None:
        self.entry = entry
        self._errors = folder / f"{entry.name}-{entry.variant}.err"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs
                entry.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **entry.environment},
                cwd=SOURCE,
            )

    def ask(self, do: str, **request: object) -> dict[str, Any]:
        """Wake the side, put one request, and stop it again when the answer is there.

        Raises:
            EngineError: it ended, hangs, or refuses.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._signal(signal.SIGCONT)
        line = b""
        try:
            stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            stdin.flush()
            if select.select([stdout], [], [], REPLY_S)[0]:
                line = stdout.readline()
        except BrokenPipeError:
            pass  # it ended: told below, with its own words
        if not line:
            raise EngineError(f"{self.name} gave no answer to {do!r}", where=self._last_words())
        self._signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{self.name} refuses {do!r}", where=str(reply["error"]))
        return reply

    @property
    def name(self) -> str:
        """Name and variant, for messages."""
        return f"{self.entry.name} {self.entry.variant}".strip()

    def close(self) -> None:
        """End the process; it has nothing to lose."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # what was not read when it ended

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            if number == signal.SIGSTOP:  # until all its threads stand, or it has ended
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _last_words(self) -> str:
        lines = self._errors.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else "no answer in time"
