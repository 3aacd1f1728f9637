"""Which metrics devices have named, so that none can name new ones for ever. Bounded for one device and for all."""

from __future__ import annotations

from collections.abc import Collection

from service.fleet.store import MAX_DEVICES

MAX_NAMES = 512  # metrics of one device; all groups have about 200
MAX_ALL_NAMES = 500_000  # of all sets that differ, some 60 MB: a thousand boards could fill theirs with inventions


class TooManyError(ValueError):
    """A device, or all of them, named too much.

    Args:
        what: a sentence for the log.
        devices: there are too many devices, not too many names.
    """

    def __init__(self, what: str, *, devices: bool = False) -> None:
        self.devices = devices
        super().__init__(what)


class MetricNames:
    """Names by device, as hashes: a name may be long. Devices of one version name the same ones and share one set."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], frozenset[int]] = {}
        self._shared: dict[frozenset[int], tuple[frozenset[int], int]] = {}
        """The one copy of each set, and how many devices have it."""
        self.kept = 0
        """Names in all sets that differ."""

    def admit(self, device: tuple[str, str], names: Collection[str]) -> None:
        """Remember what a device named.

        Raises:
            TooManyError: it does not fit. Nothing of it is remembered.
        """
        before = self._of.get(device)
        known = before or frozenset()
        grown = known.union(map(hash, names))
        if before is not None and len(grown) == len(known):
            return
        if before is None and len(self._of) >= MAX_DEVICES:
            raise TooManyError(f"telemetry of more than {MAX_DEVICES} devices", devices=True)
        if len(grown) > MAX_NAMES:
            raise TooManyError(f"more than {MAX_NAMES} metrics of one device")
        fresh = 0 if grown in self._shared else len(grown)
        freed = len(known) if self._users(known) == 1 else 0
        if fresh > freed and self.kept + fresh - freed > MAX_ALL_NAMES:
            raise TooManyError(f"more than {MAX_ALL_NAMES} metrics of all devices")
        if before is not None:
            self._let_go(before)
        one, users = self._shared.get(grown, (grown, 0))
        self._shared[one] = one, users + 1
        self._of[device] = one
        self.kept += fresh

    def _users(self, names: frozenset[int]) -> int:
        return self._shared.get(names, (names, 0))[1]

    def _let_go(self, names: frozenset[int]) -> None:
        users = self._users(names) - 1
        if users > 0:
            self._shared[names] = names, users
        else:
            del self._shared[names]
            self.kept -= len(names)
