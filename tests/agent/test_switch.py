"""Another model by somebody's word: which ones can be asked for, what is tried before, and that it is done once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.engine.ir import serialize
from agent.errors import EngineError, SealedFileError, SpecError, TemperdError
from agent.promote import change_over
from agent.slots import read_status, write_status
from agent.store import Store
from agent.switch import BASE, Way, stage, switch_back, switch_on, way_back, way_on
from tests.simulators.small_models import mobile_block_net

KEY = bytes(range(32))
ONE, TWO, THREE = (serialize(mobile_block_net(classes=count)) for count in (3, 4, 5))


class Board:
    """A store with models of jobs 1, 2, ..., each better than the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder, KEY)
        self.hashes: list[str] = [""]
        self.told: list[str] = []

    def tune(self, model: bytes) -> str:
        slot = self.keep(model)
        self.store.activate(slot)
        self.store.mark_good()
        return slot

    def keep(self, model: bytes) -> str:
        job = len(self.hashes)
        slot = self.store.stage(model, {"job": f"job-{job}"})
        stage(self.folder, slot)
        self.hashes.append(way_on(self.folder, f"job-{job}").after)
        return slot

    def change(self, way: Way, *, on: bool = False) -> str:
        return change_over(self.store, (way.before, way.after), 1, self.told.append, on=on)

    def active(self) -> str:
        view = self.store.active()
        return view.plaintext_sha256 if view else ""


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    made.tune(ONE)
    made.tune(TWO)
    return made


def code(act: Callable[[], object]) -> str:
    with pytest.raises(TemperdError) as caught:
        act()
    return caught.value.code


def test_back_to_the_model_before_and_then_to_the_base(board: Board) -> None:
    _, one, two = board.hashes
    assert way_back(board.folder) == Way(two, one)
    assert board.change(way_back(board.folder)) == "a"
    assert (board.active(), read_status(board.folder).rolled_back) == (one, "by an operator")
    assert way_back(board.folder) == Way(one, "")
    assert board.change(way_back(board.folder)) == ""
    assert board.active() == ""
    assert code(lambda: way_back(board.folder)) == "no-active-model"


def test_a_model_that_was_left_can_be_gone_back_to_until_its_slot_is_needed(board: Board) -> None:
    _, one, two = board.hashes
    board.change(way_back(board.folder, BASE))
    assert read_status(board.folder).left == "b"
    assert code(lambda: way_back(board.folder, one)) == "no-such-slot"
    board.change(way_back(board.folder, two))
    assert board.active() == two
    board.tune(THREE)
    board.change(way_back(board.folder))
    assert board.active() == two
    board.tune(ONE)
    assert code(lambda: way_back(board.folder, board.hashes[3])) == "no-such-slot"


def test_a_rollback_is_undone(board: Board) -> None:
    before, (_, one, two) = read_status(board.folder), board.hashes
    board.change(way_back(board.folder))
    board.change(way_back(board.folder, two))
    assert replace(read_status(board.folder), rolled_back="") == before
    assert way_back(board.folder) == Way(two, one)


def test_what_was_left_is_not_taken_by_itself(board: Board) -> None:
    board.change(way_back(board.folder))
    for path in (board.folder / "slots").glob("status*.json"):
        path.write_bytes(b"{}")
    board.store.recover()
    assert board.active() == board.hashes[1]
    assert read_status(board.folder).left == ""


def test_where_there_is_nothing_to_change_it_is_said(board: Board) -> None:
    assert code(lambda: way_back(board.folder, board.hashes[2])) == "wrong-state"
    assert code(lambda: way_back(board.folder, "f" * 64)) == "no-such-slot"
    board.change(way_back(board.folder, BASE))
    assert code(lambda: way_back(board.folder, BASE)) == "wrong-state"


def test_done_twice_is_done_once(board: Board) -> None:
    way = way_back(board.folder)
    assert [board.change(way), board.change(way)] == ["a", "a"]
    assert board.active() == board.hashes[1]


def test_another_active_model_than_the_one_to_be_left_stays(board: Board) -> None:
    way = way_back(board.folder)
    board.tune(THREE)
    assert code(lambda: board.change(way)) == "wrong-state"
    assert board.active() == board.hashes[3]


def test_an_open_trial_is_ended_first(board: Board) -> None:
    slot = board.store.stage(THREE, {"job": "job-3"})
    board.store.activate(slot)
    way = way_back(board.folder)
    board.change(way)
    assert board.active() == board.hashes[2] == way.after


def test_a_bad_image_changes_nothing(board: Board) -> None:
    way, status = way_back(board.folder), read_status(board.folder)
    model = board.folder / "slots" / "a" / "model.sealed"
    whole = model.read_bytes()
    model.write_bytes(bytes(len(whole)))
    with pytest.raises(SealedFileError):
        board.change(way)
    assert read_status(board.folder) == status
    assert board.active() == board.hashes[2]
    (board.folder / "slots" / "a" / "manifest.json").unlink()
    assert code(lambda: way_back(board.folder)) == "slot-broken"
    board.change(way_back(board.folder, BASE))
    assert board.active() == ""


def test_a_model_whose_answers_are_no_numbers_does_not_run(tmp_path: Path) -> None:
    graph = mobile_block_net(classes=3)
    broken = {
        name: np.full_like(value, 1e30) if name.endswith(".w") else value for name, value in graph.initializers.items()
    }
    board = Board(tmp_path)
    board.tune(serialize(replace(graph, initializers=broken)))
    board.tune(TWO)
    with pytest.raises(EngineError) as caught:
        board.change(way_back(board.folder))
    assert caught.value.code == "self-test"
    assert board.active() == board.hashes[2]


def test_a_broken_active_model_is_left(board: Board) -> None:
    (board.folder / "slots" / "b" / "manifest.json").write_bytes(b"{}")
    way = way_back(board.folder)
    assert way == Way(None, board.hashes[1])
    board.change(way)
    assert board.active() == board.hashes[1]
    assert "broken" in board.told[0]


def test_a_staged_model_runs_by_somebodys_word_and_can_be_left_again(board: Board) -> None:
    slot = board.keep(THREE)
    assert board.active() == board.hashes[2]
    assert code(lambda: way_back(board.folder, board.hashes[3])) == "no-such-slot"
    way = way_on(board.folder, "job-3")
    assert board.change(way, on=True) == board.change(way, on=True) == slot
    assert board.active() == board.hashes[3]
    assert code(lambda: way_on(board.folder, "job-3")) == "wrong-state"
    board.change(way_back(board.folder))
    assert board.active() == board.hashes[2]


def test_a_later_job_takes_the_slot_of_a_staged_model(board: Board) -> None:
    board.keep(THREE)
    board.tune(ONE)
    assert code(lambda: way_on(board.folder, "job-3")) == "no-such-slot"


def test_versions_without_these_words_read_a_status_that_has_none(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.tune(ONE)
    text = (tmp_path / "slots" / "status.json").read_text()
    assert "staged" not in text
    assert "left" not in text
    with pytest.raises(ValueError, match="in use"):
        replace(read_status(tmp_path), left="a")
    write_status(tmp_path, replace(read_status(tmp_path), left="b"))
    assert read_status(tmp_path).left == "b"


def test_switches_need_no_key(board: Board) -> None:
    switch_back(board.folder, "a", "why")
    assert board.active() == board.hashes[1]
    switch_back(board.folder, "", "why")
    slot = board.keep(THREE)
    switch_on(board.folder, slot)
    assert board.active() == board.hashes[3]
    with pytest.raises(SpecError):
        way_on(board.folder, "job-9")
