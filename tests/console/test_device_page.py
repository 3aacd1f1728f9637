"""The pages of a board: what they tell, to whom, and that hostile words stay words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from agent.errors import BoardError, NetworkError, SpecError
from agent.keys_consoles import Role
from service.commands import Request
from service.console.room import Room
from service.console.texts import catalog
from service.fleet.boards import Board
from tests.console import device_stage as stage
from tests.console.device_stage import BOARD, HOSTILE, JOB, NOW, PROMOTED, REPORT, status

REPORT_BODY = {
    "schema": 1, "ts": NOW, "clock": "synchronised", "uptime_s": 7200.0, "versions": {"agent": "0.4.0"},
    "disk": {"bytes": 32e9, "free_bytes": 11e9}, "log_total": 3,
    "log": [{"ts": "2026-09-21T14:00:00+00:00", "level": "error", "room": "link", "event": HOSTILE, "why": HOSTILE}],
}  # fmt: skip
Client = Callable[..., TestClient]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    hostile = status(
        PROMOTED, "deferred", 3, NOW - 10, reason_code=HOSTILE, reason=HOSTILE, step=HOSTILE,
        until={"what": HOSTILE, "below": 1e308, "above": None, "ts": None}, energy_j=1e999, result={HOSTILE: HOSTILE},
    )  # fmt: skip
    told = [
        ("promote", hostile),
        ("collect-report", status(REPORT, "succeeded", 1, NOW - 100, result=REPORT_BODY)),
    ]
    folder = tmp_path_factory.mktemp("device")
    with stage.staged(folder, seconds=1800, told=told) as made:
        stage.write_alarm(folder / "store.sqlite", "overheated", "critical", HOSTILE, NOW - 60)
        yield made


@pytest.fixture
def client(room: Room) -> Client:
    return lambda role=Role.OWNER, language="en": TestClient(
        stage.stage_app(room, role, language), follow_redirects=False
    )


def test_a_board_is_told_whole(client: Client) -> None:
    page = client().get(f"/device/{BOARD}")
    assert page.status_code == 200
    for words in (
        "Raspberry Pi 4 Model B",
        "efficientnet-lite0",
        "5a5a5a5a5a",
        "raspberry-pi-4",
        "modelled",
        "m/store",
    ):
        assert (words in page.text) is (words != "m/store")
    for section in ("charts", "commands", "models", "sensors", "alarms", "release", "telemetry", "log"):
        assert f'id="{section}"' in page.text
    assert f'href="/device/{BOARD}/act/fine-tune"' in page.text
    assert f'href="/device/{BOARD}/policy"' in page.text


@pytest.mark.parametrize(
    "path", [f"/device/{BOARD}", f"/device/{BOARD}?live", f"/device/{BOARD}/report", f"/device/{BOARD}/table"]
)
def test_hostile_words_stay_words(client: Client, path: str) -> None:
    for language in ("en", "vi"):
        page = client(language=language).get(path)
        assert page.status_code == 200
        assert "<img" not in page.text.replace('<img src="/static/mark.svg"', "")
        assert "\u202e" not in page.text
        assert " style=" not in page.text
        assert not any(f" on{event}=" in page.text for event in ("click", "load", "submit", "change"))


def test_every_text_is_there_in_both_languages(client: Client) -> None:
    for file in ("device.", "job."):
        english, vietnamese = ({key for key in catalog(language) if key.startswith(file)} for language in ("en", "vi"))
        assert english == vietnamese
    assert "Bo mạch" in client(language="vi").get(f"/device/{BOARD}").text


def test_a_connection_has_a_beginning_and_no_age(client: Client) -> None:
    head = client().get(f"/device/{BOARD}").text.split('data-live="head"')[1].split("</header>")[0]
    assert 'data-form="minute"' in head  # "since 3 minutes ago" is no language
    assert 'data-form="relative"' not in head


def test_a_policy_of_unknown_origin_has_no_word_for_it(tmp_path: Path) -> None:
    with stage.staged(
        tmp_path, seconds=2, birth={**stage.BIRTH, "policy": {"name": "kept", "sha256": "c3" * 32}}
    ) as room:
        page = TestClient(stage.stage_app(room, Role.OWNER, "en")).get(f"/device/{BOARD}").text
    policy = page.split("<dt>Policy</dt>")[1].split("</dd>")[0]
    assert "kept" in policy
    assert "None" not in policy


def test_a_viewer_is_offered_nothing_to_do(client: Client) -> None:
    page = client(Role.VIEWER).get(f"/device/{BOARD}")
    assert "/act/" not in page.text
    assert 'method="post" action="/device' not in page.text
    assert client(Role.VIEWER).get(f"/device/{BOARD}/report").status_code == 403
    assert client(Role.VIEWER).post(f"/device/{BOARD}/report", data={}).status_code == 403


def test_an_operator_is_offered_what_operators_may(client: Client) -> None:
    page = client(Role.OPERATOR).get(f"/device/{BOARD}")
    assert f"/device/{BOARD}/act/fine-tune" in page.text
    assert f"/device/{BOARD}/act/rollback" not in page.text


@pytest.mark.parametrize(
    "path",
    ["/device/nobody", "/device/nobody/report", "/device/nobody/table", "/device/PI_1", f"/device/{'x' * 64}",
     f"/device/{BOARD}/jobs/nonsense", f"/device/{BOARD}/jobs/019ff000-0000-7000-8000-0000000000ff"],
)  # fmt: skip
def test_what_there_is_not_is_said_in_words(client: Client, path: str) -> None:
    page = client().get(path)
    assert page.status_code == 404


def test_an_unknown_board_has_a_page_that_leads_back(client: Client) -> None:
    page = client().get("/device/nobody")
    assert "No such board" in page.text
    assert 'href="/fleet"' in page.text


def test_charts_answer_in_columns(client: Client) -> None:
    answer = client().get(f"/api/device/{BOARD}/chart", params={"since": NOW - 1800, "until": NOW, "buckets": 300})
    body = answer.json()
    count = len(body["ts"])
    assert 0 < count <= 302
    for metric in body["metrics"].values():
        assert {len(column) for column in metric.values()} == {count}
    heat = body["metrics"]["board.temperature_celsius"]
    assert all(
        low <= last <= high for low, last, high in zip(heat["min"], heat["last"], heat["max"], strict=True) if low
    )
    kinds = {mark["kind"] for mark in body["marks"]}
    assert kinds == {"decision", "raised", "cleared"}
    assert "thermal.delta-t-pause" in {mark["values"].get("rule") for mark in body["marks"]}


def test_charts_refuse_what_is_out_of_bounds(client: Client) -> None:
    for asked in ({"buckets": "1e9"}, {"span": "nan"}, {"metrics": "board.<script>"}, {"since": "9e99"}):
        answer = client().get(f"/api/device/{BOARD}/chart", params=asked)
        assert answer.status_code == 422
        assert answer.json()["error"]
    assert client().get("/api/device/NO/chart").status_code == 404
    assert client().get("/api/device/nobody/chart").status_code == 404


def test_charts_come_as_a_table_too(client: Client) -> None:
    asked = {"until": NOW, "span": 600, "format": "csv", "metrics": "board.duty"}
    answer = client().get(f"/api/device/{BOARD}/chart", params=asked)
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.startswith("time_utc,unix_s,board.duty.min")
    assert len(answer.text.splitlines()) > 100


def test_details_are_json(client: Client) -> None:
    body = client().get(f"/api/device/{BOARD}").json()
    assert body["telemetry"]["board"]["values"]["action"] == "RUN"
    assert [one["type"] for one in body["commands"]] == ["collect-report", "promote", "fine-tune"]
    assert body["commands"][1]["energy_j"] is None
    json.dumps(body, allow_nan=False)


def test_a_report_is_shown_and_downloaded(client: Client) -> None:
    page = client(Role.OPERATOR).get(f"/device/{BOARD}/report")
    assert "0.4.0" in page.text
    assert "&lt;img" in page.text
    file = client(Role.OPERATOR).get(f"/device/{BOARD}/report/{REPORT}.json")
    assert file.json()["log_total"] == 3
    assert f'filename="{BOARD}-report.json"' in file.headers["content-disposition"]
    assert client(Role.OPERATOR).get(f"/device/{BOARD}/report/{JOB}.json").status_code == 404


class _Signer:
    ready, locked, keyid = True, False, "k"

    def request(
        self, device: str, kind: str, args: Any, expect: Any, now: float, valid_s: int
    ) -> tuple[Request, bytes]:
        made = Request("019ff000-0000-7000-8000-0000000000aa", device, kind, int(now), int(now) + valid_s, args, expect)
        return made, b"{}"


def test_a_report_is_asked_for_once_for_each_form(client: Client, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "signer", _Signer())
    token = "t" * 22
    for _ in range(2):
        answer = client(Role.OPERATOR).post(f"/device/{BOARD}/report", data={"token": token})
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/device/{BOARD}/report?asked=019ff000-0000-7000-8000-0000000000aa"
    waits = client(Role.OPERATOR).get(answer.headers["location"])
    assert "no word yet" in waits.text
    assert 'data-open="yes"' in waits.text
    assert [sent[:2] for sent in room.hub.sent] == [(BOARD, "collect-report")]  # type: ignore[attr-defined]
    assert client(Role.OPERATOR).post(f"/device/{BOARD}/report", data={"token": "?"}).status_code == 422


@pytest.mark.parametrize("error", [SpecError("no key"), NetworkError("no broker"), BoardError("disk full")])
def test_a_report_that_cannot_be_asked_for_is_said(
    client: Client, room: Room, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Refusing(_Signer):
        def request(self, *_given: Any, **_named: Any) -> Any:
            raise error

    monkeypatch.setattr(room, "signer", Refusing())
    answer = client(Role.OPERATOR).post(f"/device/{BOARD}/report", data={"token": "u" * 22})
    assert answer.status_code in (422, 503)
    assert str(error) in answer.text


def test_a_store_that_fails_leaves_what_was_heard(room: Room, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_ask: object) -> Any:
        raise BoardError("the disk is gone")

    monkeypatch.setattr(room, "reads", fail)
    page = client().get(f"/device/{BOARD}")
    assert page.status_code == 200
    assert "the disk is gone" in page.text
    answer = client().get(f"/api/device/{BOARD}/chart")
    assert (answer.status_code, answer.json()["error"]) == (503, "the disk is gone")


def test_a_board_that_says_nonsense_has_a_page(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    stage.write_past(path, seconds=1, board="other")
    board = Board("odd", conn={"online": "yes", "ts": HOSTILE}, seen=NOW, complaint=HOSTILE)
    nonsense: list[Any] = [HOSTILE, 1 << 600, float("inf"), [HOSTILE], {HOSTILE: HOSTILE}, None, True]
    for value in nonsense:
        board.metrics["board"] = {
            HOSTILE: value,
            "action": value,
            "rule": value,
            "health": value,
            "temperature_celsius": value,
        }
        board.heard["board"] = NOW
        board.alarms[HOSTILE] = {"severity": value, "since": value, "reason": value}
        board.statuses[JOB] = "fine-tune", {"status": value, "step": value, "until": {"what": value, "below": value}}
        hub = stage.StageHub(board)
        keys = ("agent", "release", "board", "sensors", "engine", "policy", "active_model", "clock", "metrics")
        hub.births["odd"] = dict.fromkeys(keys, value)
        room = stage.room_of(path, hub)
        try:
            browser = TestClient(stage.stage_app(room))
            for where in ("/device/odd", f"/device/odd/jobs/{JOB}", "/device/odd?live", "/api/device/odd"):
                answer = browser.get(where)
                assert answer.status_code == 200, (where, value)
                assert "<img src=x" not in answer.text or where.startswith("/api")
        finally:
            room.reads.close()
            room.audit.close()


def test_what_a_later_status_does_not_say_is_over(tmp_path: Path) -> None:
    until = {"what": "charge", "below": None, "above": 0.4, "ts": None}
    waits = status(PROMOTED, "deferred", 3, NOW - 60, reason_code="battery.low", reason="an empty battery", until=until)
    with stage.staged(tmp_path, seconds=1, told=[("fine-tune", waits)]) as room:
        board = room.hub.board(BOARD)
        assert board is not None
        client = TestClient(stage.stage_app(room))

        def told() -> dict[str, Any]:
            commands = client.get(f"/api/device/{BOARD}").json()["commands"]
            return next(one for one in commands if one["id"] == PROMOTED)

        assert told()["reason_code"] == "battery.low"
        board.statuses[PROMOTED] = ("fine-tune", {"status": "running", "step": "training", "version": 4, "ts": NOW})
        assert (told()["status"], told()["reason_code"], told()["reason"]) == ("running", "", "")
        board.statuses[PROMOTED] = ("fine-tune", {"status": "deferred", "version": 3, "progress": 0.25, "ts": NOW})
        assert (told()["progress"], told()["reason_code"]) == (0.25, "battery.low")  # the same one, said again


def test_a_report_that_was_made_and_has_not_come_yet_is_looked_for_again(tmp_path: Path) -> None:
    stamp = f"{int((NOW - 1) * 1000):012x}"
    made = f"{stamp[:8]}-{stamp[8:]}-7000-8000-0000000000cc"
    with stage.staged(tmp_path, seconds=1) as room:
        board = room.hub.board(BOARD)
        assert board is not None
        board.statuses[made] = ("collect-report", {"status": "succeeded", "version": 1, "ts": NOW})
        client = TestClient(stage.stage_app(room))
        page = client.get(f"/device/{BOARD}/report?asked={made}")
        assert page.headers["refresh"] == "1"
        board.statuses[made] = ("collect-report", {"status": "failed", "version": 1, "ts": NOW})
        assert "refresh" not in client.get(f"/device/{BOARD}/report?asked={made}").headers
