"""The real daemon, which kills itself right after it journaled a stage: dying_daemon.py STAGE --config FILE."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from agent.messages import Message, Stage
from service import logs
from service.config import load_config
from service.daemon import Daemon
from service.journal import JobRecord
from service.wiring import Wiring


class DyingWiring(Wiring):
    """Ends like a power cut in the stage named on the command line."""

    def _watch(self, message: Message, record: JobRecord) -> None:
        if isinstance(message, Stage) and message.stage == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._watch(message, record)


if __name__ == "__main__":
    logs.configure("info", "text")
    asyncio.run(Daemon(load_config(Path(sys.argv[3])), DyingWiring).serve())
