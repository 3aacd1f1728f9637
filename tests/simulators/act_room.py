"""The pages that send commands, alone: a real audit trail and a real key, and a hub that keeps what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.errors import NetworkError
from agent.keys import create_console_key
from agent.keys_consoles import Role, trusted_consoles
from service.capabilities import capability
from service.commands import Command, open_command
from service.config import Mqtt
from service.console.audit import Audit, Record, Wanted
from service.console.guard_errors import HANDLERS
from service.console.page import Viewer
from service.console.room import Room, Settings
from service.console.signer import Signer
from service.fleet.boards import Board

NOW = 1_790_000_000.0
MODEL, POLICY = "ab" * 32, "cd" * 32
JOB = "019f0000-0000-7000-8000-000000000001"
BIRTH = {
    "schema": 1,
    "agent": "0.1.0",
    "active_model": {"name": "net", "version": "1.0", "model_sha256": MODEL},
    "policy": {"name": "default", "source": "board", "where": "default", "sha256": POLICY, "complaint": ""},
    "state_version": 7,
    "clock": "synchronised",
}


@dataclass(slots=True)
class Hub:
    """Boards as they are told, and commands as they were sent: `(board, type, id, envelope, seconds)`."""

    boards: dict[str, Board] = field(default_factory=dict)
    births: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    capabilities: dict[str, Mapping[str, Any] | None] = field(default_factory=dict)
    sent: list[tuple[str, str, str, bytes, int]] = field(default_factory=list)
    connected: bool = True
    fails: bool = False
    slow: asyncio.Event | None = None

    def row(self, _name: str) -> None:
        return None

    def board(self, name: str) -> Board | None:
        return self.boards.get(name)

    async def birth(self, name: str) -> Mapping[str, Any]:
        return self.births.get(name, {})

    async def capability(self, _name: str, kind: str) -> Mapping[str, Any] | None:
        return self.capabilities[kind] if kind in self.capabilities else capability(kind)

    async def send(self, device: str, kind: str, command_id: str, envelope: bytes, *, valid_s: int) -> None:
        if self.slow is not None:
            await self.slow.wait()
        if self.fails:
            raise NetworkError("the broker did not confirm")
        self.sent.append((device, kind, command_id, envelope, valid_s))


class AsViewer:
    """In the guard's place."""

    def __init__(self, app: ASGIApp, viewer: Viewer) -> None:
        self._app, self._viewer = app, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["viewer"] = self._viewer
        await self._app(scope, receive, send)


class FormReader(HTMLParser):
    """The fields of a page's forms as a browser would post them, by the form's number."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self.names: list[str] = []
        self._area = self._menu = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        if tag == "main":
            self.forms.clear()  # those of the bar are every page's
        if tag == "form":
            self.forms.append({})
        if not self.forms:
            return
        name, value = found.get("name", ""), found.get("value", "")
        if name:
            self.names.append(name)
        if tag == "input" and name and (found.get("type") not in ("checkbox", "radio") or "checked" in found):
            self.forms[-1][name] = value
        elif tag == "textarea":
            self._area = name
            self.forms[-1][name] = ""
        elif tag == "select":
            self._menu = name
        elif tag == "option" and (self._menu not in self.forms[-1] or "selected" in found):
            self.forms[-1][self._menu] = value

    def handle_data(self, data: str) -> None:
        if self._area:
            self.forms[-1][self._area] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = ""


class Client:
    """Asks the pages as somebody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self.ask("GET", path))

    def post(self, path: str, given: Mapping[str, str]) -> httpx.Response:
        return asyncio.run(self.ask("POST", path, data=dict(given)))

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://console") as client:
            return await client.request(method, path, **more)


class ActRoom:
    """A room with one board, `pi-1`.

    Args:
        folder: for key and audit trail.
        routes: of the pages.
        key: whether there is a key.
    """

    def __init__(self, folder: Path, routes: Sequence[BaseRoute], *, key: bool = True) -> None:
        self.now = NOW
        self.hub = Hub()
        self.hub.boards["pi-1"] = Board("pi-1", conn={"online": True})
        self.hub.births["pi-1"] = BIRTH
        create_console_key(folder / "key", "alice")
        self.public = folder / "key" / "alice.pub.json"
        self.audit = Audit(folder, lambda: self.now)
        signer = Signer(folder / "key" / "alice.key" if key else None)
        nobody = cast("Any", SimpleNamespace())
        settings = Settings(Mqtt(), "default", "", folder, folder / "fleet.sqlite")
        clock: Callable[[], float] = lambda: self.now  # noqa: E731 - a clock
        self.room = Room(settings, clock, clock, cast("Any", self.hub), nobody, nobody, self.audit, signer, nobody)
        self._routes = routes

    def client(self, role: Role = Role.OWNER, language: str = "en", name: str = "ann") -> Client:
        app = Starlette(routes=list(self._routes), exception_handlers=HANDLERS)
        app.state.room = self.room
        return Client(AsViewer(app, Viewer(name, role, language, "token")))

    def records(self) -> list[Record]:
        """The audit trail, oldest first."""
        return self.audit.page(Wanted())[::-1]

    def opened(self) -> Command:
        """What the board would read of the last command; its signature is checked."""
        _, kind, command_id, envelope, _ = self.hub.sent[-1]
        return open_command(
            envelope,
            topic_type=kind,
            topic_id=command_id,
            trusted={console.keyid: console for console in trusted_consoles(self.public.parent)},
            device="pi-1",
            now=self.now,
            clock_synchronised=True,
        )
