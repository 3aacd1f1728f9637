"""RAUC and logind over D-Bus: what installs a system image, says which slot was booted, and restarts the board.

The one module that imports jeepney, and only where a system image is updated. RAUC's interface is that of 1.8
(`de.pengutronix.rauc.Installer`); later versions keep it. The bus is the system's, or that of DBUS_SYSTEM_BUS_ADDRESS.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from agent.errors import BoardError

NAME, PATH, INSTALLER = "de.pengutronix.rauc", "/", "de.pengutronix.rauc.Installer"
LOGIND, LOGIND_PATH, LOGIND_MANAGER = (
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
)
PROPERTIES = "org.freedesktop.DBus.Properties"

CALL_S = 25.0  # what D-Bus libraries grant a call; RAUC is started by its first one
ASK_S = 2.0  # the bus itself answers in milliseconds; the daemon stands still meanwhile
POLL_S = 1.0  # how often the progress of an installation is asked for
MOST_INSTALL_S = 3600.0  # 4 GB to a slow card take 20 minutes; what takes longer hangs
MAX_TEXT = 300  # characters of what others say
IDLE = "idle"

NOT_UPDATABLE, RAUC_BUSY, RAUC_FAILED, REBOOT_NEEDED = "not-updatable", "rauc-busy", "rauc-failed", "reboot-needed"
MISSING_FIX = (
    "Install RAUC (apt install rauc rauc-service) and describe the board's slots in /etc/rauc/system.conf; "
    "a board without A/B slots is updated by its package system"
)
_ABSENT = (
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.UnknownInterface",
    "org.freedesktop.DBus.Error.UnknownObject",
)
_SPAWN = "org.freedesktop.DBus.Error.Spawn."
"""Of a service that is installed and does not start: RAUC without a configuration."""


@dataclasses.dataclass(frozen=True, slots=True)
class RaucState:
    """What RAUC says of the board.

    Attributes:
        compatible: which boards' bundles it takes.
        boot_slot: bootname of the slot that was booted.
        operation: `idle` or `installing`.
        last_error: of the last installation, empty after success.
        version: of the bundle that the booted slot was installed from; empty: not known.
    """

    compatible: str
    boot_slot: str
    operation: str = IDLE
    last_error: str = ""
    version: str = ""


class System(Protocol):
    """What an update of the system image needs of the board."""

    async def state(self) -> RaucState:
        """What RAUC says now. BoardError: `not-updatable`: there is none, or no bus."""

    async def install(self, path: str, told: Callable[[float], None]) -> None:
        """Write a bundle to the other slot and make it the one to boot. BoardError: see `Rauc.install`."""

    async def mark(self, state: str) -> str:
        """Mark the booted slot `good` or `bad`; what RAUC says to it. BoardError: it did not."""

    async def reboot(self) -> None:
        """Restart the board. BoardError: `reboot-needed`."""


class Rauc:
    """`System` by D-Bus. A connection lives for one call: RAUC may be restarted meanwhile."""

    async def state(self) -> RaucState:
        """What RAUC says now.

        Raises:
            BoardError: `not-updatable`: there is no bus, no RAUC, or it has no configuration.
        """
        async with _bus() as bus:
            found = {key: _text(value) for key, value in (await bus.properties(NAME, PATH, INSTALLER)).items()}
            slots = await bus.call(NAME, PATH, INSTALLER, "GetSlotStatus")
        return RaucState(
            found.get("Compatible", ""), found.get("BootSlot", ""), found.get("Operation", IDLE),
            found.get("LastError", ""), _version(slots[0]),
        )  # fmt: skip

    async def install(self, path: str, told: Callable[[float], None]) -> None:
        """Write a bundle to the other slot and make it the one to boot.

        What another connection began is not waited for: it may be another bundle.

        Args:
            path: of the bundle.
            told: how far it is, 0..1.

        Raises:
            BoardError: `rauc-busy`: it installs already; `rauc-failed`: it refused the bundle or could not write it,
                with its own words; `not-updatable`: it went away.
        """
        async with _bus() as bus:
            if await self._operation(bus) != IDLE:
                raise BoardError("RAUC installs a bundle already", reason=RAUC_BUSY)
            completed = await bus.listen(NAME, PATH, INSTALLER, "Completed")
            await bus.call(NAME, PATH, INSTALLER, "InstallBundle", "sa{sv}", (path, {}), RAUC_FAILED)
            code = await self._completed(bus, completed, told)
            if code != 0:
                error = _text((await bus.properties(NAME, PATH, INSTALLER)).get("LastError"))
                raise BoardError(f"RAUC did not install the bundle: {error or f'code {code}'}", reason=RAUC_FAILED)

    async def mark(self, state: str) -> str:
        """Mark the booted slot; what RAUC says to it.

        Args:
            state: `good` or `bad`.

        Raises:
            BoardError: `rauc-failed`, `not-updatable`.
        """
        async with _bus() as bus:
            _slot, message = await bus.call(NAME, PATH, INSTALLER, "Mark", "ss", (state, "booted"), RAUC_FAILED)
        return _text(message)

    async def reboot(self) -> None:
        """Restart the board by logind; it answers before it does.

        Raises:
            BoardError: `reboot-needed`: there is no logind, or it does not let us.
        """
        async with _bus(REBOOT_NEEDED) as bus:
            await bus.call(LOGIND, LOGIND_PATH, LOGIND_MANAGER, "Reboot", "b", (False,), REBOOT_NEEDED)

    async def _completed(self, bus: _Bus, completed: asyncio.Queue[Any], told: Callable[[float], None]) -> int:
        """Result of the installation at work: its signal, or, where that is missed, RAUC is idle again."""
        for _ in range(int(MOST_INSTALL_S / POLL_S)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    message = await completed.get()
                return int(message.body[0])
            found = await bus.properties(NAME, PATH, INSTALLER)
            percent = found.get("Progress", (0, "", 0))[0]
            told(min(100, max(0, int(percent))) / 100)
            if _text(found.get("Operation")) == IDLE:
                return 1 if _text(found.get("LastError")) else 0
        raise BoardError(f"RAUC was not done in {MOST_INSTALL_S:g} s", reason=RAUC_FAILED)

    async def _operation(self, bus: _Bus) -> str:
        return _text((await bus.properties(NAME, PATH, INSTALLER)).get("Operation")) or IDLE


class _Bus:
    """One connection, its errors as temperd's."""

    def __init__(self, router: Any, gone: str) -> None:  # noqa: ANN401 - jeepney has no types
        self._router, self._gone = router, gone

    async def call(
        self, name: str, path: str, interface: str, method: str, signature: str = "", body: tuple[object, ...] = (),
        refused: str = NOT_UPDATABLE,
    ) -> tuple[Any, ...]:  # fmt: skip
        """The answer's body.

        Raises:
            BoardError: `refused` where the peer answers with an error; `gone` where there is nobody.
        """
        from jeepney import DBusAddress, MessageType, new_method_call  # type: ignore[import-untyped]  # noqa: PLC0415

        message = new_method_call(DBusAddress(path, name, interface), method, signature or None, body)
        try:
            async with asyncio.timeout(CALL_S):
                reply = await self._router.send_and_get_reply(message)
        except (TimeoutError, OSError, EOFError, _closed()) as error:
            raise self._nobody(f"{name} does not answer") from error
        if reply.header.message_type is not MessageType.error:
            found: tuple[Any, ...] = reply.body
            return found
        kind = str(_field(reply, "error_name"))
        words = _text(reply.body[0]) if reply.body else kind
        if kind in _ABSENT or kind.startswith(_SPAWN):
            raise self._nobody(f"{name} is not there: {words}")
        raise BoardError(f"{name} refuses {method}: {words}", reason=refused)

    async def properties(self, name: str, path: str, interface: str) -> dict[str, Any]:
        """All properties, by name; raises like `call`."""
        (found,) = await self.call(name, path, PROPERTIES, "GetAll", "s", (interface,))
        return {key: value for key, (_signature, value) in found.items()}

    async def listen(self, name: str, path: str, interface: str, member: str) -> asyncio.Queue[Any]:
        """A queue that gets each such signal of who has the name now; raises like `call`.

        Whoever may use the bus can send us a signal of any name: the bus vouches for its sender alone.
        """
        from jeepney import MatchRule, MessageType  # noqa: PLC0415

        rule = MatchRule(type="signal", sender=name, interface=interface, member=member, path=path)
        bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        (owner,) = await self.call(*bus, "GetNameOwner", "s", (name,))
        await self.call(*bus, "AddMatch", "s", (rule.serialise(),))
        queue: asyncio.Queue[Any] = asyncio.Queue(1)
        wanted = MatchRule(type=MessageType.signal.name, sender=owner, interface=interface, member=member, path=path)
        self._router.filter(wanted, queue=queue).__enter__()  # for as long as the connection lives
        return queue

    def _nobody(self, what: str) -> BoardError:
        fix = MISSING_FIX if self._gone == NOT_UPDATABLE else ""
        return BoardError(what[:MAX_TEXT], fix=fix, reason=self._gone)


@contextlib.asynccontextmanager
async def _bus(gone: str = NOT_UPDATABLE) -> AsyncIterator[_Bus]:
    """A connection to the system's bus.

    Raises:
        BoardError: `gone`: there is none.
    """
    try:
        from jeepney.io.asyncio import DBusRouter, open_dbus_connection  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError as error:
        raise BoardError("the package jeepney is missing", fix="Install temperd anew", reason=gone) from error
    try:
        async with asyncio.timeout(CALL_S):
            connection = await open_dbus_connection("SYSTEM")
    except (OSError, EOFError, TimeoutError, ValueError, RuntimeError) as error:
        fix = MISSING_FIX if gone == NOT_UPDATABLE else ""
        raise BoardError(f"there is no system bus: {error}"[:MAX_TEXT], fix=fix, reason=gone) from error
    router = DBusRouter(connection)
    try:
        yield _Bus(router, gone)
    finally:
        # How the receiver ended is no news: whoever waited for an answer was told.
        with contextlib.suppress(OSError, EOFError, _closed()):
            await router.__aexit__(None, None, None)
        with contextlib.suppress(OSError):
            await connection.close()


def is_there() -> str:
    """Why there is no RAUC, and what to do; empty: there is one, or the bus would start it. Asked within seconds."""
    found = [f"the system bus did not answer in {ASK_S:g} s"]
    asker = threading.Thread(target=lambda: found.append(_ask_bus()), daemon=True)
    asker.start()
    asker.join(ASK_S)
    return f"{found[-1][:MAX_TEXT]}. {MISSING_FIX}" if found[-1] else ""


def _ask_bus() -> str:
    try:
        from jeepney import new_method_call  # noqa: PLC0415
        from jeepney.bus_messages import message_bus  # type: ignore[import-untyped]  # noqa: PLC0415
        from jeepney.io.blocking import open_dbus_connection  # type: ignore[import-untyped]  # noqa: PLC0415

        with open_dbus_connection("SYSTEM") as bus:
            for method in ("ListNames", "ListActivatableNames"):
                reply = bus.send_and_get_reply(new_method_call(message_bus, method), timeout=ASK_S)
                if NAME in reply.body[0]:
                    return ""
    except (ImportError, OSError, EOFError, ValueError, RuntimeError) as error:
        return f"there is no system bus to ask RAUC by: {error}"
    return "this board has no RAUC"


def _closed() -> type[Exception]:
    """What a router raises that has lost its connection."""
    from jeepney.io.common import RouterClosed  # type: ignore[import-untyped]  # noqa: PLC0415

    closed: type[Exception] = RouterClosed
    return closed


def _field(message: Any, name: str) -> object:  # noqa: ANN401 - jeepney has no types
    from jeepney import HeaderFields  # noqa: PLC0415

    return message.header.fields.get(HeaderFields[name], "")


def _version(slots: Any) -> str:  # noqa: ANN401 - an array of a(sa{sv}) as jeepney reads it
    """Version of the bundle in the booted root slot."""
    for _name, table in slots:
        found = {key: value for key, (_signature, value) in table.items()}
        if found.get("state") == "booted":
            return _text(found.get("bundle.version"))
    return ""


def _text(value: object) -> str:
    """What a peer says, as one printable line."""
    line = " ".join(str(value or "").split())
    return "".join(character for character in line if character.isprintable())[:MAX_TEXT]
