"""A board with a past in a real store, and the pages of boards and jobs in front of it, without broker and login."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.keys_consoles import Role
from service.config import Mqtt
from service.console import device_data, device_page, job_page
from service.console.app import STATIC
from service.console.audit import Audit
from service.console.page import Viewer
from service.console.reads import Reads
from service.console.room import Room, Settings
from service.console.rows import make_row
from service.fleet.boards import Board
from service.fleet.store import Alarm, Batch, Birth, Presence, Sample, Status, open_store

NOW = 1_790_000_000.0
TENANT, BOARD = "default", "pi-1"
JOB = "019ff000-0000-7000-8000-000000000001"
PROMOTED = "019ff000-0000-7000-8000-000000000002"
REPORT = "019ff000-0000-7000-8000-000000000003"
MODEL = "5a" * 32
PORTION = 500  # messages of one commit: another process may write into the same store
HOSTILE = '<img src=x onerror="window.hacked=1">\u202e</script>'
BIRTH: dict[str, Any] = {
    "schema": 1, "agent": "0.4.0", "release": {"slot": "a", "trial": "", "safe_mode": ""},
    "board": {"model": "Raspberry Pi 4 Model B Rev 1.4", "profile": "raspberry-pi-4"},
    "sensors": {"temperature": "ok", "ambient": "missing", "power": "ok", "charge": "frozen"},
    "engine": "onnxruntime 1.22.0", "telemetry": {"format": "json", "qos": 0, "active_s": 1, "idle_s": 60},
    "policy": {"name": "default", "source": "board", "where": "", "sha256": "c3" * 32, "complaint": ""},
    "active_model": {
        "name": "efficientnet-lite0", "task": "classification", "base_version": "1.2", "base_sha256": "b0" * 32,
        "model_sha256": MODEL, "accuracy": 0.9125, "job": JOB,
    },
    "state_version": 7, "clock": "synchronised",
}  # fmt: skip


def status(command_id: str, word: str, version: int, ts: float, **more: Any) -> dict[str, Any]:
    """A status as boards send it."""
    empty = {"step": "", "attempt": 1, "reason_code": "", "reason": "", "progress": None, "eta_s": None, "until": None}
    tail = {"clock": "synchronised", "energy_j": None, "result": None}
    return {"id": command_id, "status": word, "version": version, "ts": ts, **empty, **tail, **more}


def reading(at: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the board tells in the second `at` of its past: it trains, gets hot, rests, goes on."""
    phase = at % 1200
    heat = 46 + 22 * min(phase / 500, 1) + 1.2 * math.sin(at / 9) + (4 if 500 < phase < 560 else 0)
    heat -= 14 * min(max(phase - 560, 0) / 300, 1)
    action, rule = ("RUN", "run") if heat < 60 else ("SLOW", "thermal.delta-t-slow")
    if 520 < phase < 700:
        action, rule = "PAUSE", "thermal.delta-t-pause"
    duty = {"RUN": 1.0, "SLOW": 0.75, "PAUSE": 0.0}[action]
    board = {
        "temperature_celsius": round(heat, 2), "ambient_celsius": 24.5, "delta_t_celsius": round(heat - 24.5, 2),
        "frequency_hz": 1.8e9 if action == "RUN" else 1.4e9 if action == "SLOW" else 0.6e9,
        "frequency_cap_hz": 1.8e9 if action == "RUN" else 1.4e9, "frequency_cap_found_hz": 1.8e9,
        "charge": round(0.9 - at / 200000, 4), "on_mains": False, "undervoltage": False, "throttled": False,
        "power_watts": round(2.8 + 3.6 * duty + 0.1 * math.sin(at), 3), "power_source": "model",
        "power_is_modelled": True, "utilisation": round(0.1 + 0.85 * duty, 3),
        "pressure": {"cpu": 0.31, "memory": 0.0, "io": 0.02}, "memory_available_bytes": 3_221_225_472,
        "memory_faults": 0, "alarms": ["overheated"] if action == "PAUSE" else [],
        "health": {"temperature": "ok", "ambient": "ok", "frequency": "ok", "power": "ok", "cooling": "refused"},
        "action": action, "rule": rule, "duty": duty, "frequency_rule": rule if action != "RUN" else "unlimited",
        "least_depth_percent": 50 if action != "RUN" else 0, "depth_rule": rule if action != "RUN" else "plan",
        "micro_batch_share": 1.0, "batch_rule": "plan", "cooling_level": 2, "notes": [],
    }  # fmt: skip
    training = {
        "event": "epoch" if at % 300 == 0 else "", "epoch": at // 300, "epochs": 300, "step": at % 300, "steps": 300,
        "samples": at * 8, "loss": round(0.2 + 1.5 * math.exp(-at / 20000) + 0.05 * math.sin(at / 3), 4),
        "score": round(0.92 - 0.4 * math.exp(-at / 15000), 4) if at % 300 == 0 else None,
        "metric": "accuracy" if at % 300 == 0 else "", "frozen_layers": 20, "step_ms": 81.2,
        "depth_percent": 50 if action == "RUN" else 75, "micro_batch": 8, "rss_bytes": 210_000_000,
        "dropped": 0, "reused": 0, "rule": rule, "obeyed": 4, "obeyed_mono_s": 12.0,
    }  # fmt: skip
    return board, training


def write_past(
    path: Path, *, seconds: int = 3600, gap: tuple[int, int] = (1500, 2100), board: str = BOARD, now: float = NOW,
    training_every: int = 1,
) -> None:  # fmt: skip
    """A store in which a board told of itself each second until `now`, but for a gap."""
    store = open_store(str(path))
    try:
        batch = Batch()
        for at in range(seconds):
            if gap[0] <= at < gap[1]:
                continue
            ts = int((now - seconds + at) * 1000)
            groups = ("board", "training") if at % training_every == 0 else ("board",)
            for seq, (group, values) in enumerate(zip(groups, reading(at), strict=False)):
                text = json.dumps(values, separators=(",", ":"))
                batch.add(Sample(TENANT, board, group, "boot", 2 * at + seq, ts, at * 1000, text))
            if len(batch.samples) >= PORTION:
                store.write(batch, now)
                batch = Batch()
        batch.add(Presence(TENANT, board, True, 3, 1, now - seconds))
        model = "efficientnet-lite0 1.2"
        batch.add(Birth(TENANT, board, 7, "0.4.0", "raspberry-pi-4", model, json.dumps(BIRTH)))
        store.write(batch, now)
        while store.condense(now + 86400):  # as consumers do between two batches
            pass
    finally:
        store.close()


def write_statuses(path: Path, *told: tuple[str, Mapping[str, Any]], board: str = BOARD) -> None:
    """Statuses of commands, by type."""
    store = open_store(str(path))
    try:
        for kind, body in told:
            batch = Batch()
            text = json.dumps(body, separators=(",", ":"))
            batch.add(Status(TENANT, board, body["id"], kind, body["version"], body["status"], body["ts"], text))
            store.write(batch, NOW)
    finally:
        store.close()


def write_alarm(path: Path, kind: str, severity: str, reason: str, since: float) -> None:
    """An alarm that is raised."""
    evidence = {"rules": ["thermal.delta-t-pause"], "temperature_celsius": 71.3}
    body = {"type": kind, "severity": severity, "since": since, "ts": since, "reason": reason, "evidence": evidence}
    store = open_store(str(path))
    try:
        batch = Batch()
        batch.add(Alarm(TENANT, BOARD, kind, severity, since, json.dumps(body)))
        store.write(batch, NOW)
    finally:
        store.close()


def job_story(start: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """The statuses of a job that was paused by heat and succeeded."""
    steps = ("pulling", "verifying", "unsealing", "planning", "compiling", "training")
    yield "fine-tune", status(JOB, "accepted", 1, start)
    for number, step in enumerate(steps):
        yield "fine-tune", status(JOB, "running", 2 + number, start + 5 + 4 * number, step=step)
    until = {"what": "delta_t_celsius", "below": 32.0, "above": None, "ts": None}
    yield (
        "fine-tune",
        status(
            JOB, "paused", 8, start + 400, reason_code="thermal.delta-t-pause", reason="too hot", until=until,
            progress=0.4, energy_j=900.0,
        ),
    )  # fmt: skip
    yield "fine-tune", status(JOB, "running", 9, start + 560, step="training", progress=0.4, energy_j=1200.0)
    yield "fine-tune", status(JOB, "running", 10, start + 900, step="evaluating", progress=1.0, energy_j=2400.0)
    result = {
        "metric": "accuracy", "accuracy_before": 0.71, "accuracy_after": 0.9125, "accuracy_running": 0.88,
        "baselines": {"majority": 0.34}, "held_out": 120, "depth_percent": 50, "depth_rule": "freezing.probe-50",
        "samples": 4800, "samples_per_s": 5.3, "wall_s": 930.0, "busy_s": 610.2, "peak_rss_bytes": 210_000_000,
        "energy": {"joules": 2500.0, "joules_per_sample": 0.52, "modelled": True, "source": "model"},
        "model_sha256": MODEL, "base_sha256": "b0" * 32, "name": "efficientnet-lite0", "base_version": "1.2",
        "warnings": ["2 unreadable images skipped"],
    }  # fmt: skip
    yield "fine-tune", status(JOB, "succeeded", 11, start + 930, progress=1.0, energy_j=2500.0, result=result)


class StageHub:
    """What pages ask of the hub, for one board that was heard."""

    connected = True

    def __init__(self, *boards: Board) -> None:
        self.boards = {board.name: board for board in boards}
        self.births: dict[str, Mapping[str, Any]] = {}
        self.sent: list[tuple[Any, ...]] = []

    def row(self, name: str) -> Any:
        board = self.boards.get(name)
        return make_row(board, None) if board is not None else None

    def board(self, name: str) -> Board | None:
        return self.boards.get(name)

    async def birth(self, name: str) -> Mapping[str, Any]:
        return self.births.get(name, {})

    async def send(self, *command: Any, valid_s: int) -> None:
        self.sent.append((*command, valid_s))


class _Seen:
    """Who looks, as the guard would say."""

    def __init__(self, app: ASGIApp, viewer: Viewer) -> None:
        self._app, self._viewer = app, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["viewer"] = self._viewer
        await self._app(scope, receive, send)


def room_of(store: Path, hub: StageHub, **parts: Any) -> Room:
    """A room whose store is real."""
    settings = Settings(Mqtt(), TENANT, str(store), store.parent, store.parent / "fleet.sqlite")
    audit = Audit(store.parent / "audit", lambda: NOW)
    made: dict[str, Any] = {
        "settings": settings, "now": lambda: NOW, "monotonic": lambda: 0.0, "hub": hub, "reads": Reads(str(store)),
        "accounts": None, "audit": audit, "signer": None, "roll_outs": None,
    }  # fmt: skip
    return Room(**(made | parts))


async def _quiet(_scope: Scope, _receive: Receive, send: Send) -> None:
    """`/live` without news."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b": here\n\n", "more_body": True})
    await asyncio.sleep(600)


def stage_app(room: Room, role: Role = Role.OWNER, language: str = "en") -> Starlette:
    """The pages of this package's boards and jobs, looked at by a user of a role."""
    routes: list[BaseRoute] = [
        Mount("/static", StaticFiles(directory=STATIC)),
        Mount("/live", cast("ASGIApp", _quiet)),
        *device_page.ROUTES,
        *device_data.ROUTES,
        *job_page.ROUTES,
    ]
    viewer = Viewer("lan", role, language, "token")
    app = Starlette(routes=routes, middleware=[Middleware(_Seen, viewer=viewer)])
    app.state.room = room
    return app


@contextmanager
def staged(
    folder: Path, *, seconds: int = 3600, told: Sequence[tuple[str, Mapping[str, Any]]] = (), birth: Any = BIRTH
) -> Iterator[Room]:
    """A room with the board's past."""
    path = folder / "store.sqlite"
    write_past(path, seconds=seconds)
    write_statuses(path, *job_story(NOW - 3000), *told)
    board = Board(BOARD, conn={"online": True, "session": 3, "connection": 1, "ts": NOW - 3600}, seen=NOW)
    hub = StageHub(board)
    hub.births[BOARD] = birth
    room = room_of(path, hub)
    try:
        yield room
    finally:
        room.reads.close()
        room.audit.close()
