"""Set-up, login, logout, and a user's own account."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError
from service.console.accounts_file import User
from service.console.forms import read_form
from service.console.guard import SESSION_COOKIE, cookie
from service.console.guard_limits import network_of
from service.console.guard_request import address_of, doors_of, session_of
from service.console.guard_rules import HOME, LOGIN, SET_UP, safe_next
from service.console.page import render, room_of, viewer_of
from service.console.passwords import LEAST_PASSWORD, MOST_PASSWORD
from service.console.texts import LANGUAGES

TOO_MANY, UNPROCESSABLE = 429, 422
ACCOUNT = "/account"
EVERYBODY = "all"  # one bucket: who has no account may have many addresses
_SESSION_ID = re.compile(r"[0-9a-f]{64}")
_BROWSERS = (("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("Chrom", "Chrome"), ("Safari/", "Safari"))
_SYSTEMS = (
    *(("Android", "Android"), ("iPhone", "iOS"), ("iPad", "iOS"), ("Windows", "Windows"), ("Mac OS X", "macOS")),
    *(("CrOS", "ChromeOS"), ("Linux", "Linux")),
)
"""Marks in the order in which they tell: every browser also calls itself by older ones' names."""
NOTES = frozenset({"password", "language", "ended"})
"""What `/account?done=` may tell."""


# --- login -----------------------------------------------------------------------------------------------------------


async def login_page(request: Request) -> Response:
    """The form; who has a session goes on."""
    target = safe_next(request.query_params.get("next", HOME))
    if viewer_of(request).name:
        return RedirectResponse(target, 303)
    note = "expired" if "expired" in request.query_params else "set" if "set" in request.query_params else ""
    return _login(request, target, note=note)


def _login(
    request: Request, target: str, *, status: int = 200, note: str = "", name: str = "", wait: float = 0.0
) -> Response:
    headers = {"Retry-After": str(int(wait) + 1)} if wait else {}
    shown: dict[str, Any] = {"target": target, "note": note, "name": name, "wait": int(wait) + 1}
    return render(request, "account/login.html", status=status, headers=headers, **shown)


async def log_in(request: Request) -> Response:
    """A name and a password for a session. Unknown names and wrong passwords get the same words after the same time."""
    form = await read_form(request)
    room, doors = room_of(request), doors_of(request)
    name, password = form.get("name", "").strip().lower()[:64], form.get("password", "")
    target, address = safe_next(form.get("next", HOME)), address_of(request)
    network = network_of(address)
    wait = max(doors.login_addresses.take(network), doors.login_names.wait(name))
    if wait:
        return _login(request, target, status=TOO_MANY, note="often", name=name, wait=wait)
    doors.login_names.take(name)  # before the hash: many at once are many tries
    user = await room.accounts.log_in(name, password)
    if user is None:
        if not doors.strangers.take(EVERYBODY):
            known = name if await asyncio.to_thread(room.accounts.user, name) else "-"  # a password typed as a name
            await room.audit.record(known, "login-refused", details={"address": address})
        return _login(request, target, status=UNPROCESSABLE, note="wrong", name=name)
    doors.login_names.forget(name)
    return await _begin(request, user, target)


async def _begin(request: Request, user: User, target: str) -> Response:
    """A new session; one that the browser had ends: nobody goes on with a session that another began."""
    room, address, before = room_of(request), address_of(request), session_of(request)
    await room.audit.record(user.name, "login", details={"address": address})
    if before is not None:
        await asyncio.to_thread(room.accounts.sessions.end, before.id, before.user.name)
    agent = request.headers.get("user-agent", "")
    token = await asyncio.to_thread(room.accounts.sessions.begin, user.name, address, agent)
    answer = RedirectResponse(target, 303)
    answer.headers.append("set-cookie", cookie(SESSION_COOKIE, token, secure=room.settings.secure))
    return answer


async def log_out(request: Request) -> Response:
    """End the session."""
    room, session = room_of(request), session_of(request)
    if session is not None:
        await room.audit.record(session.user.name, "logout")
        await asyncio.to_thread(room.accounts.sessions.end, session.id, session.user.name)
    return _forgetting(request, RedirectResponse(LOGIN, 303))


def _forgetting(request: Request, answer: Response) -> Response:
    """The browser drops the cookie, and pages that it kept."""
    answer.headers.append("set-cookie", cookie(SESSION_COOKIE, "", secure=room_of(request).settings.secure))
    answer.headers["clear-site-data"] = '"cache"'
    return answer


# --- one-time links --------------------------------------------------------------------------------------------------


async def set_up_page(request: Request) -> Response:
    """What a one-time link leads to: the first owner's form, or a form for a new password."""
    token = request.query_params.get("token", "")
    try:
        user = await asyncio.to_thread(room_of(request).accounts.link_user, token)
    except SpecError as error:
        return await _set_up(request, "", "", error=error, status=UNPROCESSABLE)
    return await _set_up(request, token, user)


async def _set_up(
    request: Request, token: str, user: str, *, name: str = "", error: SpecError | None = None, status: int = 200
) -> Response:
    shown: dict[str, Any] = {
        "token": token,
        "user": user,
        "name": name,
        "code": error.code if error else "",
        "bounds": _bounds(),
        "ownerless": not token and not await asyncio.to_thread(room_of(request).accounts.has_owner),
    }
    return render(request, "account/set_up.html", status=status, **shown)


async def set_up(request: Request) -> Response:
    """Make the first owner, or set a password; then the login."""
    form = await read_form(request)
    room, token, name = room_of(request), form.get("token", ""), form.get("name", "").strip().lower()[:64]
    if wait := doors_of(request).login_addresses.take(network_of(address_of(request))):
        raise HTTPException(TOO_MANY, headers={"Retry-After": str(int(wait) + 1)})
    user = ""
    try:
        user = await asyncio.to_thread(room.accounts.link_user, token)
        password = typed_twice(form)
        await room.accounts.use_link(token, name, password, viewer_of(request).language)
    except SpecError as error:
        kept = "" if error.code == "link-refused" else token
        return await _set_up(request, kept, user, name=name, error=error, status=UNPROCESSABLE)
    action = "password-by-link" if user else "first-owner"
    await room.audit.record(user or name, action, details={"address": address_of(request)})
    return RedirectResponse(f"{LOGIN}?set=1", 303)


# --- one's own account -----------------------------------------------------------------------------------------------


async def account_page(request: Request) -> Response:
    """Password, language, sessions."""
    done = request.query_params.get("done", "")
    return await _account(request, done=done if done in NOTES else "")


async def _account(request: Request, *, done: str = "", code: str = "", status: int = 200) -> Response:
    room, session = room_of(request), session_of(request)
    assert session is not None
    sessions = await asyncio.to_thread(room.accounts.sessions.of, session.user.name)
    browsers = {one.id: browser_of(one.agent) for one in sessions}
    shown: dict[str, Any] = {"own": session, "sessions": sessions, "browsers": browsers, "done": done, "code": code}
    return render(request, "account/account.html", status=status, bounds=_bounds(), **shown)


async def change_password(request: Request) -> Response:
    """Another password, for whoever knows the old one. All sessions end and a new one begins."""
    form = await read_form(request)
    room, doors, session = room_of(request), doors_of(request), session_of(request)
    assert session is not None
    name = session.user.name
    if wait := doors.login_names.take(name):
        raise HTTPException(TOO_MANY, headers={"Retry-After": str(int(wait) + 1)})
    try:
        await _check_old(request, name, form.get("old", ""))
        doors.login_names.forget(name)
        password = typed_twice(form)
        await room.accounts.set_password(name, password)
    except SpecError as error:
        return await _account(request, code=error.code, status=UNPROCESSABLE)
    await room.audit.record(name, "password-changed", details={"address": address_of(request)})
    return await _begin(request, session.user, f"{ACCOUNT}?done=password")


async def _check_old(request: Request, name: str, password: str) -> None:
    if await room_of(request).accounts.log_in(name, password) is None:
        raise SpecError("the old password is another one", reason="password-wrong")


async def change_language(request: Request) -> Response:
    """The language of the user's pages."""
    form = await read_form(request)
    language = form.get("language", "")
    if language not in ("", *LANGUAGES):
        raise SpecError("no such language", reason="language")
    await room_of(request).accounts.set_language(viewer_of(request).name, language)
    return RedirectResponse(f"{ACCOUNT}?done=language", 303)


async def end_session(request: Request) -> Response:
    """End one of the user's own sessions."""
    form = await read_form(request)
    wanted, room, session = form.get("id", ""), room_of(request), session_of(request)
    assert session is not None
    if not _SESSION_ID.fullmatch(wanted):
        raise HTTPException(404)
    if await asyncio.to_thread(room.accounts.sessions.end, wanted, session.user.name):
        await room.audit.record(session.user.name, "session-ended", details={"session": wanted[:12]})
    if wanted == session.id:
        return _forgetting(request, RedirectResponse(LOGIN, 303))
    return RedirectResponse(f"{ACCOUNT}?done=ended", 303)


def browser_of(agent: str) -> str:
    """What people call a browser and its system, from what it calls itself; else the beginning of that."""
    parts = [next((name for mark, name in marks if mark in agent), "") for marks in (_BROWSERS, _SYSTEMS)]
    return ", ".join(filter(None, parts)) if parts[0] else agent[:60] or "?"


def typed_twice(form: Mapping[str, str]) -> str:
    """The password of a form that asks for it twice.

    Raises:
        SpecError: `password-differs`.
    """
    if form.get("password", "") != form.get("again", ""):
        raise SpecError("the two passwords differ", reason="password-differs")
    return form.get("password", "")


def _bounds() -> Mapping[str, int]:
    return {"least": LEAST_PASSWORD, "most": MOST_PASSWORD}


ROUTES: list[BaseRoute] = [
    Route(LOGIN, login_page),
    Route(LOGIN, log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
    Route(SET_UP, set_up_page),
    Route(SET_UP, set_up, methods=["POST"]),
    Route(ACCOUNT, account_page),
    Route("/account/password", change_password, methods=["POST"]),
    Route("/account/language", change_language, methods=["POST"]),
    Route("/account/session", end_session, methods=["POST"]),
]
