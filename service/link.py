"""MQTT 5: the only module that talks to a broker.

paho's network thread hands everything over to the event loop; all state here is changed on the loop alone. What the
broker confirmed is the journal's business: nothing is kept in memory across a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agent.errors import BoardError, ConfigError
from agent.keys_files import OPEN_TO_ALL, check_mode
from service.config import Mqtt
from service.footprint import without_web_client
from service.logs import logger

with without_web_client():
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0  # a fleet coming back after a broker restart spreads over a minute
SESSION_EXPIRY_S = 7 * 86400  # the broker keeps our subscriptions over a week offline; requests are retained anyway
RECEIVE_MAXIMUM = 20  # unacknowledged commands: beyond it the broker waits, so a flood costs us no memory
MAX_PACKET_BYTES = 128 << 10  # the broker drops what is larger: an envelope of 64 KiB and its topic fit
MAX_UNSENT = 100  # publications in flight: beyond it a stalled connection would fill memory
MAX_PUBLISH_BYTES = 256 << 10  # a status with its result has a few KB
MAX_PASSWORD_BYTES = 4096
GRACE_S = 2.0  # for the farewell to leave; after it the socket is closed

log = logger("link")


@dataclass(frozen=True, slots=True)
class Message:
    """One received publication."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    mid: int
    epoch: int
    """Which connection it came by: an acknowledgement on a later one would name another message."""


class Will(NamedTuple):
    """What the broker publishes for us, retained, when we vanish."""

    topic: str
    payload: bytes


class Connection:
    """A connection that comes back for ever; starting without a broker is fine.

    Args:
        settings: broker, credentials and TLS.
        client_id: two clients with one id throw each other out.
        keep_session: the broker keeps subscriptions and undelivered messages over a lost connection.
        will: makes the last will for the connection of that epoch, or `None`.
        on_up: called on the loop after each connect, with whether the broker still knew our session.
        on_down: called on the loop after each loss of a connection, with the reason.
        on_message: called on the loop; the message stays with the broker until `ack`.
        jitter: draws a delay between two bounds, seconds; uniform by default.

    Raises:
        ConfigError: a certificate, key or password file cannot be used.
    """

    def __init__(
        self,
        settings: Mqtt,
        client_id: str,
        *,
        keep_session: bool,
        will: Callable[[int], Will] | None = None,
        on_up: Callable[[bool], None],
        on_down: Callable[[str], None],
        on_message: Callable[[Message], None],
        jitter: Callable[[float, float], float] | None = None,
    ) -> None:
        self._settings, self._will = settings, will
        self._jitter = jitter or random.SystemRandom().uniform
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._keep_session = keep_session
        self.connected, self._stopping = False, False
        self.epoch = 0
        """Rises with every connection made and every connection lost."""
        self._failures = 0
        self._fence = threading.Lock()
        self._unconfirmed: dict[int, asyncio.Future[bool]] = {}
        self._unsent: set[int] = set()
        self._client = self._make_client(client_id)

    def _make_client(self, client_id: str) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, manual_ack=True)
        client.max_queued_messages_set(MAX_UNSENT)
        if self._settings.username:
            client.username_pw_set(self._settings.username, _password(self._settings.password_file))
        if self._settings.ca_file:
            client.tls_set_context(_tls(self._settings))
        client.on_pre_connect = self._before_connect
        client.on_socket_open = self._opened
        client.on_connect = self._connected
        client.on_connect_fail = self._failed
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._published
        return client

    def start(self) -> None:
        """Begin connecting; call on the running event loop."""
        self._loop = asyncio.get_running_loop()
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho left it untyped
        properties.SessionExpiryInterval = SESSION_EXPIRY_S if self._keep_session else 0
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        settings = self._settings
        self._client.connect_async(
            settings.host,
            settings.port,
            settings.keepalive_s,
            clean_start=not self._keep_session,
            properties=properties,
        )
        self._client.loop_start()

    async def stop(self) -> None:
        """Disconnect without the last will and end the thread."""
        self._stopping = True
        self._client.disconnect()
        ending = asyncio.ensure_future(asyncio.to_thread(self._client.loop_stop))
        while not (await asyncio.wait([ending], timeout=GRACE_S))[0]:
            self._break()
        await asyncio.sleep(0)  # what the thread handed over last is run before the caller goes on
        self._drop()

    def subscribe(self, topic_filter: str) -> None:
        """Ask for a topic filter at QoS 1, retained messages included."""
        self._client.subscribe(topic_filter, qos=1)

    def publish(self, topic: str, payload: bytes, *, retain: bool = True, expires_s: int = 0) -> asyncio.Future[bool]:
        """Publish at QoS 1.

        Returns:
            A future that gives True when the broker confirmed, False when it refused or the connection was lost
            before: then nobody sends it again but the caller. It never raises.
        """
        done: asyncio.Future[bool] = self._loop.create_future()
        if not self.connected or len(payload) > MAX_PUBLISH_BYTES:
            if self.connected:
                log.error("publication too large", topic=topic, bytes=len(payload))
            done.set_result(False)
            return done
        properties = _expiry(expires_s) if expires_s else None
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc == mqtt.MQTT_ERR_SUCCESS:
            self._unconfirmed[info.mid] = done
        else:
            done.set_result(False)
        return done

    def publish_lossy(self, topic: str, payload: bytes) -> bool:
        """Publish at QoS 0; False when it was dropped because we are offline or the connection stalls."""
        if not self.connected or len(self._unsent) >= MAX_UNSENT or len(payload) > MAX_PUBLISH_BYTES:
            return False
        info = self._client.publish(topic, payload, qos=0)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        self._unsent.add(info.mid)
        return True

    def ack(self, message: Message) -> None:
        """Take responsibility for a message: the broker forgets it. Without effect after its connection was lost."""
        with self._fence:
            if message.qos == 1 and message.epoch == self.epoch:
                self._client.ack(message.mid, message.qos)

    # Callbacks of paho's thread. They only hand over; an exception here would end the thread.

    def _before_connect(self, client: mqtt.Client, _userdata: object) -> None:
        with self._fence:
            self.epoch += 1
        if self._will is not None:
            will = self._will(self.epoch)
            client.will_set(will.topic, will.payload, qos=1, retain=True)

    def _opened(self, _client: mqtt.Client, _userdata: object, opened: object) -> None:
        # Nagle's algorithm (RFC 896) holds a small packet back until the broker's kernel acknowledges the one before,
        # which Linux puts off by 40 ms: a status would wait for the metrics sent just before.
        if isinstance(opened, socket.socket):
            with contextlib.suppress(OSError):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _connected(
        self,
        client: mqtt.Client,
        _userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        # paho would send what the last connection left unconfirmed after what we publish now: old over new.
        client.drop_out_messages()
        if reason.is_failure:
            self._hand_over(log.warning, "broker refused the connection", reason=str(reason))
            return
        self._failures = 0
        self._hand_over(self._up, flags.session_present)

    def _failed(self, _client: mqtt.Client, _userdata: object) -> None:
        tell = log.debug if self._failures else log.warning
        self._hand_over(tell, "no broker, trying on", host=self._settings.host, port=self._settings.port)
        self._choose_delay()

    def _disconnected(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        with self._fence:
            self.epoch += 1  # acknowledgements of this connection are void from here on
        self._choose_delay()
        self._hand_over(self._down, str(reason))

    def _received(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        payload = bytes(message.payload)
        self._hand_over(self._on_message, Message(topic, payload, message.qos, message.retain, message.mid, self.epoch))

    def _published(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        self._hand_over(self._confirm, mid, not reason.is_failure)

    def _choose_delay(self) -> None:
        """Full jitter (AWS Architecture Blog, 2015): uniform between 0 and a bound that doubles to its limit."""
        bound = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        delay = self._jitter(0.0, bound)
        self._client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]  # typed int, used as seconds

    def _hand_over(self, call: Callable[..., object], *args: object, **fields: object) -> None:
        try:
            self._loop.call_soon_threadsafe(lambda: call(*args, **fields))
        except RuntimeError:
            return  # the loop is closed: nobody is left to tell

    # On the loop.

    def _up(self, session_present: bool) -> None:  # noqa: FBT001 - called through the hand-over only
        self.connected = True
        log.info("connected", host=self._settings.host, port=self._settings.port, session_present=session_present)
        self._on_up(session_present)

    def _down(self, reason: str) -> None:
        was, self.connected = self.connected, False
        self._drop()
        if was and not self._stopping:
            log.warning("connection lost", reason=reason)
        if was:
            self._on_down(reason)

    def _confirm(self, mid: int, accepted: bool) -> None:  # noqa: FBT001 - called through the hand-over only
        self._unsent.discard(mid)
        waiting = self._unconfirmed.pop(mid, None)
        if not accepted:
            log.warning("broker refused a publication", mid=mid)
        if waiting is not None and not waiting.done():
            waiting.set_result(accepted)

    def _drop(self) -> None:
        self._unsent.clear()
        waiting, self._unconfirmed = self._unconfirmed, {}
        for future in waiting.values():
            if not future.done():
                future.set_result(False)

    def _break(self) -> None:
        """End a connection that does not drain."""
        open_socket = self._client.socket()
        if isinstance(open_socket, socket.socket):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)


def _expiry(seconds: int) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho left it untyped
    properties.MessageExpiryInterval = seconds
    return properties


def _password(path: str) -> str | None:
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


def _check_private(path: str) -> None:
    """A secret that everybody may read is none; a group may, as the daemon often gets it from root that way."""
    try:
        check_mode(Path(path), OPEN_TO_ALL)
    except BoardError as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix, reason=error.code) from error


def _tls(settings: Mqtt) -> ssl.SSLContext:
    if settings.key_file:
        _check_private(settings.key_file)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert_file:
            context.load_cert_chain(
                settings.cert_file, settings.key_file, password=""
            )  # an encrypted key must not ask a terminal
    except (OSError, ssl.SSLError) as error:
        where = ", ".join(filter(None, (settings.ca_file, settings.cert_file, settings.key_file)))
        raise ConfigError(f"the TLS files cannot be used: {error}", where=where) from error
    return context
