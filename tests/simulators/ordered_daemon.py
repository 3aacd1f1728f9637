"""The real daemon with an operator who acts in a stage: ordered_daemon.py ORDERS --config FILE.

ORDERS is a JSON file {stage: "pause" | "cancel"}, read at each status. The order is given between the journal and the
worker, so it finds the job in exactly that stage.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from service import logs
from service.config import load_config
from service.daemon import Daemon
from service.holds import HELD
from service.statuses import Uplink
from service.wiring import Wiring

ORDERS = Path(sys.argv[1])


class Operator:
    """Hears each status before the worker is let into the stage, and acts once in each stage of a job."""

    def __init__(self, wiring: Wiring, uplink: Uplink) -> None:
        self._wiring, self._uplink = wiring, uplink
        self._done: set[tuple[str, str]] = set()

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        stage = str(status["step"]).upper()
        verb = json.loads(ORDERS.read_text()).get(stage)
        if verb and (command_id, stage) not in self._done:
            self._done.add((command_id, stage))
            if stage == "PULLING":  # told before there is a worker
                asyncio.get_running_loop().call_soon(self._act, verb, command_id)
            else:
                self._act(verb, command_id)
        return self._uplink.publish_status(command_type, command_id, status, retained=retained)

    def _act(self, verb: str, job_id: str) -> None:
        self._wiring.journal.remember(HELD if verb == "pause" else "canceled", json.dumps([job_id]))
        self._wiring.desk.obey()


class OrderedWiring(Wiring):
    """With the operator between the desk and the link."""

    def uplink(self) -> Uplink:
        return Operator(self, super().uplink())


if __name__ == "__main__":
    logs.configure("info", "text")
    asyncio.run(Daemon(load_config(Path(sys.argv[3])), OrderedWiring).serve())
