"""The console's pages as one ASGI application."""

from __future__ import annotations

import importlib
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from service.console.guard import Guard
from service.console.guard_errors import HANDLERS
from service.console.room import Room

STATIC = Path(__file__).parent / "static"
PAGES = (
    *("fleet_page", "device_page", "device_data", "job_page", "act_page", "policy_page", "roll_out_page"),
    "group_page",
    *("compare_page", "figures_page", "account_page", "users_page", "audit_page", "key_page", "live"),
)
"""Modules of this package with `ROUTES`."""


def build_app(room: Room) -> Starlette:
    """The application; its parts run as long as whoever serves it keeps them."""
    routes: list[BaseRoute] = [
        Route("/", _home),
        Route("/healthz", _health),
        Mount("/static", StaticFiles(directory=STATIC), name="static"),
    ]
    for name in PAGES:
        routes += importlib.import_module(f"service.console.{name}").ROUTES
    app = Starlette(routes=routes, middleware=[Middleware(Guard, room=room)], exception_handlers=HANDLERS)
    app.state.room = room
    return app


async def _home(_request: Request) -> Response:
    return RedirectResponse("/fleet", 303)


async def _health(_request: Request) -> Response:
    return PlainTextResponse("ok\n")
