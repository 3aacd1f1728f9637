"""Who may read and write everything on a broker: boards that were never there, and what no board would say."""

from __future__ import annotations

import json

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

WAIT_S = 60.0
ROOT = "temper/v1/default"


class Stranger:
    """A client of the broker on loopback that writes below any board's root."""

    def __init__(self, port: int) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.prepare(self._client)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def prepare(self, client: mqtt.Client) -> None:
        """Before it connects: what else is to be heard."""

    def say(self, topic: str, body: object, *, retain: bool = True) -> None:
        """Publish JSON, or bytes as they are, and wait for the broker's word."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._client.publish(f"{ROOT}/{topic}", payload, qos=1, retain=retain).wait_for_publish(WAIT_S)

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()
