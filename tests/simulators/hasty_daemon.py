"""The real daemon, which comes back to its broker at once: hasty_daemon.py --config FILE.

The delays between attempts are tried elsewhere; a test that breaks a connection twenty times does not wait for them.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from service import logs
from service.config import load_config
from service.daemon import Daemon
from service.device_link import Link
from service.link_pace import Pace
from service.wiring import Wiring
from tests.simulators.one_connection import soon


class HastyWiring(Wiring):
    """Draws the shortest delays."""

    def _make_link(self) -> Link:
        link = super()._make_link()
        link._connection._pace = Pace(soon)
        return link


if __name__ == "__main__":
    logs.configure("info", "text")
    asyncio.run(Daemon(load_config(Path(sys.argv[2])), HastyWiring).serve())
