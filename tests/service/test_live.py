from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import BoardError
from service.live import FILE_NAME, MAX_LIVE_BYTES, STALE_S, read_live, runtime_folder, write_live


def test_the_folder_is_systemds_or_below_the_state(tmp_path: Path) -> None:
    assert runtime_folder(tmp_path, {"RUNTIME_DIRECTORY": "/run/temperd"}) == Path("/run/temperd")
    assert runtime_folder(tmp_path, {}) == tmp_path / "run"
    assert runtime_folder(tmp_path, {"RUNTIME_DIRECTORY": ""}) == tmp_path / "run"


def test_what_is_written_is_read_whole_and_replaced_at_once(tmp_path: Path) -> None:
    for temperature in (40.5, 41.0):
        view: dict[str, object] = {"mono_s": 100.0, "board": {"temperature": temperature}, "jobs": ["a"], "none": None}
        write_live(tmp_path, view)
        assert read_live(tmp_path, 100.5) == view
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(("age", "alive"), [(0, True), (STALE_S, True), (STALE_S + 0.1, False), (-0.1, False)])
def test_a_stale_view_is_no_view(tmp_path: Path, age: float, *, alive: bool) -> None:
    """A view from the future is one of an earlier boot."""
    write_live(tmp_path, {"mono_s": 100})
    if alive:
        assert read_live(tmp_path, 100 + age)["mono_s"] == 100
        return
    with pytest.raises(BoardError, match="does not answer") as caught:
        read_live(tmp_path, 100 + age)
    assert caught.value.code == "stale"


def test_no_daemon_no_view(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(BoardError, match="does not run here") as caught:
            read_live(folder, 0)
        assert caught.value.fix == "Start it: temperd run"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not run"),
        (b'{"mono_s": 1', "does not run"),
        (b"\xff", "does not run"),
        (b'{"mono_s": NaN}', "does not run"),
        (b'{"mono_s": 1, "mono_s": 1}', "does not run"),
        (b" " * MAX_LIVE_BYTES + b'{"mono_s": 1}', "does not run"),
        (b"[1]", "does not answer"),
        (b"{}", "does not answer"),
        (b'{"mono_s": "1"}', "does not answer"),
    ],
)
def test_a_broken_view_is_no_view(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    with pytest.raises(BoardError, match=says):
        read_live(tmp_path, 1)


def test_what_is_not_finite_is_never_written(tmp_path: Path) -> None:
    write_live(tmp_path, {"mono_s": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_live(tmp_path, {"mono_s": float("nan")})
    assert read_live(tmp_path, 1) == {"mono_s": 1}


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_view_or_a_board_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / FILE_NAME).write_bytes(data)
    with pytest.raises(BoardError):
        read_live(folder, 1e300)
