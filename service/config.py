"""The daemon's configuration: one TOML file, read once at start, every key known and bounded."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from agent.errors import ConfigError
from policies.strict import TableError, build, limits

MAX_CONFIG_BYTES = 256 << 10  # the commented example has about 4 KB
MAX_PATH = 1024
NAME = re.compile(r"[a-z0-9-]{1,63}")  # one DNS label and one MQTT topic level: no wildcard, no separator
_HOST = re.compile(r"[A-Za-z0-9.:_-]{1,253}")
_HOST_LABEL = 63  # RFC 1035, 2.3.4
_LONGEST_SESSION_S = 0xFFFFFFFF  # MQTT 5, 3.1.2.11.2: never expires
_WEB_PATH = re.compile(r"/[!-~]*")  # it goes into an HTTP request line: no space, no line end
_MOST_PORT = 65535
_PREFIX = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")

Section = TypeVar("Section")


def _file(default: str) -> Any:  # noqa: ANN401 - `field` is typed as the value it stands for
    return field(default=default, metadata={**limits(longest=MAX_PATH), "path": True})


def _check_name(key: str, value: str) -> None:
    if not NAME.fullmatch(value):
        raise TableError(key, f"{value!r} is no name: 1 to 63 of a-z, 0-9 and dash")


def _check_host(key: str, value: str) -> None:
    """Refuse what no resolver can read: Python's own raises no OSError at it."""
    labels = value.split(".")
    if not _HOST.fullmatch(value) or any(not 1 <= len(label) <= _HOST_LABEL for label in labels):
        raise TableError(key, f"{value!r} is neither a host name nor an address")


@dataclass(frozen=True, slots=True)
class Device:
    """Who this board is, and where it keeps its state."""

    name: str = field(metadata=limits(longest=63))
    tenant: str = field(default="default", metadata=limits(longest=63))
    state_dir: str = _file("/var/lib/temperd")

    def __post_init__(self) -> None:
        """Refuse what would not fit a topic level."""
        _check_name("name", self.name)
        _check_name("tenant", self.tenant)


@dataclass(frozen=True, slots=True)
class Mqtt:
    """The broker. `tls` or a `ca_file` switches TLS on; `cert_file` and `key_file` prove the board to the broker."""

    host: str = field(default="localhost", metadata=limits(longest=253))
    port: int = field(default=1883, metadata=limits(1, 65535))
    username: str = field(default="", metadata=limits(longest=256))
    password_file: str = _file("")
    ca_file: str = _file("")
    cert_file: str = _file("")
    key_file: str = _file("")
    tls: bool = False
    """TLS with the authorities that the system trusts, unless `ca_file` names one."""
    transport: str = field(default="tcp", metadata=limits(choices=("tcp", "websockets")))
    websocket_path: str = field(default="/mqtt", metadata=limits(longest=256))
    keepalive_s: int = field(default=30, metadata=limits(5, 3600))
    session_expiry_s: int = field(default=7 * 86400, metadata=limits(0, _LONGEST_SESSION_S))
    """How long the broker keeps our subscriptions while we are away; requests are retained anyway."""
    receive_maximum: int = field(default=20, metadata=limits(1, 1000))
    """Unacknowledged messages: beyond it the broker waits, so a flood costs no memory."""

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS."""
        return self.tls or bool(self.ca_file)

    def __post_init__(self) -> None:
        """Refuse halves of a pair, and hosts that no resolver can read."""
        _check_host("host", self.host)
        if bool(self.cert_file) != bool(self.key_file):
            missing = "key_file" if self.cert_file else "cert_file"
            raise TableError(missing, "missing: cert_file and key_file go together")
        if self.cert_file and not self.encrypted:
            raise TableError("ca_file", "missing: a client certificate needs TLS; or set tls = true")
        if self.password_file and not self.username:
            raise TableError("username", "missing: a password needs a user name")
        if not _WEB_PATH.fullmatch(self.websocket_path):
            raise TableError("websocket_path", f"{self.websocket_path!r} is no path: / and printable characters")


@dataclass(frozen=True, slots=True)
class Repository:
    """Where sealed base models come from."""

    url: str = field(metadata=limits(longest=1024))
    root: str = _file("/etc/temperd/root.json")
    """Pinned TUF root metadata."""
    metered: str = field(default="allow", metadata=limits(choices=("allow", "wait")))
    """Whether base models are downloaded; `wait` is for links whose bytes cost money."""

    def __post_init__(self) -> None:
        """Refuse everything but a web address."""
        parts = urlsplit(self.url)
        if "@" in parts.netloc:
            raise TableError("url", "holds a user name or password, which messages and logs would show")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TableError("url", f"{self.url!r} is no http:// or https:// address")


@dataclass(frozen=True, slots=True)
class Board:
    """How the hardware is read. `emulated` names a profile: the daemon then starts that board itself."""

    sys_root: str = _file("/sys")
    proc_root: str = _file("/proc")
    profile: str = field(default="auto", metadata=limits(longest=63))
    powerd: str = _file("/run/temperd-powerd.sock")
    """Socket of the root helper that writes what the daemon may not; empty: never asked."""
    emulated: str = field(default="", metadata=limits(longest=63))
    emulated_speed: float = field(default=1.0, metadata=limits(0.1, 1000.0))
    """Emulated seconds for each real second."""

    def __post_init__(self) -> None:
        """Refuse profile names that could leave the profile folder."""
        _check_name("profile", self.profile)
        if self.emulated:
            _check_name("emulated", self.emulated)


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in force; an empty `file` means the board profile's own."""

    file: str = _file("")
    by_command: bool = True
    """Whether a trusted console may set another one."""


@dataclass(frozen=True, slots=True)
class Worker:
    """How the training process runs; `threads` 0 leaves the number to the board."""

    threads: int = field(default=0, metadata=limits(0, 256))
    nice: int = field(default=10, metadata=limits(0, 19))


@dataclass(frozen=True, slots=True)
class Commands:
    """Whose commands are obeyed."""

    trusted_consoles: str = _file("/etc/temperd/consoles")
    """Folder of console public keys, one JSON file each."""


@dataclass(frozen=True, slots=True)
class HomeAssistant:
    """Whether Home Assistant finds the board by itself."""

    enabled: bool = False
    prefix: str = field(default="homeassistant", metadata=limits(longest=128))
    """Topic below which it looks; several levels are allowed."""

    def __post_init__(self) -> None:
        """Refuse what is no topic, and our own root."""
        if not _PREFIX.fullmatch(self.prefix) or self.prefix.partition("/")[0] == "temper":
            raise TableError(
                "prefix", f"{self.prefix!r} is no topic: names of letters, digits, _ and - with slashes between"
            )


@dataclass(frozen=True, slots=True)
class Prometheus:
    """Where Prometheus finds the board's figures; both empty: nowhere."""

    textfile: str = _file("")
    """A `.prom` file in the folder that node_exporter's textfile collector reads."""
    listen: str = field(default="", metadata=limits(longest=262))
    """`host:port` of a small web server; `:port` is the board's own loopback."""

    def __post_init__(self) -> None:
        """Refuse names that node_exporter passes over, and addresses that are none."""
        if self.textfile and not self.textfile.endswith(".prom"):
            raise TableError(
                "textfile", f"{self.textfile!r} does not end with .prom, and node_exporter reads nothing else"
            )
        if self.listen:
            split_address(self.listen)


def split_address(listen: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[IPv6]:port` or `:port`.

    Raises:
        TableError: no such address.
    """
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= _MOST_PORT:
        raise TableError("listen", f"{listen!r} is no address: host:port, or :port for the loopback")
    _check_host("listen", host)
    return host, int(port)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """How much the board tells, in which form, and what is kept on its disk while the broker is away."""

    format: str = field(default="json", metadata=limits(choices=("json", "cbor")))
    qos: int = field(default=0, metadata=limits(choices=(0, 1)))
    active_s: int = field(default=1, metadata=limits(1, 3600))
    """Between two readings while a job, a scrub or a stress run is at work."""
    idle_s: int = field(default=60, metadata=limits(1, 86400))
    outbox_mib: int = field(default=64, metadata=limits(1, 4096))
    outbox_days: int = field(default=30, metadata=limits(1, 3650))
    backfill_per_s: float = field(default=10.0, metadata=limits(0.01, 10.0))

    def __post_init__(self) -> None:
        """Refuse a board that tells less while it works."""
        if self.active_s > self.idle_s:
            raise TableError("active_s", f"{self.active_s} is more than idle_s, {self.idle_s}")


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged and how."""

    level: str = field(default="info", metadata=limits(choices=("debug", "info", "warning", "error")))
    format: str = field(default="auto", metadata=limits(choices=("auto", "text", "json")))


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file. Paths are absolute after `load_config`, or empty."""

    device: Device
    repository: Repository
    mqtt: Mqtt = field(default_factory=Mqtt)
    board: Board = field(default_factory=Board)
    policy: Policy = field(default_factory=Policy)
    worker: Worker = field(default_factory=Worker)
    commands: Commands = field(default_factory=Commands)
    telemetry: Telemetry = field(default_factory=Telemetry)
    log: Log = field(default_factory=Log)
    home_assistant: HomeAssistant = field(default_factory=HomeAssistant)
    prometheus: Prometheus = field(default_factory=Prometheus)

    def __post_init__(self) -> None:
        """Refuse what cannot be read."""
        if self.home_assistant.enabled and self.telemetry.format == "cbor":
            what = 'Home Assistant reads JSON alone: leave this out, or set [telemetry] format = "json"'
            raise TableError("home_assistant.enabled", what)


def load_config(path: Path) -> Config:
    """Read the configuration; relative paths in it start at its own folder.

    Raises:
        ConfigError: the file is missing, too long or no TOML, or a key is unknown, missing or out of range. The error
            names the file and the key.
    """
    try:
        with path.open("rb") as source:
            data = source.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror}",
            where=str(path),
            fix="Name it with --config or TEMPERD_CONFIG, or make one: temperd run --example",
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the configuration is longer than {MAX_CONFIG_BYTES} bytes", where=str(path))
    try:
        config = build(Config, tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"not a TOML file: {error}", where=str(path)) from error
    except TableError as error:
        fix = "`temperd run --example` shows every key"
        raise ConfigError(error.what, where=f"{path}: {error.key}", fix=fix) from error
    folder = path.absolute().parent
    sections = {item.name: _absolute(getattr(config, item.name), folder) for item in dataclasses.fields(config)}
    return Config(**sections)


def _absolute(section: Section, folder: Path) -> Section:
    paths = {
        item.name: str(folder / getattr(section, item.name))
        for item in dataclasses.fields(section)  # type: ignore[arg-type]
        if item.metadata.get("path") and getattr(section, item.name)
    }
    return dataclasses.replace(section, **paths)  # type: ignore[type-var]


def example_text() -> str:
    """The commented example configuration: every key with its default."""
    return Path(__file__).with_name("example.toml").read_text("utf-8")
