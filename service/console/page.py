"""What every page has: who looks at it, in which language, and how it becomes HTML."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from agent import __version__
from agent.keys_consoles import Role
from service.console.formats import FILTERS
from service.console.texts import LANGUAGES, translator, words

if TYPE_CHECKING:
    from service.console.room import Room

RANKS = tuple(Role)
FORBIDDEN = 403
THEME_COOKIE, THEMES = "theme", ("light", "dark")

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Who looks at a page.

    Attributes:
        name: of the user; empty before somebody has logged in.
        role: what the user may do.
        language: one of `LANGUAGES`.
        csrf: the token that every form and request that changes something carries.
    """

    name: str = ""
    role: Role = Role.VIEWER
    language: str = LANGUAGES[0]
    csrf: str = ""

    def may(self, role: Role) -> bool:
        """Whether the user's role is this one or a higher one."""
        return bool(self.name) and RANKS.index(self.role) >= RANKS.index(role)


def room_of(request: Request) -> Room:
    """The server's parts."""
    return cast("Room", request.app.state.room)


def viewer_of(request: Request) -> Viewer:
    """Who asks; the guard found out."""
    found = request.scope.get("viewer")
    return found if isinstance(found, Viewer) else Viewer()


def needs(role: Role) -> Callable[[Endpoint], Endpoint]:
    """An endpoint for users of a role, or of a higher one; others get 403."""

    def wrap(endpoint: Endpoint) -> Endpoint:
        @functools.wraps(endpoint)
        async def guarded(request: Request) -> Response:
            if not viewer_of(request).may(role):
                raise HTTPException(FORBIDDEN, f"needs the role {role}")
            return await endpoint(request)

        return guarded

    return wrap


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # boards and people choose names and reasons
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,  # templates and texts belong together: an upgrade shows with the next start
    )
    made.globals["version"] = __version__
    made.globals["languages"] = LANGUAGES
    made.filters.update(FILTERS)
    return made


def render(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,  # noqa: ANN401 - templates take any value
) -> HTMLResponse:
    """A page.

    Args:
        request: whose viewer and room the template sees as `viewer` and `room`; `t(key, **values)` gives the text of a
            key in the viewer's language, `words(prefix)` all texts below a key, `path` is the path that was asked for.
        template: its file below `templates/`.
        status: of HTTP.
        headers: beside the usual ones.
        context: what else the template sees.
    """
    viewer = viewer_of(request)
    page = _environment().get_template(template)
    text = page.render(
        request=request,
        path=request.url.path,
        viewer=viewer,
        room=room_of(request),
        t=translator(viewer.language),
        words=functools.partial(words, viewer.language),
        theme=request.cookies.get(THEME_COOKIE, "") if request.cookies.get(THEME_COOKIE) in THEMES else "",
        Role=Role,
        **context,
    )
    return HTMLResponse(text, status, headers=dict(headers or {}))
