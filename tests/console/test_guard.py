"""The guard, attacked: sessions, forms, hosts, paths, sizes, rates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from agent.errors import BoardError, NetworkError, SpecError
from agent.keys_consoles import Role
from service.console import guard
from service.console.app import build_app
from service.console.audit import Wanted
from service.console.forms import MAX_FORM_BYTES
from service.console.guard_limits import OF_ADDRESS, OF_LOGIN_NAME, OF_REFUSED, OF_SESSION, Buckets, Rate, network_of
from service.console.guard_rules import (
    MAX_HEADER_BYTES,
    MAX_NEXT,
    MAX_QUERY_BYTES,
    POLICY,
    is_known_host,
    is_own_origin,
    language_of,
    safe_next,
    spelled,
)
from service.console.room import Room
from service.console.sessions import IDLE_S, TOUCH_S, WHOLE_S
from tests.console.conftest import PASSWORD, Client, Clock, log_in, visit

COOKIE = "temperd-session"
OWN_LANGUAGE = "/account/language"


def actions(room: Room) -> list[str]:
    return [record.action for record in room.audit.page(Wanted())]


# --- who has not logged in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/fleet", "/device/pi-1", "/users", "/audit", "/key", "/account", "/nowhere"])
def test_pages_lead_strangers_to_the_login_and_back(stranger: Client, path: str) -> None:
    answer = stranger.get(f"{path}?a=1")
    assert answer.status_code == 303
    where = urlsplit(answer.headers["location"])
    assert where.path == "/login"
    assert parse_qs(where.query)["next"] == [f"{path}?a=1"]


@pytest.mark.parametrize("path", ["/api/fleet", "/live", "/api/device/pi-1"])
def test_scripts_are_told_that_the_session_ended(stranger: Client, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert answer.json() == {"error": "not-logged-in"}


def test_a_fetch_of_a_page_is_told_so_too(stranger: Client) -> None:
    assert stranger.post("/key/lock", headers={"x-csrf": "0" * 64}).status_code == 401


def test_what_anybody_may_see(stranger: Client) -> None:
    assert stranger.get("/healthz").text == "ok\n"
    assert stranger.get("/static/base.css").status_code == 200
    assert stranger.get("/login").status_code == 200


def test_a_form_of_an_expired_session_leads_to_the_login_and_does_nothing(
    owner: Client, room: Room, clock: Clock
) -> None:
    clock.pass_(IDLE_S + 1)
    answer = owner.submit("/users", name="mallory", role="owner", password=PASSWORD, again=PASSWORD)
    assert answer.headers["location"] == "/login?expired=1"
    assert room.accounts.user("mallory") is None


def test_a_link_on_another_site_is_followed_once_more_from_here(stranger: Client) -> None:
    answer = stranger.get("/device/pi-1?x=%22%3E%3Cscript%3E", headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert 'content="0;url=/device/pi-1?x=' in answer.text
    assert "<script" not in answer.text


# --- sessions --------------------------------------------------------------------------------------------------------


def test_the_cookie_is_out_of_reach_for_scripts_and_other_sites(stranger: Client) -> None:
    stranger.show("/login")
    told = stranger.submit("/login", name="owner", password=PASSWORD).headers["set-cookie"]
    assert told.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(told.split("; "))
    assert "Secure" not in told


def test_over_tls_the_cookie_is_bound_to_host_and_tls(make_room: Callable[..., Room]) -> None:
    client = visit(make_room(secure=True, names=("localhost", "console.example")), "https://console.example")
    client.show("/login")
    answer = client.submit("/login", name="owner", password=PASSWORD)
    assert answer.headers["set-cookie"].startswith(f"__Host-{COOKIE}=")
    assert answer.headers["set-cookie"].endswith("; Secure")
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert client.get("/account").status_code == 200
    here = client.get("https://localhost/login")
    assert "strict-transport-security" not in here.headers, "it would hold for every port of localhost"


def test_a_session_that_somebody_else_began_is_not_gone_on_with(room: Room) -> None:
    """Fixation: the attacker's cookie is in the victim's browser before the login."""
    attacker = log_in(visit(room), "viewer")
    planted = attacker.cookies[COOKIE]
    victim = visit(room)
    victim.cookies.set(COOKIE, planted)
    victim.show("/account")
    answer = victim.post("/login", data={"csrf": victim.csrf, "name": "owner", "password": PASSWORD})
    assert answer.status_code == 303
    fresh = answer.headers["set-cookie"].split(";")[0].partition("=")[2]
    assert fresh != planted
    assert attacker.get("/account").status_code == 303, "the planted one has ended"


def test_a_made_up_cookie_is_no_session(stranger: Client) -> None:
    for value in ("x", "A" * 43, "A" * 5000, "'; DROP TABLE sessions; --", "\x7f"):
        assert stranger.get("/account", headers={"cookie": f"{COOKIE}={value}"}).status_code in (303, 431)


def test_of_a_cookie_that_comes_twice_none_counts(owner: Client, viewer: Client) -> None:
    """Tossing: another service on this machine, or another path, set a second one."""
    mine, theirs = owner.cookies[COOKIE], viewer.cookies[COOKIE]
    owner.cookies.clear()
    for first, second in ((mine, theirs), (theirs, mine), (mine, mine)):
        answer = owner.get("/account", headers={"cookie": f"{COOKIE}={first}; {COOKIE}={second}"})
        assert answer.status_code == 303
    assert owner.get("/account", headers={"cookie": f"other=1; {COOKIE}={mine}"}).status_code == 200


def test_a_session_ends_when_it_is_idle_and_in_any_case_after_a_week(owner: Client, clock: Clock) -> None:
    step = IDLE_S - TOUCH_S - 1
    for _ in range(int(WHOLE_S // step)):
        clock.pass_(step)
        assert owner.get("/account").status_code == 200, "in use it goes on"
    clock.pass_(WHOLE_S % step + 1)
    assert owner.get("/account").status_code == 303


def test_an_idle_session_ends(owner: Client, clock: Clock) -> None:
    clock.pass_(IDLE_S + 1)
    assert owner.get("/account").status_code == 303


def test_a_role_that_changes_ends_sessions_at_once(operator: Client, room: Room) -> None:
    assert operator.get("/audit").status_code == 200
    asyncio.run(room.accounts.set_role("operator", Role.VIEWER))
    assert operator.get("/audit").status_code == 303
    assert log_in(operator, "operator").get("/audit").status_code == 403


@pytest.mark.parametrize("deed", ["disable", "remove", "password"])
def test_who_is_kept_out_is_out_at_once(operator: Client, room: Room, deed: str) -> None:
    asyncio.run(
        {
            "disable": lambda: room.accounts.set_disabled("operator", disabled=True),
            "remove": lambda: room.accounts.remove("operator"),
            "password": lambda: room.accounts.set_password("operator", "another quiet river"),
        }[deed]()
    )
    assert operator.get("/account").status_code == 303
    operator.show("/login")
    assert operator.submit("/login", name="operator", password=PASSWORD).status_code == 422


# --- forms -----------------------------------------------------------------------------------------------------------


def test_a_form_without_its_token_is_refused_and_recorded(owner: Client, room: Room, viewer: Client) -> None:
    for fields in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": viewer.csrf}, {"csrf": owner.csrf.upper()}):
        answer = owner.post(OWN_LANGUAGE, data={**fields, "language": "vi"})
        assert answer.status_code == 403
    user = room.accounts.user("owner")
    assert user is not None
    assert user.language == ""
    refused = [record for record in room.audit.page(Wanted(action="refused")) if record.who == "owner"]
    assert len(refused) == 5
    assert refused[0].details["path"] == OWN_LANGUAGE


def test_the_token_counts_in_a_header_as_well(owner: Client) -> None:
    assert owner.post(OWN_LANGUAGE, data={"language": "vi"}, headers={"x-csrf": owner.csrf}).status_code == 303
    assert owner.post(OWN_LANGUAGE, data={"language": "vi"}, headers={"x-csrf": "1" * 64}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:81"},
        {"origin": "https://localhost"},
        {"origin": "http://localhost.evil.example"},
        {"origin": "http://localhost@evil.example"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_form_from_another_site_is_refused_even_with_the_token(owner: Client, headers: dict[str, str]) -> None:
    data = {"csrf": owner.csrf, "language": "vi"}
    assert owner.post(OWN_LANGUAGE, data=data, headers=headers).status_code == 403


def test_a_form_of_our_own_site_passes(owner: Client) -> None:
    headers = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert owner.post(OWN_LANGUAGE, data={"csrf": owner.csrf, "language": "vi"}, headers=headers).status_code == 303


def test_the_login_has_a_token_of_its_own(room: Room) -> None:
    """Login CSRF: somebody would log the victim in as themselves."""
    client, other = visit(room), visit(room)
    client.show("/login")
    other.show("/login")
    assert client.csrf != other.csrf
    fields = {"name": "owner", "password": PASSWORD}
    assert client.post("/login", data={**fields, "csrf": other.csrf}).status_code == 403
    assert visit(room).post("/login", data={**fields, "csrf": client.csrf}).status_code == 403
    assert client.post("/login", data={**fields, "csrf": client.csrf}).status_code == 303


@pytest.mark.parametrize("path", ["/users", "/users/change", "/key/lock", "/key/unlock", "/nowhere", "/fleet"])
def test_a_viewer_changes_nothing(viewer: Client, room: Room, path: str) -> None:
    assert viewer.submit(path, name="viewer", role="owner", deed="role").status_code == 403
    user = room.accounts.user("viewer")
    assert user is not None
    assert user.role is Role.VIEWER
    assert "refused" in actions(room)


def test_a_viewer_keeps_an_account_of_their_own(viewer: Client) -> None:
    assert viewer.submit(OWN_LANGUAGE, language="vi").status_code == 303
    assert 'lang="vi"' in viewer.show("/account")
    fresh = "another quiet river"
    answer = viewer.submit("/account/password", old=PASSWORD, password=fresh, again=fresh)
    assert answer.headers["location"] == "/account?done=password"
    viewer.show("/account")
    assert viewer.submit("/logout").headers["location"] == "/login"
    assert viewer.get("/account").status_code == 303


@pytest.mark.parametrize(("role", "path"), [("viewer", "/audit"), ("viewer", "/key"), ("operator", "/users")])
def test_pages_of_higher_roles_are_not_shown(room: Room, role: str, path: str) -> None:
    assert log_in(visit(room), role).get(path).status_code == 403


def test_an_operator_who_posts_what_owners_may_is_on_record(operator: Client, room: Room) -> None:
    assert operator.submit("/users", name="x", role="owner", password=PASSWORD, again=PASSWORD).status_code == 403
    (record,) = room.audit.page(Wanted(action="refused"))
    assert (record.who, record.details["path"]) == ("operator", "/users")
    assert operator.get("/users").status_code == 403
    assert len(room.audit.page(Wanted(action="refused"))) == 1


def test_a_body_that_does_not_end_is_given_up(owner: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    sent: list[Message] = []
    cookies = f"{COOKIE}={owner.cookies[COOKIE]}".encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": OWN_LANGUAGE,
        "query_string": b"",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"cookie", cookies), (b"content-length", b"1000")],
    }

    async def receive() -> Message:
        if not sent:
            sent.append({"type": "begun"})
            return {"type": "http.request", "body": b"a", "more_body": True}
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(owner.app(scope, receive, send))  # type: ignore[call-arg,arg-type,func-returns-value]
    assert sent[1]["status"] == 408


def test_refusals_of_one_user_do_not_fill_the_trail(owner: Client, room: Room) -> None:
    for _ in range(int(OF_REFUSED.burst) + 20):
        assert owner.post(OWN_LANGUAGE, data={"csrf": "x"}).status_code == 403
    assert actions(room).count("refused") == OF_REFUSED.burst


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *(
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "evil",
            "",
            "/ x",
            "/\t/e",
        ),
        *("/login?next=/x", "/logout", "/live", "/api/fleet", "/static/base.css", "\\\\evil", "/a\\b", "/\x00", "/%0"),
        "/" + "a" * MAX_NEXT,
    ],
)
def test_a_login_leads_nowhere_else(room: Room, text: str) -> None:
    client = visit(room)
    client.show("/login")
    answer = client.submit("/login", name="owner", password=PASSWORD, next=text)
    assert answer.headers["location"] in ("/fleet", "/%0")


@given(st.text(max_size=60))
def test_next_is_always_a_path_of_ours(text: str) -> None:
    for given_text in (text, f"/{text}"):
        found = urlsplit(safe_next(given_text))
        assert not found.scheme
        assert not found.netloc
        assert found.path.startswith("/")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "localhost:x", "[::1", "127.0.0.2"])
def test_requests_under_another_name_are_refused(owner: Client, host: str) -> None:
    """DNS rebinding: the victim's browser believes that we are evil.example."""
    answer = owner.get("/account", headers={"host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost/healthz?", "localhost/static/#", "localhost/login?x=", "localhost:80/login"]
)
def test_a_path_in_the_name_opens_no_door(stranger: Client, host: str) -> None:
    """What is open to all is judged by the path that the router goes by, not by a URL made of the header."""
    for path in ("/api/fleet", "/fleet", "/users"):
        answer = stranger.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "rows" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8750", "127.0.0.1:8750", "[::1]:8750", "localhost."])
def test_names_it_was_started_with_are_answered(stranger: Client, host: str) -> None:
    assert stranger.get("/login", headers={"host": host}).status_code == 200


def test_names_can_be_given(make_room: Callable[..., Room]) -> None:
    client = visit(make_room(names=("Console.Example", "2001:db8::1")), "http://console.example")
    assert client.get("/login").status_code == 200
    assert client.get("/login", headers={"host": "[2001:db8::1]:80"}).status_code == 200
    assert client.get("/login", headers={"host": "localhost"}).status_code == 421


@pytest.mark.parametrize(
    "path",
    [
        *("/static/../service/console/app.py", "/static/%2e%2e/app.py", "/static/..%2f..%2fapp.py", "//evil.example/"),
        *("/static//etc/passwd", "/static/%2fetc/passwd", "/%5cevil", "/fleet%00", "/fleet%0d%0aset-cookie:a", "/./x"),
    ],
)
def test_tricks_with_paths_find_nothing(owner: Client, path: str) -> None:
    answer = owner.get(f"http://localhost{path}")
    assert answer.status_code in (404, 307)
    assert "location" not in answer.headers or answer.headers["location"].startswith("http://localhost/")
    assert "set-cookie" not in answer.headers


# --- sizes, methods, rates -------------------------------------------------------------------------------------------


def test_only_known_methods(owner: Client) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        answer = owner.request(method, "/account")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET, HEAD, POST"


def test_long_headers_addresses_and_forms_are_refused(owner: Client) -> None:
    assert owner.get("/account", headers={"x-a": "a" * MAX_HEADER_BYTES}).status_code == 431
    assert owner.get("/account?" + "a" * (MAX_QUERY_BYTES + 1)).status_code == 414
    assert owner.submit(OWN_LANGUAGE, language="v" * MAX_FORM_BYTES).status_code == 413
    headers = {"x-csrf": owner.csrf, "content-type": "application/x-www-form-urlencoded"}

    def pieces():  # type: ignore[no-untyped-def] # noqa: ANN202
        for _ in range(MAX_FORM_BYTES // 1000 + 2):
            yield b"a" * 1000

    assert owner.post(OWN_LANGUAGE, content=pieces(), headers=headers).status_code == 413
    assert owner.post(OWN_LANGUAGE, content=b"language=%ff", headers=headers).status_code == 400
    assert owner.post(OWN_LANGUAGE, json={"csrf": owner.csrf}, headers={"x-csrf": owner.csrf}).status_code == 415


def test_a_session_that_asks_too_often_waits(owner: Client, clock: Clock) -> None:
    answers = [owner.get("/account").status_code for _ in range(int(OF_SESSION.burst) + 1)]
    assert answers[-1] == 429
    limited = owner.get("/api/fleet")
    assert limited.json()["error"] == "too-many-requests"
    assert int(limited.headers["retry-after"]) >= 1
    clock.pass_(2)
    assert owner.get("/account").status_code == 200


def test_an_address_that_asks_too_often_waits(stranger: Client) -> None:
    answers = {stranger.get("/static/nothing.css").status_code for _ in range(int(OF_ADDRESS.burst) + 1)}
    assert answers == {404, 429}


def test_buckets_fill_again_and_are_bounded() -> None:
    now = [0.0]
    buckets = Buckets(Rate(2, 0.5), lambda: now[0], most=3)
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, 2.0]
    now[0] = 1.0
    assert buckets.take("a") == 1.0
    now[0] = 2.0
    assert buckets.take("a") == 0.0
    assert buckets.wait("a") == 2.0
    for number in range(10_000):
        buckets.take(str(number))
    assert len(buckets) == 3
    now[0] = 1e9
    assert [bool(buckets.take("9999")) for _ in range(3)] == [False, False, True], "no more than a burst"


def test_ten_thousand_logins_are_stopped_and_recorded_within_bounds(room: Room, clock: Clock) -> None:
    client = visit(room)
    client.show("/login")
    codes = [client.submit("/login", name="owner", password=f"wrong {n} guess").status_code for n in range(200)]
    assert codes[: int(OF_LOGIN_NAME.burst)] == [422] * int(OF_LOGIN_NAME.burst)
    assert set(codes[int(OF_LOGIN_NAME.burst) :]) == {429}
    assert actions(room).count("login-refused") == OF_LOGIN_NAME.burst
    right = client.submit("/login", name="owner", password=PASSWORD)
    assert right.status_code == 429, "the right one waits as well, or guessing would go on"
    assert int(right.headers["retry-after"]) >= 1
    clock.pass_(120)
    assert client.submit("/login", name="owner", password=PASSWORD).status_code == 303


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1%eth0", "2001:db8:1:2::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_are_counted_by_who_has_them(address: str, key: str) -> None:
    assert network_of(address) == key


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", "/nowhere", "/static/base.css", "/healthz", "/api/nothing"])
def test_every_answer_has_the_headers(owner: Client, path: str) -> None:
    headers = owner.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "unsafe" not in POLICY
    kept = headers["cache-control"]
    assert kept == ("no-cache" if path.startswith("/static/") else "no-store")


def test_libraries_are_kept_by_browsers(stranger: Client) -> None:
    answer = stranger.get("/static/vendor/uPlot-1.6.32.iife.min.js")
    assert "immutable" in answer.headers["cache-control"]


def test_what_is_wrong_is_said_in_the_language_of_who_asks(owner: Client, stranger: Client) -> None:
    page = owner.get("/nowhere", headers={"accept-language": "vi-VN,vi;q=0.9,en;q=0.5"})
    assert page.status_code == 404
    assert "Không có trang này" in page.text
    assert "There is no such page" in owner.get("/nowhere", headers={"accept-language": "fr"}).text
    assert owner.get("/api/nowhere").json() == {"error": "not-found"}
    assert "Đăng nhập" in stranger.get("/login", headers={"accept-language": "vi"}).text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpecError("<b>bold</b>", where="<i>", fix="<u>"), 422),
        (NetworkError("no <b>broker</b>", where="db.local"), 503),
        (BoardError("disk <b>broken</b>", where="/srv/console/audit.sqlite", fix="chmod"), 503),
    ],
)
def test_errors_of_pages_become_pages(room: Room, error: Exception, status: int) -> None:
    async def fail(_request: Request) -> Response:
        raise error

    app = build_app(room)
    app.router.routes.append(Route("/fail", fail))
    for role in ("owner", "operator"):
        client = log_in(Client(app, base_url="http://localhost", follow_redirects=False), role)
        answer = client.get("/fail")
        assert answer.status_code == status
        assert "<b>" not in answer.text
        assert ("/srv/console" in answer.text) == (role == "owner" and isinstance(error, BoardError))
        assert "Traceback" not in answer.text
        told = client.get("/fail", headers={"accept": "application/json"}).json()
        assert told["error"] == error.code  # type: ignore[attr-defined]
        assert ("retry-after" in answer.headers) == (status == 503)


def test_a_fault_of_ours_tells_nothing_of_itself(room: Room) -> None:
    async def fail(_request: Request) -> Response:
        raise ZeroDivisionError("secret of the inside")

    app = build_app(room)
    app.router.routes.append(Route("/fail", fail))
    client = Client(app, base_url="http://localhost", follow_redirects=False, raise_server_exceptions=False)
    answer = log_in(client, "owner").get("/fail")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["content-security-policy"] == POLICY


def test_who_leaves_in_the_middle_of_a_form_is_no_fault(room: Room) -> None:
    sent: list[Message] = []
    told = iter([{"type": "http.request", "body": b"name=", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(told)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/x-www-form-urlencoded")]
    scope = {"type": "http", "method": "POST", "path": "/login", "query_string": b"", "headers": headers}
    asyncio.run(build_app(room)({**scope, "scheme": "http", "client": ("127.0.0.1", 1)}, receive, send))
    assert sent[0]["status"] == 400


# --- pure ------------------------------------------------------------------------------------------------------------


@given(st.text(max_size=40))
def test_no_text_is_a_known_host_by_chance(text: str) -> None:
    assert not is_known_host(text, frozenset({"console.example"})) or "console.example" in text.lower()


@given(st.text(max_size=60))
def test_no_text_is_our_origin_by_chance(text: str) -> None:
    assert not is_own_origin(text, "console.example", "https") or "console.example" in text.lower()


def test_the_usual_port_may_be_left_out() -> None:
    assert is_own_origin("https://console.example", "console.example:443", "https")
    assert is_own_origin("https://console.example:443", "Console.Example", "https")
    assert not is_own_origin("https://console.example:8443", "console.example", "https")


def test_names_are_spelled_as_browsers_do() -> None:
    assert spelled("2001:DB8::0:1") == "[2001:db8::1]"
    assert spelled("[::1]") == "[::1]"
    assert spelled("Console.Example.") == "console.example"


@given(st.text(max_size=200))
def test_any_wish_for_a_language_gets_one(text: str) -> None:
    assert language_of(text) in ("en", "vi")


def test_the_language_liked_best() -> None:
    assert language_of("fr, vi;q=0.4, en;q=0.3") == "vi"
    assert language_of("vi;q=0, en;q=0.1") == "en"
    assert language_of("") == "en"
