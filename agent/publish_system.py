"""A system image for boards that RAUC updates, signed into the repository: the publisher's side, on a laptop."""

from __future__ import annotations

from pathlib import Path

from agent.durable import disk_errors
from agent.errors import SpecError
from agent.publish_release import publish_file
from agent.repository import Publisher
from agent.system_card import MAX_BUNDLE_BYTES, SystemCard


def publish_system(publisher: Publisher, file: Path, card: SystemCard) -> None:
    """Sign the bundle in `file` into the repository; the same once more renews the dates.

    The bundle is taken as it is: whether it is one, and for which boards, RAUC judges on them.

    Args:
        publisher: of the repository.
        file: as `rauc bundle` made it.
        card: what is said of it.

    Raises:
        SpecError: `version-exists`: this version is published with other bytes; or it is empty or too long.
        BoardError: a key is missing or the disk fails; boards still see the release before.
    """
    with disk_errors(file):
        length = file.stat().st_size
    if not 0 < length <= MAX_BUNDLE_BYTES:
        raise SpecError(f"a bundle has 1 to {MAX_BUNDLE_BYTES} bytes, this has {length}", where=str(file))
    publish_file(publisher, card.path, file, card.table())
