"""A release of temperd, signed into the repository: the publisher's side of updates, on a laptop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from tuf.api.metadata import TargetFile  # public, re-exported without __all__

from agent.agent_archive import Entry, broken, entries
from agent.agent_release import FOLDER, AgentRelease, parse_release
from agent.agent_slots import MAX_RELEASE_BYTES, RELEASE, FileFacts, SlotRelease
from agent.agent_slots import parse_release as parse_list
from agent.durable import disk_errors
from agent.errors import ArtifactError, SpecError
from agent.repository import Publisher
from agent.repository_files import store_file
from agent.repository_keys import TARGETS
from policies.strict import TableError, build


def published(publisher: Publisher) -> tuple[AgentRelease, ...]:
    """Every published release.

    Raises:
        TrustError: what is signed of one is none.
    """
    found = publisher.signed.release.targets.signed.targets.values()
    return tuple(parse_release(item.custom, item.path, item.length) for item in found if item.path.startswith(_PREFIX))


_PREFIX = f"{FOLDER}/"


def publish_release(publisher: Publisher, file: Path) -> AgentRelease:
    """Sign the release in `file` into the repository; the same once more renews the dates.

    Args:
        publisher: of the repository.
        file: as `temperd release build` made it.

    Raises:
        SpecError: `version-exists`: this version is published with other bytes.
        ArtifactError: `release-broken`: the file is no release.
        BoardError: a key is missing or the disk fails; boards still see the release before.
    """
    release = read_file(file)
    publish_file(publisher, release.path, file, release.to_table())
    return release


def publish_file(publisher: Publisher, path: str, file: Path, facts: Mapping[str, object]) -> TargetFile:
    """Sign any file that is no model into the repository; the same once more renews the dates.

    Args:
        publisher: of the repository.
        path: of the target.
        file: its bytes; read once, in constant memory.
        facts: what is signed of it; no numbers with a fraction.

    Raises:
        SpecError: `version-exists`: there is another file under this path.
        BoardError: a key is missing or the disk fails; boards still see the release before.
    """
    publisher.signed.signers(TARGETS)  # told before the work is done
    there = publisher.signed.release.targets.signed.targets.get(path)
    with disk_errors(file), file.open("rb") as stream:
        if there is not None and there.hashes.get("sha256") != hashlib.file_digest(stream, "sha256").hexdigest():
            fix = "A version never changes: raise the number"
            raise SpecError("is published already with other bytes", where=path, fix=fix, reason="version-exists")
        stream.seek(0)
        stored = store_file(publisher.signed.folder / "targets", path, stream)
    target = TargetFile(stored.length, {"sha256": stored.sha256}, path, {"custom": dict(facts)})
    publisher.signed.release.targets.signed.targets[path] = target
    publisher.signed.commit({TARGETS})
    return target


def read_file(file: Path) -> AgentRelease:
    """What a release in a file is, once every byte of it is what its list says.

    Raises:
        ArtifactError: `release-broken`.
        BoardError: the disk fails.
    """
    with disk_errors(file), file.open("rb") as stream:
        listed, digest = read_archive(entries(stream))
    table = {name: getattr(listed, name) for name in AgentRelease.__slots__ if name != "files_sha256"}
    try:
        return build(AgentRelease, {**table, "files_sha256": digest})
    except TableError as error:
        raise broken(f"{RELEASE}: {error}") from error


def read_archive(found: Iterator[Entry]) -> tuple[SlotRelease, str]:
    """The list in front of an archive and its hash, once every file behind it is the one that it names.

    Raises:
        ArtifactError: `release-broken`.
    """
    first = next(found, None)
    if first is None or first.path != RELEASE:
        raise broken(f"{RELEASE} is not the first file")
    data = first.whole(MAX_RELEASE_BYTES)
    listed = parse_list(data)
    there: dict[str, FileFacts] = {}
    for entry in found:
        digest = hashlib.sha256()
        for piece in entry.pieces:
            digest.update(piece)
        there[entry.path] = FileFacts(entry.length, digest.hexdigest())
    if there != listed.files:
        name = min(path for path in there.keys() | listed.files.keys() if there.get(path) != listed.files.get(path))
        raise ArtifactError("is not the file of the list", where=name, reason="release-broken")
    return listed, hashlib.sha256(data).hexdigest()
