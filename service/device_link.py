"""The device's side of MQTT: presence, birth, capabilities, commands in, statuses and metrics out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from agent import strict_json
from agent.errors import CommandError
from service.commands import COMMAND_ID, MAX_ENVELOPE_BYTES
from service.config import Mqtt
from service.link import GRACE_S, Connection, Message, Will
from service.logs import logger

MAX_PRESENCE_BYTES = 1024  # ours have about 150
CLOCKS_APART_S = 60.0  # of two boards that a time server serves
CLEARED_REST_S = 5.0  # who clears our presence clears the rest beside it: what is told meanwhile would go too
MAX_REPAIRS = 5  # of our presence on one connection: who else writes it would go on for ever
MAX_QUEUED_EVENTS = 100  # not yet looked at by the daemon's loop; beyond it reading stops, until it has seen half
_COMMAND_LEVELS = 8  # temper/v1/<tenant>/<device>/cmd/<type>/<id>/req
_MAX_TYPE_CHARACTERS = 32

log = logger("link")


@dataclass(frozen=True, slots=True)
class Address:
    """The topics of one device."""

    tenant: str
    device: str

    def topic(self, *levels: str) -> str:
        """The topic `temper/v1/<tenant>/<device>/<levels...>`."""
        return "/".join(("temper/v1", self.tenant, self.device, *levels))


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker is there. Without a session it lost what it kept: publish every status again."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Wiped:
    """The broker has our session, but not what it kept for us: publish every status and alarm again."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The broker is gone; the link keeps trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """A command, not yet verified. It comes again after a crash unless `ack` was called: journal first."""

    type: str
    id: str
    envelope: bytes
    retained: bool
    ack: Callable[[], None] = field(repr=False, compare=False)


LinkEvent: TypeAlias = Connected | Wiped | Disconnected | Incoming


class Link:
    """The device's side.

    Args:
        settings: broker, credentials and TLS.
        address: tenant and device.
        session: counts starts of the daemon (from the journal); together with a number of the connection it lets a
            console tell a late last will from the present state.
        boot_id: of the running kernel.
        capabilities: argument schema and limits by command type; published again on each connect.
        birth: schema versions, board, sensors and so on; see `announce`.
        now: wall clock, seconds since 1970.
        jitter: see `Connection`.
    """

    def __init__(
        self,
        settings: Mqtt,
        address: Address,
        *,
        session: int,
        boot_id: str,
        capabilities: Mapping[str, Mapping[str, object]],
        birth: Mapping[str, object],
        now: Callable[[], float],
        jitter: Callable[[float, float], float] | None = None,
    ) -> None:
        self._address, self._session, self._boot_id = address, session, boot_id
        self._capabilities, self._birth = capabilities, birth
        self._now = now
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._beside: dict[str, Callable[[bytes], None]] = {}
        self.refused_total = 0
        """Incoming messages that were no command by topic or size."""
        self._connection = Connection(
            settings,
            f"temperd-{address.tenant}-{address.device}",
            keep_session=True,
            will=lambda epoch: Will(address.topic("conn"), self._presence(online=False, connection=epoch)),
            on_up=self._greet,
            on_down=lambda reason: self._events.put_nowait(Disconnected(reason)),
            on_message=self._take,
            on_trouble=self._trouble,
            jitter=jitter,
        )
        self._here, self._kept, self._repairs = b"", False, 0
        self._cleared = False
        """Somebody cleared our presence, and we have not told all again since."""
        self._insists = False
        self._keepalive_s = settings.keepalive_s
        self._announced, self._left = 0, 0  # numbers of this connection and the one before
        self._since = self._here_since = self._since_left = now()

    @property
    def connected(self) -> bool:
        """Whether the broker is there right now."""
        return self._connection.connected

    @property
    def unconfirmed(self) -> int:
        """Publications that the broker has not confirmed, or that have not left."""
        return self._connection.unconfirmed

    @property
    def most_bytes(self) -> int:
        """The longest payload that the broker takes."""
        return self._connection.most_bytes

    @property
    def takeovers(self) -> int:
        """Times that another client took our id since the start."""
        return self._connection.takeovers

    def figures(self) -> dict[str, object]:
        """Its keys of the telemetry group `link`."""
        connection = self._connection
        return {
            "connected": connection.connected,
            "connections": connection.connections,
            "connection_losses": connection.losses,
            "takeovers": connection.takeovers,
            "refused_total": self.refused_total,
            "unconfirmed": connection.unconfirmed,
        }

    def shown(self) -> dict[str, object]:
        """For the live view: is there a broker, else why not; since when (seconds since 1970); what it refuses."""
        connection = self._connection
        refused = connection.refusals.latest if self.connected else ""
        return {"connected": self.connected, "why": connection.why, "since": self._since, "refused": refused}

    def start(self) -> None:
        """Begin connecting; call on the running event loop."""
        self._connection.start()

    async def stop(self) -> None:
        """Say that we go offline, wait shortly for the broker to confirm, and disconnect."""
        if self.connected:
            self._here = self._presence(online=False, connection=self._connection.epoch)
            await asyncio.wait([self._connection.publish(self._address.topic("conn"), self._here)], timeout=GRACE_S)
        await self._connection.stop()

    async def receive(self) -> LinkEvent:
        """The next event, in order."""
        event = await self._events.get()
        if self._events.qsize() <= MAX_QUEUED_EVENTS // 2:
            self._connection.listen(on=True)
        return event

    def announce(self, birth: Mapping[str, object]) -> None:
        """Replace the birth message, e.g. after another model became active."""
        self._birth = birth
        self._publish(birth, "birth")

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool]:
        """Publish a status; the future gives True once the broker confirmed it, and never raises.

        One that is too long for the broker goes without its result and says so: it could never be told otherwise.
        """
        topic = self._address.topic("cmd", command_type, command_id, "sts")
        payload = _encode(status)
        if len(payload) > self.most_bytes and status.get("result") is not None:
            told = f"the result is left out: {len(payload)} bytes, the broker takes {self.most_bytes}"
            payload = _encode({**status, "result": None, "reason": status.get("reason") or told})
        return self._connection.publish(topic, payload, retain=retained)

    def publish_alarm(self, kind: str, alarm: Mapping[str, object] | None) -> asyncio.Future[bool] | None:
        """Publish a retained alarm, or clear it (`None`); as `publish_status`, but `None` while there is no broker."""
        if not self.connected:
            return None
        payload = b"" if alarm is None else _encode(alarm)
        return self._connection.publish(self._address.topic("a", kind), payload)

    def publish_beside(self, topic: str, payload: bytes) -> asyncio.Future[bool] | None:
        """Publish a retained message outside our root, for other programs; answers as `publish_alarm`."""
        return self._connection.publish(topic, payload) if self.connected else None

    def listen_beside(self, topic: str, told: Callable[[bytes], None]) -> None:
        """Call `told` with what others publish on a topic outside our root; to be asked for before `start`."""
        self._beside[topic] = told

    def publish_lossy(self, group: str, payload: bytes, content_type: str) -> bool:
        """Publish `m/<group>` at QoS 0; False when it did not leave: no broker, or the connection stalls."""
        return self._connection.publish_lossy(self._address.topic("m", group), payload, content_type=content_type)

    def publish_telemetry(self, group: str, payload: bytes, content_type: str) -> asyncio.Future[bool]:
        """Publish `m/<group>` at QoS 1; the future gives True once the broker confirmed it, and never raises."""
        topic = self._address.topic("m", group)
        return self._connection.publish(topic, payload, retain=False, content_type=content_type)

    def _publish(self, body: Mapping[str, object], *levels: str) -> asyncio.Future[bool]:
        """What a board is and can do: where the broker does not take it, it is told again after a keepalive."""
        epoch, done = self._connection.epoch, self._connection.publish(self._address.topic(*levels), _encode(body))
        done.add_done_callback(lambda done: self._insist(epoch, confirmed=done.result()))
        return done

    def _insist(self, epoch: int, *, confirmed: bool) -> None:
        if not confirmed and self.connected and epoch == self._connection.epoch and not self._insists:
            self._insists = True
            asyncio.get_running_loop().call_later(self._keepalive_s, self._introduce, epoch)

    def _introduce(self, epoch: int) -> None:
        """Tell what we are and can do, if it is still the same connection."""
        self._insists = False
        if self.connected and epoch == self._connection.epoch:
            self._publish(self._birth, "birth")
            self._tell_capabilities()

    def _presence(self, *, online: bool, connection: int) -> bytes:
        return _encode(
            {
                "online": online,
                "session": self._session,
                "connection": connection,
                "boot_id": self._boot_id,
                "ts": self._now(),
            }
        )

    def _greet(self, session_present: bool) -> None:  # noqa: FBT001 - a callback
        connection, conn = self._connection, self._address.topic("conn")
        now = self._now()
        self._here_since, self._since_left = now, self._here_since
        self._since, self._kept, self._repairs = now, False, 0
        self._announced, self._left = connection.epoch, self._announced
        connection.subscribe(conn, qos=0)
        # Before we say that we are here: who sees us online may send a command that is not retained.
        self._connection.subscribe(self._address.topic("cmd", "+", "+", "req"))
        for topic in self._beside:
            self._connection.subscribe(topic)
        self._here = self._presence(online=True, connection=connection.epoch)
        connection.publish(conn, self._here)
        born = self._publish(self._birth, "birth")
        if session_present:
            epoch = connection.epoch
            born.add_done_callback(lambda done: self._judge(epoch, confirmed=done.result()))
        self._tell_capabilities()
        self._cleared = self._cleared and session_present
        self._events.put_nowait(Connected(session_present))

    def _tell_capabilities(self) -> None:
        for command_type, capability in self._capabilities.items():
            self._publish(capability, "cmd", command_type)

    def _hear_presence(self, message: Message) -> None:
        """Our own `conn`: as the broker kept it, or as somebody publishes it after us, e.g. a will that comes late."""
        if message.retained:
            kept = _read_presence(message.payload)
            self._kept = self._is_ours(kept)
            if not self._kept and self._left and self._is_foreign(kept):
                log.error("another client uses this board's name: two boards with one name?", left=kept)
                self._connection.contest()
                self._kept = True
        elif message.payload != self._here and self._repairs < MAX_REPAIRS:
            self._repairs += 1
            self._connection.publish(message.topic, self._here)
            if not message.payload and not self._cleared:
                self._cleared = True
                asyncio.get_running_loop().call_later(CLEARED_REST_S, self._tell_again, self._connection.epoch)

    def _is_ours(self, kept: Mapping[str, object]) -> bool:
        """Whether it is what we left: by the connection before this one, or by the start of the daemon before."""
        if self._left:
            return (kept.get("session"), kept.get("connection")) == (self._session, self._left)
        return kept.get("session") == self._session - 1

    def _is_foreign(self, kept: Mapping[str, object]) -> bool:
        """Whether another board said it after us. A broker that came back with an old save has something older."""
        written = kept.get("ts")
        return (
            kept.get("boot_id") not in (None, self._boot_id)
            and isinstance(written, int | float)
            and written >= self._since_left - CLOCKS_APART_S
        )

    def _judge(self, epoch: int, *, confirmed: bool) -> None:
        """The broker works in order: what it kept came before it confirmed what we published after asking for it."""
        if confirmed and epoch == self._connection.epoch and (self._cleared or not self._kept):
            self._cleared = False
            log.warning("the broker lost what it kept for us, it is told again")
            self._events.put_nowait(Wiped())

    def _tell_again(self, epoch: int) -> None:
        """What the broker kept was cleared while we were connected; a connection that was lost since looks itself."""
        if self._cleared and epoch == self._connection.epoch:
            self._introduce(epoch)
            self._judge(epoch, confirmed=True)

    def _trouble(self, _why: str) -> None:
        self._since = self._now()

    def _take(self, message: Message) -> None:
        if message.topic == self._address.topic("conn"):
            self._hear_presence(message)
            return
        if not message.topic.startswith(self._address.topic("")):
            self._connection.ack(message)
            if told := self._beside.get(message.topic):  # else the broker's session still has what was switched off
                told(message.payload)
            return
        if not message.payload:  # a console clears its request
            self._connection.ack(message)
            return
        levels = message.topic.split("/")
        fault = _fault(levels, message)
        if fault:
            self.refused_total += 1
            log.warning("message refused", fault=fault, topic=message.topic, bytes=len(message.payload))
            self._connection.ack(message)
            return
        self._events.put_nowait(
            Incoming(levels[5], levels[6], message.payload, message.retained, lambda: self._connection.ack(message))
        )
        if self._events.qsize() >= MAX_QUEUED_EVENTS:
            self._connection.listen(on=False)


def _fault(levels: list[str], message: Message) -> str:
    """Why a message is no command by its envelope alone; empty if it may be one."""
    if len(levels) != _COMMAND_LEVELS or not 1 <= len(levels[5]) <= _MAX_TYPE_CHARACTERS or not levels[5].isascii():
        return "topic"
    if not COMMAND_ID.fullmatch(levels[6]):
        return "id"
    if message.qos != 1:
        return "qos"
    return "too-large" if len(message.payload) > MAX_ENVELOPE_BYTES else ""


def _read_presence(payload: bytes) -> dict[str, object]:
    """A `conn` as the broker kept it; empty when it is none."""
    try:
        kept = strict_json.loads(payload, what="conn", max_bytes=MAX_PRESENCE_BYTES, error=CommandError)
    except CommandError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
