"""What all commands go through, whatever their form: asked once where it matters, then sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from agent.errors import BoardError, NetworkError, TemperdError
from agent.keys_consoles import Role
from service.command_types import PERMITTED
from service.console.act_board import BoardNow
from service.console.act_order import ASKED, CONDITIONS, EXPECTED, LIFETIMES_S, WHY_NEEDED, Order
from service.console.act_send import DEFAULT_VALID_S, send
from service.console.act_sent import new_token, parts
from service.console.audit import MAX_WHY
from service.console.page import Viewer, room_of, viewer_of
from service.console.texts import translator

if TYPE_CHECKING:
    from service.console.room import Room

UNPROCESSABLE, UNAVAILABLE = 422, 503
STEP, SEND, EDIT = "step", "send", "edit"
"""The field of a form that says what a button does, and its values."""


def to_ask(room: Room, viewer: Viewer, board: str, kind: str, order: Order, given: Mapping[str, str]) -> bool:
    """Whether a command is to be confirmed first: it always is when its form has no token.

    What is confirmed is what was shown: a second post with other values is shown again.
    """
    if kind not in ASKED and order.token:
        return False
    if not order.token or given.get(STEP) != SEND:
        return True
    return not room.sent.was_shown(viewer.name, order.token, _digest(board, kind, order))


async def send_order(room: Room, viewer: Viewer, board: str, kind: str, order: Order) -> str:
    """See `act_send.send`."""
    return await send(
        room,
        viewer,
        board,
        kind,
        order.args,
        token=order.token,
        expect=order.expect,
        why=order.why,
        valid_s=order.valid_s,
    )


def shown_for_confirmation(room: Room, viewer: Viewer, board: str, kind: str, order: Order) -> str:
    """Remember that a command is shown; the token of the page that asks."""
    token = order.token or new_token()
    room.sent.show(viewer.name, token, _digest(board, kind, order))
    return token


def _digest(board: str, kind: str, order: Order) -> str:
    return parts(board, kind, order.args, order.expect, order.why, order.valid_s)


def common(
    request: Request, now: BoardNow, kind: str, given: Mapping[str, str], longest_valid_s: int
) -> dict[str, Any]:
    """What the templates of all commands need of conditions, lifetime, key and reason."""
    words = translator(viewer_of(request).language)
    conditions = now.conditions()
    ticked = {key: given[f"{EXPECTED}{key}"] for key in CONDITIONS if f"{EXPECTED}{key}" in given}
    shown = {key: str(conditions.get(key, "")) for key in CONDITIONS if key in conditions} | ticked
    lifetimes = [seconds for seconds in LIFETIMES_S if seconds <= longest_valid_s]
    return {
        "now": now,
        "kind": kind,
        "given": given,
        "conditions": shown,
        "ticked": ticked,
        "changed": [key for key, value in ticked.items() if str(conditions.get(key, "")) != value],
        "lifetimes": lifetimes,
        "valid_s": given.get("valid_s") or str(min(DEFAULT_VALID_S, longest_valid_s)),
        "max_why": MAX_WHY,
        "why_needed": kind in WHY_NEEDED,
        "asks": kind in ASKED,
        "role_names": " / ".join(words(f"base.role.{role}") for role in Role if kind in PERMITTED[role]),
        "signer": room_of(request).signer,
        "connected": room_of(request).hub.connected,
    }


def answer_to(error: TemperdError, order: Order) -> tuple[int, str]:
    """The HTTP status of a command that was not sent, and the token of the form that is shown again."""
    status = UNAVAILABLE if isinstance(error, NetworkError | BoardError) else UNPROCESSABLE
    return status, new_token() if error.code == "form-used" else order.token


def common_labels(words: Callable[..., str]) -> dict[str, str]:
    """What the fields that all commands have are called, by their name."""
    keys = {"why": "why", "valid_s": "valid", "expect": "conditions"}
    return {name: words(f"act.form.{key}") for name, key in keys.items()}
