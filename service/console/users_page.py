"""Users and their roles, for owners."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.console.account_page import typed_twice
from service.console.accounts_file import User, check_user_name
from service.console.forms import read_form
from service.console.guard_rules import SET_UP
from service.console.page import needs, render, room_of, viewer_of
from service.console.passwords import LEAST_PASSWORD, MOST_PASSWORD

USERS = "/users"
UNPROCESSABLE = 422
DEEDS = frozenset({"role", "disable", "enable", "remove", "link"})


@needs(Role.OWNER)
async def users_page(request: Request) -> Response:
    """The list, a form for each, a form for a new one."""
    return await _users(request)


async def _users(
    request: Request, *, code: str = "", name: str = "", role: str = "", link: str = "", status: int = 200
) -> Response:
    room = room_of(request)

    def look() -> tuple[list[User], dict[str, int]]:  # a question for each of up to 200 users
        users = room.accounts.users()
        return users, {user.name: len(room.accounts.sessions.of(user.name)) for user in users}

    users, counts = await asyncio.to_thread(look)
    shown: dict[str, Any] = {"users": users, "counts": counts, "code": code, "name": name, "role": role, "link": link}
    bounds = {"least": LEAST_PASSWORD, "most": MOST_PASSWORD}
    return render(request, "account/users.html", status=status, roles=tuple(Role), bounds=bounds, **shown)


@needs(Role.OWNER)
async def add_user(request: Request) -> Response:
    """A new user."""
    form = await read_form(request)
    room, viewer = room_of(request), viewer_of(request)
    name, role = form.get("name", "").strip().lower()[:64], form.get("role", "")
    try:
        await room.accounts.add(name, _role(role), typed_twice(form))
    except SpecError as error:
        return await _users(request, code=error.code, name=name, role=role, status=UNPROCESSABLE)
    await room.audit.record(viewer.name, "user-added", details={"user": name, "role": role})
    return RedirectResponse(USERS, 303)


@needs(Role.OWNER)
async def change_user(request: Request) -> Response:
    """Another role, kept out or let in, removed, or a link for a new password; recorded before it is done."""
    form = await read_form(request)
    room, viewer = room_of(request), viewer_of(request)
    deed, role, name = form.get("deed", ""), form.get("role", ""), form.get("name", "")
    details: dict[str, Any] = {}
    try:
        check_user_name(name)
        _check_deed(deed, role)
        details = {"user": name} | ({"role": role} if deed == "role" else {})
        await room.audit.record(viewer.name, f"user-{deed}", details=details)
        link = await _change(request, deed, name, role)
    except SpecError as error:
        if details:
            told = {**details, "deed": deed, "error": error.code}
            await room.audit.record(viewer.name, "user-change-refused", details=told)
        return await _users(request, code=error.code, status=UNPROCESSABLE)
    return await _users(request, link=link, name=name) if link else RedirectResponse(USERS, 303)


async def _change(request: Request, deed: str, name: str, role: str) -> str:
    """Do it; a link, if one was asked for."""
    accounts = room_of(request).accounts
    if deed == "link":
        token = await asyncio.to_thread(accounts.make_link, name)
        scheme = "https" if room_of(request).settings.secure else str(request.scope["scheme"])
        return f"{scheme}://{request.headers['host']}{SET_UP}?token={token}"
    if deed == "role":
        await accounts.set_role(name, Role(role))
    elif deed == "remove":
        await accounts.remove(name)
    else:
        await accounts.set_disabled(name, disabled=deed == "disable")
    return ""


def _role(text: str) -> Role:
    if text not in tuple(Role):
        raise SpecError("no such role", reason="role")
    return Role(text)


def _check_deed(deed: str, role: str) -> None:
    if deed not in DEEDS:
        raise SpecError("no such change", reason="role")
    if deed == "role":
        _role(role)


ROUTES: list[BaseRoute] = [
    Route(USERS, users_page),
    Route(USERS, add_user, methods=["POST"]),
    Route("/users/change", change_user, methods=["POST"]),
]
