"""The wizard of a roll-out: boards, command, waves, review. Works without scripts; what was typed is kept here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.board.profile import policy_names
from agent.errors import SpecError, TemperdError
from agent.keys_consoles import Role
from service.commands import FINE_TUNE, SET_POLICY
from service.console.act_order import ARGUMENT, CONDITIONS, LIFETIMES_S
from service.console.act_send import check_permitted
from service.console.act_view import Option, fault_text, sections
from service.console.audit import MAX_WHY
from service.console.forms import read_form
from service.console.page import needs, render, room_of, viewer_of
from service.console.roll_out_boards import (
    MAX_NAMED,
    boards_of,
    check_arguments,
    form_of,
    kinds_for,
    look_at,
    order_of,
)
from service.console.roll_out_draft import MAX_FILTER, Draft
from service.console.roll_out_waves import USUAL, read_waves
from service.console.schema_form import own_form
from service.console.schema_form_read import Fault
from service.console.schema_form_read import read_form as read_arguments
from service.console.texts import translator
from service.fleet.roll_out import Terms
from service.fleet.roll_out_plan import MAX_BOARDS, Rules

SEE_OTHER, NOT_FOUND, UNPROCESSABLE = 303, 404, 422
STEPS = ("boards", "command", "waves", "review")


def _draft(request: Request) -> Draft:
    """The draft that the URL names.

    Raises:
        HTTPException: 404, this user has no such one.
    """
    found = room_of(request).roll_outs.drafts.find(request.path_params["draft"], viewer_of(request).name)
    if found is None:
        raise HTTPException(NOT_FOUND, "no such draft of a roll-out: it is kept for some hours only")
    return found


def _to(draft: Draft, step: str) -> Response:
    return RedirectResponse(f"/roll-outs/new/{draft.id}/{step}", SEE_OTHER)


def _step(request: Request, step: str, *, draft: Draft | None = None, status: int = 200, **more: Any) -> Response:  # noqa: ANN401 - of the template
    done = 0
    if draft is not None:
        done = 1 + (draft.args is not None) + (draft.args is not None and draft.rules is not None)
    return render(
        request, f"roll_out/new_{step}.html", status=status, step=step, steps=STEPS, done=done, draft=draft, **more
    )


# --- boards ----------------------------------------------------------------------------------------------------------


@needs(Role.OPERATOR)
async def boards_step(request: Request) -> Response:
    """`/roll-outs/new`: which boards; what the query of the URL names is filled in."""
    room, viewer, query = room_of(request), viewer_of(request), request.query_params
    draft = room.roll_outs.drafts.find(query.get("draft", ""), viewer.name)
    given = {
        "names": ",".join(query.getlist("boards")).replace(",", "\n"),
        "filter": query.get("filter", "")[: MAX_FILTER + 1],
    }
    given["group"] = query.get("group", "")
    if draft is not None:
        given = {"names": draft.names, "filter": draft.filter, "group": draft.group}
    return _boards(request, given, draft)


def _boards(
    request: Request, given: Mapping[str, str], draft: Draft | None, fault: SpecError | None = None
) -> Response:
    room = room_of(request)
    fitting, words = None, translator(viewer_of(request).language)
    if given["filter"]:
        try:
            fitting = len(boards_of(room, "", given["filter"], ""))
        except SpecError as wrong:
            fault = fault or (None if wrong.code == "none" else wrong)
            fitting = 0
    error = "" if fault is None else words(f"roll_out.fault.{fault.code}", "") or str(fault)
    groups = sorted((name, len(members)) for name, members in room.hub.groups().items())
    status = 200 if fault is None else UNPROCESSABLE
    where = fault.where if fault is not None else ""
    return _step(
        request,
        "boards",
        draft=draft,
        status=status,
        given=given,
        groups=groups,
        fitting=fitting,
        error=error,
        where=where if where in ("filter", "group") else "names",
        most=MAX_BOARDS,
    )


@needs(Role.OPERATOR)
async def take_boards(request: Request) -> Response:
    """POST of the first step."""
    room, viewer, form = room_of(request), viewer_of(request), await read_form(request)
    given = {name: form.get(name, "").strip() for name in ("names", "filter", "group")}
    if form.get("without_filter"):
        given["filter"] = ""
    draft = room.roll_outs.drafts.find(form.get("draft", ""), viewer.name)
    try:
        boards = boards_of(room, given["names"], given["filter"], given["group"])
    except SpecError as error:
        return _boards(request, given, draft, error)
    if draft is None or draft.begun:
        draft = room.roll_outs.drafts.new(viewer.name)
    draft.names, draft.filter, draft.group, draft.boards = *given.values(), boards
    return _to(draft, "command")


# --- command ---------------------------------------------------------------------------------------------------------


@needs(Role.OPERATOR)
async def command_step(request: Request) -> Response:
    """Which command, and its arguments."""
    draft, viewer = _draft(request), viewer_of(request)
    kind = request.query_params.get("type") or draft.kind or FINE_TUNE
    if kind not in kinds_for(viewer):
        raise HTTPException(NOT_FOUND, "no such type of command for many boards")
    return await _command(request, draft, kind, draft.given if kind == draft.kind else {})


async def _command(
    request: Request,
    draft: Draft,
    kind: str,
    given: Mapping[str, str],
    faults: Mapping[str, Fault] | None = None,
    problem: str = "",
) -> Response:
    room, viewer = room_of(request), viewer_of(request)
    form, told_by = await form_of(room, draft, kind)
    options = {"name": [Option("", ""), *(Option(name, name) for name in policy_names())]} if kind == SET_POLICY else {}
    words = translator(viewer.language)
    shown = sections(kind, form, given, faults or {}, words, options)
    return _step(
        request,
        "command",
        draft=draft,
        status=UNPROCESSABLE if faults or problem else 200,
        chosen=look_at(room, draft.boards),
        kind=kind,
        kinds=kinds_for(viewer),
        form=shown,
        told_by=told_by,
        problem=problem,
        whole=fault_text(faults[""], words) if faults and "" in faults else "",
    )


@needs(Role.OPERATOR)
async def take_command(request: Request) -> Response:
    """POST of the second step."""
    draft, viewer, room = _draft(request), viewer_of(request), room_of(request)
    given = await read_form(request)
    kind = given.get("type", "")
    await check_permitted(room, viewer, (), kind)
    if kind not in kinds_for(viewer):
        raise HTTPException(NOT_FOUND, "no such type of command for many boards")
    form, _ = await form_of(room, draft, kind)
    typed = {name: text for name, text in given.items() if name.startswith(ARGUMENT)}
    args, found = read_arguments(form, {name.removeprefix(ARGUMENT): text for name, text in typed.items()})
    faults = {f"{ARGUMENT}{name}" if name else "": fault for name, fault in found.items()}
    problem = ""
    if not faults and form == own_form(kind):  # what a newer board takes is its own to judge
        try:
            check_arguments(kind, args)
        except SpecError as error:
            problem = str(error)
    if faults or problem:
        return await _command(request, draft, kind, typed, faults, problem)
    kept = {name: text for name, text in draft.given.items() if not name.startswith(ARGUMENT)}
    draft.kind, draft.args, draft.given = kind, args, kept | typed
    return _to(draft, "waves")


# --- waves -----------------------------------------------------------------------------------------------------------


@needs(Role.OPERATOR)
async def waves_step(request: Request) -> Response:
    """How it goes."""
    draft = _draft(request)
    return _to(draft, "command") if draft.args is None else _waves(request, draft, draft.given, {})


def _waves(request: Request, draft: Draft, given: Mapping[str, str], errors: Mapping[str, str]) -> Response:
    return _step(
        request,
        "waves",
        draft=draft,
        status=UNPROCESSABLE if errors else 200,
        chosen=look_at(room_of(request), draft.boards),
        given={**USUAL, **given},
        errors=errors,
        lifetimes=LIFETIMES_S,
        conditions=CONDITIONS,
    )


@needs(Role.OPERATOR)
async def take_waves(request: Request) -> Response:
    """POST of the third step."""
    draft, given = _draft(request), await read_form(request)
    names = {*USUAL, *(f"{start}.{key}" for start in ("expect", "expect_on") for key in CONDITIONS)}
    typed = {name: text for name, text in given.items() if name in names}
    waves, faults = read_waves(typed, len(draft.boards))
    if waves is None:
        words = translator(viewer_of(request).language)
        return _waves(
            request,
            draft,
            typed,
            {name: words(f"roll_out.fault.{one.key}", **one.values) for name, one in faults.items()},
        )
    kept = {name: text for name, text in draft.given.items() if name.startswith(ARGUMENT)}
    draft.given = kept | typed
    draft.rules, draft.expect, draft.valid_s = waves.rules, waves.expect, waves.valid_s
    return _to(draft, "review")


# --- review ----------------------------------------------------------------------------------------------------------


@needs(Role.OPERATOR)
async def review_step(request: Request) -> Response:
    """What will be done, in full; asks once."""
    draft = _draft(request)
    if draft.args is None or draft.rules is None:
        return _to(draft, "command" if draft.args is None else "waves")
    return _review(request, draft, draft.rules)


def _review(
    request: Request, draft: Draft, rules: Rules, *, why: str = "", error: str = "", problem: str = ""
) -> Response:
    room = room_of(request)
    order = order_of(room, draft.boards)
    return _step(
        request,
        "review",
        draft=draft,
        status=UNPROCESSABLE if error or problem else 200,
        chosen=look_at(room, draft.boards),
        rules=rules,
        canaries=order[: min(rules.canary, MAX_NAMED)],
        args=json.dumps(draft.args, indent=2, ensure_ascii=False, sort_keys=True),
        expect=draft.expect,
        why=why,
        error=error,
        problem=problem,
        longest=MAX_WHY,
        signer=room.signer,
    )


@needs(Role.OPERATOR)
async def begin(request: Request) -> Response:
    """POST of the last step: on record, then begun; once, however often it is posted."""
    draft, form = _draft(request), await read_form(request)
    async with draft.turn:
        return await _begin(request, draft, form.get("why", "").replace("\r\n", "\n").strip())


async def _begin(request: Request, draft: Draft, why: str) -> Response:
    room, viewer, words = room_of(request), viewer_of(request), translator(viewer_of(request).language)
    if draft.args is None or draft.rules is None:
        return _to(draft, "command")
    if draft.begun:
        return RedirectResponse(f"/roll-outs/{draft.begun}", SEE_OTHER)
    await check_permitted(room, viewer, draft.boards, draft.kind)
    if not why or len(why) > MAX_WHY:
        return _review(request, draft, draft.rules, why=why, error=words("roll_out.fault.why", most=MAX_WHY))
    if not (room.signer.ready or room.signer.locked):
        return _review(request, draft, draft.rules, why=why, problem=words("roll_out.fault.no-key"))
    terms = Terms(draft.rules, draft.args, draft.expect, draft.valid_s)
    made, order = room.roll_outs.make(draft.kind, terms), order_of(room, draft.boards)
    details = {"roll_out": made.id, "type": draft.kind, **terms.to_table()}
    try:
        room.roll_outs.check_length(made, order)
        await room.audit.record(viewer.name, "roll-out-begun", boards=order, why=why, details=details)
        await room.roll_outs.begin(made, order, by=viewer.name, why=why)
    except TemperdError as error:
        refused = {"roll_out": made.id, "type": draft.kind, "action": "begin", "error": str(error)}
        await room.audit.record(viewer.name, "roll-out-refused", details=refused)
        return _review(request, draft, draft.rules, why=why, problem=str(error))
    draft.begun = made.id
    return RedirectResponse(f"/roll-outs/{made.id}", SEE_OTHER)


ROUTES: list[BaseRoute] = [
    Route("/roll-outs/new", boards_step, methods=["GET"]),
    Route("/roll-outs/new", take_boards, methods=["POST"]),
    Route("/roll-outs/new/{draft}/command", command_step, methods=["GET"]),
    Route("/roll-outs/new/{draft}/command", take_command, methods=["POST"]),
    Route("/roll-outs/new/{draft}/waves", waves_step, methods=["GET"]),
    Route("/roll-outs/new/{draft}/waves", take_waves, methods=["POST"]),
    Route("/roll-outs/new/{draft}/review", review_step, methods=["GET"]),
    Route("/roll-outs/new/{draft}/review", begin, methods=["POST"]),
]
