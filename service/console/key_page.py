"""The console key: whose it is, where it is to be trusted; unlock and lock it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import ArtifactError
from agent.keys_consoles import Role
from agent.keys_files import spoken
from service.backup_keys import MAX_PASSPHRASE
from service.console.forms import read_form
from service.console.guard_request import address_of, doors_of
from service.console.page import needs, render, room_of, viewer_of

if TYPE_CHECKING:
    from service.console.signer import Signer

KEY = "/key"
TOO_MANY, UNPROCESSABLE = 429, 422
EVERYBODY = "all"  # one bucket: each try takes 128 MiB, whoever makes it


@needs(Role.OPERATOR)
async def key_page(request: Request) -> Response:
    """What it is, and the form."""
    return _key(request)


def _key(request: Request, *, code: str = "", status: int = 200, wait: float = 0.0) -> Response:
    signer: Signer = room_of(request).signer
    state = "none" if not signer.keyid else "locked" if signer.locked else "ready"
    headers = {"Retry-After": str(int(wait) + 1)} if wait else {}
    shown: dict[str, Any] = {
        "state": state,
        "signer": signer,
        "spoken": spoken(signer.keyid),
        "code": code,
        "wait": int(wait) + 1,
    }
    return render(request, "account/key.html", status=status, headers=headers, **shown)


@needs(Role.OPERATOR)
async def unlock(request: Request) -> Response:
    """Open the key by its passphrase."""
    form = await read_form(request)
    room, viewer, passphrase = room_of(request), viewer_of(request), form.get("passphrase", "")
    if wait := doors_of(request).unlocking.take(EVERYBODY):
        return _key(request, code="often", status=TOO_MANY, wait=wait)
    details = {"address": address_of(request), "key": room.signer.keyid[:16]}
    try:
        await asyncio.to_thread(room.signer.unlock, passphrase[: MAX_PASSPHRASE + 1])
    except ArtifactError as error:
        await room.audit.record(viewer.name, "key-refused", details=details)
        return _key(request, code=error.code, status=UNPROCESSABLE)
    try:
        await room.audit.record(viewer.name, "key-unlocked", details=details)
    except BaseException:
        room.signer.lock()  # what cannot be recorded is not done
        raise
    return RedirectResponse(KEY, 303)


@needs(Role.OPERATOR)
async def lock(request: Request) -> Response:
    """Forget the opened key."""
    room = room_of(request)
    room.signer.lock()
    await room.audit.record(viewer_of(request).name, "key-locked")
    return RedirectResponse(KEY, 303)


ROUTES: list[BaseRoute] = [
    Route(KEY, key_page),
    Route("/key/unlock", unlock, methods=["POST"]),
    Route("/key/lock", lock, methods=["POST"]),
]
