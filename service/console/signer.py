"""The console key, and what it signs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import SpecError
from agent.keys_consoles import keyid
from service.commands import Request, new_id, sign_command
from service.console.sealed_key import SealedKey, open_sealed_key, read_key
from service.envelope import MAX_ENVELOPE_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Signer:
    """Signs commands with the console key.

    Args:
        path: see `read_key`, or `None`: then nothing can be sent.
        environ: tells where the service manager's credentials lie.

    Raises:
        BoardError: the file is missing, others may read it, or the disk fails.
        ArtifactError: it is broken.
        SpecError: its name is not that of a key.
    """

    def __init__(self, path: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        self._key: Ed25519PrivateKey | None = None
        self._sealed: SealedKey | None = None
        self._keyid = ""
        self._turn = threading.Lock()
        if path is None:
            return
        found = read_key(path, environ)
        if isinstance(found, SealedKey):
            self._sealed, self._keyid = found, found.keyid
        else:
            self._key, self._keyid = found, keyid(found.public_key())

    @property
    def ready(self) -> bool:
        """Whether commands can be signed now: a key is there and, where it has a passphrase, unlocked."""
        return self._key is not None

    @property
    def locked(self) -> bool:
        """Whether a key is there that waits for its passphrase."""
        return self._sealed is not None and self._key is None

    @property
    def protected(self) -> bool:
        """Whether the key has a passphrase: it can be locked."""
        return self._sealed is not None

    @property
    def keyid(self) -> str:
        """SHA-256 of the public key, hex; empty without a key."""
        return self._keyid

    def unlock(self, passphrase: str) -> None:
        """Open a key that is protected by a passphrase; it stays open until `lock` or the end of the process.

        Takes half a second and 128 MiB: call it on a thread. Several threads take turns.

        Raises:
            ArtifactError: `passphrase-wrong`.
            SpecError: this key has none.
        """
        if self._sealed is None:
            raise SpecError("this console's key has no passphrase", fix="temperd console key protect NAME.key")
        with self._turn:
            self._key = open_sealed_key(self._sealed, passphrase)

    def lock(self) -> None:
        """Forget the opened key; one without a passphrase stays."""
        if self._sealed is not None:
            self._key = None

    def request(
        self, device: str, kind: str, args: Mapping[str, object], expect: Mapping[str, object], now: float, valid_s: int
    ) -> tuple[Request, bytes]:
        """A new command and its envelope.

        Raises:
            SpecError: no key, a locked one, or a command that is longer than boards read.
        """
        command_id, issued = new_id(int(now * 1000), os.urandom), int(now)
        request = Request(command_id, device, kind, issued, issued + valid_s, dict(args), dict(expect))
        return request, self.sign(request)

    def sign(self, request: Request) -> bytes:
        """The envelope of a request; as `request`."""
        key = self._key  # one look: another thread may lock it
        if key is None and self._sealed is not None:
            raise SpecError("the console key is locked", fix="Unlock it on the page of the key", reason="key-locked")
        if key is None:
            fix = "Start the console with --key NAME.key"
            raise SpecError("this console has no key, so it cannot send commands", fix=fix, reason="no-key")
        envelope = sign_command(request, key)
        if len(envelope) > MAX_ENVELOPE_BYTES:
            what = f"the command has {len(envelope)} bytes, boards read at most {MAX_ENVELOPE_BYTES}"
            raise SpecError(what, where=request.type, reason="too-large")
        return envelope
