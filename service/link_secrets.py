"""Password and TLS files of a connection, read again for each: renewed ones count without a restart."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from agent.errors import BoardError, ConfigError
from agent.keys_files import OPEN_TO_ALL, check_mode
from service.config import Mqtt

MAX_PASSWORD_BYTES = 4096
_BY_HASH = re.compile(r"[0-9a-f]{8}\.[0-9]+")  # openssl-rehash(1)


def password(path: str) -> str | None:
    """The first line of the file; `None` without a file.

    Raises:
        ConfigError: it cannot be read, is empty or too long, or everybody may read it.
    """
    if not path:
        return None
    try:
        with Path(path).open("rb") as source:
            data = source.read(MAX_PASSWORD_BYTES + 1)
        _check_private(path)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("cannot read the broker password", where=path) from error
    if len(data) > MAX_PASSWORD_BYTES or not lines:
        raise ConfigError(f"the password file is empty or longer than {MAX_PASSWORD_BYTES} bytes", where=path)
    return lines[0]


def tls_context(settings: Mqtt) -> ssl.SSLContext | None:
    """TLS 1.2 or newer, host name checked, own certificate shown if there is one; `None` without TLS.

    Raises:
        ConfigError: a file cannot be used, or everybody may read the key.
    """
    if not settings.encrypted:
        return None
    if settings.key_file:
        _check_private(settings.key_file)
    try:
        folder = None if settings.ca_file else _folder_of_authorities(os.environ)
        context = ssl.create_default_context(cafile=settings.ca_file or None, capath=folder)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file:
            context.load_cert_chain(
                settings.cert_file, settings.key_file, password=""
            )  # an encrypted key must not ask a terminal
    except (OSError, ssl.SSLError) as error:
        where = ", ".join(filter(None, (settings.ca_file, settings.cert_file, settings.key_file)))
        raise ConfigError(f"the TLS files cannot be used: {error}", where=where) from error
    return context


def _folder_of_authorities(environ: Mapping[str, str]) -> str | None:
    """The system's authorities as a folder in which OpenSSL finds the one that it needs; `None` where there is none.

    The file with all of them would be 2.3 MB in an idle daemon's memory, and be read at each attempt to connect.
    """
    places = ssl.get_default_verify_paths()
    if places.openssl_cafile_env in environ or places.capath is None:
        return None
    there = any(_BY_HASH.fullmatch(name) for name in os.listdir(places.capath))  # noqa: PTH208 - names, not paths
    return places.capath if there else None


def _check_private(path: str) -> None:
    """A secret that everybody may read is none; a group may, as the daemon often gets it from root that way."""
    try:
        check_mode(Path(path), OPEN_TO_ALL)
    except BoardError as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix, reason=error.code) from error
