"""How a laptop reaches the broker: options of the command line, the environment and a profile file, as one value."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError, SpecError
from policies.strict import TableError, build
from service.config import NAME, Mqtt

MAX_PROFILE_BYTES = 16 << 10  # a dozen lines
DEFAULT_TENANT = "default"
PLAIN_PORT, TLS_PORT, WEB_PORT, WEB_TLS_PORT = 1883, 8883, 80, 443
_FILES = ("password_file", "ca_file", "cert_file", "key_file")
_PROFILE_KEYS = frozenset(("tenant", "key", "state", "mqtt"))


@dataclass(frozen=True, slots=True)
class Access:
    """Where the broker is and who we are there.

    Attributes:
        mqtt: broker, credentials and TLS.
        tenant: whose boards; every topic carries it.
        key: file of the console key that signs, or empty.
        state: file of the fleet's state, or empty for the usual place.
    """

    mqtt: Mqtt
    tenant: str = DEFAULT_TENANT
    key: str = ""
    state: str = ""

    def key_path(self) -> Path:
        """The console key.

        Raises:
            SpecError: none was named.
        """
        if not self.key:
            raise SpecError("a command needs a console key", fix="Name it with --key FILE, or `key` in the profile")
        return Path(self.key)


def find_access(options: argparse.Namespace, environ: Mapping[str, str]) -> Access:
    """What the options say; else the environment; else the profile; else what is usual.

    Args:
        options: as `service.cli_verbs.add_broker_options` made them.
        environ: TEMPERD_BROKER and TEMPERD_PROFILE, HOME and XDG_CONFIG_HOME are read.

    Raises:
        ConfigError: the profile cannot be read, or holds what does not fit.
        SpecError: an option does not fit.
    """
    profile = _profile(options, environ)
    mqtt = dict(_table(profile.get("mqtt")))
    broker = options.broker or environ.get("TEMPERD_BROKER", "")
    if broker:
        mqtt.pop("port", None)
        mqtt.update(split_broker(broker))
    given = {
        "username": options.user,
        "password_file": options.password_file,
        "ca_file": options.ca,
        "cert_file": options.cert,
        "key_file": options.key_file,
    }
    mqtt.update({name: value for name, value in given.items() if value})
    if options.tls:
        mqtt["tls"] = True
    if options.websockets:
        mqtt["transport"] = "websockets"
    mqtt.setdefault("port", _usual_port(mqtt))
    try:
        settings = build(Mqtt, mqtt)
    except TableError as error:
        raise SpecError(error.what, where=f"broker: {error.key}") from error
    tenant = options.tenant or str(profile.get("tenant", DEFAULT_TENANT))
    if not NAME.fullmatch(tenant):
        raise SpecError(f"{tenant[:80]!r} is no tenant: 1 to 63 of a-z, 0-9 and dash")
    key = getattr(options, "key", None) or str(profile.get("key", ""))
    state = getattr(options, "state", None) or str(profile.get("state", ""))
    return Access(settings, tenant, key, state)


def split_broker(text: str) -> dict[str, object]:
    """`HOST`, `HOST:PORT`, `[ADDRESS]:PORT` or an IPv6 address alone, as keys of the broker's settings.

    Raises:
        SpecError: the port is no number.
    """
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    if not port:
        return {"host": host}
    if not (port.isascii() and port.isdecimal() and len(port) <= 5):  # noqa: PLR2004 - 65535 has five digits
        raise SpecError("the broker's port is no number", where=f"--broker {text[:300]}")
    return {"host": host, "port": int(port)}


def _usual_port(mqtt: Mapping[str, object]) -> int:
    """The registered port of the transport: nobody names 8883 beside --tls."""
    tls = bool(mqtt.get("tls") or mqtt.get("ca_file"))
    if mqtt.get("transport") == "websockets":
        return WEB_TLS_PORT if tls else WEB_PORT
    return TLS_PORT if tls else PLAIN_PORT


def _profile(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, object]:
    named = options.profile or environ.get("TEMPERD_PROFILE", "")
    usual = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/"), ".config"), "temperd", "fleet.toml")
    path = Path(named) if named else usual
    if not named and not path.is_file():
        return {}
    return read_profile(path)


def read_profile(path: Path) -> dict[str, object]:
    """A profile: `tenant`, `key`, `state` and a table `mqtt` with the keys of the daemon's. Paths are beside the file.

    Raises:
        ConfigError: it cannot be read, is too long, or holds an unknown key or a value of a wrong type.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_PROFILE_BYTES + 1)
        if len(data) > MAX_PROFILE_BYTES:
            raise ConfigError(f"the profile is longer than {MAX_PROFILE_BYTES} bytes", where=str(path))
        profile = tomllib.loads(data.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the profile cannot be read: {told}", where=str(path)) from error
    for key, value in profile.items():
        if key not in _PROFILE_KEYS:
            known = ", ".join(sorted(_PROFILE_KEYS))
            raise ConfigError(f"unknown key {key!r}; known keys: {known}", where=str(path))
        if not isinstance(value, dict if key == "mqtt" else str):
            raise ConfigError(f"{key} must be {'a table' if key == 'mqtt' else 'a text'}", where=str(path))
    return _beside(profile, path.parent)


def _beside(profile: dict[str, object], folder: Path) -> dict[str, object]:
    mqtt = _table(profile.get("mqtt"))
    for table, names in ((profile, ("key", "state")), (mqtt, _FILES)):
        for name in names:
            if table.get(name):
                table[name] = str(folder / str(table[name]))
    return profile


def _table(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
