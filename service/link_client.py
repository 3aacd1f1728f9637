"""paho on an event loop: sockets made beforehand, packets bounded, a keepalive that finds dead connections.

To be read together with paho 2.2 (`paho/mqtt/client.py`): what is overridden here is no part of its documented face.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from typing import Any

from service import link_faults
from service.config import Mqtt
from service.footprint import without_web_client
from service.link_secrets import password, tls_context
from service.logs import logger

with without_web_client():
    from paho.mqtt import client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.subscribeoptions import SubscribeOptions

MAX_PACKET_BYTES = 128 << 10  # the broker drops what is larger: an envelope of 64 KiB and its topic fit
MAX_FRAME_BYTES = 2 * MAX_PACKET_BYTES  # of a websocket: paho keeps a frame until its end
MAX_UNSENT = 100  # publications in flight: beyond it a stalled connection would fill memory
MAX_KERNEL_BYTES = 16 << 10  # that wait in the kernel to be sent: the telemetry of some seconds, so a stall shows early
READ_BYTES = 16 << 10  # taken from the socket at once: paho asks byte by byte
PACKETS_IN_A_ROW = 64  # of one connection before the others get their turn
STEP_LIMIT_S = 10.0  # for one step of connecting: an address, a TLS message, a byte of a websocket's answer
PING_AFTER, ANSWER_WITHIN = 0.8, 0.5  # parts of the keepalive: a dead connection is found after at most 1.3 of it
_QOS_BITS, _QOS_2 = 0xF6, 0x34  # of the first byte of a PUBLISH: we ask for QoS 1 at most

log = logger("link")


class Client(mqtt.Client):
    """One client; everything but `make_socket` and `abort` belongs to the loop's thread.

    Args:
        settings: broker, credentials and TLS.
        client_id: see MQTT 5, 3.1.3.1.
        keep_session: the broker keeps subscriptions and undelivered messages over a lost connection.

    Raises:
        ConfigError: a certificate, key or password file cannot be used.
    """

    def __init__(self, settings: Mqtt, client_id: str, *, keep_session: bool) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv5,
            transport="websockets" if settings.transport == "websockets" else "tcp",
            manual_ack=True,
        )
        self._settings, self._keep_session = settings, keep_session
        self.fault: BaseException | None = None
        """What ended the connection, as far as we noticed it."""
        self._raw: socket.socket | None = None
        self._made: Any = None
        self._inbox = memoryview(b"")
        self._fd, self._flushing, self._writing = -1, False, False
        self._heard, self._said = 0.0, 0.0
        self._pinged: float | None = None
        self._alive: asyncio.TimerHandle | None = None
        self._deaf, self._again = False, False
        self._asked: dict[int, tuple[str, SubscribeOptions]] = {}
        self.connect_timeout = STEP_LIMIT_S
        self.max_queued_messages_set(MAX_UNSENT)
        self.ws_set_options(settings.websocket_path)
        self.on_socket_register_write = self._want_write
        self.on_socket_close = self._closing
        self._read_secrets()

    # --- connecting --------------------------------------------------------------------------------------------------

    def aim(self, will: tuple[str, bytes] | None) -> None:
        """Get ready for a new connection: nothing of the last one is kept.

        paho would send what the last connection left unconfirmed after what is published on this one: old over new.
        """
        self.drop_out_messages()
        self.fault, self._raw, self._made, self._inbox = None, None, None, memoryview(b"")
        self._asked.clear()
        settings = self._settings
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho left it untyped
        properties.SessionExpiryInterval = settings.session_expiry_s if self._keep_session else 0
        properties.ReceiveMaximum = settings.receive_maximum
        properties.MaximumPacketSize = MAX_PACKET_BYTES
        clean = not self._keep_session
        self.connect_async(settings.host, settings.port, settings.keepalive_s, clean_start=clean, properties=properties)
        if will is not None:
            self.will_set(*will, qos=1, retain=True)

    def make_socket(self) -> None:
        """Name service, TCP, TLS and the websocket's handshake; blocks, so call it in a thread.

        Raises:
            OSError, ConfigError: there is no connection.
        """
        self._read_secrets()
        self._made = super()._create_socket()

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say CONNECT on the socket made, and serve it from now on."""
        self._events = loop
        self.reconnect()
        made = self.socket()
        if made is not None:
            self._fd, self._deaf = made.fileno(), False
            loop.add_reader(self._fd, self._readable)

    def listen(self, *, on: bool) -> None:
        """Read no more, or again: what comes meanwhile fills the kernel's buffers and the broker's, not our memory."""
        if self._deaf is not on or self._fd < 0:
            return
        self._deaf = not on
        if on:
            self._events.add_reader(self._fd, self._readable)
            self._readable()  # what was read before and not looked at
        else:
            self._events.remove_reader(self._fd)

    def ask(self, topic_filter: str, options: SubscribeOptions) -> None:
        """Subscribe; `answer` is to be told what the broker says."""
        _, mid = self.subscribe(topic_filter, options=options)
        if mid is not None:
            self._asked[mid] = (topic_filter, options)

    def answer(self, mid: int, *, granted: bool) -> str:
        """The filter that the broker answers; what it refuses is asked for again after a keepalive."""
        topic_filter, options = self._asked.pop(mid, ("", None))
        if options is not None and not granted:
            self._events.call_later(self._period(), self._ask_again, self._sock, topic_filter, options)
        return topic_filter

    def _ask_again(self, made: object, topic_filter: str, options: SubscribeOptions) -> None:
        if made is self._sock and self._fd >= 0:
            self.ask(topic_filter, options)

    @property
    def open(self) -> bool:
        """Whether there is a socket, connected or about to be."""
        return self._fd >= 0

    def serve(self, most_in_flight: int) -> None:
        """The broker let us in: watch that it stays there, and keep to its limit of unconfirmed publications."""
        self._max_inflight_messages = most_in_flight
        self._heard = self._said = self._events.time()
        self._pinged = None
        self._watch(PING_AFTER * self._period())

    def abort(self, fault: BaseException | None = None) -> None:
        """Break the connection, also while it is being made: whoever waits for it is told."""
        self.fault = self.fault or fault
        raw = self._raw
        if raw is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(raw, socket.SHUT_RDWR)  # a TLS socket's own would touch what a thread uses

    def discard(self) -> None:
        """Close a socket that was made and is not wanted."""
        if self._raw is not None:
            self._raw.close()
        self._raw, self._made = None, None

    def end(self, fault: BaseException | None) -> None:
        """Close the connection now, without a farewell."""
        if self._sock is not None:
            self.fault = self.fault or fault
            self._loop_rc_handle(MQTTErrorCode.MQTT_ERR_CONN_LOST)

    def _read_secrets(self) -> None:
        settings = self._settings
        if settings.username:
            self.username_pw_set(settings.username, password(settings.password_file))
        self._ssl_context = None  # the one before holds authorities too
        self._ssl_context = tls_context(settings)
        self._ssl = self._ssl_context is not None

    def _create_socket(self) -> Any:  # noqa: ANN401 - a socket or something like one
        return self._made

    def _create_socket_connection(self) -> socket.socket:
        where: Any = (_spelled(self._host), self._port)  # the name as bytes is not in the library's annotations
        made = self._raw = socket.create_connection(where, timeout=STEP_LIMIT_S)
        # Nagle's algorithm (RFC 896) holds a small packet back until the broker's kernel acknowledges the one before,
        # which Linux puts off by 40 ms: a status would wait for the metrics sent just before.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Else the kernel takes megabytes that it cannot send: an hour of telemetry, with a status behind it.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_KERNEL_BYTES)
        return made

    def _ssl_wrap_socket(self, tcp_sock: socket.socket) -> ssl.SSLSocket:
        context = self._ssl_context
        if context is None:
            raise ValueError("no TLS asked for")
        made = context.wrap_socket(tcp_sock, server_hostname=_spelled(self._host), do_handshake_on_connect=False)
        self._raw = made
        made.settimeout(STEP_LIMIT_S)
        made.do_handshake()
        return made

    # --- packets -----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._heard = self._events.time()
        for _ in range(PACKETS_IN_A_ROW):
            try:
                self.loop_read()
            except Exception as error:  # noqa: BLE001 - paho lets malformed packets raise whatever they caused
                log.warning("packet refused", why=repr(error))
                self.end(ConnectionError(link_faults.NOT_MQTT))
            if not self._has_more():
                return
        if not self._again:  # the socket may tell of itself beside it: that is one more turn, not one more each turn
            self._again = True
            self._events.call_soon(self._readable_again, self._sock)

    def _readable_again(self, made: object) -> None:
        self._again = False
        if made is self._sock and self._fd >= 0 and not self._deaf:
            self._readable()

    def _has_more(self) -> bool:
        """Whether bytes wait that the loop would not tell of."""
        made = self._sock
        if made is None:
            return False
        return bool(self._inbox) or (self._ssl and made.pending() > 0)  # type: ignore[attr-defined]  # both TLS sockets have it

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > MAX_PACKET_BYTES:
            self.fault = ConnectionError(link_faults.TOO_LARGE)
            raise self.fault
        if not self._inbox:
            self._inbox = memoryview(self._receive())
        piece, self._inbox = self._inbox[:bufsize], self._inbox[bufsize:]
        return bytes(piece)

    def _receive(self) -> bytes:
        try:
            received = super()._sock_recv(READ_BYTES)
        except BlockingIOError:
            received = b""
            if self._frame_bytes() <= MAX_FRAME_BYTES:
                raise
        except OSError as error:
            self.fault = self.fault or error
            raise
        if self._frame_bytes() > MAX_FRAME_BYTES:
            self.fault = ConnectionError(link_faults.TOO_LARGE)
            raise self.fault
        return received

    def _sock_send(self, buf: bytes | bytearray) -> int:
        try:
            sent = super()._sock_send(buf)
        except BlockingIOError:
            raise
        except OSError as error:
            self.fault = self.fault or self._last_words() or error
            raise
        if buf and not sent:  # part of a websocket frame has left: paho would forget the packet, and so the rest of it
            self._call_socket_register_write()
            raise BlockingIOError
        return sent

    def _last_words(self) -> OSError | None:
        """Why the broker closed, if it said so: TLS 1.3 refuses a certificate after we think that all is well."""
        if self._ssl and self._sock is not None:
            try:
                self._sock.recv(1)
            except ssl.SSLError as said:
                return said
            except OSError:
                return None
        return None

    def _frame_bytes(self) -> int:
        """Of a websocket frame that has not ended: the broker alone decides how long it is."""
        return len(getattr(self._sock, "_readbuffer", b""))

    def _packet_handle(self) -> MQTTErrorCode:
        # paho keeps a message of QoS 2 until its second half comes: a broker could fill memory with first halves.
        if self._in_packet["command"] & _QOS_BITS == _QOS_2:
            self.fault = ConnectionError(link_faults.NOT_MQTT)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        done = MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            done = super()._packet_handle()
        finally:
            if done == MQTTErrorCode.MQTT_ERR_PROTOCOL:
                self.fault = self.fault or ConnectionError(link_faults.NOT_MQTT)
        return done

    def _want_write(self, _client: mqtt.Client, _userdata: object, _socket: object) -> None:
        """Packets of one turn of the loop leave together, after it."""
        if not self._flushing:
            self._flushing = True
            self._events.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._fd < 0:
            return
        self.loop_write()
        self._said = self._events.time()
        waits = self._fd >= 0 and self.want_write()
        if waits and not self._writing:
            self._events.add_writer(self._fd, self._flush)
        elif self._writing and not waits and self._fd >= 0:
            self._events.remove_writer(self._fd)
        self._writing = waits

    def _closing(self, _client: mqtt.Client, _userdata: object, _socket: object) -> None:
        if self._fd >= 0:
            self._events.remove_reader(self._fd)
            self._events.remove_writer(self._fd)
        if self._alive is not None:
            self._alive.cancel()
        self._fd, self._writing, self._raw = -1, False, None

    # --- keeping alive -----------------------------------------------------------------------------------------------

    def _period(self) -> float:
        """Seconds; the broker may have set another than ours, and 0 there leaves it to us."""
        return float(self.keepalive or self._settings.keepalive_s)

    def _watch(self, delay: float) -> None:
        self._alive = self._events.call_later(delay, self._check_alive)

    def _check_alive(self) -> None:
        """The library's own check finds a dead connection after 2 keepalives, and wants to be asked all the time."""
        now, period = self._events.time(), self._period()
        if self._deaf:
            self._heard = now  # who does not listen cannot tell a dead connection; pings go on for the broker's sake
        if self._pinged is not None and self._heard < self._pinged:  # nothing came since, and it had its time
            self.end(ConnectionError(link_faults.SILENT))
            return
        quiet = now - min(self._heard, self._said)
        self._pinged = now if quiet >= PING_AFTER * period else None
        if self._pinged is not None:
            self._send_pingreq()
            self._watch(ANSWER_WITHIN * period)
        else:
            self._watch(PING_AFTER * period - quiet)


def _spelled(host: str) -> str | bytes:
    """As the name service takes it. For text Python would load its tables of international names: 0.1 MB."""
    return host.encode() if host.isascii() else host


@functools.lru_cache(maxsize=64)
def properties_of_publication(expires_s: int, content_type: str) -> Properties | None:
    """Message expiry (0: none) and content type (empty: none); a few values come again and again."""
    if not expires_s and not content_type:
        return None
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho left it untyped
    if expires_s:
        properties.MessageExpiryInterval = expires_s
    if content_type:
        properties.ContentType = content_type
    return properties
