"""Commands to a device: forms made from its own capability, confirmed, signed, recorded."""

from __future__ import annotations

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
