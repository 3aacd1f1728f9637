"""Groups of boards, as `temperd fleet group` keeps them, asked again now and then: another process may change them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from service.fleet.state import FleetState

GROUPS_S = 5.0  # how long they are believed: a search asks with each letter


class Groups:
    """Boards by group.

    Args:
        path: the file, see `service.fleet.state`.
        tenant: whose boards.
        monotonic: clock, seconds.
    """

    def __init__(self, path: Path, tenant: str, monotonic: Callable[[], float]) -> None:
        self._path, self._tenant, self._monotonic = path, tenant, monotonic
        self._read: tuple[float, Mapping[str, frozenset[str]]] | None = None

    def __call__(self) -> Mapping[str, frozenset[str]]:
        """As they are now, or were a moment ago.

        Raises:
            BoardError: the file cannot be used.
        """
        now = self._monotonic()
        if self._read is None or now - self._read[0] > GROUPS_S:
            with FleetState(self._path) as state:
                found = state.groups(self._tenant)
            self._read = now, {name: frozenset(members) for name, members in found.items()}
        return self._read[1]
