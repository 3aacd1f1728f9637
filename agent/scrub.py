"""Scrubbing (R14): what the board keeps is read and hashed again, and mended from parity, by download or not at all.

Judged is what the medium holds. A file is whole if its hash is the one that a signature or a manifest vouches for, or
the one that its parity was made of; or else, if it is newer than its parity, if the board's key opens it. Every file
found whole gets parity here, unless it has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from agent.durable import disk_errors, make_folder, remove, remove_partials
from agent.errors import ArtifactError, BoardError
from agent.parity import MAX_FILE_BYTES, parity_is_whole, read_header, repair, write_parity
from agent.scrub_kept import DOWNLOADED, LEFT, SLOT, Kept
from agent.scrub_read import sha256_on_disk

SUFFIX = ".parity"
MISSING = "missing"  # in the place of a hash
REPAIRED = "repaired"
DISK_CODES = ("no-space", "disk")  # of BoardError: writing failed
MAX_FINDINGS = 20  # told one by one; all are counted
MAX_TOLD = 300  # characters of a finding that travel


@dataclass(frozen=True, slots=True)
class Finding:
    """One file that was damaged.

    Attributes:
        path: below the state folder.
        kind: `base`, `frozen`, `slot`, `checkpoint` or `status`.
        action: `repaired`, `downloaded`, or for what is lost `removed`, `rolled-back`, `left`.
        told: a sentence for people.
    """

    path: str
    kind: str
    action: str
    told: str


@dataclass(slots=True)
class Report:
    """What a scrub found."""

    files: int = 0
    bytes: int = 0
    """Read from the medium."""
    damaged: int = 0
    """Files whose bytes on the medium are wrong."""
    repaired: int = 0
    """Of these: whole again, from parity or by download."""
    unrepairable: int = 0
    """Of these: lost."""
    memory_errors: int = 0
    """Files that were wrong at the first reading and right at the second: the bits flipped on the way or in memory."""
    parity_made: int = 0
    unjudged: int = 0
    """Files nobody vouches for."""
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else is worth telling, such as parity that could not be written."""

    def table(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


class _Doubt(NamedTuple):
    """A file that was wrong: rebuilt in so many blocks, or not at all; `why` it is lost unless a key opens it now."""

    item: Kept
    blocks: int | None
    why: str


class Scrub:
    """One walk over the kept files. The only writer meanwhile: no job runs.

    Args:
        state: the daemon's state folder; parity lies below its `parity/`.
        breathe: called between pieces of work, see `Pace`.
        digest: reads and hashes a file, see `sha256_on_disk`.
    """

    def __init__(
        self,
        state: Path,
        breathe: Callable[[], None],
        digest: Callable[[Path, Callable[[], None]], str] = sha256_on_disk,
    ) -> None:
        self._state, self._breathe, self._digest = state, breathe, digest
        self.report = Report()

    def run(self, kept: Iterable[Kept]) -> Report:
        """Judge every file and mend what is damaged.

        Raises:
            ScrubEndedError: an order ended it; what was mended stays mended.
            BoardError: the disk fails.
        """
        for name in ("repository/bases", "store/checkpoints", "store/frozen", "store/slots/a", "store/slots/b"):
            remove_partials(self._state / name)
        for path in self._parity_folders():
            remove_partials(path)
        doubts = [doubt for item in kept if (doubt := self._scrub(item)) is not None]
        lost_slots: set[Path] = set()
        for doubt in sorted(doubts, key=lambda doubt: not doubt.item.sha256):  # first what is known to be wrong
            folder = doubt.item.path.parent
            if folder not in lost_slots and not self._settle(doubt) and doubt.item.kind == SLOT:
                lost_slots.add(folder)  # its other files are lost with it
        for path in self._parity_files():
            if not self._file_of(path).exists():
                remove(path)
        return self.report

    def parity_of(self, path: Path) -> Path:
        """Where the parity of a kept file lies."""
        name = path.relative_to(self._state)
        return self._state / "parity" / name.parent / f"{name.name}{SUFFIX}"

    def _file_of(self, parity: Path) -> Path:
        name = parity.relative_to(self._state / "parity")
        return self._state / name.parent / name.name.removesuffix(SUFFIX)

    def _parity_folders(self) -> list[Path]:
        folder = self._state / "parity"
        with disk_errors(folder):
            return [path for path in folder.rglob("*") if path.is_dir()]

    def _parity_files(self) -> list[Path]:
        folder = self._state / "parity"
        with disk_errors(folder):
            return sorted(folder.rglob(f"*{SUFFIX}"))

    def mended_status(self, sentences: tuple[str, ...]) -> None:
        """Count what `Store.recover` had to mend after the walk: a status is rebuilt from slots that are whole then."""
        if sentences:
            self._count(Finding("store/slots", "status", REPAIRED, ": ".join(sentences)[:MAX_TOLD]))

    def _scrub(self, item: Kept) -> _Doubt | None:
        """Judge one file; `None` when that is done."""
        parity = self.parity_of(item.path)
        recorded = _recorded(parity)
        vouching = {item.sha256, recorded} - {""}
        found = self._read(item.path)
        self.report.files += 1
        if vouching and found not in vouching:
            again = self._read(item.path)
            self.report.memory_errors += again in vouching
            found = again
        if not vouching and item.verifies is None:
            self.report.unjudged += 1
        elif found in vouching or (item.verifies is not None and item.verifies()):
            self._protect(item, found)
        else:
            return self._mend(item, parity, recorded)
        return None

    def _mend(self, item: Kept, parity: Path, recorded: str) -> _Doubt | None:
        if item.sha256 and recorded != item.sha256:
            return self._doubt(_Doubt(item, None, "it is damaged and there is no parity for it"))
        try:
            blocks = repair(item.path, parity, recorded, self._breathe)
        except ArtifactError as error:
            return self._doubt(_Doubt(item, None, str(error)))
        except BoardError as error:
            if error.code not in DISK_CODES:
                raise
            # A full disk may be emptied, and then this file can be mended: nothing is given up for it now.
            self._found(item, LEFT, str(error))
            return None
        return self._doubt(_Doubt(item, blocks, "it is damaged and its parity is of an older file"))

    def _doubt(self, doubt: _Doubt) -> _Doubt | None:
        """A key can only tell of a slot as a whole, so its files are settled when all of them were mended."""
        if doubt.item.verifies is not None:
            return doubt
        self._settle(doubt)
        return None

    def _settle(self, doubt: _Doubt) -> bool:
        """Whether the file is whole."""
        item = doubt.item
        whole = doubt.blocks is not None if item.verifies is None else item.verifies()
        if not whole:
            self._lost(item, doubt.why)
            return False
        if doubt.blocks is not None:
            self._found(item, REPAIRED, f"blocks rebuilt from parity: {doubt.blocks}")
        self._protect(item, self._digest(item.path, self._breathe))
        return True

    def _read(self, path: Path) -> str:
        try:
            found = self._digest(path, self._breathe)
            self.report.bytes += path.stat().st_size
        except FileNotFoundError:
            return MISSING
        return found

    def _protect(self, item: Kept, sha256: str) -> None:
        """Make parity where it is missing, damaged or of an older file."""
        parity = self.parity_of(item.path)
        if parity_is_whole(parity, sha256, self._breathe):
            return
        try:
            with disk_errors(item.path):
                if not 1 <= item.path.stat().st_size <= MAX_FILE_BYTES:
                    return
            make_folder(parity.parent)
            write_parity(item.path, parity, sha256, self._breathe)
        except (BoardError, ArtifactError) as error:
            if isinstance(error, BoardError) and error.code not in DISK_CODES:
                raise
            self._note(f"no parity for {self._name(item)}: {error}")
        else:
            self.report.parity_made += 1

    def _lost(self, item: Kept, why: str) -> None:
        loss = item.lose()
        self._found(item, loss.action, f"{why}; {loss.told}" if loss.told else why)
        if loss.action == DOWNLOADED:
            found = self._digest(item.path, self._breathe)
            if found == item.sha256:
                self._protect(item, found)

    def _found(self, item: Kept, action: str, told: str) -> None:
        self._count(Finding(self._name(item), item.kind, action, told[:MAX_TOLD]))

    def _count(self, finding: Finding) -> None:
        report = self.report
        report.damaged += 1
        if finding.action in (REPAIRED, DOWNLOADED):
            report.repaired += 1
        else:
            report.unrepairable += 1
        if len(report.findings) < MAX_FINDINGS:
            report.findings.append(finding)

    def _note(self, what: str) -> None:
        if len(self.report.notes) < MAX_FINDINGS:
            self.report.notes.append(what[:MAX_TOLD])

    def _name(self, item: Kept) -> str:
        return str(item.path.relative_to(self._state))


def _recorded(parity: Path) -> str:
    """Hash of the file that the parity was made of; empty where there is none to be read."""
    try:
        return read_header(parity).sha256
    except (ArtifactError, FileNotFoundError):
        return ""
