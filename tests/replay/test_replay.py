"""Fault 39: after a power cut at any call, with what was not synced lost or torn, nothing promised is missing."""

from __future__ import annotations

import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from recorded_disk import Disk, Operation, record
from recorded_life import CHECKPOINTS, KEY, MODELS, serving

from agent.errors import TemperdError
from agent.repository import Publisher, utc_now
from agent.sealed import Binding, sealed_length, unseal
from agent.store import Store
from agent.trust import ModelRepository, verify_sealed
from service.journal import Journal

STATES_PER_CALL = 8  # some 3,000 states in all

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt install strace"),
]


def replay(
    life: str, folders: tuple[str, ...], check: Callable[[Path, str, str], None], *, skip_syncs: bool = False
) -> int:
    """Number of states checked; `check` gets the folder, the last promise and the next one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, promises = Path(scratch, "live"), Path(scratch, "promises")
        if life == "publisher":
            Publisher.create(folder / "repository", folder / "keys", utc_now)
        if life == "board":
            Publisher.create(folder.parent / "web", folder.parent / "web-keys", utc_now)
        for name in folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        chance, disk, states = random.Random(39), Disk(folder, promises), 0
        calls = record(life, folder, promises)
        for number, call in enumerate(calls):
            if skip_syncs and call.kind in {"fsync", "fdatasync"}:
                continue
            if not disk.apply(call):
                continue
            following = next_promise(calls[number + 1 :], disk.promised)
            for _ in range(STATES_PER_CALL):
                left = Path(scratch, "left")
                for name in folders:
                    (left / name).mkdir(parents=True, exist_ok=True)
                disk.crash(chance, left)
                check(left, disk.promised, following)
                shutil.rmtree(left)
                states += 1
        return states


def next_promise(calls: list[Operation], now: str) -> str:
    for call in calls:
        text = call.strings[0].decode(errors="replace") if call.kind == "write" and call.strings else ""
        if (text.isdecimal() or text.split(",")[0] in MODELS) and text.isprintable() and text and text != now:
            return text
    return now


def check_store(folder: Path, promised: str, following: str) -> None:
    store = Store(folder, KEY)
    assert store.recover() == ()
    models, checkpoints = zip(*((text or ",").split(",") for text in (promised, following)), strict=True)
    found = store.load_active()[0] if store.active() else b""
    assert found in [MODELS[name] for name in models]
    assert (store.open_checkpoint("job") or b"") in [CHECKPOINTS[name] for name in checkpoints]


def check_journal(folder: Path, promised: str, following: str) -> None:
    del following
    opened = Journal.open(folder / "journal.db", 0.0)
    assert opened.quarantined is None
    assert opened.journal.next_session() > int(promised or 0)
    opened.journal.close()


def check_publisher(folder: Path, promised: str, following: str) -> None:
    publisher = Publisher.open(folder / "repository", folder / "keys", utc_now)
    assert str(len(publisher.models())) in {promised or "0", following}
    for target in publisher.models():
        body = folder / "repository" / "targets" / "models" / "m" / f"{target.sealed_sha256}.{target.version}.sealed"
        key = bytes.fromhex((folder / "keys" / "data" / f"m-{target.version}.key").read_text())
        binding = Binding("m", target.version, target.card.plaintext_sha256)
        assert unseal(io.BytesIO(body.read_bytes()), key, binding, 100) == f"model {target.version}".encode()


def check_board(folder: Path, promised: str, following: str) -> None:
    del following
    for version in range(1, int(promised or 0) + 1):
        assert (folder / "bases" / f"m-{version}.sealed").stat().st_size == sealed_length(len("model 1"))
    web = folder.parent / "web"
    with serving(web) as url:
        board = ModelRepository(url, web / "metadata" / "1.root.json", folder)
        board.refresh()
        target = board.find("m")
        assert target.version == "2"
        verify_sealed(board.fetch(target), target)


STORE_FOLDERS = ("slots/a", "slots/b", "checkpoints")


def test_the_store_keeps_what_it_promised() -> None:
    assert replay("store", STORE_FOLDERS, check_store) > 300


def test_the_journal_keeps_what_it_promised() -> None:
    assert replay("journal", (".",), check_journal) > 300


def test_the_publisher_keeps_what_it_published_and_can_open_it() -> None:
    assert replay("publisher", (), check_publisher) > 300


def test_the_board_keeps_what_it_fetched_and_goes_on() -> None:
    assert replay("board", (".",), check_board) > 300


@pytest.mark.parametrize(
    ("life", "folders", "check"),
    [("store", STORE_FOLDERS, check_store), ("journal", (".",), check_journal), ("publisher", (), check_publisher)],
)
def test_a_disk_that_is_never_synced_is_noticed(
    life: str, folders: tuple[str, ...], check: Callable[[Path, str, str], None]
) -> None:
    with pytest.raises((AssertionError, OSError, TemperdError)):
        replay(life, folders, check, skip_syncs=True)
