"""How a system image comes to the board: found, judged and fetched, before RAUC is asked to install it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from tuf.api.metadata import TargetFile  # public, without __all__

from agent.card import LATEST, VERSION, version_key
from agent.download import PART
from agent.durable import disk_errors, make_folder
from agent.errors import BoardError, NetworkError, SpecError, TrustError
from agent.messages import METERED, Finished, SystemOrder
from agent.system_card import ENDING, FOLDER, SystemCard, most_bytes, read_card
from agent.trust import ModelRepository

SPARE_BYTES = 64 << 20  # of the state's disk, left for the journal and checkpoints while a bundle lies there
_PARTS = 3  # system/<name>/<file>


def find(repository: ModelRepository, name: str, version: str) -> SystemCard:
    """The published image; `latest` is the highest version. Withdrawn ones do not count.

    Raises:
        SpecError: `unknown-image`, `unknown-version`.
        TrustError: `below-security-floor`, or a card that is wrong.
        NetworkError, BoardError: see `ModelRepository.refresh`.
    """
    paths = repository.paths(FOLDER)
    own = [path for path in paths if path.split("/")[1] == name and path.endswith(ENDING)]
    if not own:
        there = sorted({path.split("/")[1] for path in paths if len(path.split("/")) == _PARTS})[:10]
        what = f"the repository has no system image {name[:64]!r}; there is {', '.join(there) or 'none at all'}"
        raise SpecError(what, reason="unknown-image")
    cards = {card.version: card for card in (read_card(repository.signed(path).custom, path) for path in own)}
    floor = max(card.security_floor for card in cards.values())
    if version == LATEST:
        version = max((v for v, card in cards.items() if card.security_floor >= floor), key=version_key)
    card = cards.get(version)
    if card is None:
        there = sorted(cards, key=version_key, reverse=True)[:10]
        raise SpecError(f"{name} has no version {version!r}; there is {', '.join(there)}", reason="unknown-version")
    if card.security_floor < floor:
        what = f"{name} {version} is withdrawn: its security floor is below {floor}"
        raise TrustError(what, fix="Use a newer version", reason="below-security-floor")
    return card


def pull(order: SystemOrder, repository: ModelRepository) -> Finished:
    """Bring the bundle that is ordered to the board, where it is not there already; it has the signed hash then.

    Returns:
        `path`, `version` and `bytes`; an empty path: that system runs already, or with `latest` nothing newer is there.

    Raises:
        NetworkError: see `ModelRepository`; `metered-link`.
        TrustError, SpecError: see `find`; `other-board`, `older-version`, `target-hash`.
        BoardError: `no-space`, said before a byte is asked for; `disk`.
    """
    repository.refresh()
    card = find(repository, order.name, order.version)
    if _runs_already(card, order):
        return Finished("SUCCEEDED", "", {"path": "", "version": card.version, "bytes": 0})
    folder = Path(order.state_dir) / FOLDER
    make_folder(folder)
    path = folder / f"{card.name}-{card.version}{ENDING}"
    info = repository.signed(card.path)
    most_bytes(info.custom, card.path, info.length)
    with disk_errors(folder):
        _clear(folder, path.name, info.hashes.get("sha256", ""))
        there = path.stat().st_size if path.is_file() else 0
    if there != info.length or not _verifies(info, path):
        _download(order, repository, card, path)
    return Finished("SUCCEEDED", "", {"path": str(path), "version": card.version, "bytes": info.length})


def _runs_already(card: SystemCard, order: SystemOrder) -> bool:
    """Whether there is nothing to do; refuses what is not for this board or older than what runs."""
    if card.compatible != order.compatible:
        what = f"{card.name} {card.version} is for {card.compatible!r}, this board is {order.compatible!r}"
        raise SpecError(what, reason="other-board")
    if not VERSION.fullmatch(order.installed):
        return False  # the image was not written by RAUC, or counts otherwise: nothing to compare with
    found, runs = version_key(card.version), version_key(order.installed)
    if found < runs and order.version == LATEST:
        return True
    if found < runs and not order.allow_downgrade:
        what = f"{card.name} {card.version} is older than {order.installed}, which runs"
        raise SpecError(what, fix='Send "allow_downgrade": true to go back all the same', reason="older-version")
    return found == runs


def _download(order: SystemOrder, repository: ModelRepository, card: SystemCard, path: Path) -> None:
    info = repository.signed(card.path)
    if order.metered:
        what = f"{card.name} {card.version}, {info.length / 1e6:.1f} MB, is not on the board and this link is metered"
        fix = 'Set metered = "allow" in [repository] and restart the daemon, or cancel the command'
        raise NetworkError(what, fix=fix, reason=METERED)
    part = path.with_name(f"{info.hashes['sha256']}{PART}")
    with disk_errors(path):
        here = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(path.parent).free
    needed = max(0, info.length - here) + SPARE_BYTES
    if free < needed:
        what = f"the bundle needs {needed / 1e6:.0f} MB with what must stay free, {free / 1e6:.0f} MB are"
        raise BoardError(what, where=str(path.parent), fix="Make room on this disk", reason="no-space")
    repository.download_signed(info, path)


def _verifies(info: TargetFile, path: Path) -> bool:
    """Whether the file that is there is the signed one: it may have been damaged since."""
    with disk_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == info.hashes.get("sha256")


def _clear(folder: Path, name: str, sha256: str) -> None:
    """Other bundles and parts make room: one at a time is installed."""
    for other in folder.iterdir():
        if other.name not in (name, f"{sha256}{PART}"):
            other.unlink()
