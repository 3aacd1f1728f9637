"""What the guard judges a request by. Pure: header values in, verdicts out."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from service.console.texts import LANGUAGES

METHODS = ("GET", "HEAD", "POST")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
HOME = "/fleet"
LOGIN, SET_UP, LOGOUT = "/login", "/set-up", "/logout"
LIVE = "/live"
OPEN = frozenset({LOGIN, SET_UP})
"""Pages for those who have not logged in."""
OWN = frozenset({LOGOUT, "/account/language", "/account/password", "/account/session"})
"""What a viewer may post: it changes nothing but the viewer's own account."""
MAX_HEADER_BYTES = 16 << 10  # all together: cookies of 4 KiB, and what browsers say of themselves
MAX_QUERY_BYTES = 40 << 10  # 500 names of boards, 63 characters each, and commas
MAX_NEXT = 2000  # characters of the page that a login leads to
MAX_LANGUAGES = 20  # of an Accept-Language header that are looked at

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    # Not `no-referrer`: under it browsers say `Origin: null` when they post our own forms (Fetch, 3.2).
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=(), payment=(), usb=()"),
    (b"x-robots-tag", b"noindex"),
)
TRANSPORT = (b"strict-transport-security", b"max-age=31536000")
_NO_STORE, _ASK_AGAIN, _A_YEAR = b"no-store", b"no-cache", b"public, max-age=31536000, immutable"
_SCHEME_PORTS = {"http": 80, "https": 443}
_LOCAL = re.compile(r"/(?![/\\])[^\x00-\x20\x7f\\]*")
_LANGUAGE = re.compile(r"\s*([A-Za-z]{1,8})(?:-[A-Za-z0-9-]{1,32})?\s*(?:;\s*q=([01](?:\.[0-9]{0,3})?)\s*)?")


def cache_control(path: str) -> bytes:
    """Who may keep the answer: nobody a page; anybody a library whose file name has its version."""
    if path.startswith("/static/vendor/"):
        return _A_YEAR
    return _ASK_AGAIN if path.startswith("/static/") else _NO_STORE


def host_name(host: str) -> str:
    """The name in a Host header without its port, in lower case; empty where it is none."""
    if host.startswith("["):
        name, bracket, port = host.partition("]")
        name, port = name + bracket, port.removeprefix(":") if bracket else "x"
    else:
        name, _, port = host.partition(":")
    if (port and not (port.isascii() and port.isdecimal())) or not name:
        return ""
    return name.lower().removesuffix(".")


def is_known_host(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this server: another name that leads here is somebody's trick (DNS rebinding)."""
    name = host_name(host)
    return bool(name) and name in names


def spelled(name: str) -> str:
    """A name or address as it stands in a Host header."""
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().removesuffix(".")
    return f"[{address}]" if address.version == 6 else str(address)  # noqa: PLR2004 - of the Internet Protocol


def is_own_origin(origin: str, host: str, scheme: str) -> bool:
    """Whether a request comes from a page of ours.

    Args:
        origin: the header, `scheme://host[:port]` or `null`.
        host: the Host header of the same request.
        scheme: by which the browser reaches us.
    """
    try:
        parts = urlsplit(origin)
        ours = urlsplit(f"{scheme}://{host}")
        ports = [part.port or _SCHEME_PORTS.get(part.scheme) for part in (parts, ours)]
    except ValueError:
        return False
    return (
        parts.scheme == scheme
        and (parts.hostname or "").lower() == (ours.hostname or "").lower()
        and ports[0] == ports[1]
        and not (parts.path or parts.query or parts.fragment or parts.username)
    )


def is_for_scripts(path: str) -> bool:
    """Whether a path answers JSON or events, and no page."""
    return path.startswith("/api/") or path == LIVE


def keeps_nothing(path: str) -> bool:
    """Whether a form only shows something: no record tells of it."""
    return path == "/compare/policies" or (path.startswith("/device/") and path.endswith("/policy/check"))


def safe_next(text: str) -> str:
    """Where a login leads: a page of ours, whatever was asked for."""
    if len(text) > MAX_NEXT or not _LOCAL.fullmatch(text):
        return HOME
    path = urlsplit(text).path
    if path in OPEN or path == LOGOUT or is_for_scripts(path) or path.startswith("/static/"):
        return HOME
    return text


def language_of(accepted: str) -> str:
    """The language of ours that an Accept-Language header likes best."""
    best, liking = LANGUAGES[0], 0.0
    for item in accepted[:1000].split(",")[:MAX_LANGUAGES]:
        found = _LANGUAGE.fullmatch(item)
        if found and found[1].lower() in LANGUAGES and float(found[2] or 1) > liking:
            best, liking = found[1].lower(), float(found[2] or 1)
    return best


def cookies_named(name: str, headers: Iterable[str]) -> list[str]:
    """All values of a cookie, in the order in which they came: more than one is a sign that somebody planted one."""
    pairs = (pair.strip().partition("=") for header in headers for pair in header.split(";"))
    return [value for key, _, value in pairs if key == name]
