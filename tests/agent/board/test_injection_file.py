from __future__ import annotations

from pathlib import Path

from agent.board.injection import Injection
from agent.board.injection_file import NOTHING, InjectionFile


def test_a_file_is_obeyed_from_its_first_look_and_removed_in_time(tmp_path: Path) -> None:
    path, said = tmp_path / "inject.json", list[str]()
    file = InjectionFile(path, said.append)
    assert file.read(0.0) == (NOTHING, False)
    path.write_text('{"seconds": 5, "charge": 0.5, "battery": "unknown"}')
    asked = Injection(seconds=5, charge=0.5, battery="unknown")
    assert file.read(10.0) == (asked, True)
    assert file.read(14.9) == (asked, False)
    assert file.read(15.0) == (NOTHING, True)
    assert not path.exists()
    assert file.read(16.0) == (NOTHING, False)
    assert said == []


def test_what_is_not_understood_is_refused_with_the_reason(tmp_path: Path) -> None:
    path, said = tmp_path / "inject.json", list[str]()
    file = InjectionFile(path, said.append)
    for number, text in enumerate(
        ('{"battery": "flat"}', '{"refuses": true}', "[1]", "{", '{"heat_watts": 1e9}', '{"charge": NaN}', "x" * 9999)
    ):
        path.unlink(missing_ok=True)
        path.write_text(text)
        assert file.read(float(number)) == (NOTHING, True)
    assert len(said) == 7
    assert "battery" in said[0]
    assert "refuses" in said[1]
    path.unlink()
    path.write_text("{}")
    assert file.read(9.0) == (Injection(), True)
