"""A command to one board: permitted, signed, recorded, sent; in this order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from agent.errors import NetworkError, SpecError
from agent.keys_consoles import Role
from service.command_types import PERMITTED
from service.commands import MAX_LIFETIME_S
from service.console.act_sent import TOKEN, Sent, parts
from service.console.audit import MAX_WHY
from service.console.page import FORBIDDEN, Viewer

if TYPE_CHECKING:
    from service.console.room import Room

DEFAULT_VALID_S = 3600  # a board that is offline for longer may be another board by then
LEAST_VALID_S = 60  # less passes while a board connects
REFUSED = "command-refused"
NOT_CONFIRMED = "command-not-confirmed"


def may_send(viewer: Viewer, kind: str) -> bool:
    """Whether a user may send a type of command. A viewer looks on, whatever boards would allow one."""
    return viewer.may(Role.OPERATOR) and kind in PERMITTED[viewer.role]


async def check_permitted(room: Room, viewer: Viewer, boards: tuple[str, ...], kind: str) -> None:
    """Refuse what a user may not send, on record.

    Raises:
        HTTPException: 403.
        BoardError: the audit trail cannot be written.
    """
    if not may_send(viewer, kind):
        details = {"type": kind, "role": str(viewer.role)}
        await room.audit.record(viewer.name, REFUSED, boards=boards, details=details)
        raise HTTPException(FORBIDDEN, f"the role {viewer.role} may not send {kind}")


async def send(
    room: Room,
    viewer: Viewer,
    board: str,
    kind: str,
    args: Mapping[str, object],
    *,
    token: str,
    expect: Mapping[str, object] | None = None,
    why: str = "",
    valid_s: int = DEFAULT_VALID_S,
) -> str:
    """Send a command, once for each form.

    Args:
        room: the console's parts.
        viewer: who sends.
        board: name of the board.
        kind: type of the command.
        args: its arguments, checked by the caller.
        token: of the form, see `new_token`: the same one again gives the same command, and sends it only as long as
            the broker has not confirmed it.
        expect: conditions on the board's state, see docs/mqtt.md.
        why: what the user said.
        valid_s: how long a board that is offline may find it.

    Returns:
        Its id. Statuses come as `status` events of the hub.

    Raises:
        HTTPException: 403, the user may not; that is recorded.
        SpecError: no key or a locked one, a command too long, a reason too long, a form that sent something else.
        BoardError: the audit trail cannot be written; nothing was sent.
        NetworkError: no broker, and nothing was sent; or it did not confirm: sending again with the same token is
            harmless.
    """
    await check_permitted(room, viewer, (board,), kind)
    _check(token, why, valid_s)
    expected = dict(expect or {})
    digest = parts(board, kind, args, expected, why, valid_s)
    sent = room.sent.find(viewer.name, token, digest)
    if sent is None:
        if not room.hub.connected:
            raise NetworkError("the broker is not there: nothing was sent", fix="Try again once it is connected")
        request, envelope = room.signer.request(board, kind, args, expected, room.now(), valid_s)
        sent = Sent(digest, request, envelope, why)
        room.sent.add(viewer.name, token, sent)
    await _publish(room, viewer, sent)
    return sent.request.id


async def _publish(room: Room, viewer: Viewer, sent: Sent) -> None:
    """Until the broker has it; a second post of the form waits for the first."""
    request = sent.request
    async with sent.turn:
        if sent.confirmed:
            return
        if not sent.recorded:
            details = {"args": request.args, "expect": request.expect, "not_after": request.not_after}
            boards, commands = (request.device,), (request.id,)
            await room.audit.record(
                viewer.name, request.type, boards=boards, why=sent.why, commands=commands, details=details
            )
            sent.recorded = True
        left = math.floor(request.not_after - room.now())
        if left <= 0:
            raise SpecError("the command is not valid any more", fix="Open the page anew", reason="form-used")
        try:
            await room.hub.send(request.device, request.type, request.id, sent.envelope, valid_s=left)
        except NetworkError as error:
            told = {"type": request.type, "command": request.id, "error": str(error)}
            await room.audit.record(viewer.name, NOT_CONFIRMED, boards=(request.device,), details=told)
            raise
        sent.let_go()


def _check(token: str, why: str, valid_s: int) -> None:
    if not TOKEN.fullmatch(token):
        raise SpecError("the form has no token", fix="Open the page anew", reason="form-used")
    if len(why) > MAX_WHY:
        raise SpecError(f"a reason of {len(why)} characters, at most {MAX_WHY}", where="why")
    if not LEAST_VALID_S <= valid_s <= MAX_LIFETIME_S:
        raise SpecError(f"a command lives {LEAST_VALID_S} to {MAX_LIFETIME_S} s, not {valid_s}", where="valid_s")
