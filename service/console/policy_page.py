"""The policy editor: validates, shows the difference, sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.board.profile import named_policy_text, policy_names
from agent.errors import TemperdError
from agent.keys_consoles import Role
from policies.gate_floor import milder
from policies.policy import Policy
from service.commands import COMMAND_ID, MAX_LIFETIME_S, SET_POLICY
from service.console.act_board import board_now
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
from service.console.act_order import EXPECTED, GUARDED, Order, read_common
from service.console.act_send import check_permitted, may_send
from service.console.act_sent import new_token
from service.console.act_view import fault_text
from service.console.compare_policies import SHIPPED
from service.console.forms import read_form
from service.console.page import FORBIDDEN, needs, render, room_of, viewer_of
from service.console.policy_check import Mistake, check, key_difference, text_difference
from service.console.policy_known import Known, by_hash, by_key, known_policies, offered
from service.console.texts import translator
from service.fleet.plain import plain

if TYPE_CHECKING:
    from service.console.act_board import BoardNow
    from service.fleet.boards import Board

TEXT, NAMED, RESET = "text", "name", "reset"
WAYS = (TEXT, NAMED, RESET)
"""The field `what` of the form: a text, a policy that ships, or back to the board's own."""
DEFAULT = f"{SHIPPED}default"
BOARDS_OWN = frozenset({"board", "file", "kept"})
"""Sources of a policy that no command set."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the page knows: the board, the policies, the one in force, and the one that is compared with."""

    now: BoardNow
    known: list[Known]
    force: Known | None
    start: Known


@dataclass(frozen=True, slots=True)
class Wish:
    """What the form asks for: the policy as far as its text is known here, and what is wrong with that."""

    what: str
    args: Mapping[str, object]
    text: str
    policy: Policy | None
    mistakes: list[Mistake]


async def _place(request: Request, start: str) -> Place:
    room = room_of(request)
    now = await board_now(room, request.path_params["name"])
    known = await known_policies(room)
    force = by_hash(known, now.policy_sha256)
    own = by_key(known, f"{SHIPPED}{now.policy_where}")
    chosen = by_key(known, start) or force or own or by_key(known, DEFAULT)
    assert chosen is not None  # a default ships
    return Place(now, known, force, chosen)


@needs(Role.VIEWER)
async def show(request: Request) -> Response:
    """What is in force, and for owners the editor; `?from=ship:default` says with which text it begins."""
    place = await _place(request, request.query_params.get("from", "")[:100])
    given = {"text": place.start.text, "what": TEXT, "from": place.start.key}
    conditions = place.now.conditions()
    given |= {f"{EXPECTED}{key}": str(conditions[key]) for key in GUARDED[SET_POLICY] if key in conditions}
    return _editor(request, place, given, [], {}, new_token())


async def take(request: Request) -> Response:
    """A posted policy: shown again with its mistakes, shown with its difference, or sent."""
    room, viewer = room_of(request), viewer_of(request)
    await check_permitted(room, viewer, (request.path_params["name"],), SET_POLICY)
    given = dict(await read_form(request))
    given["text"] = given.get("text", "").replace("\r\n", "\n")
    place = await _place(request, given.get("from", ""))
    wish = _wish(given)
    order, faults = read_common(SET_POLICY, given)
    order = Order(wish.args, order.expect, order.why, order.valid_s, order.token)
    words = translator(viewer.language)
    told = {key: fault_text(fault, words) for key, fault in faults.items()}
    if not wish.args:
        told["what"] = words("policy.fault.what")
    if told or wish.mistakes or given.get(STEP) == EDIT:
        edits = given.get(STEP) == EDIT
        status = 200 if edits else UNPROCESSABLE
        shown = {} if edits else told
        return _editor(request, place, given, wish.mistakes, shown, order.token or new_token(), status=status)
    if to_ask(room, viewer, place.now.name, SET_POLICY, order, given):
        return _confirm(request, place, wish, order, given)
    try:
        command_id = await send_order(room, viewer, place.now.name, SET_POLICY, order)
    except TemperdError as error:
        status, token = answer_to(error, order)
        return _editor(request, place, given, [], {}, token, status=status, error=error)
    return RedirectResponse(f"/device/{place.now.name}/jobs/{command_id}", 303)


async def judge(request: Request) -> Response:
    """For the editor's script: what is wrong with a text, as JSON."""
    if not may_send(viewer_of(request), SET_POLICY):
        raise HTTPException(FORBIDDEN, "only who may send a policy has one judged")
    text = (await read_form(request)).get("text", "").replace("\r\n", "\n")
    _, mistakes = check(text)
    return JSONResponse({"mistakes": [{"line": one.line, "key": one.key, "what": one.what} for one in mistakes]})


def _wish(given: Mapping[str, str]) -> Wish:
    what = given.get("what", "")
    if what == RESET:
        return Wish(what, {"reset": True}, "", None, [])
    if what == NAMED:
        name = given.get("name", "")
        if name not in policy_names():
            return Wish(what, {}, "", None, [])
        text = named_policy_text(name)
        return Wish(what, {"name": name}, text, check(text)[0], [])
    if what != TEXT or not given["text"].strip():
        return Wish(what, {}, "", None, [])
    policy, mistakes = check(given["text"])
    return Wish(what, {"text": given["text"]}, given["text"], policy, mistakes)


def _editor(
    request: Request,
    place: Place,
    given: Mapping[str, str],
    mistakes: list[Mistake],
    faults: Mapping[str, str],
    token: str,
    *,
    status: int = 200,
    error: TemperdError | None = None,
) -> HTMLResponse:
    words = translator(viewer_of(request).language)
    return render(
        request,
        "policy/editor.html",
        status=status,
        place=place,
        mistakes=mistakes,
        faults=faults,
        error=error,
        token=token,
        labels=common_labels(words) | {"what": words("policy.what")},
        shipped=policy_names(),
        offered=offered(place.known),
        may_send=may_send(viewer_of(request), SET_POLICY),
        last=last_answer(room_of(request).hub.board(place.now.name)),
        **common(request, place.now, SET_POLICY, given, MAX_LIFETIME_S),
    )


def _confirm(request: Request, place: Place, wish: Wish, order: Order, given: Mapping[str, str]) -> HTMLResponse:
    token = shown_for_confirmation(room_of(request), viewer_of(request), place.now.name, SET_POLICY, order)
    before = place.force or place.start
    old = before.policy
    names = ("why", "valid_s", "what", "name", "from")
    kept = {key: text for key, text in given.items() if key.startswith(EXPECTED) or key in names}
    own = place.force.policy if place.force and place.now.policy_source in BOARDS_OWN else None
    return render(
        request,
        "policy/confirm.html",
        place=place,
        wish=wish,
        order=order,
        kept=kept,
        token=token,
        before=before,
        lines=text_difference(before.text, wish.text) if wish.text else [],
        keys=key_difference(old, wish.policy) if old and wish.policy else None,
        milder=milder(own.gate, wish.policy.gate) if own and wish.policy else None,
        **common(request, place.now, SET_POLICY, given, MAX_LIFETIME_S),
    )


def last_answer(board: Board | None) -> dict[str, Any] | None:
    """How the board answered the last `set-policy`: the newest one by its id."""
    found = {
        key: body
        for key, (kind, body) in (board.statuses if board else {}).items()
        if kind == SET_POLICY and COMMAND_ID.fullmatch(key)
    }
    if not found:
        return None
    newest = max(found)
    words = {key: plain(found[newest].get(key), 300) for key in ("status", "reason_code", "reason")}
    return {"id": newest, "ts": found[newest].get("ts"), **words}


ROUTES: list[BaseRoute] = [
    Route("/device/{name}/policy", show, methods=["GET"]),
    Route("/device/{name}/policy", take, methods=["POST"]),
    Route("/device/{name}/policy/check", judge, methods=["POST"]),
]
