"""Who may see what: sessions, CSRF, rate limits and headers in front of every page."""

from __future__ import annotations

import asyncio
import hmac
import html
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.errors import TemperdError
from agent.keys_consoles import Role
from service.console import guard_rules as rules
from service.console.accounts_file import MAX_TOKEN, new_token
from service.console.forms import MAX_FIELDS, MAX_FORM_BYTES
from service.console.guard_errors import INTERNAL, answer, on_http_exception, on_temperd_error, wants_json
from service.console.guard_limits import FORM_BYTES, Doors, network_of
from service.console.guard_request import address_of, path_of, record_refusal
from service.console.page import Viewer
from service.console.room import Room
from service.console.sessions import WHOLE_S, csrf_of

BODY_S = 20.0  # for all of a form: 256 KiB by a poor mobile line
SESSION_COOKIE, LOGIN_COOKIE = "temperd-session", "temperd-login"


class _Cookies(NamedTuple):
    session: str
    login: str


class Guard:
    """ASGI middleware.

    A request that passes finds `viewer`, `session` (of `Sessions`, or none) as `console_session`, and `doors` in its
    scope.
    """

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app, self._room = app, room
        self._doors = Doors(room.monotonic)
        self._names = frozenset(map(rules.spelled, room.settings.names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page speaks websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        scope["doors"] = self._doors
        scope["viewer"] = Viewer(language=rules.language_of(_header(scope, b"accept-language")))
        guarded = _Answer(scope, send, secure=self._room.settings.secure)
        request = Request(scope, receive)
        try:
            passed = await self._judge(request, guarded)
            if isinstance(passed, Response):
                await passed(scope, receive, guarded)
            elif scope["path"] == rules.LIVE:
                await self._stream(scope, passed, guarded)
            else:
                await self._app(scope, passed, guarded)
        except HTTPException as error:
            await (await on_http_exception(request, error))(scope, receive, guarded)
        except TemperdError as error:
            if guarded.begun:
                raise
            await (await on_temperd_error(request, error))(scope, receive, guarded)
        except Exception:
            if not guarded.begun:
                await answer(request, INTERNAL)(scope, receive, guarded)
            raise

    async def _stream(self, scope: Scope, receive: Receive, guarded: _Answer) -> None:
        """An answer without an end; when the console closes it is ended as a whole one."""
        task = asyncio.current_task()
        assert task is not None
        self._room.streams.add(task)
        try:
            await self._app(scope, receive, guarded)
        except asyncio.CancelledError:
            if not (self._room.closing and guarded.begun):
                raise
            await guarded({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._room.streams.discard(task)

    async def _judge(self, request: Request, guarded: _Answer) -> Response | Receive:
        """An answer, or what the page is to read from: the request passes."""
        path = path_of(request)
        if path == "/healthz":
            return request.receive
        self._check_form_of(request)
        address = network_of(address_of(request))
        if wait := self._doors.addresses.take(address):
            raise _too_often(wait)
        if path.startswith("/static/"):
            return request.receive
        cookies = self._cookies(request)
        session = self._room.accounts.sessions.find(cookies.session)
        if session is None:
            return await self._stranger(request, guarded, cookies)
        user = session.user
        language = user.language or request.scope["viewer"].language
        request.scope["viewer"] = Viewer(user.name, user.role, language, csrf_of(cookies.session))
        request.scope["console_session"] = session
        if wait := self._doors.sessions.take(session.id):
            raise _too_often(wait)
        if self._room.accounts.sessions.is_due(session):
            await asyncio.to_thread(self._room.accounts.sessions.touch, session)
        if request.method != "POST":
            return request.receive
        if user.role is Role.VIEWER and path not in rules.OWN | rules.OPEN:
            await self._refuse(request, "a viewer changes nothing")
        return await self._posted(request, csrf_of(cookies.session), user.name)

    def _check_form_of(self, request: Request) -> None:
        """Method, name of the server, sizes."""
        if request.method not in rules.METHODS:
            raise HTTPException(405, headers={"Allow": ", ".join(rules.METHODS)})
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not rules.is_known_host(hosts[0], self._names):
            raise HTTPException(421)
        if sum(len(name) + len(value) for name, value in request.headers.raw) > rules.MAX_HEADER_BYTES:
            raise HTTPException(431)
        if len(request.scope["query_string"]) > rules.MAX_QUERY_BYTES:
            raise HTTPException(414)
        path = path_of(request)
        if path.startswith("//") or "\\" in path or not path.isprintable():
            raise HTTPException(404)

    async def _stranger(self, request: Request, guarded: _Answer, cookies: _Cookies) -> Response | Receive:
        """Nobody has logged in: the open pages, or the way to them."""
        path = path_of(request)
        if path in rules.OPEN:
            token = cookies.login
            if not 0 < len(token) <= MAX_TOKEN:
                token = new_token()
                guarded.cookie = cookie(LOGIN_COOKIE, token, secure=self._room.settings.secure, seconds=3600)
            viewer = request.scope["viewer"]
            request.scope["viewer"] = Viewer(language=viewer.language, csrf=csrf_of(token))
            return await self._posted(request, csrf_of(token)) if request.method == "POST" else request.receive
        if wants_json(request):
            return answer(request, 401, code="not-logged-in")
        if request.method == "POST":
            return RedirectResponse(f"{rules.LOGIN}?expired=1", 303)
        query = request.scope["query_string"].decode("latin-1")
        target = path + (f"?{query}" if query else "")
        if request.headers.get("sec-fetch-site") == "cross-site":
            return _once_more(target)
        wanted = rules.safe_next(target)
        return RedirectResponse(rules.LOGIN if wanted == rules.HOME else f"{rules.LOGIN}?next={quote(wanted)}", 303)

    async def _posted(self, request: Request, csrf: str, user: str = "") -> Receive:
        """Read a form, and hold it against the token of its session.

        Raises:
            HTTPException: 403, it does not come from a page of ours; 408, 413; 429, this user sent too many.
        """
        headers = request.headers
        origins, site = headers.getlist("origin"), headers.get("sec-fetch-site", "same-origin")
        scheme = "https" if self._room.settings.secure else str(request.scope["scheme"])
        foreign = [one for one in origins if not rules.is_own_origin(one, headers["host"], scheme)]
        if foreign or site not in ("same-origin", "none"):
            await self._refuse(request, "the form comes from another site")
        body = await _read_body(request)
        told = headers.get("x-csrf") or _csrf_field(headers.get("content-type", ""), body)
        if not hmac.compare_digest(told.encode("utf-8", "replace"), csrf.encode()):
            await self._refuse(request, "the form's token is not that of this session", fix="Load the page anew")
        counts = user and not rules.keeps_nothing(path_of(request))
        if counts and (wait := self._doors.forms.take(user, 1 + len(body) / FORM_BYTES)):
            raise _too_often(wait)
        return _again(body, request.receive)

    async def _refuse(self, request: Request, what: str, fix: str = "") -> None:
        """Record a refusal, and answer 403. Always raises."""
        await record_refusal(request, what)
        raise HTTPException(403, f"{what}. {fix}" if fix else what)

    def _cookies(self, request: Request) -> _Cookies:
        """Session and pre-session. Of a cookie that comes twice none counts: somebody planted the other."""
        headers = request.headers.getlist("cookie")
        found = []
        for name in (SESSION_COOKIE, LOGIN_COOKIE):
            values = rules.cookies_named(cookie_name(name, secure=self._room.settings.secure), headers)
            found.append(values[0] if len(values) == 1 else "")
        return _Cookies(*found)


class _Answer:
    """What is sent, with the headers that every answer has."""

    def __init__(self, scope: Scope, send: Send, *, secure: bool) -> None:
        self._path, self._send = str(scope["path"]), send
        # Of a loopback name browsers would take it for every other service on the machine, too.
        self._pinned = secure and rules.host_name(_header(scope, b"host")) not in rules.LOOPBACK_NAMES
        self.begun = False
        self.cookie = ""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            there = {name for name, _ in headers.raw}
            usual = [*rules.HEADERS, (b"cache-control", rules.cache_control(self._path))]
            usual += [rules.TRANSPORT] if self._pinned else []
            headers.raw.extend(pair for pair in usual if pair[0] not in there)
            if self.cookie:
                headers.append("set-cookie", self.cookie)
            message = {**message, "headers": headers.raw}
        await self._send(message)


def cookie_name(name: str, *, secure: bool) -> str:
    """A cookie's name; over TLS with the prefix for which browsers see to it that no other host or path set it."""
    return f"__Host-{name}" if secure else name


def cookie(name: str, value: str, *, secure: bool, seconds: float = WHOLE_S) -> str:
    """A Set-Cookie header's value; an empty value removes the cookie."""
    age = int(seconds) if value else 0
    text = f"{cookie_name(name, secure=secure)}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict"
    return f"{text}; Secure" if secure else text


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()) or int(length[:12]) > MAX_FORM_BYTES:
        raise HTTPException(413)
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM_BYTES:
                    raise HTTPException(413)
    except TimeoutError as error:
        raise HTTPException(408) from error
    except ClientDisconnect as error:  # who left in the middle of a form is no fault of ours, and fills no log
        raise HTTPException(400) from error
    return bytes(body)


def _csrf_field(content_type: str, body: bytes) -> str:
    if content_type.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        return ""
    try:
        fields: Mapping[str, str] = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        return ""
    return fields.get("csrf", "")


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read once more."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give


def _once_more(target: str) -> Response:
    """A link on another site led here, so the browser kept the session's cookie back; from our own page it sends it."""
    where = html.escape(quote(rules.safe_next(target), safe="/?=&%-._~"))
    return HTMLResponse(f'<!doctype html><meta http-equiv="refresh" content="0;url={where}"><title>temperd</title>')


def _too_often(wait: float) -> HTTPException:
    return HTTPException(429, headers={"Retry-After": str(int(wait) + 1)})


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
