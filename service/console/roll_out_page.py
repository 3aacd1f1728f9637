"""Roll-outs: the wizard, where each stands, stop, go on, abort."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
