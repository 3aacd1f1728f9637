"""Bits flip in each kind of stored file: seen, mended where that is possible, and what is left on the disk asserted."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import BoardError
from agent.messages import Steer
from agent.scrub import Report
from agent.scrub_read import UNREADABLE, Pace, ScrubEndedError, sha256_on_disk
from tests.simulators.stored_board import BASE, MODEL_A, MODEL_B, Board, destroy, flip, snapshot

FILES = ("base", "model", "model before", "manifest", "checkpoint")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    first = made.scrub()
    assert (first.damaged, first.unjudged, first.notes) == (0, 0, [])
    assert first.parity_made == first.files >= 6
    return made


def actions(report: Report) -> list[tuple[str, str]]:
    return [(finding.kind, finding.action) for finding in report.findings]


def test_a_second_walk_finds_all_well_and_writes_nothing(board: Board) -> None:
    before = {path: path.stat().st_mtime_ns for path in board.state.rglob("*") if path.is_file()}
    report = board.scrub()
    assert (report.damaged, report.parity_made) == (0, 0)
    assert report.bytes > 2 * len(MODEL_A) + len(BASE)
    assert {path: path.stat().st_mtime_ns for path in board.state.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["base", "model", "model before", "manifest", "checkpoint"])
@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_mended_from_parity(board: Board, name: str, place: int) -> None:
    before = snapshot(board.state)
    flip(board.file(name), place)
    report = board.scrub()
    assert [action for _, action in actions(report)] == ["repaired"]
    assert (report.damaged, report.repaired, report.unrepairable) == (1, 1, 0)
    assert snapshot(board.state) == before, "every file is as it was"
    assert board.store().load_active()[0] == MODEL_B
    assert board.scrub().damaged == 0


@pytest.mark.parametrize("name", ["base", "model", "manifest", "checkpoint"])
def test_flipped_bits_in_parity_are_mended_from_the_file(board: Board, name: str) -> None:
    before = snapshot(board.state)
    flip(board.parity(name), 9000)
    report = board.scrub()
    assert (report.damaged, report.parity_made) == (0, 1)
    assert snapshot(board.state) == before


def test_bits_flipped_in_a_file_and_its_parity_are_mended_together(board: Board) -> None:
    before = snapshot(board.state)
    flip(board.file("model"))
    flip(board.parity("model"), 0)
    flip(board.parity("model"), 9000)
    report = board.scrub()
    assert actions(report) == [("slot", "repaired")]
    assert snapshot(board.state) == before


@pytest.mark.parametrize("name", ["base", "model", "checkpoint"])
def test_bytes_too_many_or_too_few_are_damage_too(board: Board, name: str) -> None:
    before = snapshot(board.state)
    whole = board.file(name).read_bytes()
    for wrong in (whole + b"more", whole[:-700]):
        board.file(name).write_bytes(wrong)
        assert [action for _, action in actions(board.scrub())] == ["repaired"]
        assert snapshot(board.state) == before


def test_every_file_of_a_slot_damaged_at_once(board: Board) -> None:
    before = snapshot(board.state)
    for name in ("base", "model", "model before", "manifest", "checkpoint"):
        flip(board.file(name))
    report = board.scrub()
    assert (report.damaged, report.repaired) == (5, 5)
    assert snapshot(board.state) == before
    assert board.active() == "b"


def test_a_good_manifest_without_parity_is_not_condemned_with_its_damaged_model(board: Board) -> None:
    before = snapshot(board.state)
    board.parity("manifest").unlink()
    flip(board.file("model"))
    assert actions(board.scrub()) == [("slot", "repaired")]
    assert snapshot(board.state) == before


def test_a_status_that_flipped_is_told_and_the_same_slot_stays_active(board: Board) -> None:
    for path in (board.state / "store" / "slots").glob("status*"):
        destroy(path)
    report = board.scrub()
    assert ("status", "repaired") in actions(report)
    assert board.active() == "b"
    assert board.store().load_active()[0] == MODEL_B


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 7)), max_size=12))
def test_any_flipped_bits_anywhere_are_mended_or_told(board: Board, flips: list[tuple[int, int, int]]) -> None:
    copy = board.state.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(board.state, copy)
    damaged = Board(copy)
    kept = {name: damaged.file(name).read_bytes() for name in FILES}
    paths = sorted(
        p for p in (*(copy / "store").rglob("*"), *(copy / "parity").rglob("*"), damaged.base) if p.is_file()
    )
    for which, place, bit in flips:
        data = bytearray(paths[which % len(paths)].read_bytes())
        if data:
            data[place % len(data)] ^= 1 << bit
            paths[which % len(paths)].write_bytes(data)
    report = damaged.scrub()
    gone = [copy / finding.path for finding in report.findings if finding.action not in ("repaired", "downloaded")]
    lost = {path.parent if "slots" in path.parts else path for path in gone}  # a slot is lost as a whole
    for name, content in kept.items():
        path = damaged.file(name)
        if not {path, path.parent} & lost:
            assert path.read_bytes() == content, f"{name} is neither whole nor told of"
    if not report.unrepairable:
        assert damaged.store().load_active()[0] == MODEL_B
    again = damaged.scrub()
    assert all(finding.action == "left" for finding in again.findings), "what was mended or given up is settled"


def test_slots_are_mended_before_a_broken_status_is_rebuilt_from_them(board: Board) -> None:
    for path in (board.state / "store" / "slots").glob("status*"):
        destroy(path)
    for name in ("model", "model before"):
        flip(board.file(name))
    report = board.scrub()
    assert sorted(actions(report)) == [("slot", "repaired"), ("slot", "repaired"), ("status", "repaired")]
    assert board.active() == "b"
    board.store().roll_back("test")
    assert board.store().load_active()[0] == MODEL_A


# --- beyond parity ----------------------------------------------------------------------------------------------------


def test_a_lost_base_is_downloaded_at_once(board: Board) -> None:
    board.network = True
    before = snapshot(board.state)
    destroy(board.base)
    report = board.scrub()
    assert actions(report) == [("base", "downloaded")]
    assert (report.repaired, report.unrepairable, board.fetched) == (1, 0, [("colours", "1.0")])
    assert snapshot(board.state) == before


def test_a_lost_base_is_removed_while_the_repository_is_away(board: Board) -> None:
    destroy(board.base)
    report = board.scrub()
    assert actions(report) == [("base", "removed")]
    assert "downloaded with the next job" in report.findings[0].told
    assert report.unrepairable == 1
    assert not board.base.exists()
    assert not board.parity("base").exists(), "parity of what is gone is of no use"
    assert board.scrub().damaged == 0


def test_a_lost_active_model_gives_way_to_the_one_before(board: Board) -> None:
    destroy(board.file("model"))
    report = board.scrub()
    assert actions(report) == [("slot", "rolled-back")]
    assert board.active() == "a"
    assert board.store().load_active()[0] == MODEL_A
    assert board.scrub().damaged == 0


def test_a_lost_model_before_is_told_and_left(board: Board) -> None:
    destroy(board.file("model before"))
    report = board.scrub()
    assert actions(report) == [("slot", "left")]
    assert board.active() == "b"


def test_with_both_models_lost_the_base_model_runs(board: Board) -> None:
    destroy(board.file("model"))
    destroy(board.file("model before"))
    report = board.scrub()
    assert actions(report)[0] == ("slot", "rolled-back")
    assert board.active() == ""


def test_a_lost_checkpoint_costs_the_work_and_not_the_job(board: Board) -> None:
    destroy(board.file("checkpoint"))
    assert actions(board.scrub()) == [("checkpoint", "removed")]
    assert board.store().open_checkpoint("job") is None
    assert not board.parity("checkpoint").exists()


def test_a_missing_model_counts_as_lost(board: Board) -> None:
    board.file("model").unlink()
    assert actions(board.scrub()) == [("slot", "rolled-back")]
    assert board.active() == "a"


@pytest.mark.parametrize("name", ["base", "model", "checkpoint"])
def test_without_parity_damage_is_still_seen(board: Board, name: str) -> None:
    board.parity(name).unlink()
    flip(board.file(name))
    report = board.scrub()
    assert (report.damaged, report.unrepairable) == (1, 1)


def test_on_a_full_disk_damaged_files_are_left_for_later_and_nothing_is_given_up(board: Board) -> None:
    for name in ("base", "model"):
        flip(board.file(name))
    before = snapshot(board.state)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.simulators.stored_board import Board\n"
        "board = Board(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "print([(found.kind, found.action) for found in board.scrub().findings])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, board.state], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout.strip() == "[('base', 'left'), ('slot', 'left')]"
    assert snapshot(board.state) == before
    assert actions(board.scrub()) == [("base", "repaired"), ("slot", "repaired")]


# --- frozen weights that slots share ----------------------------------------------------------------------------------

FROZEN = bytes(range(256)) * 400


@pytest.fixture
def sharing(board: Board) -> Board:
    """Both slots hold deltas of the same frozen weights."""
    store = board.store()
    for model in (b"a" + FROZEN, b"b" + FROZEN):
        store.activate(store.stage(model, {"name": "colours"}, [FROZEN]))
        store.mark_good()
    assert board.scrub().damaged == 0
    return board


def frozen_file(board: Board) -> Path:
    (found,) = (board.state / "store" / "frozen").iterdir()
    return found


@pytest.mark.parametrize("place", [0, 5000, -1])
def test_flipped_frozen_weights_are_mended(sharing: Board, place: int) -> None:
    before = snapshot(sharing.state)
    flip(frozen_file(sharing), place)
    assert actions(sharing.scrub()) == [("frozen", "repaired")]
    assert snapshot(sharing.state) == before
    assert sharing.store().load_active()[0] == b"b" + FROZEN


def test_frozen_weights_and_the_manifest_that_names_them_are_mended_together(sharing: Board) -> None:
    before = snapshot(sharing.state)
    flip(frozen_file(sharing))
    for slot in ("a", "b"):
        flip(sharing.state / "store" / "slots" / slot / "manifest.json", 0)
    assert {action for _, action in actions(sharing.scrub())} == {"repaired"}
    assert snapshot(sharing.state) == before


@pytest.mark.parametrize("gone", [False, True])
def test_lost_frozen_weights_lose_both_slots_and_are_told(sharing: Board, *, gone: bool) -> None:
    path = frozen_file(sharing)
    if gone:
        path.unlink()
        sharing.state.joinpath("parity", "store", "frozen", f"{path.name}.parity").unlink()
    else:
        destroy(path)
    report = sharing.scrub()
    assert actions(report) == [("frozen", "rolled-back")]
    assert "the base model runs" in report.findings[0].told
    assert sharing.active() == ""
    store = sharing.store()
    store.activate(store.stage(b"c" + FROZEN, {}, [FROZEN]))
    assert store.load_active()[0] == b"c" + FROZEN


def test_lost_frozen_weights_leave_a_whole_model_before(sharing: Board) -> None:
    store = sharing.store()
    store.activate(store.stage(MODEL_A, {}))
    store.mark_good()
    store.activate(store.stage(b"d" + FROZEN, {}, [FROZEN]))
    store.mark_good()
    sharing.scrub()
    destroy(frozen_file(sharing))
    assert actions(sharing.scrub()) == [("frozen", "rolled-back")]
    assert sharing.store().load_active()[0] == MODEL_A


# --- what is no damage ------------------------------------------------------------------------------------------------


def test_a_file_newer_than_its_parity_is_whole(board: Board) -> None:
    store = board.store()
    store.seal_checkpoint("job", b"later weights" * 7000)
    store.activate(store.stage(b"a third model" * 9000, {"name": "colours"}))
    store.mark_good()
    report = board.scrub()
    assert (report.damaged, report.unrepairable) == (0, 0)
    assert report.parity_made >= 3
    flip(board.file("checkpoint"))
    assert board.scrub().repaired == 1
    assert board.store().open_checkpoint("job") == b"later weights" * 7000


def test_small_files_are_never_mended_into_what_they_were_before(board: Board) -> None:
    """Two parity blocks can rebuild all of a small file, also an older one: it must not come back."""
    store = board.store()
    store.activate(store.stage(b"a third model" * 9000, {"name": "newer"}))
    store.mark_good()
    manifest = board.state / "store" / "slots" / "a" / "manifest.json"
    flip(manifest, 30)
    board.scrub()
    assert board.active() == "b", "the damaged slot was left, not brought back to what it held before"
    assert board.store().load_active()[0] == MODEL_B


def test_metadata_that_flipped_does_not_condemn_a_good_base(board: Board) -> None:
    board.sign("0" * 64)
    report = board.scrub()
    assert report.damaged == 0
    assert board.base.read_bytes() == BASE


def test_a_base_is_mended_without_metadata(board: Board) -> None:
    (board.state / "repository" / "metadata" / "targets.json").write_bytes(b"\xff")
    flip(board.base)
    assert actions(board.scrub()) == [("base", "repaired")]
    assert board.base.read_bytes() == BASE


def test_a_base_nobody_vouches_for_is_not_judged(board: Board) -> None:
    stranger = board.base.with_name("other-2.0.sealed")
    stranger.write_bytes(b"anything")
    report = board.scrub()
    assert (report.unjudged, report.parity_made, report.damaged) == (1, 0, 0)
    assert stranger.exists()


def test_other_files_and_links_are_left_alone(board: Board) -> None:
    files = board.scrub().files
    (board.base.parent / ("0" * 64 + ".part")).write_bytes(b"half a download")
    (board.base.parent / "linked-1.0.sealed").symlink_to(board.base)
    (board.base.parent / "Not a model.sealed").write_bytes(b"x")
    assert board.scrub().files == files


def test_bits_that_flipped_on_the_way_are_read_again_and_nothing_is_written(board: Board) -> None:
    lies = iter(["f" * 64])
    before = {path: path.stat().st_mtime_ns for path in board.state.rglob("*") if path.is_file()}

    def wrong_once(path: Path, breathe: Callable[[], None]) -> str:
        lie = next(lies, "") if path == board.base else ""
        return lie or sha256_on_disk(path, breathe)

    report = board.scrub(digest=wrong_once)
    assert (report.memory_errors, report.damaged) == (1, 0)
    assert {path: path.stat().st_mtime_ns for path in board.state.rglob("*") if path.is_file()} == before


def test_a_sector_that_cannot_be_read_is_damage(board: Board) -> None:
    def unreadable(path: Path, breathe: Callable[[], None]) -> str:
        return UNREADABLE if path == board.base else sha256_on_disk(path, breathe)

    assert actions(board.scrub(digest=unreadable)) == [("base", "repaired")]


def test_what_a_killed_scrub_left_is_cleared(board: Board) -> None:
    for folder in (board.base.parent, board.parity("base").parent):
        (folder / ".colours-1.0.sealed.abc.partial").write_bytes(b"half")
    board.scrub()
    assert not list(board.state.rglob("*.partial"))


# --- the pace ---------------------------------------------------------------------------------------------------------


class Time:
    """A clock that only sleeping and working move."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def order(action: str, duty: float) -> Steer:
    return Steer(action, duty, 0, reverify=False, rule="because")


@pytest.mark.parametrize(("duty", "rest_s"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0), (0.0, 10.0)])
def test_it_rests_as_long_as_the_duty_asks(duty: float, rest_s: float) -> None:
    time = Time()
    pace = Pace(lambda: order("SLOW", duty), lambda: time.now, time.sleep)
    time.now += 2.0
    pace()
    assert time.slept == pytest.approx(rest_s)
    pace()
    assert time.slept == pytest.approx(rest_s), "resting is not work"


def test_it_waits_out_a_pause_and_ends_when_told(board: Board) -> None:
    time = Time()
    orders = iter([order("PAUSE", 0.0)] * 3 + [order("RUN", 1.0), order("ABORT", 0.0)])
    pace = Pace(lambda: next(orders), lambda: time.now, time.sleep)
    pace()
    assert time.slept == 3.0
    flip(board.base)
    with pytest.raises(ScrubEndedError) as caught:
        sha256_on_disk(board.base, pace)
    assert caught.value.code == "because"


def test_a_disk_that_fails_is_said_and_a_missing_file_is_not_a_failing_disk(tmp_path: Path) -> None:
    with pytest.raises(BoardError):
        sha256_on_disk(tmp_path)  # a folder
    with pytest.raises(FileNotFoundError):
        sha256_on_disk(tmp_path / "none")


def test_a_read_error_is_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "posix_fadvise", fail)
    assert sha256_on_disk(tmp_path / "file") == UNREADABLE
