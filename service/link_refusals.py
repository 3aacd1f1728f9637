"""What a broker's access rules do not allow on a connection that stands: counted, told, and shown while it lasts."""

from __future__ import annotations

from service.logs import logger

log = logger("link")


class Refusals:
    """Refused publications and subscriptions. Whoever asked tries again; here is what people see of it.

    Attributes:
        total: since the start.
        latest: what is refused now and why; empty: nothing.
    """

    def __init__(self) -> None:
        self.total, self.latest = 0, ""
        self._topic = ""
        self._told: set[str] = set()

    def begin(self) -> None:
        """A new connection: its broker may have other rules."""
        self.latest, self._topic = "", ""
        self._told.clear()

    def add(self, what: str, topic: str, why: str) -> None:
        """One more; a warning once a connection and kind, for statuses are tried again each second.

        Args:
            what: `publication` or `subscription`.
            topic: of it, or its filter.
            why: as the broker says it, or what we know.
        """
        tell = log.debug if what in self._told else log.warning
        self._told.add(what)
        self.total += 1
        self.latest, self._topic = f"{what} of {topic}: {why}", topic
        tell("broker refused", what=what, topic=topic, reason=why)

    def allowed(self, topic: str) -> None:
        """The broker took it; so it does not refuse it any more."""
        if topic == self._topic:
            self.latest, self._topic = "", ""
