from __future__ import annotations

import errno
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.durable import (
    atomic_writer,
    disk_error,
    make_folder,
    read_bounded,
    remove,
    remove_partials,
    write_atomic,
)
from agent.errors import ArtifactError, BoardError


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_written_whole_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"first")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"first", 0o600)
    write_atomic(path, b"second", 0o644)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"second", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_stays_when_the_body_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def stopped() -> None:
        with atomic_writer(path) as stream:
            stream.write(b"new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_disk_limit_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with largest_file(4096), pytest.raises(BoardError) as caught:
        write_atomic(path, bytes(100_000))
    assert caught.value.code == "no-space"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="No such file") as caught:
        write_atomic(tmp_path / "none" / "file", b"")
    assert caught.value.code == "disk"
    assert str(tmp_path / "none") in caught.value.where


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "no-space"),
        (errno.EDQUOT, "no-space"),
        (errno.EROFS, "disk"),
        (errno.EIO, "disk"),
    ],
)
def test_codes(number: int, code: str) -> None:
    assert disk_error(OSError(number, "x"), "/there").code == code


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"mine")
    link.symlink_to(victim)
    write_atomic(link, b"new")
    assert victim.read_bytes() == b"mine"
    assert link.read_bytes() == b"new"
    assert not link.is_symlink()


def test_bounded_reading(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(ArtifactError, match="longer than 4") as caught:
        read_bounded(path, 4)
    assert caught.value.code == "too-long"
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 4)
    with pytest.raises(BoardError, match="directory"):
        read_bounded(tmp_path, 4)


def test_removal_and_leftovers(tmp_path: Path) -> None:
    make_folder(tmp_path / "deep" / "er")
    make_folder(tmp_path / "deep" / "er")
    path = tmp_path / "file"
    path.write_bytes(b"")
    remove(path)
    remove(path)
    assert not path.exists()
    (tmp_path / ".file.abc.partial").write_bytes(b"")
    (tmp_path / "kept").write_bytes(b"")
    remove_partials(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["deep", "kept"]
