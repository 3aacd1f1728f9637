"""The fleet: a table with search, filter and sort, a summary, small charts."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
