"""Commands to a device: forms made from its own capability, confirmed, signed, recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError, TemperdError
from agent.keys_consoles import Role
from service.commands import (
    CANCEL,
    MAX_LIFETIME_S,
    PAUSE,
    PROMOTE,
    RESUME,
    SET_POLICY,
    SUPPORTED,
)
from service.console.act_board import NOT_FOUND, BoardNow, JobNow, board_now, jobs_for
from service.console.act_flow import (
    EDIT,
    STEP,
    UNPROCESSABLE,
    answer_to,
    common,
    common_labels,
    send_order,
    shown_for_confirmation,
    to_ask,
)
from service.console.act_order import (
    ARGUMENT,
    ASKED,
    EXPECTED,
    GUARDED,
    Order,
    read_order,
)
from service.console.act_send import LEAST_VALID_S, check_permitted, may_send
from service.console.act_sent import new_token
from service.console.act_view import Option, Words, fault_text, sections
from service.console.forms import read_form
from service.console.page import FORBIDDEN, needs, render, room_of, viewer_of
from service.console.schema_form import Form, own_form, read_schema
from service.console.schema_form_read import Fault
from service.console.texts import translator

PREFILLED = 200  # characters of an argument in a page's address; a job's id has 36


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of one command is about.

    Attributes:
        kind: the command's type.
        now: the board.
        form: the command's arguments.
        own: this console's own form: the board has told none that can be read.
        supported: whether the board carries the command out, as far as it says.
        longest_valid_s: how long it lets a command live.
    """

    kind: str
    now: BoardNow
    form: Form
    own: bool
    supported: bool
    longest_valid_s: int


async def page_of(request: Request, kind: str) -> Page:
    """The board and the command of a request.

    Raises:
        HTTPException: 404, there is no such board.
    """
    room = room_of(request)
    now = await board_now(room, request.path_params["name"])
    told = await room.hub.capability(now.name, kind) or {}
    form, own = _form(kind, told)
    limits = told.get("limits")
    most = limits.get("lifetime_s") if isinstance(limits, Mapping) else None
    longest = most if type(most) is int and LEAST_VALID_S <= most <= MAX_LIFETIME_S else MAX_LIFETIME_S
    return Page(kind, now, form, own, told.get("supported") is not False, longest)


def _form(kind: str, told: Mapping[str, Any]) -> tuple[Form, bool]:
    try:
        return read_schema(told.get("args")), False
    except SpecError:
        return own_form(kind), True


@needs(Role.OPERATOR)
async def show_list(request: Request) -> Response:
    """Everything that the user may ask of a board."""
    now = await board_now(room_of(request), request.path_params["name"])
    kinds = [kind for kind in SUPPORTED if may_send(viewer_of(request), kind)]
    return render(request, "act/list.html", now=now, kinds=kinds, asked=ASKED)


async def show_form(request: Request) -> Response:
    """The empty form of a command; `?job=...` and other arguments fill it."""
    kind, viewer = _kind(request), viewer_of(request)
    if not may_send(viewer, kind):
        raise HTTPException(FORBIDDEN, f"the role {viewer.role} may not send {kind}")
    if kind == SET_POLICY:
        return RedirectResponse(f"/device/{request.path_params['name']}/policy", 303)
    page = await page_of(request, kind)
    given = {f"{ARGUMENT}{key}": text[:PREFILLED] for key, text in request.query_params.items()}
    for condition in GUARDED.get(kind, ()):
        if condition in page.now.conditions():
            given[f"{EXPECTED}{condition}"] = str(page.now.conditions()[condition])
    return _render_form(request, page, given, {}, new_token())


async def take_form(request: Request) -> Response:
    """A posted form: shown again with what is wrong, asked once, or sent."""
    kind, room, viewer = _kind(request), room_of(request), viewer_of(request)
    name = request.path_params["name"]
    await check_permitted(room, viewer, (name,), kind)
    if kind == SET_POLICY:
        raise HTTPException(NOT_FOUND, "policies have a page of their own")
    given = await read_form(request)
    page = await page_of(request, kind)
    order, faults = read_order(kind, page.form, given, longest_valid_s=page.longest_valid_s)
    if faults or given.get(STEP) == EDIT:
        status = UNPROCESSABLE if faults and given.get(STEP) != EDIT else 200
        return _render_form(request, page, given, faults, order.token or new_token(), status=status)
    if to_ask(room, viewer, page.now.name, kind, order, given):
        return _render_confirm(request, page, order, given)
    try:
        command_id = await send_order(room, viewer, page.now.name, kind, order)
    except TemperdError as error:
        status, token = answer_to(error, order)
        return _render_form(request, page, given, {}, token, status=status, error=error)
    return RedirectResponse(f"/device/{page.now.name}/jobs/{command_id}", 303)


def _kind(request: Request) -> str:
    kind = str(request.path_params["kind"])
    if kind not in SUPPORTED:
        raise HTTPException(NOT_FOUND, "no such command")
    return kind


def _render_form(
    request: Request,
    page: Page,
    given: Mapping[str, str],
    faults: Mapping[str, Fault],
    token: str,
    *,
    status: int = 200,
    error: TemperdError | None = None,
) -> HTMLResponse:
    words = translator(viewer_of(request).language)
    options = _options(request, page.kind, page.now, words)
    shown = sections(page.kind, page.form, given, faults, words, options)
    everything = (*shown.first, *(field for group in shown.more for field in group.fields))
    labels = {field.id: field.label for field in everything} | common_labels(words)
    return render(
        request,
        "act/form.html",
        status=status,
        page=page,
        sections=shown,
        labels=labels,
        no_jobs=options.get("job") == [],
        faults={key: fault_text(fault, words) for key, fault in faults.items()},
        error=error,
        token=token,
        **common(request, page.now, page.kind, given, page.longest_valid_s),
    )


def _render_confirm(request: Request, page: Page, order: Order, given: Mapping[str, str]) -> HTMLResponse:
    token = shown_for_confirmation(room_of(request), viewer_of(request), page.now.name, page.kind, order)
    kept = {
        key: text for key, text in given.items() if key.startswith((ARGUMENT, EXPECTED)) or key in ("why", "valid_s")
    }
    return render(
        request,
        "act/confirm.html",
        order=order,
        args=json.dumps(order.args, ensure_ascii=False, indent=2),
        kept=kept,
        token=token,
        **common(request, page.now, page.kind, given, page.longest_valid_s),
    )


def _options(request: Request, kind: str, now: BoardNow, words: Words) -> dict[str, list[Option]]:
    """What may be chosen from, where the console knows."""
    if kind not in (CANCEL, PAUSE, RESUME, PROMOTE):
        return {}
    jobs = jobs_for(room_of(request).hub.board(now.name), kind)
    return {"job": [Option(job.id, _told(job, words)) for job in jobs]}


def _told(job: JobNow, words: Words) -> str:
    return f"{words(f'act.title.{job.kind}', job.kind)}, {words(f'status.{job.status}', job.status)}: {job.id}"


ROUTES: list[BaseRoute] = [
    Route("/device/{name}/act", show_list),
    Route("/device/{name}/act/{kind}", show_form, methods=["GET"]),
    Route("/device/{name}/act/{kind}", take_form, methods=["POST"]),
]
