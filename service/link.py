"""MQTT 5: a connection that comes back by itself.

Everything runs on the event loop but the making of a socket, which a worker thread does: one process holds thousands
of connections, and an idle one wakes twice a keepalive. What the broker confirmed is the journal's business: nothing
is kept in memory across a lost connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from service import link_faults
from service.config import Mqtt
from service.footprint import without_web_client
from service.link_client import MAX_PACKET_BYTES, MAX_UNSENT, Client, properties_of_publication
from service.link_pace import LONGEST_DELAY_S, Pace, uniform
from service.link_refusals import Refusals
from service.logs import logger

with without_web_client():
    from paho.mqtt import client as mqtt
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions

__all__ = ["CONNECT_LIMIT_S", "GRACE_S", "LONGEST_DELAY_S", "MAX_PACKET_BYTES", "Connection", "Message", "Will"]

MAX_IN_FLIGHT = 20  # publications unconfirmed at once; fewer where the broker says so
MAX_PUBLISH_BYTES = 256 << 10  # a status with its result has a few KB
MAX_TOPIC_BYTES = 1024  # with the properties; ours have less than 200: they count towards a broker's largest packet
CONNECT_LIMIT_S = 30.0  # a broker may not hold us for ever with a byte now and then
GRACE_S = 2.0  # for the farewell to leave; after it the socket is closed

Retained: TypeAlias = Literal["sent", "once", "never"]
_HANDLING: Mapping[Retained, int] = {
    "sent": SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
    "once": SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
    "never": SubscribeOptions.RETAIN_DO_NOT_SEND,
}

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
    content_type: str = ""


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
        on_trouble: called on the loop when the reason for which there is no connection changes.
        jitter: draws a delay between two bounds, seconds; uniform by default.
        limit_s: how long one attempt may take, from the first packet to the broker's answer.

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
        on_trouble: Callable[[str], None] | None = None,
        jitter: Callable[[float, float], float] | None = None,
        limit_s: float = CONNECT_LIMIT_S,
    ) -> None:
        self._settings, self._will = settings, will
        self._on_up, self._on_down, self._on_message = on_up, on_down, on_message
        self._on_trouble = on_trouble or (lambda _why: None)
        self._limit_s, self._contested = limit_s, False
        self._pace = Pace(jitter or uniform)
        self.connected, self._stopping = False, False
        self.why = "not tried yet"
        """Why there is no connection; empty while there is one."""
        self.epoch = 0
        """Rises with every connection made and every connection lost."""
        self.connections, self.losses, self.takeovers = 0, 0, 0
        """Made; lost; of these to another client with our id."""
        self.refusals = Refusals()
        """Publications and subscriptions that the broker did not allow, or that were longer than it takes."""
        self._unconfirmed: dict[int, tuple[asyncio.Future[bool], str]] = {}
        self._unsent: set[int] = set()
        self._most_bytes = MAX_PUBLISH_BYTES
        self._refused, self._answer = "", False
        self._retry: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._client = client = Client(settings, client_id, keep_session=keep_session)
        client.on_connect = self._answered
        client.on_disconnect = self._disconnected
        client.on_message = self._received
        client.on_publish = self._published
        client.on_subscribe = self._subscribed

    @property
    def unconfirmed(self) -> int:
        """Publications that the broker has not confirmed, or that have not left."""
        return len(self._unconfirmed) + len(self._unsent)

    @property
    def most_bytes(self) -> int:
        """The longest payload that the broker takes."""
        return self._most_bytes

    def start(self) -> None:
        """Begin connecting; call on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._dial()

    async def stop(self) -> None:
        """Disconnect without the last will."""
        self._stopping = True
        self._cancel(self._retry)
        self._cancel(self._limit)
        if self._dialling is not None:
            self._client.abort()
            await asyncio.wait([self._dialling], timeout=GRACE_S)
        if self._client.open:
            self._gone = self._loop.create_future()
            self._client.disconnect()
            await asyncio.wait([self._gone], timeout=GRACE_S)
            self._client.end(None)
        await asyncio.sleep(0)  # what was put on the loop last is run before the caller goes on
        self._drop()

    def subscribe(self, topic_filter: str, *, qos: int = 1, retained: Retained = "sent") -> None:
        """Ask for a topic filter; call after each connect that knew no session.

        Retained messages come with it; with `once` only where the filter is new to the session, with `never` not at
        all. What the broker refuses is asked for again each keepalive.
        """
        self._client.ask(topic_filter, SubscribeOptions(qos=qos, retainHandling=_HANDLING[retained]))

    def listen(self, *, on: bool) -> None:
        """Take no more messages for now, or again; a new connection begins with taking them.

        For who is behind: a broker may send more than the receive maximum (mosquitto 2.0.11 does, once the first
        acknowledgements came), and of QoS 0 as much as it likes.
        """
        self._client.listen(on=on)

    def unsubscribe(self, topic_filter: str) -> None:
        """Ask for a topic filter no more; what the broker has queued for it still comes."""
        self._client.unsubscribe(topic_filter)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = True,
        expires_s: int = 0,
        content_type: str = "",
    ) -> asyncio.Future[bool]:
        """Publish at QoS 1.

        Returns:
            A future that gives True when the broker confirmed, False when it refused or the connection was lost
            before: then nobody sends it again but the caller. It never raises.
        """
        done: asyncio.Future[bool] = self._loop.create_future()
        if not self.connected or len(payload) > self._most_bytes:
            if self.connected:
                self.refusals.add("publication", topic, f"{len(payload)} bytes, at most {self._most_bytes} are taken")
            done.set_result(False)
            return done
        properties = properties_of_publication(expires_s, content_type)
        info = self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)
        if info.rc == mqtt.MQTT_ERR_SUCCESS:
            self._unconfirmed[info.mid] = (done, topic)
        else:
            done.set_result(False)
        return done

    def publish_lossy(self, topic: str, payload: bytes, *, content_type: str = "") -> bool:
        """Publish at QoS 0; False when it was dropped because we are offline or the connection stalls."""
        if not self.connected or len(self._unsent) >= MAX_UNSENT or len(payload) > self._most_bytes:
            return False
        properties = properties_of_publication(0, content_type)
        info = self._client.publish(topic, payload, qos=0, properties=properties)
        if info.rc != mqtt.MQTT_ERR_SUCCESS:
            return False
        self._unsent.add(info.mid)
        return True

    def ack(self, message: Message) -> None:
        """Take responsibility for a message: the broker forgets it. Without effect after its connection was lost."""
        if message.qos == 1 and message.epoch == self.epoch:
            self._client.ack(message.mid, message.qos)

    def contest(self) -> None:
        """Another client used our id while we were away: old brokers do not tell. The next loss is its doing."""
        self.takeovers += 1
        self._contested = True

    # --- connecting --------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self._retry, self._refused, self._answer = None, "", False
        self.epoch += 1
        self._client.aim(None if self._will is None else self._will(self.epoch))
        self._dialling = self._loop.run_in_executor(None, self._make_socket)
        self._dialling.add_done_callback(self._dialled)

    def _make_socket(self) -> None:
        """In a worker thread. The limit counts from here: with many connections a thread is waited for."""
        self._loop.call_soon_threadsafe(self._start_limit)
        self._client.make_socket()

    def _start_limit(self) -> None:
        if self._dialling is not None and not self._stopping:
            self._limit = self._loop.call_later(self._limit_s, self._overdue)

    def _overdue(self) -> None:
        self._client.abort(TimeoutError())

    def _dialled(self, dialled: asyncio.Future[None]) -> None:
        self._dialling = None
        error = dialled.exception()
        if error is None and not self._stopping:
            self._client.begin(self._loop)
            return
        self._client.discard()
        self._cancel(self._limit)
        if error is not None and not self._stopping:
            self._down(link_faults.of_making(self._client.fault or error, self._settings), taken_over=False)

    def _answered(
        self,
        client: mqtt.Client,
        _userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._cancel(self._limit)
        self._answer = True
        if reason.is_failure:
            self._refused = link_faults.of_reason(reason.value, str(reason))
        elif getattr(properties, "MaximumQoS", 1) < 1:
            self._refused = link_faults.NO_QOS_1
        elif not getattr(properties, "RetainAvailable", 1):
            self._refused = link_faults.NO_RETAIN
        if self._refused:
            client.disconnect()
            return
        self._client.serve(min(MAX_IN_FLIGHT, getattr(properties, "ReceiveMaximum", MAX_IN_FLIGHT)))
        most = getattr(properties, "MaximumPacketSize", 2 * MAX_PUBLISH_BYTES)
        self._most_bytes = max(0, min(MAX_PUBLISH_BYTES, most - MAX_TOPIC_BYTES))
        self._pace.connected(self._loop.time())
        self._loop.call_soon(self._up, self.epoch, flags.session_present)

    def _up(self, epoch: int, session_present: bool) -> None:  # noqa: FBT001 - called through the loop only
        if epoch != self.epoch or self._stopping:
            return
        self.connected, self.why = True, ""
        self.connections += 1
        self.refusals.begin()
        log.info("connected", host=self._settings.host, port=self._settings.port, session_present=session_present)
        self._on_up(session_present)

    def _disconnected(
        self,
        _client: mqtt.Client,
        _userdata: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode | None,
        _properties: Properties | None,
    ) -> None:
        self.epoch += 1  # acknowledgements of this connection are void from here on
        self._cancel(self._limit)
        told = reason is not None and flags.is_disconnect_packet_from_server
        fault = self._client.fault
        if self._refused:
            why = self._refused
        elif told and reason is not None:
            why = link_faults.of_reason(reason.value, str(reason))
        elif self._contested and fault is None:
            why = link_faults.of_reason(link_faults.TAKEN_OVER, "")
        elif fault is None or (isinstance(fault, ConnectionResetError) and not self._answer):
            why = link_faults.BROKE if self._answer else link_faults.NO_BROKER
        else:
            why = link_faults.of_error(fault, self._settings.host, self._settings.port)
        taken_over = told and reason is not None and reason.value == link_faults.TAKEN_OVER
        self._loop.call_soon(lambda: self._down(why, taken_over=taken_over))

    def _down(self, why: str, *, taken_over: bool) -> None:
        was, self.connected = self.connected, False
        self._drop()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        self.takeovers += taken_over
        if not self._stopping:
            self._tell(why, lost=was)
            now = self._loop.time()
            yields, self._contested = taken_over or (was and self._contested), self._contested and not was
            delay = self._pace.after_takeover(now) if yields else self._pace.after_loss(now)
            self._retry = self._loop.call_later(delay, self._dial)
        if was:
            self.losses += 1
            self._on_down(why)

    def _tell(self, why: str, *, lost: bool) -> None:
        """A warning once a reason, not once an attempt: a broker may be away for weeks."""
        changed, self.why = why != self.why, why
        tell = log.warning if changed else log.debug
        tell("connection lost" if lost else "no connection, trying on", host=self._settings.host, reason=why)
        if changed:
            self._on_trouble(why)

    # --- packets -----------------------------------------------------------------------------------------------------

    def _received(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        about = (message.qos, message.retain, message.mid, self.epoch, getattr(message.properties, "ContentType", ""))
        self._loop.call_soon(self._on_message, Message(topic, bytes(message.payload), *about))

    def _published(
        self, _client: mqtt.Client, _userdata: object, mid: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._unsent.discard(mid)
        waiting, topic = self._unconfirmed.pop(mid, (None, ""))
        self._judged("publication", topic, reason)
        if waiting is not None and not waiting.done():
            waiting.set_result(not reason.is_failure)

    def _subscribed(
        self, _client: mqtt.Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: Properties
    ) -> None:
        for reason in reasons:  # one: we ask for one filter at a time
            self._judged("subscription", self._client.answer(mid, granted=not reason.is_failure), reason)

    def _judged(self, what: str, topic: str, reason: ReasonCode) -> None:
        if reason.is_failure:
            self.refusals.add(what, topic, str(reason))
        else:
            self.refusals.allowed(topic)

    # --- ending ------------------------------------------------------------------------------------------------------

    def _drop(self) -> None:
        self._unsent.clear()
        waiting, self._unconfirmed = self._unconfirmed, {}
        for future, _topic in waiting.values():
            if not future.done():
                future.set_result(False)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
