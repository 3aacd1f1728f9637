"""Listens on a broker to everything below `temper/v1` and holds it against docs/asyncapi.yaml.

By hand: python -m tests.simulators.wiretap PORT
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.simulators.schemas import message_faults, read, request_faults

RETRY_S = 0.05
DRAIN_S = 60.0
REQUEST = re.compile(r"temper/v1/[^/]+/[^/]+/cmd/[^/]+/([^/]+)/req")
STATUS = re.compile(r"temper/v1/[^/]+/[^/]+/cmd/[^/]+/([^/]+)/sts")
MARK = "wiretap/"


@dataclass(frozen=True, slots=True)
class Heard:
    """One publication."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str | None


class Wiretap:
    """Listens from `start` to `stop`, over restarts of the broker."""

    def __init__(self, port: int, user: str = "", password: str = "") -> None:
        self.heard: list[Heard] = []
        self.listened = False
        self._port = port
        self._listening, self._marks = threading.Event(), {""}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, f"wiretap-{time.monotonic_ns()}", protocol=mqtt.MQTTv5)
        if user:
            self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(RETRY_S, RETRY_S)  # type: ignore[arg-type]  # typed int, used as seconds
        self._client.on_connect = self._connected
        self._client.on_subscribe = self._subscribed
        self._client.on_disconnect = lambda *_: self._listening.clear()
        self._client.on_message = self._hear

    def start(self) -> None:
        """Listen as soon as there is a broker."""
        self._client.connect_async("127.0.0.1", self._port)
        self._client.loop_start()

    def wait(self, seconds: float = DRAIN_S) -> bool:
        """Whether it listens, within a time."""
        return self._listening.wait(seconds)

    def stop(self) -> None:
        """Listen no more, once all that the broker has taken so far is here."""
        if self._listening.is_set():
            mark = f"{MARK}{time.monotonic_ns()}"
            self._client.publish(mark, qos=1)
            end = time.monotonic() + DRAIN_S
            while mark not in self._marks and self._listening.is_set() and time.monotonic() < end:
                time.sleep(0.01)
        self._client.disconnect()
        self._client.loop_stop()

    def faults(self) -> list[str]:
        """What was wrong with what was said; of commands only those that the device accepted are judged."""
        accepted = self._accepted()
        return [f"{heard.topic}: {fault}" for heard in self.heard for fault in self._faults(heard, accepted)]

    def _faults(self, heard: Heard, accepted: set[bytes]) -> Iterator[str]:
        if REQUEST.fullmatch(heard.topic) is None:
            yield from message_faults(
                heard.topic, heard.payload, heard.content_type, qos=heard.qos, retain=heard.retain
            )
        elif heard.payload and heard.payload in accepted:
            yield from request_faults(heard.payload)

    def _accepted(self) -> set[bytes]:
        """Requests of commands that were not refused, where an id came with one content only."""
        asked: dict[str, set[bytes]] = {}
        answers: dict[str, set[object]] = {}
        for heard in self.heard:
            if found := REQUEST.fullmatch(heard.topic):
                asked.setdefault(found[1], set()).add(heard.payload)
            elif (found := STATUS.fullmatch(heard.topic)) and heard.payload:
                answers.setdefault(found[1], set()).add(_status(heard))
        obeyed = [name for name, told in answers.items() if "rejected" not in told]
        return {body for name in obeyed for body in asked.get(name, set()) if len(asked[name] - {b""}) == 1}

    def _connected(self, client: mqtt.Client, *_: object) -> None:
        options = SubscribeOptions(qos=1, retainAsPublished=True)  # else every live message comes without its flag
        client.subscribe([("temper/v1/#", options), (f"{MARK}#", options)])

    def _subscribed(self, *_: object) -> None:
        self.listened = True
        self._listening.set()

    def _hear(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        if message.topic.startswith(MARK):
            self._marks.add(message.topic)
            return
        told = getattr(message.properties, "ContentType", None)
        self.heard.append(Heard(message.topic, bytes(message.payload), message.qos, message.retain, told))


def _status(heard: Heard) -> object:
    try:
        body = read(heard.topic, heard.payload, heard.content_type)
    except ValueError:
        return None  # complained of where it is judged
    return body.get("status") if isinstance(body, dict) else None


def main() -> int:
    """Listen until Ctrl-C and show what is wrong."""
    tap = Wiretap(int(sys.argv[1]))
    tap.start()
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        tap.stop()
    for fault in (found := tap.faults()):
        print(fault)  # noqa: T201 - run by hand
    print(f"{len(tap.heard)} messages, {len(found)} faults")  # noqa: T201 - same
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
