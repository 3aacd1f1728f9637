"""`inject.json`: the file by which anyone asks an emulated board for heat and faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from agent import strict_json
from agent.board.injection import NOTHING, Injection
from agent.errors import ArtifactError
from policies.strict import TableError, build

MAX_JSON_BYTES = 4096  # a full file has about 300 bytes
_ABSENT = (0, 0, 0)


class InjectionFile:
    """Watches one file.

    Args:
        path: where it is or will be.
        say: told why a file is refused; a refused one asks for nothing.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._now, self._identity, self._since_s = NOTHING, _ABSENT, 0.0

    def read(self, mono_s: float) -> tuple[Injection, bool]:
        """What is asked for at monotonic time `mono_s`, and whether that is new since the last call.

        The file is removed when its `seconds` are over.
        """
        try:
            found = self._path.stat()
        except OSError:
            return self._become(NOTHING, _ABSENT, mono_s)
        identity = (found.st_ino, found.st_mtime_ns, found.st_size)
        if identity != self._identity:
            return self._become(self._parsed(), identity, mono_s)
        if self._now.seconds is not None and mono_s - self._since_s >= self._now.seconds:
            self._path.unlink(missing_ok=True)
            return self._become(NOTHING, _ABSENT, mono_s)
        return self._now, False

    def _become(self, injection: Injection, identity: tuple[int, int, int], mono_s: float) -> tuple[Injection, bool]:
        new = identity != self._identity
        self._now, self._identity = injection, identity
        if new:
            self._since_s = mono_s
        return injection, new

    def _parsed(self) -> Injection:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
            return build(Injection, strict_json_table(data, "inject.json"))
        except (OSError, ArtifactError, TableError) as error:
            self._say(f"inject.json ignored: {error}")
            return NOTHING


def strict_json_table(data: bytes, what: str) -> dict[str, object]:
    """A JSON table of an emulated board.

    Raises:
        ArtifactError: not JSON, too long, or no table.
    """
    body = strict_json.loads(data, what=what, max_bytes=MAX_JSON_BYTES)
    if not isinstance(body, dict):
        raise ArtifactError("must be a table", where=what)
    return body
