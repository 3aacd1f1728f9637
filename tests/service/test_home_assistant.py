"""Home Assistant finds the board: every template reads what the daemon really publishes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.errors import ConfigError
from agent.messages import Progress
from policies.policy import Policy
from policies.reading import Action, Reading
from policies.strict import TableError
from service.alarms_kinds import KINDS
from service.config import HomeAssistant, load_config
from service.device_link import Address
from service.home_assistant import Announcement, discovery
from service.journal import Journal
from service.steering import Steering
from service.views import training_metrics

ADDRESS = Address("default", "board-1")
ROOT = "temper/v1/default/board-1"
TOPIC = "homeassistant/device/temperd-default-board-1/config"
ON = HomeAssistant(enabled=True)
PLATFORM_UNITS = {
    "temperature": {"°C", "°F", "K"}, "frequency": {"Hz", "kHz", "MHz", "GHz"}, "battery": {"%"}, "power": {"W", "kW"},
    "data_size": {"B", "kB", "MB"}, "energy": {"J", "Wh", "kWh"}, "enum": {None}, "plug": {None}, "problem": {None},
}  # fmt: skip
"""Of https://www.home-assistant.io/integrations/sensor/#device-class: the units that a class allows."""


def rendered(template: str, payload: object) -> str:
    """What the template gives. Ours mean the same in Jinja and in Python, where `none` is given."""
    told = re.fullmatch(r"\{\{ (.+) \}\}", template)
    assert told
    assert "." not in re.sub(r"'[^']*'", "", told[1]), "an attribute of a table could be a method"
    expression = compile(told[1], template, "eval")
    assert set(expression.co_names) <= {"value_json", "none"}
    return str(eval(expression, {"__builtins__": {}}, {"value_json": payload, "none": None}))  # noqa: S307 - checked above


def groups(tmp_path: Path, reading: Reading | None = None) -> dict[str, dict[str, Any]]:
    """What the daemon publishes, by topic."""
    board = SysfsBoard(BoardRoots(tmp_path, tmp_path), named_profile("generic"))
    steering = Steering(board, Policy())
    steering.reading = reading or steering.reading
    steering.alarms = ("overheated",)
    progress = Progress(3, 4, 1, 8, 96, 0.5, 0.75, 4, 50, 12.5, 1 << 20)
    values = {
        "board": steering.board_metrics(),
        "training": training_metrics(progress),
        "energy": steering.energy_metrics(0),
    }
    return {f"{ROOT}/m/{group}": {"seq": 1, "values": told} for group, told in values.items()}


def components() -> dict[str, dict[str, Any]]:
    return json.loads(json.dumps(discovery(ADDRESS, "Raspberry Pi 4")))["cmps"]


def states(tmp_path: Path, reading: Reading | None = None) -> dict[str, str]:
    said = json.loads(json.dumps(groups(tmp_path, reading)))
    return {name: rendered(part["value_template"], said[part["state_topic"]]) for name, part in components().items()}


def test_the_message_has_what_device_discovery_asks_for() -> None:
    message = json.loads(json.dumps(discovery(ADDRESS, "")))
    assert message["dev"]["ids"]
    assert message["o"]["name"] == "temperd"
    parts = message["cmps"]
    assert len({part["unique_id"] for part in parts.values()}) == len(parts)
    for name, part in parts.items():
        assert re.fullmatch(r"[a-zA-Z0-9_]+", name)
        assert part["p"] in ("sensor", "binary_sensor")
        assert "command_topic" not in part
        assert part.get("unit_of_measurement") in PLATFORM_UNITS.get(part.get("device_class"), {"%", "K", "J", None})
        if part.get("device_class") == "enum":
            assert "state_class" not in part
            assert part["options"] == [action.name for action in Action]
    assert len(json.dumps(message)) < 64 << 10


def test_a_board_with_every_sensor_is_shown(tmp_path: Path) -> None:
    full = Reading(
        0.0, temperature_celsius=61.5, ambient_celsius=25.0, frequency_hz=1_500_000_000, charge=0.5, on_mains=True,
        power_watts=4.5, utilisation=0.25, memory_available_bytes=4096,
    )  # fmt: skip
    found = states(tmp_path, full)
    assert found["board_temperature_celsius"] == "61.5"
    assert found["board_charge"] == "50.0"
    assert found["board_utilisation"] == "25.0"
    assert found["board_on_mains"] == "ON"
    assert found["board_undervoltage"] == "OFF"
    assert found["board_action"] == "RUN"
    assert found["training_score"] == "0.75"
    alarms = {name: state for name, state in found.items() if name.startswith("alarm_")}
    assert alarms.pop("alarm_overheated") == "ON"
    assert set(alarms.values()) == {"OFF"}
    assert len(alarms) == len(KINDS) - 1


def test_what_a_board_does_not_have_is_unknown_and_no_error(tmp_path: Path) -> None:
    """`None` is what Home Assistant takes for unknown, in sensors and binary sensors."""
    found = states(tmp_path)
    for name in ("board_temperature_celsius", "board_charge", "board_on_mains", "board_power_watts", "energy_joules"):
        assert found[name] == "None", name


def test_availability_follows_the_last_will() -> None:
    (availability,) = discovery(ADDRESS, "")["availability"]  # type: ignore[misc]
    assert availability["topic"] == f"{ROOT}/conn"
    assert rendered(availability["value_template"], {"online": True}) == "online"
    assert rendered(availability["value_template"], {"online": False}) == "offline"


def test_jinja_itself_reads_the_templates_as_we_do(tmp_path: Path) -> None:
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    said = json.loads(json.dumps(groups(tmp_path)))
    for name, part in components().items():
        payload = said[part["state_topic"]]
        told = environment.from_string(part["value_template"]).render(value_json=payload, value=json.dumps(payload))
        assert told == rendered(part["value_template"], payload), name


# --- keeping it on the broker ----------------------------------------------------------------------------------------


class Broker:
    """Keeps what is retained; there or not, confirming or not."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.publications = 0
        self.there, self.confirms = True, True
        self.heard: dict[str, Callable[[bytes], None]] = {}

    def publish_beside(self, topic: str, payload: bytes) -> asyncio.Future[bool] | None:
        if not self.there:
            return None
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        done.set_result(self.confirms)
        if self.confirms:
            self.publications += 1
            self.retained[topic] = payload
            if not payload:
                del self.retained[topic]
        return done

    def listen_beside(self, topic: str, told: Callable[[bytes], None]) -> None:
        self.heard[topic] = told


class House:
    """A board's announcement on a journal of its own."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.broker = folder, broker
        self.journal = Journal.open(folder / "journal.sqlite", 0.0).journal

    async def run(self, settings: HomeAssistant, ticks: int = 5) -> Announcement:
        made = Announcement(settings, ADDRESS, "", self.journal, self.broker)
        await self.ticks(made, ticks)
        return made

    async def ticks(self, made: Announcement, ticks: int = 5) -> None:
        for _ in range(ticks):
            made.tick()
            await asyncio.sleep(0)


def played(tmp_path: Path, play: Callable[[House, Broker], Any]) -> None:
    broker = Broker()
    asyncio.run(play(House(tmp_path, broker), broker))


def test_it_is_published_once_and_again_when_home_assistant_starts_or_the_broker_is_back(tmp_path: Path) -> None:
    async def play(house: House, broker: Broker) -> None:
        made = await house.run(ON)
        assert list(broker.retained) == [TOPIC]
        assert broker.publications == 1
        broker.heard["homeassistant/status"](b"offline")
        await house.ticks(made)
        assert broker.publications == 1
        broker.heard["homeassistant/status"](b"online")
        await house.ticks(made)
        assert broker.publications == 2
        broker.retained.clear()
        made.connected()
        await house.ticks(made)
        assert list(broker.retained) == [TOPIC]

    played(tmp_path, play)


def test_switched_off_or_moved_it_is_taken_away_also_after_a_time_without_a_broker(tmp_path: Path) -> None:
    async def play(house: House, broker: Broker) -> None:
        await house.run(ON)
        broker.there = False
        off = await house.run(HomeAssistant())
        assert list(broker.retained) == [TOPIC]
        broker.there, broker.confirms = True, False
        await house.ticks(off)
        assert list(broker.retained) == [TOPIC], "not confirmed: tried again"
        broker.confirms = True
        await house.ticks(off)
        assert broker.retained == {}
        publications = broker.publications
        await house.run(HomeAssistant())
        assert broker.publications == publications, "nothing is left to take away"
        await house.run(ON)
        await house.run(HomeAssistant(enabled=True, prefix="house/found"))
        assert list(broker.retained) == ["house/found/device/temperd-default-board-1/config"]

    played(tmp_path, play)


def test_a_board_that_never_had_it_publishes_nothing_and_listens_to_nobody(tmp_path: Path) -> None:
    async def play(house: House, broker: Broker) -> None:
        await house.run(HomeAssistant())
        assert broker.publications == 0
        assert broker.heard == {}

    played(tmp_path, play)


@pytest.mark.parametrize("prefix", ["", "a//b", "/a", "a/", "a/+", "#", "temper", "temper/v1", "with space", "ä"])
def test_no_prefixes(prefix: str) -> None:
    with pytest.raises(TableError, match="prefix"):
        HomeAssistant(prefix=prefix)


def test_cbor_is_refused_because_templates_cannot_read_it(tmp_path: Path) -> None:
    path = tmp_path / "temperd.toml"
    text = '[device]\nname = "a"\n[repository]\nurl = "http://x"\n[home_assistant]\nenabled = true\n[telemetry]\n'
    path.write_text(text + 'format = "json"\n')
    assert load_config(path).home_assistant.enabled
    path.write_text(text + 'format = "cbor"\n')
    with pytest.raises(ConfigError, match="reads JSON alone") as refused:
        load_config(path)
    assert "home_assistant.enabled" in str(refused.value)
