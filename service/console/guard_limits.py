"""How often: token buckets by key, a bounded number of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

MAX_BUCKETS = 10_000  # each some 200 bytes; who fills them pays one allowed request for each
FORM_BYTES = 4096  # of a form cost as much as one more: what is long makes long records
NETWORK_BITS = 64  # of an IPv6 address: who has one has all of its network


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen.

    Attributes:
        burst: so often at once.
        per_second: and then as often.
    """

    burst: float
    per_second: float


OF_ADDRESS = Rate(
    1000, 200
)  # an office behind one address, fifty open pages that ask anew each 10 s, and their scripts
OF_SESSION = Rate(300, 50)  # one person who types into a filter in several pages
OF_LOGIN_NAME = Rate(10, 1 / 30)  # somebody who tries old passwords; 2,900 guesses a day
OF_LOGIN_ADDRESS = Rate(20, 1 / 6)  # some people behind one address in the morning
OF_UNLOCKING = Rate(5, 1 / 20)  # of all: each costs 128 MiB and half a second
OF_FORMS = Rate(120, 1)  # of one user's forms, by `FORM_BYTES`: a record of each is kept, and the oldest records go
OF_STRANGERS = Rate(500, 1 / 60)  # records of all refused log-ins: nobody without an account pushes the rest out
OF_REFUSED = Rate(20, 1 / 60)  # records of one user's refusals: who is refused all day fills no trail


class Buckets:
    """A bucket for each key.

    Args:
        rate: of each.
        monotonic: seconds.
        most: buckets; beyond it the one goes that was used the longest ago.
    """

    def __init__(self, rate: Rate, monotonic: Callable[[], float], most: int = MAX_BUCKETS) -> None:
        self._rate, self._monotonic, self._most = rate, monotonic, most
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, cost: float = 1.0) -> float:
        """Take one, or as much as something costs; 0, or for how many seconds there is not as much."""
        left, now = self._filled(key)
        wait = 0.0 if left >= cost else (cost - left) / self._rate.per_second
        self._left[key] = (left if wait else left - cost, now)
        self._left.move_to_end(key)
        while len(self._left) > self._most:
            self._left.popitem(last=False)
        return wait

    def wait(self, key: str) -> float:
        """As `take`, and nothing is taken."""
        left, _ = self._filled(key)
        return 0.0 if left >= 1 else (1 - left) / self._rate.per_second

    def forget(self, key: str) -> None:
        """Fill a bucket again."""
        self._left.pop(key, None)

    def __len__(self) -> int:
        return len(self._left)

    def _filled(self, key: str) -> tuple[float, float]:
        now = self._monotonic()
        left, then = self._left.get(key, (self._rate.burst, now))
        return min(self._rate.burst, left + (now - then) * self._rate.per_second), now


class Doors:
    """The limits of a console.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.addresses = Buckets(OF_ADDRESS, monotonic)
        self.sessions = Buckets(OF_SESSION, monotonic)
        self.login_names = Buckets(OF_LOGIN_NAME, monotonic)
        self.login_addresses = Buckets(OF_LOGIN_ADDRESS, monotonic)
        self.forms = Buckets(OF_FORMS, monotonic)
        self.strangers = Buckets(OF_STRANGERS, monotonic)
        self.unlocking = Buckets(OF_UNLOCKING, monotonic)
        self.refused = Buckets(OF_REFUSED, monotonic)


def network_of(address: str) -> str:
    """What an address is counted by: itself, or the network of an IPv6 one."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> NETWORK_BITS << NETWORK_BITS))
    return str(found)
