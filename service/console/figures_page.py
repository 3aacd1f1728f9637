"""The reference figures beside ours."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.keys_consoles import Role
from service.console.figures_data import figures
from service.console.page import needs, render


@needs(Role.VIEWER)
async def show(request: Request) -> Response:
    """Requirements first, then what the governor itself was asked for, which has no number."""
    found = figures()
    rows = found["rows"]
    numbered, others = [row for row in rows if row["id"]], [row for row in rows if not row["id"]]
    return render(request, "figures/figures.html", numbered=numbered, others=others, origins=found["origins"])


ROUTES: list[BaseRoute] = [Route("/figures", show)]
