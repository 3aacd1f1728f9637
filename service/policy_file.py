"""The policy in force: where it comes from, when it changes, and the copy that workers read.

Three sources, the first that there is wins: what a command set, the file that the configuration names, the policy of
the board profile. Whatever is in force was parsed before and lies, whole, as `policy.toml` in the state folder.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from agent.board.profile import named_policy_text
from agent.durable import read_bounded, remove, write_atomic
from agent.errors import ArtifactError, BoardError, ConfigError
from policies.gate_floor import milder
from policies.policy import MAX_POLICY_BYTES, GatePolicy, Policy, PolicyError, differences, parse_policy
from service.logs import logger

COPY = "policy.toml"
COMMANDED = "policy-command.toml"
SEE = "See docs/policy.md"

log = logger("policy")


class Source(StrEnum):
    """Where the policy in force comes from."""

    COMMAND = "command"
    FILE = "file"
    BOARD = "board"
    KEPT = "kept"
    """The copy of what was in force before the last start, because the file is invalid now."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy that was parsed."""

    policy: Policy
    text: str
    source: Source
    where: str
    """The path of the file, or the name of the policy that ships."""

    @property
    def sha256(self) -> str:
        """Of its text, hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class _Stamp(NamedTuple):
    """What changes when a file is written or replaced."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class PolicyFile:
    """See the module.

    Args:
        state: the daemon's state folder.
        chosen: absolute path of the file that the configuration names, or empty.
        shipped: name of the board profile's policy.
        by_command: false: what a command set before the owner forbade it is not used. It stays on the disk.

    Raises:
        ConfigError: no source gives a valid policy and none was in force before.
        BoardError: the copy cannot be written.

    Attributes:
        complaint: why the source that should be in force is not, or empty.
    """

    def __init__(self, state: Path, chosen: str, shipped: str, *, by_command: bool = True) -> None:
        self._state, self._chosen, self._shipped = state, chosen, shipped
        self.complaint = ""
        self._judged = self._seen = self._stamp()
        self._copied = True
        self._now = self._at_start(by_command=by_command)
        self._write_copy(self._now)

    @property
    def copy(self) -> Path:
        """The file that workers read."""
        return self._state / COPY

    @property
    def now(self) -> InForce:
        """What is in force."""
        return self._now

    @property
    def policy(self) -> Policy:
        """What is in force, parsed."""
        return self._now.policy

    def shown(self) -> dict[str, object]:
        """For the live view and the fleet."""
        now = self._now
        return {
            "name": now.policy.name,
            "source": str(now.source),
            "where": now.where,
            "sha256": now.sha256,
            "complaint": self.complaint,
        }

    def look(self, *, at_once: bool = False) -> bool:
        """Read the configured file again if it changed; to be called once a tick.

        A file is read when it was the same at two looks, so that one that is being written is not taken half.

        Args:
            at_once: read it whatever its stamp says.

        Returns:
            Whether another policy is in force now. What is invalid is said once and changes nothing.
        """
        if not self._copied:
            self._force(self._now)
        if not self._chosen or self._now.source is Source.COMMAND:
            return False
        stamp = self._stamp()
        settled, self._seen = stamp == self._seen, stamp
        if not at_once and (stamp == self._judged or not settled):
            return False
        try:
            fresh = self._from_file()
        except ConfigError as error:
            self._judged = stamp
            self._complain(str(error))
            return False
        try:
            changed = self._put(fresh)
        except BoardError as error:  # asked again at the next look
            self._complain(str(error))
            return False
        self._judged = stamp
        self._complain("")
        return changed

    def set_text(self, text: str, where: str = "") -> dict[str, tuple[object, object]]:
        """Put the policy `text` in force, as a command asks: durable first, then in force.

        Args:
            text: TOML.
            where: name of the policy that ships, where it is one.

        Returns:
            See `policies.policy.differences`.

        Raises:
            PolicyError: invalid, or with a milder gate than the board's own; nothing changed.
            BoardError: the disk refuses; nothing changed.
        """
        fresh = InForce(parse_policy(text), text, Source.COMMAND, where or str(self._state / COMMANDED))
        before = self.policy
        if loosened := milder(self._own_gate(), fresh.policy.gate):
            raise PolicyError(*loosened)
        write_atomic(self._state / COMMANDED, text.encode())
        self._force(fresh)
        return differences(before, fresh.policy)

    def set_shipped(self, name: str) -> dict[str, tuple[object, object]]:
        """As `set_text`, with a policy that ships.

        Raises:
            ConfigError: there is none of that name.
        """
        return self.set_text(named_policy_text(name), name)

    def reset(self) -> dict[str, tuple[object, object]]:
        """Take back what commands set: the configured file or the profile's policy is in force again.

        Raises:
            ConfigError: the configured file is invalid; nothing changed.
            BoardError: the disk refuses; nothing changed.
        """
        stamp, fresh = self._stamp(), self._uncommanded()
        before = self.policy
        remove(self._state / COMMANDED)
        self._judged = self._seen = stamp
        self._force(fresh)
        return differences(before, fresh.policy)

    # --- sources -----------------------------------------------------------------------------------------------------

    def _at_start(self, *, by_command: bool) -> InForce:
        commanded = self._state / COMMANDED
        if commanded.exists() and not by_command:
            log.warning("a policy that a command set is not used: [policy] by_command = false", where=str(commanded))
        elif commanded.exists():
            try:
                return self._from_command(commanded)
            except ConfigError as error:  # a version before or after this one wrote it: the fleet can set another
                self._complain(str(error))
        try:
            return self._uncommanded()
        except ConfigError as error:
            try:
                kept = _read(self.copy, Source.KEPT)
            except ConfigError:
                raise error from None
            self._complain(str(error))
            return kept

    def _from_command(self, path: Path) -> InForce:
        """What a command left, unless the owner has made the board's own gate stricter since."""
        found = _read(path, Source.COMMAND)
        try:
            own = self._uncommanded().policy.gate
        except ConfigError:
            return found
        if loosened := milder(own, found.policy.gate):
            raise ConfigError(loosened[1], where=f"{path}: {loosened[0]}", fix=SEE)
        return found

    def _own_gate(self) -> GatePolicy:
        """That of the board's own policy; of what is in force, which is no milder, while that cannot be read."""
        try:
            return self._uncommanded().policy.gate
        except ConfigError:
            return self.policy.gate

    def _uncommanded(self) -> InForce:
        return self._from_file() if self._chosen else self._from_board()

    def _from_file(self) -> InForce:
        return _read(Path(self._chosen), Source.FILE)

    def _from_board(self) -> InForce:
        text = named_policy_text(self._shipped)
        return InForce(parsed_policy(text, self._shipped), text, Source.BOARD, self._shipped)

    def _stamp(self) -> _Stamp | None:
        if not self._chosen:
            return None
        try:
            found = Path(self._chosen).stat()
        except OSError:
            return None
        return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    # --- putting in force --------------------------------------------------------------------------------------------

    def _put(self, fresh: InForce) -> bool:
        """Write the copy, then take `fresh`; whether it is another policy."""
        changed = fresh.policy != self.policy
        self._write_copy(fresh)
        self._now = fresh
        return changed

    def _force(self, fresh: InForce) -> None:
        """Take `fresh`, whose source is on the disk already; a copy that the disk refuses now is tried at each look."""
        self._now, self._copied = fresh, False
        try:
            self._write_copy(fresh)
        except BoardError as error:
            self._complain(f"jobs still read the policy before: {error}")
        else:
            self._copied = True
            self._complain("")

    def _write_copy(self, fresh: InForce) -> None:
        """Spares the flash where the copy is right already."""
        data = fresh.text.encode()
        try:
            if read_bounded(self.copy, MAX_POLICY_BYTES) == data:
                return
        except (FileNotFoundError, ArtifactError, BoardError):
            pass
        write_atomic(self.copy, data)

    def _complain(self, complaint: str) -> None:
        """Keep and log; the same complaint is logged once."""
        if complaint and complaint != self.complaint:
            log.error("the policy before stays in force", why=complaint)
        self.complaint = complaint


def policy_text(path: Path) -> str:
    """The text of a policy file.

    Raises:
        FileNotFoundError: there is none.
        ConfigError: it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe in its place would never answer
            raise ConfigError("the policy file is no file", where=str(path))
        return read_bounded(path, MAX_POLICY_BYTES).decode()
    except FileNotFoundError:
        raise
    except (OSError, BoardError, ArtifactError, UnicodeDecodeError) as error:
        told = error.what if isinstance(error, ArtifactError) else getattr(error, "strerror", "") or str(error)
        raise ConfigError(f"the policy file cannot be read: {told}", where=str(path)) from error


def parsed_policy(text: str, where: str) -> Policy:
    """The policy in `text`.

    Raises:
        ConfigError: it is none; the key stands behind `where`.
    """
    try:
        return parse_policy(text)
    except PolicyError as error:
        at = f"{where}: {error.key}" if error.key else where
        raise ConfigError(error.what, where=at, fix=SEE) from error


def _read(path: Path, source: Source) -> InForce:
    """The policy in a file.

    Raises:
        ConfigError: it is not there, cannot be read, or is none.
    """
    try:
        text = policy_text(path)
    except FileNotFoundError as error:
        raise ConfigError(f"the policy file cannot be read: {error.strerror}", where=str(path)) from error
    return InForce(parsed_policy(text, str(path)), text, source, str(path))
