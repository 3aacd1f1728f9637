"""The real daemon on a board whose clock jumps: wrong_clock.py FILE --config FILE; the first holds seconds ahead."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from service import logs
from service.config import load_config
from service.daemon import Daemon


class WrongClock(Daemon):
    """Reads the time of day wrong."""

    _ahead_s = 0.0

    def _now(self) -> float:
        if text := Path(sys.argv[1]).read_text():  # empty: somebody is writing it
            self._ahead_s = float(text)
        return max(0.0, super()._now() + self._ahead_s)


if __name__ == "__main__":
    logs.configure("info", "text")
    asyncio.run(WrongClock(load_config(Path(sys.argv[3]))).serve())
