"""Password and TLS files of a connection, read again for each: renewed ones count without a restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from agent.errors import BoardError, ConfigError
from agent.keys_files import OPEN_TO_ALL, check_mode
from service.config import Mqtt

MAX_PASSWORD_BYTES = 4096


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
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file:
            context.load_cert_chain(
                settings.cert_file, settings.key_file, password=""
            )  # an encrypted key must not ask a terminal
    except (OSError, ssl.SSLError) as error:
        where = ", ".join(filter(None, (settings.ca_file, settings.cert_file, settings.key_file)))
        raise ConfigError(f"the TLS files cannot be used: {error}", where=where) from error
    return context


def _check_private(path: str) -> None:
    """A secret that everybody may read is none; a group may, as the daemon often gets it from root that way."""
    try:
        check_mode(Path(path), OPEN_TO_ALL)
    except BoardError as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix, reason=error.code) from error
