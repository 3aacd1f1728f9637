from __future__ import annotations

from pathlib import Path

from agent.board.edac import MemoryErrors, memory_errors
from agent.board.sysfs import BoardRoots


def test_counters_of_all_controllers_are_added(tmp_path: Path) -> None:
    for number, (corrected, uncorrected) in enumerate([("3\n", "0\n"), ("4\n", "2\n")]):
        folder = tmp_path / "sys/devices/system/edac/mc" / f"mc{number}"
        folder.mkdir(parents=True)
        (folder / "ce_count").write_text(corrected)
        (folder / "ue_count").write_text(uncorrected)
    (tmp_path / "sys/devices/system/edac/mc/power").mkdir()
    assert memory_errors(BoardRoots.of_tree(tmp_path)) == MemoryErrors(7, 2)


def test_boards_without_counters_say_so(tmp_path: Path) -> None:
    assert memory_errors(BoardRoots.of_tree(tmp_path)) is None
    (tmp_path / "sys/devices/system/edac/mc/mc0").mkdir(parents=True)
    assert memory_errors(BoardRoots.of_tree(tmp_path)) is None


def test_an_unreadable_counter_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/edac/mc/mc0"
    folder.mkdir(parents=True)
    (folder / "ce_count").write_text("none")
    (folder / "ue_count").write_text("1")
    assert memory_errors(BoardRoots.of_tree(tmp_path)) == MemoryErrors(0, 1)
