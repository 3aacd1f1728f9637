"""What the daemon shows of itself: its birth message, its live view, and the telemetry of training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from agent import __version__
from agent.agent_slots import KeptStanding
from agent.errors import TemperdError
from agent.messages import Progress
from agent.slots import read_active
from service.config import Config, Telemetry
from service.desk import Desk
from service.launched import Launched
from service.logs import logger
from service.metric_units import described_metrics
from service.statuses import Clock
from service.steering import Steering
from service.update_shown import release_told

log = logger("daemon")


class Views:
    """See the module.

    Args:
        config: of the daemon.
        model: the device-tree model.
        profile: name of the board's profile.
        steering: reads the board.
        clock: see `Clock`.
    """

    def __init__(self, config: Config, model: str, profile: str, steering: Steering, clock: Clock) -> None:
        self._config, self._board, self._steering, self._clock = config, (model, profile), steering, clock
        self._engine, self._kept = installed_runtime(), KeptStanding(Path(config.device.state_dir))

    def birth(self, policy: Mapping[str, object]) -> dict[str, object]:
        """The `birth` message of docs/mqtt.md; `policy` as `PolicyFile.shown` gives it."""
        try:
            active = read_active(Path(self._config.device.state_dir) / "store")
        except TemperdError as error:  # the next worker sets a broken status aside and rebuilds it
            log.warning("the active model is not known", why=str(error))
            active = None
        model, profile = self._board
        return {
            "schema": 1,
            "agent": __version__,
            "release": release_told(self._kept, Launched.of()),
            "board": {"model": model, "profile": profile},
            "sensors": {name: str(health) for name, health in self._steering.reading.health},
            "engine": self._engine,
            "telemetry": _telemetry_told(self._config.telemetry),
            "metrics": described_metrics(),
            "policy": policy,
            "active_model": active.manifest if active else None,
            "clock": self._clock.word(),
        }

    def live(self, desk: Desk, policy: Mapping[str, object], *, connected: bool) -> dict[str, object]:
        """What `temperd status` reads."""
        runner = desk.runner
        current, now = runner.current, self._clock.now()
        job = current.status(ts=now, clock=self._clock.word(), eta_s=runner.eta_s) if current else None
        return {
            "mono_s": self._clock.mono(),
            "device": self._config.device.name,
            "pid": os.getpid(),
            "connected": connected,
            "board": self._steering.board_metrics(),
            "job": job,
            "queue": desk.line.told(current.id if current else ""),
            "deadline": runner.deadline_told(),
            "training": training_metrics(runner.progress) if runner.progress else None,
            "energy": runner.energy_metrics() if runner.training else None,
            "store": desk.scrubs.metrics(),
            "policy": policy,
            "agent": desk.updates.shown(),
            "system": desk.system.shown(),
        }


def _telemetry_told(settings: Telemetry) -> dict[str, object]:
    names = ("format", "active_s", "idle_s", "qos")
    return {name: getattr(settings, name) for name in names}


def installed_runtime() -> str | None:
    """Name and version of the runtime that workers load, by the name of its distribution; `None` where none is."""
    found = find_spec("onnxruntime")  # looks for it and loads nothing
    if found is None or not found.origin:
        return None
    shelf = Path(found.origin).parents[1]
    for path in sorted(shelf.glob("onnxruntime*.dist-info")):
        name, _, version = path.name.removesuffix(".dist-info").partition("-")
        return f"{name.replace('_', '-')} {version}"
    return "onnxruntime"


def training_metrics(progress: Progress) -> dict[str, object]:
    """The `training` group of the telemetry."""
    return {name: getattr(progress, name) for name in Progress.__slots__}
