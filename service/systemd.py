"""Telling systemd how the daemon is: the sd_notify(3) protocol over a datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

MAX_STATUS_CHARACTERS = 256  # one line of `systemctl status`


class Notifier:
    """Sends states to the service manager; does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_usec = environ.get("WATCHDOG_USEC", "") if _is_ours(environ) else ""

    @property
    def watchdog_s(self) -> float | None:
        """Seconds within which `watchdog` must be called again; `None` where no watchdog is set."""
        return int(self._watchdog_usec) / 1e6 if self._watchdog_usec.isdecimal() else None

    def ready(self) -> bool:
        """Start-up is done."""
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        line = "".join(c if c.isprintable() else " " for c in text)
        return self._send(f"STATUS={line[:MAX_STATUS_CHARACTERS]}")

    def watchdog(self) -> bool:
        """The control loop still turns."""
        return self._send("WATCHDOG=1")

    def extend(self, usec: int) -> bool:
        """A start takes longer: so many microseconds from now are asked for."""
        return self._send(f"EXTEND_TIMEOUT_USEC={usec}")

    def stopping(self) -> bool:
        """Shutdown has begun."""
        return self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        """Whether the message was handed over; a missing manager never stops the daemon."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True


def _is_ours(environ: Mapping[str, str]) -> bool:
    return environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
