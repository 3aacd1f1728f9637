"""What went wrong, as a page in the viewer's language, or as JSON where a script asked."""

from __future__ import annotations

from http import HTTPStatus

from jinja2 import TemplateError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from agent.errors import ArtifactError, BoardError, CallerError, NetworkError, TemperdError
from agent.keys_consoles import Role
from service.console.guard_request import path_of, record_refusal
from service.console.guard_rules import is_for_scripts
from service.console.page import FORBIDDEN, render, viewer_of
from service.logs import logger

UNPROCESSABLE, UNAVAILABLE, INTERNAL = 422, 503, 500
RETRY_S = 5  # after what may be better soon
MAX_TOLD = 500  # characters of each part of an error: it may quote what a board said
OWN_RECORDS = ("/device/", "/roll-outs")
"""Pages that record a refused command themselves, with its boards."""
_TOLD = frozenset({400, 401, 403, 404, 405, 408, 413, 414, 415, 421, 422, 429, 431, 500, 503})
_log = logger("console")


def wants_json(request: Request) -> bool:
    """Whether a script asks, which shows no page."""
    accepted = request.headers.get("accept", "")
    return (
        is_for_scripts(path_of(request))
        or "x-csrf" in request.headers
        or ("application/json" in accepted and "text/html" not in accepted)
    )


def status_of(error: TemperdError) -> int:
    """The status of HTTP for whoever is at fault: 422 where other input helps, 503 where waiting or mending does."""
    if isinstance(error, CallerError | ArtifactError):
        return UNPROCESSABLE
    return UNAVAILABLE if isinstance(error, NetworkError | BoardError) else INTERNAL


def answer(
    request: Request,
    status: int,
    *,
    code: str = "",
    what: str = "",
    where: str = "",
    fix: str = "",
    headers: dict[str, str] | None = None,
) -> Response:
    """An error as a page or as JSON; pages have words of their own for each status.

    Args:
        request: that was answered.
        status: of HTTP.
        code: stable, for scripts.
        what: what is wrong, in the words of the error; where: in which field or place; fix: what to do.
        where: see `what`.
        fix: see `what`.
        headers: of the answer.
    """
    told = {"what": what[:MAX_TOLD], "where": where[:MAX_TOLD], "fix": fix[:MAX_TOLD]}
    phrase = HTTPStatus(status).phrase
    if wants_json(request):
        body = {"error": code or phrase.lower().replace(" ", "-"), **{key: text for key, text in told.items() if text}}
        return JSONResponse(body, status, headers=headers)
    key = str(status) if status in _TOLD else "other"
    try:
        return render(request, "error.html", status=status, headers=headers, key=key, code=code, number=status, **told)
    except (TemplateError, KeyError, OSError) as error:  # the page of errors has no page of errors
        _log.error("no page for an error", error=str(error), status=status)
        return PlainTextResponse(f"{status} {phrase}\n", status, headers=headers)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """For `starlette.exceptions.HTTPException`."""
    assert isinstance(error, HTTPException)
    own = path_of(request).startswith(OWN_RECORDS)
    if error.status_code == FORBIDDEN and request.method == "POST" and viewer_of(request).name and not own:
        await record_refusal(request, error.detail)
    detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else ""
    return answer(request, error.status_code, what=detail, headers=dict(error.headers or {}))


async def on_temperd_error(request: Request, error: Exception) -> Response:
    """For `TemperdError`: what, where and what to do. Places on the server's disk are told to its owners alone."""
    assert isinstance(error, TemperdError)
    status = status_of(error)
    ours = status != UNPROCESSABLE
    if ours:
        _log.warning("a page failed", path=path_of(request), error=str(error), code=error.code)
    owner = viewer_of(request).may(Role.OWNER)
    hidden = not owner and (ours or "/" in error.where)
    where = "" if hidden else error.where
    headers = {"Retry-After": str(RETRY_S)} if status == UNAVAILABLE else {}
    fix = "" if ours and not owner else error.fix
    what = error.what if owner or not isinstance(error, BoardError) else ""
    return answer(request, status, code=error.code, what=what, where=where, fix=fix, headers=headers)


HANDLERS = {HTTPException: on_http_exception, TemperdError: on_temperd_error}
"""What the application does with them."""
