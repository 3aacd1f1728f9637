"""Passwords: what is taken for one, and how one is kept.

Argon2id with the second recommended parameters of RFC 9106, section 4: 64 MiB, three passes, four lanes. A guess costs
a thief of the file as much memory as a login costs us, so logins are hashed a few at a time.
"""

from __future__ import annotations

import asyncio
import functools
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from agent.errors import BoardError, SpecError

P = ParamSpec("P")
R = TypeVar("R")

LEAST_PASSWORD, MOST_PASSWORD = 10, 200  # characters; longer ones gain nothing and cost hashing
MEMORY_KIB, PASSES, LANES = 64 << 10, 3, 4  # RFC 9106, 4: SECOND RECOMMENDED
AT_ONCE = 2  # hashes: 128 MiB at most
MOST_WAITING = 32  # for one of them; at some 0.1 s each the last waits for two seconds
_OBVIOUS = frozenset(
    {
        *("password", "passwort", "passw0rd", "matkhau", "administrator", "letmein", "welcome", "changeme"),
        *("qwertyuiop", "qwerty", "iloveyou", "temperd", "raspberry", "raspberrypi", "secret", "abc", "abcdefghij"),
    }
)
"""What is left of an obvious password when digits and signs around it are taken away."""
_ROWS = ("01234567890123456789", "98765432109876543210", "abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a hash takes.

    Attributes:
        memory_kib: memory.
        passes: over it.
        lanes: that work side by side.
    """

    memory_kib: int = MEMORY_KIB
    passes: int = PASSES
    lanes: int = LANES


def check_password(password: str, name: str) -> None:
    """Refuse what is guessed first: too short, the user's own name, a row of keys, a word of a short list.

    Raises:
        SpecError: `password-short`, `password-long` or `password-obvious`.
    """
    if len(password) > MOST_PASSWORD:  # first: to sort 100,000 accents into one form takes a processor 20 s
        raise SpecError(f"the password has more than {MOST_PASSWORD} characters", reason="password-long")
    text = _normal(password)
    if len(text) < LEAST_PASSWORD:
        what = f"the password has {len(text)} characters, at least {LEAST_PASSWORD} are needed"
        raise SpecError(what, fix="Take three or four words that nobody guesses", reason="password-short")
    plain = text.casefold()
    word = plain.strip("0123456789!?.,-_*#$%&+ ")
    given_away = {"", name.casefold(), name.casefold() * 2} | _OBVIOUS
    if word in given_away or len(set(plain)) <= 2 or any(plain in row for row in _ROWS):  # noqa: PLR2004 - "1212121212"
        fix = "Take three or four words that nobody guesses"
        raise SpecError("this password is among the first that are guessed", fix=fix, reason="password-obvious")


def _normal(password: str) -> str:
    """One form of what looks the same: keyboards write an accented letter as one sign or as two (RFC 8265, 4.2)."""
    return unicodedata.normalize("NFC", password)


class Hashing:
    """Makes and checks hashes on threads of its own, `AT_ONCE` at a time.

    Args:
        cost: of new hashes.
    """

    def __init__(self, cost: Cost) -> None:
        self._hasher = PasswordHasher(time_cost=cost.passes, memory_cost=cost.memory_kib, parallelism=cost.lanes)
        self._threads = ThreadPoolExecutor(AT_ONCE, "password")
        self._waiting = 0
        self._nobody = self._hasher.hash("nobody's")

    async def hash(self, password: str) -> str:
        """The hash to keep.

        Raises:
            BoardError: `busy`.
        """
        return await self._on_thread(self._hasher.hash, _normal(password))

    async def is_right(self, kept: str | None, password: str) -> bool:
        """Whether a password is that of a hash; `None`, for a user that does not exist, takes as long and is false.

        Raises:
            BoardError: `busy`.
        """
        if len(password) > MOST_PASSWORD:
            password = ""  # no user has it, and it costs the same
        same = await self._on_thread(self._verify, kept or self._nobody, _normal(password))
        return same and kept is not None

    def is_outdated(self, kept: str) -> bool:
        """Whether a hash was made at another cost."""
        return self._hasher.check_needs_rehash(kept)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _verify(self, kept: str, password: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _on_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if self._waiting >= MOST_WAITING:
            raise BoardError("too many people log in at once", fix="Try again in some seconds", reason="busy")
        self._waiting += 1
        try:
            call = functools.partial(work, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._waiting -= 1
