"""What `temperd console --demo` needs before it starts: three boards of different kinds, one publisher, one console."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from agent import publish as publishing
from agent.durable import disk_errors, write_atomic
from agent.keys import create_console_key, create_identity
from agent.repository import Publisher, utc_now
from service.demo_console import FLEET, STATE, TENANT
from service.demo_setup import SPEED, configuration, scanned_digits
from service.fleet.state import FleetState

OUT = "temperd-console-demo"
MADE = (
    *("boards", "repository", "publisher-keys", "console", "trusted", STATE, "root.json"),
    *("*.sqlite*", "*.log", "mosquitto.conf"),
)
"""What an earlier demo made in the folder."""
CONSOLE = "demo-console"
WORKSHOP = """\
# The policy of one board of the demo: slower than as it ships, and sooner.
name = "workshop"
[thermal.slow]
delta_kelvin = 26
duty = 0.6
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A board of the demo.

    Attributes:
        name: of the board.
        profile: of the emulated hardware.
        told: what it does in the demo.
        train: samples that it learns from.
        held_out: samples that judge.
        policy: text of a policy of its own, or empty.
    """

    name: str
    profile: str
    told: str
    train: int
    held_out: int
    policy: str = ""


GREENHOUSE = Kind("greenhouse-pi4", "raspberry-pi-4", "learns again and again, and is heated on purpose", 600, 300)
WORKSHOP_BOARD = Kind(
    "workshop-pi5", "raspberry-pi-5", "has a job that waits for its hours, and a policy of its own", 400, 200, WORKSHOP
)
GATE = Kind("gate-orin", "jetson-orin-nano", "does one job, then nothing", 300, 150)
KINDS = (GREENHOUSE, WORKSHOP_BOARD, GATE)
GROUPS = {"all": tuple(kind.name for kind in KINDS), "pis": (GREENHOUSE.name, WORKSHOP_BOARD.name)}


@dataclass(frozen=True, slots=True)
class Member:
    """A board that was made.

    Attributes:
        kind: what it is.
        folder: everything of it.
        config: its configuration file.
        data: what it learns from.
    """

    kind: Kind
    folder: Path
    config: Path
    data: Path


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where the demo plays.

    Attributes:
        folder: everything is kept here.
        key: the console's private key file.
        model: name of the published model.
        members: by name.
    """

    folder: Path
    key: Path
    model: str
    members: dict[str, Member]


def prepare_fleet(folder: Path, model: str, broker_port: int, repository_port: int) -> Fleet:
    """Play publisher, owner of three boards and operator: keys, a published model, configurations, groups.

    Raises:
        TemperdError: the model cannot be used, scikit-learn is missing, or the disk fails.
    """
    public = create_console_key(folder / "console", CONSOLE)
    with disk_errors(folder):
        (folder / "trusted").mkdir()
        shutil.copy(public, folder / "trusted")
    identities = []
    for kind in KINDS:
        place = folder / "boards" / kind.name
        identities.append(create_identity(place / "state" / "keys", kind.name).public)
    publisher = Publisher.create(folder / "repository", folder / "publisher-keys", utc_now)
    name = Path(model).stem.lower().replace("_", "-")
    publishing.publish(publisher, model, publishing.Description(name=name, version="1.0"), identities)
    shutil.copy(publisher.root_path, folder / "root.json")
    members = {kind.name: _member(folder, kind, broker_port, repository_port) for kind in KINDS}
    with FleetState(folder / FLEET) as state:
        for group, boards in GROUPS.items():
            state.add_members(TENANT, group, boards)
    return Fleet(folder, folder / "console" / f"{CONSOLE}.key", name, members)


def _member(folder: Path, kind: Kind, broker_port: int, repository_port: int) -> Member:
    place = folder / "boards" / kind.name
    data, _ = scanned_digits(place, kind.train, kind.held_out)
    if kind.policy:
        write_atomic(place / "policy.toml", kind.policy.encode(), 0o644)
    config = place / "temperd.toml"
    policy = "policy.toml" if kind.policy else ""
    text = configuration(kind.name, kind.profile, SPEED, broker_port, repository_port, root="../../", policy=policy)
    write_atomic(config, text.encode(), 0o644)
    return Member(kind, place, config, data)
