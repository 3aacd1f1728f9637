#!/opt/temperd/bin/python
"""`temperd` inside the container: finds or writes the configuration, makes the identity once, then becomes temperd.

A file at /etc/temperd/temperd.toml, or at TEMPERD_CONFIG, is the whole configuration. Without one it is written from
the variables in `SETTINGS`; temperd itself judges the values.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAM = "/opt/temperd/bin/temperd"
GIVEN = Path("/etc/temperd/temperd.toml")
WRITTEN = Path("/run/temperd/temperd.toml")
SETTINGS = {
    "TEMPERD_DEVICE": "board-1",
    "TEMPERD_TENANT": "default",
    "TEMPERD_MQTT_HOST": "localhost",
    "TEMPERD_MQTT_PORT": "1883",
    "TEMPERD_REPOSITORY_URL": "http://localhost:8000/",
    "TEMPERD_EMULATED": "raspberry-pi-4",
    "TEMPERD_BOARD": "auto",
}
LEAST_ROOM = 1 << 20  # bytes; a journal and its log take more at the first job
CONFIGURATION = 78  # as temperd's own: what starting again does not mend
# What the board must be told to trust lies in the volume, where `docker cp` and `temperd keys trust` reach it.
TEMPLATE = """\
[device]
name = {TEMPERD_DEVICE}
tenant = {TEMPERD_TENANT}
state_dir = "/var/lib/temperd"
[mqtt]
host = {TEMPERD_MQTT_HOST}
port = {TEMPERD_MQTT_PORT}
[repository]
url = {TEMPERD_REPOSITORY_URL}
root = "/var/lib/temperd/root.json"
[board]
profile = {TEMPERD_BOARD}
emulated = {TEMPERD_EMULATED}
[commands]
trusted_consoles = "/var/lib/temperd/consoles"
"""


def main() -> None:
    """Prepare, then become temperd with the arguments given; it sees every signal itself."""
    arguments = sys.argv[1:]
    starts = arguments == ["run"]
    config = Path(os.environ.get("TEMPERD_CONFIG", "") or (GIVEN if GIVEN.exists() else WRITTEN))
    if config == WRITTEN and (starts or not config.exists()):
        write(config, config_text(os.environ))
    os.environ["TEMPERD_CONFIG"] = str(config)
    if starts:
        make_identity(config)
    os.execv(PROGRAM, [PROGRAM, *arguments])  # noqa: S606 - no shell wanted: same process, other program


def config_text(environ: Mapping[str, str]) -> str:
    """The configuration that the variables ask for; no value can add a key, whatever it holds."""
    values = {name: quoted(environ.get(name, default)) for name, default in SETTINGS.items()}
    port = environ.get("TEMPERD_MQTT_PORT", SETTINGS["TEMPERD_MQTT_PORT"])
    if port.isascii() and port.isdecimal():
        values["TEMPERD_MQTT_PORT"] = port
    return TEMPLATE.format(**values)


def quoted(value: str) -> str:
    """A TOML basic string: JSON's escapes are a subset of TOML's."""
    return json.dumps(value)


def write(path: Path, text: str) -> None:
    """Replace the file at once: a health check may read it at the same time."""
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        fresh.write_text(text, encoding="ascii")
        fresh.replace(path)
    except OSError as error:
        sys.exit(f"temperd: cannot write the configuration: {error.strerror} [{path}]. The folder must be writable")


def make_identity(config: Path) -> None:
    """Make the board's keys where there are none; of a broken configuration, `temperd run` says what is wrong."""
    from agent.errors import ConfigError  # noqa: PLC0415 - the health check comes often and needs none of this
    from service.config import load_config  # noqa: PLC0415 - same

    try:
        device = load_config(config).device
    except ConfigError:
        return  # the daemon says it better, with the exit code for it
    check_owner(Path(device.state_dir))
    tell_room(Path(device.state_dir))
    if (Path(device.state_dir) / "keys" / "identity.json").exists():
        return
    made = subprocess.run([PROGRAM, "keys", "init", device.name], check=False)  # noqa: S603 - a name judged above
    if made.returncode:
        sys.exit(made.returncode)


def tell_room(state: Path) -> None:
    """Say first that the volume is full, where it is: what fails of it later may name no more than a file."""
    try:
        found = os.statvfs(state)
    except OSError:
        return
    if (left := found.f_bavail * found.f_frsize) < LEAST_ROOM:
        sys.stderr.write(f"temperd: the volume is full: {left} bytes are left [{state}]. Make room, then start again\n")


def check_owner(state: Path) -> None:
    """Say whose the volume is where it is not ours: a folder of the host keeps the owner that it has there."""
    try:
        owner = state.stat().st_uid
    except OSError:
        return  # temperd makes it, or says why not
    if owner != os.geteuid() and not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        ours = f"{os.geteuid()}:{os.getegid()}"
        sys.stderr.write(
            f"temperd: the volume belongs to user {owner}, and this container runs as {os.geteuid()} [{state}]."
            f" On the host: chown -R {ours} FOLDER\n"
        )
        sys.exit(CONFIGURATION)


if __name__ == "__main__":
    main()
