"""A real daemon behind a bad network, and what a test asks about it: on the disk, in the journal and on the wire."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.errors import TemperdError
from service.commands import Request, sign_command
from service.journal import Journal
from service.live import live_folder, read_live
from tests.simulators.fleet import DEVICE, ROOT, World, world
from tests.simulators.proxy import Proxy, Wanted, published

TOPICS = f"temper/v1/default/{DEVICE}"
HASTY = (str(ROOT / "tests" / "simulators" / "hasty_daemon.py"),)
SLOWLY_S = 60.0
NO_JOB = "01a22c9f-6dd9-7cf1-86fb-2ab4c0be8330"


class Anybody:
    """A plain client of the broker, for what no console of ours does; `keeps`: it takes up a session and leaves it."""

    def __init__(self, port: int, client_id: str = "", *, keeps: bool = False, **user: str) -> None:
        version = CallbackAPIVersion.VERSION2
        self.heard: list[mqtt.MQTTMessage] = []
        self._client = mqtt.Client(version, client_id, protocol=mqtt.MQTTv5, manual_ack=False)
        self._client.max_queued_messages_set(0)
        if user:
            self._client.username_pw_set(user["name"], user["password"])
        self._client.on_message = lambda _client, _data, message: self.heard.append(message)
        session = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho left it untyped
        session.SessionExpiryInterval = 3600 if keeps else 0
        self._client.connect("127.0.0.1", port, clean_start=not keeps, properties=session)
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def say(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        """Publish at QoS 1, and return when the broker has it."""
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(SLOWLY_S)

    def listen(self, *filters: str) -> None:
        """Hear these topics too."""
        self._client.subscribe([(one, 1) for one in filters])

    def kept(self, *filters: str) -> dict[str, bytes]:
        """What the broker retains there."""
        mark = f"mark/{time.monotonic_ns()}"
        self.listen(*filters, mark)
        self.say(mark, b"", retain=False)  # the broker works in order
        end = time.monotonic() + SLOWLY_S
        while not any(message.topic == mark for message in self.heard):
            assert time.monotonic() < end
            time.sleep(0.01)
        self._client.unsubscribe([*filters, mark])
        return {message.topic: message.payload for message in list(self.heard) if message.retain}


class FarBoard:
    """A world, and the network between its daemon and its broker."""

    def __init__(self, made: World, network: Proxy) -> None:
        self.world, self.network = made, network

    def start(self) -> None:
        """Start the daemon and wait until it is connected."""
        self.world.start(HASTY)
        self.world.wait(lambda: self.live().get("connected"))

    # --- commands ----------------------------------------------------------------------------------------------------

    def request(self, kind: str = "cancel", args: dict[str, object] | None = None) -> tuple[Request, bytes]:
        """A signed command. As it stands, one that is refused for good: there is no such job."""
        request = self.world.request(kind, {"job": NO_JOB} if args is None else args)
        return request, sign_command(request, self.world.console_key)

    def waiting_job(self) -> tuple[Request, bytes]:
        """One that is accepted and then waits for hours."""
        hour = time.localtime().tm_hour
        window = f"{(hour + 12) % 24:02}:00-{(hour + 13) % 24:02}:00"
        return self.request("fine-tune", self.world.job("no-such-data") | {"window": window})

    def post(self, asked: tuple[Request, bytes]) -> None:
        """Leave a command at the broker, retained, and do not wait for what comes of it."""
        with Anybody(self.world.broker.port) as anybody:
            anybody.say(self.req(asked[0]), asked[1])

    def ask(self, kind: str, args: dict[str, object]) -> dict[str, Any]:
        """Send a command; the status with which it ended."""
        asked = self.request(kind, args)
        self.post(asked)
        return self.told(asked[0], "succeeded", "rejected", "failed")

    @staticmethod
    def req(request: Request) -> str:
        """Its topic."""
        return f"{TOPICS}/cmd/{request.type}/{request.id}/req"

    # --- on the wire -------------------------------------------------------------------------------------------------

    def statuses(self, request: Request) -> list[dict[str, Any]]:
        """All that was said of a command, in order, also more than once."""
        return [json.loads(heard.payload) for heard in self.heard(f"/{request.id}/sts")]

    def told(self, request: Request, *wanted: str) -> dict[str, Any]:
        """The newest status among `wanted`, once there is one."""
        found = self.world.wait(lambda: [body for body in self.statuses(request) if body["status"] in wanted])
        return dict(found[-1])

    def heard(self, end: str) -> list[Any]:
        """All messages on a topic that ends so."""
        assert self.world.tap is not None
        return [heard for heard in list(self.world.tap.heard) if heard.topic.endswith(end) and heard.payload]

    def passes(self, wanted: Wanted, way: Any = "up") -> int:
        """How many such packets passed the network so far."""
        return len(self.network.find(wanted, way))

    # --- on the board ------------------------------------------------------------------------------------------------

    def ledger(self) -> dict[str, str]:
        """Outcomes of all commands by id, their sentences left out."""
        journal = Journal.peek(self.world.state / "journal.sqlite")
        try:
            rows = journal._db.execute("SELECT id, outcome FROM ledger").fetchall()
            return {row["id"]: ":".join(row["outcome"].split(":")[:2]) for row in rows}
        finally:
            journal.close()

    def live(self, section: str = "link") -> dict[str, Any]:
        """A part of the daemon's live view; empty while there is none."""
        try:
            view: dict[str, Any] = read_live(live_folder(self.world.state), time.monotonic())
        except TemperdError:
            return {}
        return dict(view[section])

    def count(self, said: bytes) -> int:
        """How often the daemon's log has it."""
        return self.world.log().count(said)

    def reconnected(self, connections: int) -> None:
        """Wait until the daemon has greeted more often than that."""
        self.world.wait(lambda: self.passes(published("/birth")) > connections)

    def obeys(self) -> None:
        """It lives, takes a command and answers it, and the ledger has kept all of before."""
        before = self.ledger()
        asked = self.request()
        self.post(asked)
        assert self.told(asked[0], "rejected")["reason_code"] == "wrong-state"
        assert self.world.daemon is not None
        assert self.world.daemon.poll() is None
        assert self.ledger() == before | {asked[0].id: "rejected:wrong-state"}


@contextmanager
def far_board(
    folder: Path, *, broker: str = "", mqtt: str = "", config: str = "", target: int = 0, started: bool = True
) -> Iterator[FarBoard]:
    """One board behind a proxy.

    Args:
        folder: of its world.
        broker: lines of mosquitto's configuration.
        mqtt: lines of the section of that name in the daemon's.
        config: further sections.
        target: port of the broker where the daemon is let in, when it is not the one for everybody.
        started: whether it runs already.
    """
    with world(folder, started=False) as made, Proxy(target or made.broker.port) as network:
        made.broker.stop()
        with (folder / "mosquitto.conf").open("a") as lines:
            lines.write(broker)
        made.broker.start()
        text = made.config.read_text().replace(f"port = {made.broker.port}\n", f"port = {network.port}\n{mqtt}")
        made.config.write_text(text + config)
        board = FarBoard(made, network)
        if started:
            board.start()
        try:
            yield board
        finally:
            network.heal()
            if made.daemon is not None and made.daemon.poll() is None:
                made.kill()  # before its network goes
