"""Roll-outs: the list, where each stands, stop, go on, abort; outcomes as CSV. The wizard is `roll_out_new`."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError, TemperdError
from agent.keys_consoles import Role
from service.command_types import PERMITTED
from service.commands import COMMAND_ID
from service.console import roll_out_new
from service.console.audit import MAX_WHY
from service.console.forms import read_form
from service.console.page import FORBIDDEN, Viewer, needs, render, room_of, viewer_of
from service.console.roll_out_thread import Told
from service.console.roll_out_view import as_csv, together, wave, why_words
from service.console.roll_out_waves import read_resumed
from service.console.texts import translator
from service.fleet.outcome import Outcome
from service.fleet.roll_out import Terms
from service.fleet.state import ABORTED, ENDED, RUNNING, STOPPED, FleetState, RollOut, Sent

SEE_OTHER, NOT_FOUND, UNPROCESSABLE = 303, 404, 422
LIST_ROWS = 20
TABLE_ROWS = 50
MAX_SEARCH = 63  # characters: as long as a name
MAX_PAGE = 10_000
STOP, RESUME, ABORT = "stop", "resume", "abort"
RECORDED: Mapping[str, str] = {STOP: "roll-out-stopped", RESUME: "roll-out-resumed", ABORT: "roll-out-aborted"}
"""What the audit trail calls an action."""
REFUSED = "roll-out-refused"
"""What it says, after that, where an order was not carried out."""
BAD = tuple(str(outcome) for outcome in Outcome if outcome not in (Outcome.WAITING, Outcome.OPEN, Outcome.SUCCEEDED))


@dataclass(frozen=True, slots=True)
class Listed:
    """A roll-out of the list, with boards by outcome."""

    roll_out: RollOut
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """One roll-out as the file has it."""

    roll_out: RollOut
    canaries: Mapping[str, int]
    rest: Mapping[str, int]
    rows: tuple[Sent, ...]
    total: int


# --- the list --------------------------------------------------------------------------------------------------------


@needs(Role.VIEWER)
async def listed(request: Request) -> Response:
    """`/roll-outs`."""
    room, page = room_of(request), _page(request)

    def look(state: FleetState) -> tuple[list[Listed], int]:
        found = state.roll_outs(room.settings.tenant)
        shown = found[(page - 1) * LIST_ROWS : page * LIST_ROWS]
        return [Listed(item, state.counts(item.id)[1]) for item in shown], len(found)

    rows, total = await room.roll_outs.read(look)
    words = translator(viewer_of(request).language)
    return render(
        request,
        "roll_out/list.html",
        rows=[
            (row.roll_out, wave(row.counts), why_words(row.roll_out.why, words), room.roll_outs.record(row.roll_out.id))
            for row in rows
        ],
        page=page,
        pages=max(1, math.ceil(total / LIST_ROWS)),
    )


# --- one -------------------------------------------------------------------------------------------------------------


def _id(request: Request) -> str:
    """The id in the URL.

    Raises:
        HTTPException: 404, it is none.
    """
    found = str(request.path_params["id"])
    if not COMMAND_ID.fullmatch(found):
        raise HTTPException(NOT_FOUND, "no such roll-out")
    return found


async def _found(request: Request) -> RollOut:
    try:
        return await room_of(request).roll_outs.find(_id(request))
    except SpecError as error:
        raise HTTPException(NOT_FOUND, "no such roll-out") from error


def _page(request: Request) -> int:
    text = request.query_params.get("page", "1")
    return min(int(text), MAX_PAGE) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PAGE)) else 1


def outcomes_of(wanted: str) -> tuple[str, ...]:
    """Outcomes that a filter asks for: one of them, `bad` for all that are no success; empty: any."""
    if wanted == "bad":
        return BAD
    return (wanted,) if wanted in tuple(Outcome) else ()


def permitted_actions(
    viewer: Viewer, roll_out: RollOut, *, here: bool, elsewhere: bool, is_open: bool = True
) -> tuple[str, ...]:
    """What this viewer may do with a roll-out as it stands.

    Args:
        viewer: who asks.
        roll_out: as the file has it.
        here: this console sends for it.
        elsewhere: another process has it at work.
        is_open: a command of it is under way.
    """
    if not viewer.may(Role.OPERATOR) or elsewhere:
        return ()
    found = [STOP] if here and roll_out.state == RUNNING else []
    idle = roll_out.state == STOPPED or (roll_out.state == RUNNING and not here)
    if idle and roll_out.type in PERMITTED[viewer.role]:
        found.append(RESUME)
    if roll_out.state != ENDED and (is_open or roll_out.state != ABORTED):
        found.append(ABORT)
    return tuple(found)


@needs(Role.VIEWER)
async def one(request: Request) -> Response:
    """`/roll-outs/{id}`."""
    room, viewer, chosen = room_of(request), viewer_of(request), await _found(request)
    words = translator(viewer.language)
    outcome = request.query_params.get("outcome", "")
    search = request.query_params.get("q", "").strip().lower()[:MAX_SEARCH]
    outcomes, page = outcomes_of(outcome), _page(request)
    await room.roll_outs.listen(chosen)

    def look(state: FleetState) -> Standing:
        fresh = state.roll_out(chosen.id)
        canaries, rest = state.counts(chosen.id, Terms.of(fresh).rules.canary)
        rows, total = state.stood(chosen.id, outcomes, search, limit=TABLE_ROWS, offset=(page - 1) * TABLE_ROWS)
        return Standing(fresh, canaries, rest, tuple(rows), total)

    stands = await room.roll_outs.read(look)
    terms, told = Terms.of(stands.roll_out), room.roll_outs.told(chosen.id)
    here = room.roll_outs.is_at_work(chosen.id)
    elsewhere = await room.roll_outs.runs_elsewhere(chosen.id) if stands.roll_out.state != ENDED else False
    failure = room.roll_outs.failure(chosen.id)
    query = urlencode(
        [(name, value) for name, value in (("outcome", outcome if outcomes else ""), ("q", search)) if value]
    )
    return render(
        request,
        "roll_out/one.html",
        roll_out=stands.roll_out,
        terms=terms,
        args=json.dumps(terms.args, indent=2, ensure_ascii=False, sort_keys=True),
        why=why_words(stands.roll_out.why, words),
        record=room.roll_outs.record(chosen.id),
        canaries=wave(stands.canaries),
        rest=wave(stands.rest),
        whole=wave(together(stands.canaries, stands.rest)),
        rows=[(row, row.status or {}, room.hub.row(row.board)) for row in stands.rows],
        total=stands.total,
        page=page,
        pages=max(1, math.ceil(stands.total / TABLE_ROWS)),
        query=f"{query}&" if query else "",
        outcome=outcome if outcomes else "",
        outcomes=tuple(map(str, Outcome)),
        search=search,
        told=told,
        here=here,
        elsewhere=elsewhere,
        idle=stands.roll_out.state == RUNNING and not here and not elsewhere,
        failure="" if failure is None else str(failure),
        actions=permitted_actions(
            viewer,
            stands.roll_out,
            here=here,
            elsewhere=elsewhere,
            is_open=any(counts.get(Outcome.OPEN) for counts in (stands.canaries, stands.rest)),
        ),
        longest=MAX_SEARCH,
    )


@needs(Role.VIEWER)
async def progress(request: Request) -> Response:
    """`/api/roll-outs/{id}`: how far it is, for scripts."""
    room, chosen = room_of(request), await _found(request)
    canaries, rest = await room.roll_outs.read(
        lambda state: state.counts(chosen.id, Terms.of(state.roll_out(chosen.id)).rules.canary)
    )
    body = {
        "id": chosen.id,
        "type": chosen.type,
        "state": chosen.state,
        "why": chosen.why,
        "created": chosen.created,
        "canaries": canaries,
        "rest": rest,
        "counts": together(canaries, rest),
        **_told(room.roll_outs.told(chosen.id)),
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


def _told(told: Told | None) -> dict[str, object]:
    return {"stage": None, "away": None} if told is None else {"stage": str(told.stage), "away": told.away}


@needs(Role.VIEWER)
async def outcomes_csv(request: Request) -> Response:
    """`/roll-outs/{id}/outcomes.csv`: all boards, or those that the table's filter shows."""
    chosen, query = await _found(request), request.query_params
    outcomes, search = outcomes_of(query.get("outcome", "")), query.get("q", "").strip().lower()[:MAX_SEARCH]
    text = await room_of(request).roll_outs.read(lambda state: as_csv(state.stood(chosen.id, outcomes, search)[0]))
    headers = {"Content-Disposition": f'attachment; filename="roll-out-{chosen.id}.csv"', "Cache-Control": "no-store"}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


# --- actions ---------------------------------------------------------------------------------------------------------


async def _asked(request: Request) -> tuple[RollOut, str]:
    """The roll-out and the action of the URL.

    Raises:
        HTTPException: 404; 403, this viewer may not.
    """
    chosen, action, viewer = await _found(request), request.path_params["action"], viewer_of(request)
    if action not in RECORDED:
        raise HTTPException(NOT_FOUND, "no such page")
    if action == RESUME and chosen.type not in PERMITTED[viewer.role]:
        raise HTTPException(FORBIDDEN, f"the role {viewer.role} may not send {chosen.type}")
    return chosen, action


@needs(Role.OPERATOR)
async def ask(request: Request) -> Response:
    """`/roll-outs/{id}/stop`, `resume`, `abort`: says what it does and asks."""
    chosen, action = await _asked(request)
    return await _ask(request, chosen, action, {})


async def _ask(
    request: Request,
    chosen: RollOut,
    action: str,
    given: Mapping[str, str],
    errors: Mapping[str, str] | None = None,
    problem: str = "",
) -> Response:
    room, words = room_of(request), translator(viewer_of(request).language)
    _, counts = await room.roll_outs.read(lambda state: state.counts(chosen.id))
    return render(
        request,
        "roll_out/act.html",
        status=UNPROCESSABLE if errors or problem else 200,
        roll_out=chosen,
        action=action,
        counts=wave(counts),
        over=chosen.state in (ABORTED, ENDED) if action == RESUME else chosen.state == ENDED,
        why_stopped=why_words(chosen.why, words),
        rules=Terms.of(chosen).rules,
        given=given,
        errors=errors or {},
        problem=problem,
        signer=room.signer,
        longest=MAX_WHY,
    )


@needs(Role.OPERATOR)
async def act(request: Request) -> Response:
    """POST of the same: on record, then done."""
    (chosen, action), form = await _asked(request), await read_form(request)
    room, viewer = room_of(request), viewer_of(request)
    words, why = translator(viewer.language), form.get("why", "").replace("\r\n", "\n").strip()
    found, faults = read_resumed(form) if action == RESUME else ({}, {})
    errors = {name: words(f"roll_out.fault.{fault.key}", **fault.values) for name, fault in faults.items()}
    if not why or len(why) > MAX_WHY:
        errors["why"] = words("roll_out.fault.why", most=MAX_WHY)
    if errors:
        return await _ask(request, chosen, action, form, errors)
    details = {"roll_out": chosen.id, "type": chosen.type, **({"rules": found} if found else {})}
    try:
        await room.audit.record(viewer.name, RECORDED[action], why=why, details=details)
        if action == STOP:
            await asyncio.shield(room.roll_outs.stop(chosen.id, f"stopped by {viewer.name}: {why}"))
        elif action == RESUME:
            await asyncio.shield(room.roll_outs.resume(chosen.id, found, by=viewer.name, why=why))
        else:
            await asyncio.shield(room.roll_outs.abort(chosen.id, by=viewer.name, why=why))
    except TemperdError as error:
        await room.audit.record(viewer.name, REFUSED, details={**details, "action": action, "error": str(error)})
        return await _ask(request, chosen, action, form, problem=str(error))
    return RedirectResponse(f"/roll-outs/{chosen.id}", SEE_OTHER)


ROUTES: list[BaseRoute] = [
    Route("/roll-outs", listed, methods=["GET"]),
    *roll_out_new.ROUTES,
    Route("/roll-outs/{id}", one, methods=["GET"]),
    Route("/api/roll-outs/{id}", progress, methods=["GET"]),
    Route("/roll-outs/{id}/outcomes.csv", outcomes_csv, methods=["GET"]),
    Route("/roll-outs/{id}/{action}", ask, methods=["GET"]),
    Route("/roll-outs/{id}/{action}", act, methods=["POST"]),
]
