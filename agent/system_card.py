"""What a publisher says of a system image for boards that RAUC updates: the `custom` table of its target.

A bundle is a target of the model repository, `system/<name>/<version>.raucb`. The repository vouches for its bytes and
its version; RAUC verifies the bundle's own signature besides, by the certificates in the image that runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from agent.card import NAME, VERSION
from agent.errors import TrustError
from policies.strict import TableError, build, limits

KIND = "system"
FOLDER = "system"
"""Of the bundles, in the repository and in the state folder."""
ENDING = ".raucb"
MAX_BUNDLE_BYTES = 8 << 30  # larger than the root file system of any board in docs/boards.md
MAX_COMPATIBLE = 128  # characters; RAUC's own names are a few words


@dataclass(frozen=True, slots=True)
class SystemCard:
    """What the publisher says of a bundle: the `custom` table of its target.

    Attributes:
        name: of the image, matches `agent.card.NAME`.
        version: matches `agent.card.VERSION`.
        compatible: RAUC's name of the boards that it is for.
        security_floor: versions of this name whose floor is lower than the highest one published are withdrawn.

    Raises:
        TableError: a value that is out of bounds.
    """

    name: str = field(metadata=limits(longest=64))
    version: str = field(metadata=limits(longest=64))
    compatible: str = field(metadata=limits(longest=MAX_COMPATIBLE))
    security_floor: int = field(default=0, metadata=limits(0, 2**31 - 1))
    kind: str = field(default=KIND, metadata=limits(choices=(KIND,)))

    def __post_init__(self) -> None:
        for key, pattern in (("name", NAME), ("version", VERSION)):
            if not pattern.fullmatch(getattr(self, key)):
                raise TableError(key, f"{getattr(self, key)[:80]!r} does not match {pattern.pattern}")
        if not self.compatible or not self.compatible.isprintable():
            raise TableError("compatible", "is empty or holds unprintable characters")

    def table(self) -> dict[str, object]:
        """As the target's `custom`; a card built by hand is checked as strictly as one that was read.

        Raises:
            TableError: a value that is out of bounds.
        """
        table = asdict(self)
        build(SystemCard, table)
        return table

    @property
    def path(self) -> str:
        """Among the repository's targets."""
        return bundle_path(self.name, self.version)


def bundle_path(name: str, version: str) -> str:
    """Path of a bundle among the repository's targets."""
    return f"{FOLDER}/{name}/{version}{ENDING}"


def read_card(custom: object, path: str) -> SystemCard:
    """What is signed of the target at `path`.

    Raises:
        TrustError: no such card, or that of another.
    """
    try:
        card = build(SystemCard, custom if isinstance(custom, Mapping) else {})
    except TableError as error:
        raise TrustError(f"card of a system image: {error.what}", where=f"{path} {error.key}") from error
    if card.path != path:
        raise TrustError(f"card of {card.name} {card.version} under another path", where=path)
    return card


def most_bytes(custom: object, path: str, length: int) -> int:
    """Judge what is signed of the target at `path`; the most bytes of its file.

    Raises:
        TrustError: see `read_card`, or it is longer than boards take.
    """
    read_card(custom, path)
    if not 0 < length <= MAX_BUNDLE_BYTES:
        raise TrustError(f"the bundle has {length} bytes, 1 to {MAX_BUNDLE_BYTES} are taken", where=path)
    return MAX_BUNDLE_BYTES


def forget(state: Path) -> None:
    """The update has ended: bundle and part are needed no more."""
    with contextlib.suppress(OSError):
        for path in (state / FOLDER).iterdir():
            path.unlink()
