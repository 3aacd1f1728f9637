"""The board's client under faults: each leaves the disk so that the next, honest pull works.

Fault 10: test_one_signature_counted_twice_is_one. Fault 12: test_a_fast_forward_goes_on_from_there. Fault 17:
test_a_linked_folder_is_refused. Fault 40: test_the_disk_fails_at_every_step.
Fault 9: test_an_expired_copy_waits_for_the_repository.
Fault 37: test_a_repository_that_is_ill_for_ever_ends_in_a_reason. Fault 38: test_killed_at_every_step. Fault 39:
test_damaged_metadata_is_fetched_again. Fault 42: test_a_wrong_clock_is_told_and_does_not_lock_out. The others stand
in test_trust.py and test_download.py.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from securesystemslib.signer import Key

from agent.card import Target
from agent.errors import ConfigError, NetworkError, SealedFileError, TrustError
from agent.pull import open_stored, pull
from agent.trust import ModelRepository
from agent.web import LONGEST_RETRY_AFTER_SECONDS, MAX_FAILURES
from tests.agent.test_trust import MODEL, World, card, published, running, status
from tests.simulators.kill_matrix import fault_matrix, kill_matrix

pytestmark = pytest.mark.once

YEAR_S = 365 * 86400.0
NAME = "efficientnet-lite0"


class Pulling:
    """One board's pulls, with what it asked and said."""

    def __init__(self, world: World) -> None:
        self.world, self.asked, self.warned = world, list[str](), list[str]()
        self.pauses: list[float] = []

    def __call__(self, state: Path | None = None, now: float | None = None, *, metered: bool = False) -> bytes:
        wall = time.time if now is None else lambda: now
        repository = ModelRepository(
            self.world.site.url, self.world.pinned, state or self.world.state, pause=self.pauses.append, wall=wall
        )
        ask = lambda stage, _: self.asked.append(stage)  # noqa: E731 - as short as it gets
        wanted = (NAME, "latest", "")
        _, plaintext = pull(repository, self.world.identity, wanted, ask, self.warned.append, metered=metered)
        return plaintext

    def ill(self, code: int = 404) -> None:
        self.world.site.wrong["/"] = status(code)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Pulling]:
    with running(World(tmp_path)) as world:
        published(world)
        yield Pulling(world)


def downloads(board: Pulling) -> int:
    return sum(path.endswith(".sealed") for path in board.world.site.asked)


def test_stages_and_plaintext(board: Pulling) -> None:
    assert board() == MODEL
    assert board.asked == ["PULLING", "VERIFYING", "UNSEALING"]
    assert board() == MODEL
    assert downloads(board) == 1
    assert board.warned == []


@pytest.mark.parametrize("at", [0, 10, 100, -1])
def test_a_changed_stored_file_is_downloaded_again(board: Pulling, at: int) -> None:
    board()
    path = board.world.state / "bases" / f"{NAME}-1.0.sealed"
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    assert board() == MODEL
    assert downloads(board) == 2
    assert "downloaded again" in board.warned[0]


def test_nothing_is_given_away_before_all_hashes_agree(board: Pulling) -> None:
    board()
    found = board.world.board()
    target = found.find(NAME)
    key, path = found.grant(board.world.identity, target), board.world.state / "bases" / f"{NAME}-1.0.sealed"
    assert open_stored(path, target, key) == MODEL
    other = Target(target.name, target.version, target.path, "0" * 64, target.sealed_length, target.card)
    for wrong, secret, code in ((other, key, "sealed-hash"), (target, bytes(32), "sealed-tag")):
        with pytest.raises(SealedFileError) as caught:
            open_stored(path, wrong, secret)
        assert caught.value.code == code
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(SealedFileError) as caught:
        open_stored(path, target, key)
    assert caught.value.code == "sealed-hash"


@pytest.mark.parametrize("code", [404, 503])
def test_a_new_job_starts_without_the_repository(board: Pulling, code: int) -> None:
    board()
    board.ill(code)
    assert board(now=time.time() + 7200) == MODEL
    assert "2.0 hours ago" in board.warned[0]


def test_an_expired_copy_waits_for_the_repository(board: Pulling) -> None:
    board()
    board.ill()
    with pytest.raises(NetworkError, match="expired") as caught:
        board(now=time.time() + YEAR_S / 2)
    assert caught.value.code == "network"
    board.world.site.wrong.clear()
    assert board() == MODEL


@pytest.mark.parametrize("code", [404, 503])
def test_a_repository_that_is_ill_for_ever_ends_in_a_reason(board: Pulling, code: int) -> None:
    board.ill(code)
    with pytest.raises(NetworkError, match=f"HTTP status {code}"):
        board()
    assert len(board.pauses) == (MAX_FAILURES - 1 if code == 503 else 0)
    assert board.world.bases() == []
    board.world.site.wrong.clear()
    assert board() == MODEL


def test_passing_faults_of_metadata_and_grants_are_waited_out(board: Pulling) -> None:
    left = {"timestamp.json": 2, "grants/": 2}

    def ill(part: str, handler: SimpleHTTPRequestHandler) -> None:
        left[part] -= 1
        if not left[part]:
            del board.world.site.wrong[part]
        handler.send_response(503)
        handler.send_header("Retry-After", "7" if part == "grants/" else "9" * 9)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    for part in left:
        board.world.site.wrong[part] = partial(ill, part)
    assert board() == MODEL
    assert left == {"timestamp.json": 0, "grants/": 0}
    assert all(LONGEST_RETRY_AFTER_SECONDS <= pause <= LONGEST_RETRY_AFTER_SECONDS + 2 for pause in board.pauses[:2])
    assert all(7 <= pause <= 9 for pause in board.pauses[2:])


def test_a_metered_link_brings_what_is_small_and_no_model(board: Pulling) -> None:
    with pytest.raises(NetworkError, match="metered") as caught:
        board(metered=True)
    assert caught.value.code == "metered-link"
    assert downloads(board) == 0
    assert board() == MODEL
    assert board(metered=True) == MODEL


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets", "grants", "root_history/1.root", "root"])
@pytest.mark.parametrize("damage", ["empty", "torn", "flipped", "zeros", "missing"])
def test_damaged_metadata_is_fetched_again(board: Pulling, name: str, damage: str) -> None:
    board()
    path = board.world.state / "metadata" / f"{name}.json"
    good = path.read_bytes()
    flipped = good[:300] + bytes([good[300] ^ 1]) + good[301:]
    broken = {"empty": b"", "torn": good[: len(good) // 2], "flipped": flipped, "zeros": bytes(len(good))}
    path.unlink() if damage == "missing" else path.write_bytes(broken[damage])
    assert board() == MODEL
    assert path.read_bytes() == good


def test_without_its_timestamp_a_board_still_takes_no_older_targets(board: Pulling, tmp_path: Path) -> None:
    old = shutil.copytree(board.world.folder, tmp_path / "old")
    board.world.publisher.renew()
    board.world.publisher.publish(MODEL, card(version="1.1"))
    board.world.board().refresh()
    (board.world.state / "metadata" / "timestamp.json").write_bytes(b"")
    shutil.copytree(old, board.world.folder, dirs_exist_ok=True)
    with pytest.raises(TrustError) as caught:
        board.world.board().refresh()
    assert caught.value.code == "metadata-rollback"


def test_a_wrong_clock_is_told_and_does_not_lock_out(board: Pulling) -> None:
    with pytest.raises(NetworkError, match="1970-01-01") as early:
        board(now=5.0)
    assert early.value.code == "clock-wrong"
    with pytest.raises(TrustError, match="clock") as late:
        board(now=time.time() + 10 * YEAR_S)
    assert late.value.code == "metadata-expired"
    assert board() == MODEL
    with contextlib.suppress(TrustError):
        board(now=time.time() + 10 * YEAR_S)
    assert board() == MODEL


@pytest.mark.parametrize("folder", ["bases", "metadata"])
def test_a_linked_folder_is_refused(board: Pulling, tmp_path: Path, folder: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    board.world.state.mkdir()
    (board.world.state / folder).symlink_to(victim)
    with pytest.raises(ConfigError, match="symbolic link"):
        board()
    assert list(victim.iterdir()) == []


def test_killed_at_every_step(board: Pulling, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()

    def check(state: Path) -> None:
        assert board(state) == MODEL
        assert not [path.name for path in state.rglob("*") if path.suffix in {".part", ".partial"}]

    assert kill_matrix(prepared, tmp_path / "scratch", board, check) > 20


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_the_disk_fails_at_every_step(board: Pulling, tmp_path: Path, error: int) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()

    def check(state: Path) -> None:
        assert board(state) == MODEL

    assert fault_matrix(prepared, tmp_path / "scratch", board, check, error, lasting=False) > 20


def test_a_fast_forward_goes_on_from_there(board: Pulling) -> None:
    board()
    signed = board.world.publisher.signed
    signed.release.timestamp.signed.version = 2**63
    board.world.publisher.renew()
    assert board() == MODEL
    assert '"version":9223372036854775809' in (board.world.state / "metadata" / "timestamp.json").read_text()
    board.world.publisher.renew()
    assert board() == MODEL


def test_one_signature_counted_twice_is_one(board: Pulling) -> None:
    board()
    signed, folder = board.world.publisher.signed, board.world.folder / "metadata"
    root = signed.release.root
    role = root.signed.roles["timestamp"]
    again = Key.from_dict("f" * 64, signed.signers("snapshot")[0].public_key.to_dict())
    root.signed.keys[again.keyid] = again
    role.keyids.append(again.keyid)
    role.threshold, root.signed.version = 2, root.signed.version + 1
    root.sign(signed.signers("root")[0])
    (folder / f"{root.signed.version}.root.json").write_bytes(root.to_bytes())
    timestamp = json.loads((folder / "timestamp.json").read_text())
    one = timestamp["signatures"][0]
    (folder / "timestamp.json").write_text(json.dumps(timestamp | {"signatures": [one, one]}))
    with pytest.raises(TrustError):
        board()
    other = signed.signers("snapshot")[0].sign(signed.release.timestamp.signed_bytes)
    second = {"keyid": again.keyid, "sig": other.signature}
    (folder / "timestamp.json").write_text(json.dumps(timestamp | {"signatures": [one, second]}))
    assert board() == MODEL
