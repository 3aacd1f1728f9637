from __future__ import annotations

from pathlib import Path

import pytest

from agent.board.cache import FOLDER, last_level_cache_bytes


def tree(root: Path, *sizes: str) -> Path:
    for index, size in enumerate(sizes):
        folder = root / FOLDER / f"index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size)
    return root


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tree(tmp_path, "64K\n", "64K\n", "1024K\n", "32768K\n")) == 32 << 20


def test_megabytes_are_read_too(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tree(tmp_path, "2M\n")) == 2 << 20


@pytest.mark.parametrize("size", ["", "\n", "K", "-4K", "4", "4G", "99999999999K", "4294967295K", "²K", "x"])
def test_what_is_no_size_is_unknown(tmp_path: Path, size: str) -> None:
    assert last_level_cache_bytes(tree(tmp_path, size)) == 0


def test_no_list_of_caches_is_unknown(tmp_path: Path) -> None:
    assert last_level_cache_bytes(tmp_path) == 0
