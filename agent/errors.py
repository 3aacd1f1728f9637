"""The error tree: who is at fault decides the branch, and the branch decides what to do next.

    TemperdError
    ├── CallerError        the request, configuration or data is wrong: change it, retrying does not help   exit 2
    │   ├── ConfigError        a configuration or policy file
    │   ├── SpecError          a job specification or command argument
    │   ├── DataError          the training data
    │   └── ModelError         a model this version cannot train
    ├── ArtifactError      a file or message does not verify: treat as hostile, never use                   exit 3
    │   ├── SealedFileError    sealed container broken, truncated, swapped, wrong key
    │   ├── TrustError         repository metadata refused
    │   ├── GrantError         no data key for this device
    │   └── CommandError       a command refused (signature, target, expiry, replay)
    ├── NetworkError       unreachable or too slow: try again later                                         exit 1
    ├── BoardError         disk full, sensor lost, permission missing                                       exit 1
    └── EngineError        training failed: not finite, out of memory, runtime error                        exit 1

Foreign exceptions are converted at the seam where they enter (one `except` near the call), never further up.
"""

from __future__ import annotations

from typing import ClassVar


class TemperdError(Exception):
    """Base of every expected failure.

    Args:
        what: what is wrong, in one clause.
        where: the file, key, node, segment or address concerned.
        fix: what the reader can do.
        reason: a stable machine-readable reason that overrides the class's own.
    """

    reason: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "", reason: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        self.code = reason or self.reason
        super().__init__(what)

    def __str__(self) -> str:
        where = f" ({self.where})" if self.where else ""
        fix = f". {self.fix}" if self.fix else ""
        return f"{self.what}{where}{fix}"


class CallerError(TemperdError):
    """The caller can mend this; trying again unchanged cannot work."""

    reason = "bad-request"
    exit_code = 2


class ConfigError(CallerError):
    """A configuration or policy file is wrong."""

    reason = "bad-config"


class SpecError(CallerError):
    """A job specification or a command argument is wrong."""

    reason = "bad-spec"


class DataError(CallerError):
    """The training data cannot be used."""

    reason = "bad-data"


class ModelError(CallerError):
    """The model is intact but cannot be trained by this version."""

    reason = "unsupported-model"


class ArtifactError(TemperdError):
    """A file or message does not verify; nothing of it is used."""

    reason = "untrusted"
    exit_code = 3


class SealedFileError(ArtifactError):
    """A sealed file is broken, truncated, altered or sealed with another key."""

    reason = "sealed-broken"


class TrustError(ArtifactError):
    """Repository metadata does not verify."""

    reason = "repository-untrusted"


class GrantError(ArtifactError):
    """This device holds no usable grant for the model."""

    reason = "grant-refused"


class CommandError(ArtifactError):
    """A command is refused."""

    reason = "command-refused"


class NetworkError(TemperdError):
    """A peer is unreachable or too slow."""

    reason = "network"


class BoardError(TemperdError):
    """The board lacks something: space, a sensor, a permission."""

    reason = "board"


class EngineError(TemperdError):
    """Training itself failed."""

    reason = "engine"
