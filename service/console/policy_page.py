"""The policy editor: validates, shows the difference, sends."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
