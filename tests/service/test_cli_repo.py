"""`temperd repo` as a publisher types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agent.keys import create_identity
from agent.repository import Publisher, utc_now
from service.cli import main
from tests.simulators.publication import MODEL, NAME, card, serving


class Desk:
    """A publisher's desk: types verbs and reads what they say."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.repo, self.keys = folder / "repo", folder / "keys"

    def type(self, *words: str) -> int:
        where = () if words[0] == "verify" else ("--repo", str(self.repo), "--keys", str(self.keys))
        return main(["repo", *words, *where])

    def sticks(self, *numbers: int) -> list[str]:
        return [word for number in numbers for word in ("--root-key-dir", str(self.folder / f"stick{number}"))]

    def said(self) -> str:
        return self._capsys.readouterr().out

    def table(self, *words: str) -> Any:
        self.said()
        code = self.type(*words, "--json")
        return code, json.loads(self.said())


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    made = Desk(tmp_path, capsys)
    assert made.type("init", *made.sticks(1, 2, 3)) == 0
    shutil.copy(made.repo / "metadata" / "1.root.json", tmp_path / "root.json")
    Publisher.open(made.repo, made.keys, utc_now).publish(MODEL, card("1.0"))
    identity = create_identity(tmp_path / "board", "press-07")
    (tmp_path / "press-07.device.json").write_text(json.dumps(identity.public.to_table()))
    return made


def verify(desk: Desk, *words: str) -> Any:
    return desk.table("verify", "--root", str(desk.folder / "root.json"), *words)


def test_init_asks_for_all_root_keys_but_one(desk: Desk) -> None:
    assert "2 of 3 root keys" in desk.said()
    assert not (desk.keys / "root.pem").exists()
    assert desk.type("init", *desk.sticks(4)) == 2


def test_one_root_key_lies_with_the_others_where_no_stick_is_named(tmp_path: Path) -> None:
    assert main(["repo", "init", "--repo", str(tmp_path / "r"), "--keys", str(tmp_path / "k")]) == 0
    assert (tmp_path / "k" / "root.pem").exists()


def test_grants_refresh_and_check(desk: Desk) -> None:
    document = str(desk.folder / "press-07.device.json")
    (desk.keys / "targets.pem").rename(desk.folder / "targets.pem")
    assert desk.table("grant", NAME, "1.0", "--for", document) == (0, {"grants": ["grants/press-07/net-1.0.json"]})
    assert desk.type("grant", NAME, "9", "--for", document) == 2
    assert (
        desk.type("grant", NAME, "1.0", "--for", "missing.device.json", "--for", document) != 0
    )  # the first counts, too
    code, roles = desk.table("refresh")
    assert code == 0
    assert [(role["role"], role["renewed"]) for role in roles][:2] == [("root", False), ("timestamp", False)]
    code, report = verify(desk, "--repo", str(desk.repo))
    assert (code, report["right"], report["models"], report["grants"]) == (0, True, ["net 1.0"], 1)
    with serving(desk.repo) as url:
        assert verify(desk, "--url", url) == (0, report)


def test_what_is_wrong_is_told_and_the_exit_code_says_so(desk: Desk) -> None:
    next((desk.repo / "targets").rglob("*.sealed")).unlink()
    code, report = verify(desk, "--repo", str(desk.repo))
    assert (code, report["right"], [item["code"] for item in report["findings"]]) == (1, False, ["file-missing"])
    desk.type("verify", "--root", str(desk.folder / "root.json"), "--repo", str(desk.repo))
    assert "WRONG file-missing: targets/models/net/" in desk.said()
    (desk.repo / "metadata" / "timestamp.json").write_text("{}")
    with serving(desk.repo) as url:
        code, report = verify(desk, "--url", url)
    assert code == 1
    assert "a board refuses it" in report["findings"][-1]["what"]
    assert desk.type("verify", "--root", str(desk.folder / "none"), "--repo", str(desk.repo)) == 2


def test_rotation_in_two_places(desk: Desk) -> None:
    code, state = desk.table("rotate", "timestamp", *desk.sticks(2))
    assert (code, state["in_force"], state["root_version"], len(state["missing"])) == (0, False, 1, 2)
    assert desk.type("rotate", "targets", *desk.sticks(2)) == 2
    assert desk.type("sign", *desk.sticks(3)) == 0
    assert "in force; root version 2" in desk.said()
    assert [path.name.split("-")[0] for path in (desk.keys / "retired").iterdir()] == ["timestamp"]
    assert verify(desk, "--repo", str(desk.repo))[0] == 0
    assert desk.type("sign") == 2


def test_a_lost_root_key(desk: Desk) -> None:
    (lost,) = (desk.folder / "stick1").iterdir()
    lost.unlink()
    _, state = desk.table("rotate", "root", "--replace", "zz", *desk.sticks(2, 3))
    assert state["error"] == "bad-spec"
    assert desk.type("rotate", "targets", "--replace", "aa", *desk.sticks(2, 3)) == 2
    assert desk.type("rotate", "root", *desk.sticks(2, 3)) == 0
    assert desk.table("refresh")[1][0]["version"] == 2
    assert verify(desk, "--repo", str(desk.repo))[0] == 0


def test_keys_of_another_repository(desk: Desk, tmp_path: Path) -> None:
    main(["repo", "init", "--repo", str(tmp_path / "r"), "--keys", str(tmp_path / "k")])
    desk.keys = tmp_path / "k"
    assert desk.type("grant", NAME, "1.0", "--for", str(desk.folder / "press-07.device.json")) == 3
