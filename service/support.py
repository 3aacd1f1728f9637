"""A bundle for whoever helps from afar: report, doctor, log and unit of one board in one file, without secrets.

What may be secret is taken out twice: by its name (passw, secret, token, ...), and by its value, for those that this
board holds: keys of the identity, the broker's password, logins of proxies.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from agent.errors import TemperdError
from agent.keys_stored import find_identity
from service.config import Config
from service.link_secrets import password
from service.report_log import HIDDEN

SUFFIXES = (".tar.gz", ".tgz")
MAX_PART_BYTES = 2 << 20  # 3000 lines of a log at 600 bytes; the end is kept, for it tells what was wrong
SHORTEST_SECRET = 6  # characters: a shorter one would also be found where it is none
_USERINFO = re.compile(r"(?<=://)[^/\s@\"]{0,1000}@")
_NAMED = re.compile(  # with bounds: a log is foreign text of megabytes, and must not be searched for hours
    r"(?i)((?:passw|passphrase|secret|token|private|credential|api[_-]?key)[\w-]{0,40})"
    r"([\"']?\s{0,8}[=:]\s{0,8})(\"(?:[^\"\\]|\\.){0,4000}\"|'[^']{0,4000}'|\S+)"
)
_AUTHORIZATION = re.compile(r"(?i)(authorization[\"']?\s{0,8}[=:]\s{0,8}[\"']?)(?:\w{1,20}\s{1,8})?\S+")
_FILES = re.compile(r"(?i)(_file|_path|credentials_directory)$")  # say where a secret lies, and are none


def secrets_of(config: Config, environ: Mapping[str, str]) -> frozenset[str]:
    """Secrets that this board holds, as far as we may read them.

    Args:
        config: of the daemon.
        environ: whose proxies may hold a login.
    """
    found: set[str] = set()
    with contextlib.suppress(TemperdError):  # what we cannot read we cannot tell
        for keys in find_identity(Path(config.device.state_dir, "keys"), environ).stored.keys:
            found |= {keys.ed25519, keys.storage, keys.x25519}
    with contextlib.suppress(TemperdError):
        found.add(password(config.mqtt.password_file) or "")
    for name, value in environ.items():
        if name.lower().endswith("_proxy") and (login := urlsplit(value).password):
            found |= {login, unquote(login)}
    return frozenset(secret for secret in found if len(secret) >= SHORTEST_SECRET)


def without(text: str, secrets: Iterable[str]) -> str:
    """The text with secrets hidden, however they are written."""
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return _USERINFO.sub("", text)


def _forms(secret: str) -> tuple[str, ...]:
    """As it is, and as JSON, Python and an address have it."""
    quoted = (json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret))
    return (secret, *(form[1:-1] for form in quoted), quote(secret, safe=""))


def plain_without(text: str, secrets: Iterable[str]) -> str:
    """The same for lines of a log, where values that are called a secret are hidden too."""

    def hide(found: re.Match[str]) -> str:
        return found[0] if _FILES.search(found[1]) else f"{found[1]}{found[2]}{HIDDEN}"

    return _NAMED.sub(hide, _AUTHORIZATION.sub(rf"\1{HIDDEN}", without(text, secrets)))


def write_bundle(out: BinaryIO, parts: Mapping[str, object], secrets: frozenset[str]) -> list[str]:
    """Write the bundle; the names in it.

    Args:
        out: a new file.
        parts: by name; texts as they are, everything else as JSON.
        secrets: see `secrets_of`.

    Raises:
        OSError: the disk fails.
    """
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, part in parts.items():
            if isinstance(part, str):
                data = plain_without(part, secrets).encode()
            else:
                data = without(json.dumps(part, indent=2, default=str), secrets).encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = min(len(data), MAX_PART_BYTES), 0o600
            archive.addfile(entry, io.BytesIO(data[-MAX_PART_BYTES:]))
    return list(parts)
