"""Home Assistant finds the board by itself: MQTT device discovery, for entities that read and never command.

https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload: one retained message names the device, where
it comes from, and all its components. Their templates read our own topics, so nothing is published twice. Commands
are not offered: they need a signature, which Home Assistant cannot make.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from agent import __version__
from agent.errors import BoardError
from policies.reading import Action
from service.alarms_kinds import KINDS
from service.config import HomeAssistant
from service.device_link import Address
from service.journal import Journal
from service.logs import logger

KEPT = "home-assistant"
"""Name in the journal's memory: discovery topics that the broker may hold."""
ONLINE = b"online"  # what Home Assistant says on `<prefix>/status` when it has started

log = logger("home-assistant")


class Beside(Protocol):
    """A way to topics that are not ours."""

    def publish_beside(self, topic: str, payload: bytes) -> asyncio.Future[bool] | None:
        """Publish a retained message; a future that gives True once confirmed, `None` without a broker."""

    def listen_beside(self, topic: str, told: Callable[[bytes], None]) -> None:
        """Call `told` with what others publish there."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One component.

    Attributes:
        group: of our telemetry.
        key: of its values.
        about: fields of Home Assistant: units and classes.
        factor: what the value is multiplied with.
    """

    group: str
    key: str
    name: str
    about: Mapping[str, object]
    factor: int = 1
    flag: bool = False
    """It is true or false."""


_MEASURED = {"state_class": "measurement"}
_PERCENT = {"unit_of_measurement": "%", "suggested_display_precision": 0, **_MEASURED}
_CELSIUS = {
    "device_class": "temperature",
    "unit_of_measurement": "°C",
    "suggested_display_precision": 1,
    **_MEASURED,
}
_HERTZ = {"device_class": "frequency", "unit_of_measurement": "Hz", **_MEASURED}
_PROBLEM = {"device_class": "problem"}
_SIDE = {"entity_category": "diagnostic"}

ENTITIES = (
    Entity("board", "temperature_celsius", "Die temperature", _CELSIUS),
    Entity("board", "ambient_celsius", "Ambient temperature", _CELSIUS),
    Entity("board", "delta_t_celsius", "Delta-T", {"unit_of_measurement": "K", **_MEASURED}),
    Entity("board", "frequency_hz", "Clock", _HERTZ),
    Entity("board", "charge", "Battery", {"device_class": "battery", **_PERCENT}, factor=100),
    Entity("board", "power_watts", "Power", {"device_class": "power", "unit_of_measurement": "W", **_MEASURED}),
    Entity("board", "utilisation", "Processor use", _PERCENT, factor=100),
    Entity(
        "board",
        "memory_available_bytes",
        "Memory available",
        {"device_class": "data_size", "unit_of_measurement": "B", **_MEASURED, **_SIDE},
    ),
    Entity("board", "memory_faults", "Memory faults", {"state_class": "total_increasing", **_SIDE}),
    Entity("board", "action", "Action", {"device_class": "enum", "options": [action.name for action in Action]}),
    Entity("board", "rule", "Rule", _SIDE),
    Entity("board", "duty", "Duty", _PERCENT, factor=100),
    Entity("board", "on_mains", "On mains", {"device_class": "plug"}, flag=True),
    Entity("board", "undervoltage", "Undervoltage", {**_PROBLEM, **_SIDE}, flag=True),
    Entity("board", "throttled", "Throttled", {**_PROBLEM, **_SIDE}, flag=True),
    Entity("training", "epoch", "Epoch", {}),
    Entity("training", "loss", "Loss", _MEASURED),
    Entity("training", "score", "Score", _MEASURED),
    Entity("training", "samples", "Samples", {}),
    Entity("training", "depth_percent", "Layers frozen", _PERCENT),
    Entity(
        "energy",
        "joules",
        "Energy of the job",
        {"device_class": "energy", "unit_of_measurement": "J", "state_class": "total_increasing"},
    ),
    Entity("energy", "joules_per_sample", "Energy a sample", {"unit_of_measurement": "J", **_MEASURED}),
)


def discovery(address: Address, model: str) -> dict[str, object]:
    """The discovery message of a board.

    Args:
        address: its topics.
        model: the device-tree model.
    """
    us = f"temperd-{address.tenant}-{address.device}"
    alarms = {f"alarm_{kind.replace('-', '_')}": _alarm(address, kind) for kind in KINDS}
    components = {f"{entity.group}_{entity.key}": _component(address, entity) for entity in ENTITIES} | alarms
    return {
        "dev": {"ids": [us], "name": address.device, "mdl": model or "unknown board", "sw": __version__},
        "o": {"name": "temperd", "sw": __version__},
        "cmps": {name: {**fields, "unique_id": f"{us}-{name}"} for name, fields in components.items()},
        "availability": [
            {
                "topic": address.topic("conn"),
                "value_template": "{{ 'online' if value_json['online'] else 'offline' }}",
            }
        ],
    }


def _component(address: Address, entity: Entity) -> dict[str, object]:
    value = f"value_json['values']['{entity.key}']"  # not `.values`: in a template that is a method of the table
    if entity.flag:
        template = f"{{{{ none if {value} is none else 'ON' if {value} else 'OFF' }}}}"
    elif entity.factor != 1:
        template = f"{{{{ none if {value} is none else {value} * {entity.factor} }}}}"
    else:
        template = f"{{{{ {value} }}}}"
    platform = "binary_sensor" if entity.flag else "sensor"
    told = {"p": platform, "name": entity.name, "state_topic": address.topic("m", entity.group)}
    return {**told, "value_template": template, **entity.about}


def _alarm(address: Address, kind: str) -> dict[str, object]:
    name = f"Alarm {kind.replace('-', ' ')}"
    template = f"{{{{ 'ON' if '{kind}' in value_json['values']['alarms'] else 'OFF' }}}}"
    told = {"p": "binary_sensor", "name": name, "state_topic": address.topic("m", "board")}
    return {**told, "value_template": template, **_PROBLEM, **_SIDE}


class Announcement:
    """Keeps the discovery message on the broker while it is switched on, and takes it away when it is no more.

    Args:
        settings: see `service.config`.
        address: the board's topics.
        model: the device-tree model.
        journal: remembers what the broker may hold.
        link: a way there.
    """

    def __init__(self, settings: HomeAssistant, address: Address, model: str, journal: Journal, link: Beside) -> None:
        self._journal, self._link = journal, link
        self._address, self._model = address, model
        us = f"temperd-{address.tenant}-{address.device}"
        self._topic = f"{settings.prefix}/device/{us}/config" if settings.enabled else ""
        self._left = _recall(journal) - {self._topic}
        self._due, self._in_flight = True, False
        self._remembered = False
        if self._topic:
            link.listen_beside(f"{settings.prefix}/status", self._heard)

    def connected(self) -> None:
        """There is a broker again."""
        self._due, self._in_flight = True, False

    def tick(self) -> None:
        """Publish what is due; call once a second while there is a broker."""
        if not self._due or self._in_flight:
            return
        try:
            self._remember()
        except BoardError as error:  # asked again in a second; nothing is left on a broker that nobody remembers
            log.debug("the discovery topic cannot be remembered", why=str(error))
            return
        topic = min(self._left, default=self._topic)
        if not topic:
            self._due = False
            return
        body = json.dumps(discovery(self._address, self._model), separators=(",", ":")) if topic == self._topic else ""
        done = self._link.publish_beside(topic, body.encode())
        if done is not None:
            self._in_flight = True
            done.add_done_callback(partial(self._answered, topic))

    def _heard(self, payload: bytes) -> None:
        if payload == ONLINE:
            self._due = True

    def _answered(self, topic: str, done: asyncio.Future[bool]) -> None:
        self._in_flight = False
        if not done.result():
            return
        if topic == self._topic:
            self._due = False
        else:
            self._left, self._remembered = self._left - {topic}, False

    def _remember(self) -> None:
        if not self._remembered:
            wanted = self._left | ({self._topic} if self._topic else frozenset())
            if wanted != _recall(self._journal):
                self._journal.remember(KEPT, json.dumps(sorted(wanted)))
            self._remembered = True


def _recall(journal: Journal) -> frozenset[str]:
    try:
        kept = json.loads(journal.recall(KEPT) or "[]")
    except ValueError:
        kept = []
    return (
        frozenset(topic for topic in kept if isinstance(topic, str) and topic)
        if isinstance(kept, list)
        else frozenset()
    )
