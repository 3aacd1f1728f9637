"""What a board would say of a repository, and more: every fault at once instead of the first.

Reads a folder or a web server through the same five questions a board asks: which roots follow the pinned one, what
the timestamp names, the snapshot, the targets and grants, and whether each file is the one that was signed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp  # public

from agent import system_card
from agent.agent_release import FOLDER, most_bytes
from agent.card import grant_path, parse, target_path
from agent.errors import ArtifactError, TrustError
from agent.keys import MAX_GRANT_BYTES
from agent.repository_bounds import MAX_ROOT_ROTATIONS
from agent.repository_keys import GRANTS, ROOT, SNAPSHOT, TARGETS, TIMESTAMP
from agent.repository_release import LIVES, READ_BYTES, T, parse_document
from agent.sealed import MAX_SEGMENTS, SEGMENT_BYTES, sealed_length
from agent.strict_json import loads

MAX_SEALED_BYTES = MAX_SEGMENTS * SEGMENT_BYTES
RELEASES: Mapping[str, Callable[[object, str, int], int]] = {
    FOLDER: most_bytes,
    system_card.FOLDER: system_card.most_bytes,
}
"""By the folder of targets that are no models: judges facts, path and length, and gives the most bytes of the file."""
GRANT_PARTS = 3  # grants/<device>/<name>-<version>.json


class Source(Protocol):
    """Where the repository's files come from, by paths such as `metadata/timestamp.json`."""

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """The file; `None`: there is none. ArtifactError: longer than `max_bytes`."""

    def digest(self, path: str, max_bytes: int) -> tuple[int, str] | None:
        """Its length and SHA-256 in hexadecimal, in constant memory; else like `read`."""

    def files(self) -> list[str]:
        """Every file, where that can be listed; else none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something a board would refuse, or cannot use: `code` is stable, `where` a path in the repository."""

    code: str
    where: str
    what: str


@dataclass(slots=True)
class Report:
    """The outcome; the repository is right if there are no findings.

    Attributes:
        findings: what is wrong.
        expires: of each role's document.
        models: `name version` of each model found right.
        releases: paths of what else was found right: temperd itself, system images.
        grants: how many were found right.
        orphans: files that no document names: left by a publication that was cut off, or older grants. Harmless.
    """

    findings: list[Finding] = field(default_factory=list)
    expires: dict[str, datetime] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)
    grants: int = 0
    orphans: list[str] = field(default_factory=list)

    def add(self, code: str, where: str, what: str) -> None:
        """Note a finding."""
        self.findings.append(Finding(code, where, what))


def check_repository(source: Source, pinned_root: bytes, now: datetime) -> Report:
    """Ask all questions.

    Args:
        source: the repository.
        pinned_root: the document that boards have pinned.
        now: with time zone UTC.

    Raises:
        NetworkError, BoardError: the source cannot be read at all.
    """
    report = Report()
    check = _Check(source, report, now)
    try:
        root = check.roots(pinned_root)
        timestamp = check.signed(TIMESTAMP, root, f"metadata/{TIMESTAMP}.json", Timestamp, None)
        meta = timestamp.signed.snapshot_meta
        snapshot = check.signed(SNAPSHOT, root, f"metadata/{meta.version}.{SNAPSHOT}.json", Snapshot, meta)
        names = snapshot.signed.meta
        targets = check.targets(TARGETS, root, names)
        check.models(targets)
        check.releases(targets)
        check.grants(targets, targets.signed.targets)
        if targets.signed.delegations is not None:
            grants = check.targets(GRANTS, targets.signed, names)
            check.grants(targets, grants.signed.targets)
    except _StopError:
        return report
    signed = {f"targets/{place(item)}" for item in check.named}
    report.orphans = sorted(path for path in source.files() if path.startswith("targets/") and path not in signed)
    return report


def place(target: TargetFile) -> str:
    """Path of a target's file below `targets`."""
    parent, _, name = target.path.rpartition("/")
    return f"{parent}/{target.hashes.get('sha256', '')}.{name}"


class _StopError(Exception):
    """Nothing further can be judged; why stands in the report."""


class _Check:
    def __init__(self, source: Source, report: Report, now: datetime) -> None:
        self._source, self._report, self._now = source, report, now
        self.named: list[TargetFile] = []

    def roots(self, pinned: bytes) -> Root:
        """The last root that the pinned one leads to."""
        where, data = "the pinned root", pinned
        root: Root | None = None
        for _ in range(MAX_ROOT_ROTATIONS + 1):
            document = self._parse(data, Root, where)
            for delegator in (root or document.signed, document.signed):
                self._judge(delegator, ROOT, document, where)
            if root is not None and document.signed.version != root.version + 1:
                raise self._stop("metadata-version", where, f"version {document.signed.version} after {root.version}")
            root = document.signed
            where = f"metadata/{root.version + 1}.root.json"
            following = self._read(where, READ_BYTES[ROOT])
            if following is None:
                self._date(ROOT, root.expires, "root")
                return root
            data = following
        raise self._stop("too-many-roots", where, f"boards follow {MAX_ROOT_ROTATIONS} roots: pin a newer one on them")

    def signed(
        self, role: str, delegator: Root | Targets, where: str, kind: type[T], meta: MetaFile | None
    ) -> Metadata[T]:
        """A document that its delegator vouches for and that is the one named."""
        data = self._read(where, READ_BYTES[role])
        if data is None:
            raise self._stop("file-missing", where, "is missing")
        document = self._parse(data, kind, where)
        self._judge(delegator, role, document, where)
        if meta is not None:
            try:
                meta.verify_length_and_hashes(data)
            except RepositoryError as error:
                raise self._stop("metadata-mixed", where, f"is not the one that is named: {error}") from error
            if document.signed.version != meta.version:
                raise self._stop("metadata-version", where, f"holds version {document.signed.version}")
        self._date(role, document.signed.expires, where)
        return document

    def targets(self, role: str, delegator: Root | Targets, names: Mapping[str, MetaFile]) -> Metadata[Targets]:
        meta = names.get(f"{role}.json")
        if meta is None:
            raise self._stop("metadata-missing", role, "the snapshot does not name it")
        return self.signed(role, delegator, f"metadata/{meta.version}.{role}.json", Targets, meta)

    def models(self, targets: Metadata[Targets]) -> None:
        for path, item in targets.signed.targets.items():
            if path.partition("/")[0] in {"grants", *RELEASES}:
                continue
            self.named.append(item)
            try:
                card = parse(item.custom if isinstance(item.custom, Mapping) else {})
            except TrustError as error:
                self._report.add("card", path, str(error))
                continue
            if path != target_path(card.name, card.version):
                self._report.add("card", path, f"is the card of {card.name} {card.version}")
            elif item.length != sealed_length(card.plaintext_length):
                self._report.add("card", path, "its length does not fit that of the sealed file")
            elif self._is_right(item, MAX_SEALED_BYTES):
                self._report.models.append(f"{card.name} {card.version}")

    def releases(self, targets: Metadata[Targets]) -> None:
        """What is no model."""
        for path, item in targets.signed.targets.items():
            judge = RELEASES.get(path.partition("/")[0])
            if judge is None:
                continue
            self.named.append(item)
            try:
                most = judge(item.custom, path, item.length)
            except TrustError as error:
                self._report.add("release", path, str(error))
                continue
            if self._is_right(item, most):
                self._report.releases.append(path)

    def grants(self, targets: Metadata[Targets], found: Mapping[str, TargetFile]) -> None:
        sealed = {path.split("/", 1)[1]: item.hashes.get("sha256") for path, item in targets.signed.targets.items()}
        for path, item in found.items():
            parts = path.split("/")
            if parts[0] != "grants" and found is not targets.signed.targets:
                self._report.add("grant", path, "is no place of a grant")
            if parts[0] != "grants":
                continue
            self.named.append(item)
            name, _, version = parts[-1].removesuffix(".json").rpartition("-")
            if len(parts) != GRANT_PARTS or path != grant_path(parts[1], name, version):
                self._report.add("grant", path, "is no place of a grant")
            elif self._is_right(item, MAX_GRANT_BYTES):
                self._grant(item, parts[1], sealed.get(f"{name}/{version}.sealed"))

    def _grant(self, item: TargetFile, device: str, sealed_sha256: str | None) -> None:
        data = self._read(f"targets/{place(item)}", MAX_GRANT_BYTES) or b""
        try:
            table = loads(data, what="grant", max_bytes=MAX_GRANT_BYTES, error=TrustError)
        except TrustError as error:
            self._report.add("grant", item.path, str(error))
            return
        if not isinstance(table, Mapping) or table.get("device") != device:
            self._report.add("grant", item.path, f"is not for {device}")
        elif sealed_sha256 is None or table.get("target_sha256") != sealed_sha256:
            self._report.add("grant", item.path, "is for no model that is published: grant it again")
        else:
            self._report.grants += 1

    def _is_right(self, item: TargetFile, max_bytes: int) -> bool:
        where = f"targets/{place(item)}"
        try:
            found = self._source.digest(where, max_bytes)
        except ArtifactError as error:
            self._report.add(error.code, where, str(error))
            return False
        if found is None:
            self._report.add("file-missing", where, f"is missing, {item.path} needs it")
        elif found != (item.length, item.hashes.get("sha256")):
            self._report.add("target-hash", where, f"is not the file that was signed as {item.path}")
        return found == (item.length, item.hashes.get("sha256"))

    def _date(self, role: str, expires: datetime, where: str) -> None:
        self._report.expires[role] = expires
        if expires <= self._now:
            self._report.add("metadata-expired", where, f"has expired at {expires:%Y-%m-%d %H:%M} UTC")
        elif expires > self._now + 2 * LIVES[role]:
            self._report.add(
                "metadata-ahead", where, f"is dated until {expires:%Y-%m-%d}: was it signed by a wrong clock?"
            )

    def _judge(self, delegator: Root | Targets, role: str, document: Metadata[T], where: str) -> None:
        try:
            delegator.verify_delegate(role, document.signed_bytes, document.signatures)
        except (RepositoryError, ValueError) as error:
            raise self._stop("metadata-unsigned", where, str(error)) from error

    def _parse(self, data: bytes, kind: type[T], where: str) -> Metadata[T]:
        try:
            return parse_document(data, kind, where)
        except TrustError as error:
            self._report.add("metadata-broken", where, error.what)
            raise _StopError from error

    def _read(self, path: str, max_bytes: int) -> bytes | None:
        try:
            return self._source.read(path, max_bytes)
        except ArtifactError as error:
            self._report.add(error.code, path, str(error))
            raise _StopError from error

    def _stop(self, code: str, where: str, what: str) -> _StopError:
        self._report.add(code, where, what)
        return _StopError()
