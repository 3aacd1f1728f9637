"""The console key, and what it signs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands import Request

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Signer:
    """Signs commands with the console key.

    Args:
        path: the key file, or `None`: then nothing can be sent.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._key: Ed25519PrivateKey | None = None
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether commands can be signed now: a key is there and, where it has a passphrase, unlocked."""
        raise NotImplementedError

    @property
    def locked(self) -> bool:
        """Whether a key is there that waits for its passphrase."""
        raise NotImplementedError

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key, hex; empty without a key."""
        raise NotImplementedError

    def unlock(self, passphrase: str) -> None:
        """Open a key that is protected by a passphrase; it stays open until `lock` or the end of the process.

        Raises:
            ArtifactError: `passphrase-wrong`.
        """
        raise NotImplementedError

    def lock(self) -> None:
        """Forget the opened key."""
        raise NotImplementedError

    def request(
        self, device: str, kind: str, args: Mapping[str, object], expect: Mapping[str, object], now: float, valid_s: int
    ) -> tuple[Request, bytes]:
        """A new command and its envelope.

        Raises:
            SpecError: no key, a locked one, or a command that is longer than boards read.
        """
        raise NotImplementedError(device, kind, args, expect, now, valid_s)

    def sign(self, request: Request) -> bytes:
        """The envelope of a request; as `request`."""
        raise NotImplementedError
