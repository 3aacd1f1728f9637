"""Another log level while the daemon runs: asked for through a file in the runtime folder, and back by itself.

    <runtime folder>/log-level     {"for_s": 600, "level": "debug"}

`temperd log-level` writes the file, the daemon takes it within a second and removes it: whoever may write into that
folder may ask. Nothing is kept: a restart begins with the level of the configuration.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.durable import read_bounded
from agent.errors import ArtifactError, BoardError
from agent.strict_json import canonical, loads
from policies.strict import TableError, build, limits
from service import logs

FILE_NAME = "log-level"
MAX_FILE_BYTES = 256  # two short keys
LONGEST_S = 86400.0  # debug writes a line a second: a forgotten one must not fill the log for weeks
LEVELS = ("debug", "info", "warning", "error")
CONFIGURED = "configured"
"""Back to the level of the configuration."""
_BOARD = ("temperature_celsius", "delta_t_celsius", "frequency_hz", "cooling_level", "power_watts", "utilisation")
_DECISION = ("action", "rule", "frequency_rule", "depth_rule", "duty", "memory_available_bytes")
_TRAINING = ("epoch", "loss", "step_ms", "depth_percent", "micro_batch", "rss_bytes")
_LINK = ("connected", "unconfirmed", "connections", "connection_losses")

log = logs.logger("daemon")


@dataclass(frozen=True, slots=True)
class Wish:
    """What the file holds."""

    level: str = field(metadata=limits(choices=(*LEVELS, CONFIGURED)))
    for_s: float = field(default=600.0, metadata=limits(1.0, LONGEST_S))

    def encode(self) -> bytes:
        """The bytes of the file."""
        return canonical({"for_s": self.for_s, "level": self.level})


class LogLevel:
    """See the module; `tick` is called once a second.

    Args:
        folder: the runtime folder.
        configured: level of the configuration.
        form: of the log, see `logs.configure`.
        configure: sets level and form of the whole program.
    """

    def __init__(
        self, folder: Path, configured: str, form: str, configure: Callable[[str, str], None] = logs.configure
    ) -> None:
        self._path, self._configured, self._form, self._configure = folder / FILE_NAME, configured, form, configure
        self.level = configured
        """In force."""
        self._until_s: float | None = None
        with contextlib.suppress(OSError):  # asked of a daemon that is gone
            self._path.unlink(missing_ok=True)

    def tick(self, mono_s: float, view: Mapping[str, object]) -> None:
        """Take what was asked for, go back when its time is over, and say at `debug` what this second was like.

        Args:
            mono_s: monotonic clock, seconds.
            view: the live view of this second.
        """
        wish = self._taken()
        if wish is not None:
            back = wish.level == CONFIGURED
            self._until_s = None if back else mono_s + wish.for_s
            self._set(self._configured if back else wish.level, for_s=None if back else wish.for_s)
        elif self._until_s is not None and mono_s >= self._until_s:
            self._until_s = None
            self._set(self._configured, for_s=None)
        if self.level == "debug":
            log.debug("second", **figures(view))

    def _taken(self) -> Wish | None:
        """The file's wish, and the file removed; a broken one is said and removed."""
        try:
            data = read_bounded(self._path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        except (BoardError, ArtifactError) as error:
            log.warning("the wish for a log level is passed over", why=str(error))
            data = b""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        try:
            table = loads(data, what="wish", max_bytes=MAX_FILE_BYTES)
            return build(Wish, table if isinstance(table, dict) else {})
        except (ArtifactError, TableError) as error:
            log.warning("the wish for a log level is passed over", why=str(error))
            return None

    def _set(self, level: str, *, for_s: float | None) -> None:
        before, self.level = self.level, level
        self._configure(min(before, level, key=LEVELS.index), self._form)
        tell = log.info if "info" in (before, level) or "debug" in (before, level) else log.warning
        tell("log level", level=level, before=before, for_s=for_s)
        self._configure(level, self._form)


def figures(view: Mapping[str, object]) -> dict[str, object]:
    """What one second was like, of the live view: heat, decision, job, link; `None` is left out."""
    tables = {name: value if isinstance(value, Mapping) else {} for name, value in view.items()}
    nothing: Mapping[str, object] = {}
    board, job, training = (tables.get(name, nothing) for name in ("board", "job", "training"))
    found = {name: board.get(name) for name in (*_BOARD, *_DECISION)}
    found |= {"job_id": job.get("id"), "step": job.get("step")}
    found |= {name: training.get(name) for name in _TRAINING}
    link = tables.get("link", nothing)
    found |= {name: link.get(name) for name in _LINK}
    telemetry = tables.get("telemetry", nothing)
    found |= {f"telemetry_{name}": value for name, value in telemetry.items() if isinstance(value, int | float)}
    return {name: value for name, value in found.items() if value is not None}
