"""Pages of commands: forms, what is refused, what is asked once, what is signed, recorded and sent."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BoardError
from agent.keys_consoles import Role
from service.commands import KNOWN, PERMITTED, SET_POLICY
from service.console import act_page
from service.console.act_order import ASKED
from service.console.act_sent import MAX_FORMS, new_token
from service.fleet.boards import Board
from tests.simulators.act_room import JOB, MODEL, NOW, POLICY, ActRoom, FormReader

WHY = "the line stands still tonight"
PLAIN = sorted(set(KNOWN) - {SET_POLICY})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ActRoom]:
    made = ActRoom(tmp_path, act_page.ROUTES)
    yield made
    made.audit.close()


def form_of(bench: ActRoom, kind: str, query: str = "", role: Role = Role.OWNER) -> dict[str, str]:
    page = bench.client(role).get(f"/device/pi-1/act/{kind}{query}")
    assert page.status_code == 200, page.text
    return FormReader(page.text).forms[0]


@pytest.mark.parametrize("language", ["en", "vi"])
@pytest.mark.parametrize("kind", PLAIN)
def test_each_command_has_a_form_in_words(bench: ActRoom, kind: str, language: str) -> None:
    page = bench.client(language=language).get(f"/device/pi-1/act/{kind}")
    assert page.status_code == 200
    assert f'lang="{language}"' in page.text
    for bad in ("act.arg.", "act.help.", "act.form.", "style=", "onclick"):
        assert bad not in page.text


def test_whether_a_reason_is_needed_is_said_before_it_is_missed(bench: ActRoom) -> None:
    assert "Needed: it changes" in bench.client().get("/device/pi-1/act/fine-tune").text
    assert "Needed: it changes" not in bench.client().get("/device/pi-1/act/scrub").text


def test_a_fine_tune_is_signed_recorded_and_sent(bench: ActRoom) -> None:
    given = form_of(bench, "fine-tune")
    given |= {"arg.model": "net", "arg.data": "/srv/parts", "arg.epochs": "8", "arg.promote": "ask", "why": WHY}
    given |= {"expect.state_version": "7", "valid_s": "600"}
    answer = bench.client().post("/device/pi-1/act/fine-tune", given)
    [(board, kind, command_id, _, valid_s)] = bench.hub.sent
    assert (answer.status_code, answer.headers["location"]) == (303, f"/device/pi-1/jobs/{command_id}")
    assert (board, kind, valid_s) == ("pi-1", "fine-tune", 600)
    command = bench.opened()
    assert command.args == {"model": "net", "data": "/srv/parts", "epochs": 8, "promote": "ask"}
    assert (command.expect, command.not_after - command.issued_at) == ({"state_version": 7}, 600)
    [record] = bench.records()
    assert (record.who, record.action, record.boards, record.why) == ("ann", "fine-tune", ("pi-1",), WHY)
    assert record.commands == (command_id,)
    assert record.details["args"] == command.args


def test_what_is_wrong_is_said_beside_its_field_and_what_was_typed_stays(bench: ActRoom) -> None:
    given = form_of(bench, "fine-tune")
    given |= {"arg.model": "<b>net", "arg.epochs": "many", "arg.warm_up": "0.9", "why": ""}
    answer = bench.client().post("/device/pi-1/act/fine-tune", given)
    assert (answer.status_code, bench.hub.sent, bench.records()) == (422, [], [])
    again = FormReader(answer.text).forms[0]
    assert (again["arg.model"], again["arg.epochs"], again["token"]) == ("<b>net", "many", given["token"])
    for told in ("This is needed.", "A whole number.", "From 0 to 0.5.", "Say why", 'id="arg.data-error"'):
        assert told in answer.text
    assert '<details class="more" open>' in answer.text
    assert "<b>net" not in answer.text


def test_a_command_that_ends_work_is_asked_once_and_sent_as_it_was_shown(bench: ActRoom) -> None:
    client, given = bench.client(), form_of(bench, "cancel", f"?job={JOB}")
    shown = client.post("/device/pi-1/act/cancel", given)
    assert (shown.status_code, bench.hub.sent, bench.records()) == (200, [], [])
    assert JOB in shown.text
    kept = FormReader(shown.text).forms[0]
    changed = client.post("/device/pi-1/act/cancel", kept | {"step": "send", "arg.job": JOB[:-1] + "2"})
    assert (changed.status_code, bench.hub.sent) == (200, [])  # what was not shown is shown first
    assert JOB[:-1] + "2" in changed.text
    back = client.post("/device/pi-1/act/cancel", kept | {"step": "send"})
    assert (back.status_code, bench.hub.sent) == (200, [])
    sent = client.post("/device/pi-1/act/cancel", FormReader(back.text).forms[0] | {"step": "send"})
    assert sent.status_code == 303
    assert bench.opened().args == {"job": JOB}


def test_a_confirmation_that_nobody_asked_for_is_asked(bench: ActRoom) -> None:
    given = {"token": new_token(), "why": WHY, "step": "send"}
    for kind in sorted(ASKED - {SET_POLICY}):
        fields = given | {"arg.job": JOB, "arg.name": "plant-image"}
        assert bench.client().post(f"/device/pi-1/act/{kind}", fields).status_code == 200
    assert bench.hub.sent == []


def test_a_form_without_a_token_is_asked_too(bench: ActRoom) -> None:
    asked = bench.client().post("/device/pi-1/act/pause", {"arg.job": JOB})
    assert (asked.status_code, bench.hub.sent) == (200, [])
    answer = bench.client().post("/device/pi-1/act/pause", FormReader(asked.text).forms[0] | {"step": "send"})
    assert answer.status_code == 303
    assert bench.opened().args == {"job": JOB}


def test_back_from_the_question_is_the_form_as_it_was(bench: ActRoom) -> None:
    client, given = bench.client(), form_of(bench, "rollback") | {"arg.to": "base", "why": WHY}
    shown = client.post("/device/pi-1/act/rollback", given)
    form = client.post("/device/pi-1/act/rollback", FormReader(shown.text).forms[0] | {"step": "edit"})
    again = FormReader(form.text).forms[0]
    assert (form.status_code, again["arg.to"], again["why"]) == (200, "base", WHY)
    assert again["expect.active_model"] == MODEL


def test_conditions_hold_what_the_sender_saw(bench: ActRoom) -> None:
    given = form_of(bench, "rollback")
    assert given["expect.active_model"] == MODEL
    assert "expect.policy" not in given
    client = bench.client()
    bench.hub.births["pi-1"] = {"active_model": None, "policy": {"sha256": POLICY}, "state_version": 8}
    shown = client.post("/device/pi-1/act/rollback", given | {"why": WHY})
    assert "The board has changed" in shown.text
    client.post("/device/pi-1/act/rollback", FormReader(shown.text).forms[0] | {"step": "send"})
    assert bench.opened().expect == {"active_model": MODEL}


@pytest.mark.parametrize(
    "bad",
    [{"expect.policy": "x"}, {"expect.state_version": "-1"}, {"expect.state_version": "9" * 17}, {"valid_s": "1"}],
)
def test_conditions_and_lifetimes_that_can_never_hold_are_refused(bench: ActRoom, bad: dict[str, str]) -> None:
    answer = bench.client().post("/device/pi-1/act/scrub", form_of(bench, "scrub") | bad)
    assert (answer.status_code, bench.hub.sent) == (422, [])


def test_two_presses_are_one_command(bench: ActRoom) -> None:
    given = form_of(bench, "scrub")
    bench.hub.slow = asyncio.Event()

    async def twice() -> list[str]:
        client = bench.client()
        posts = [asyncio.ensure_future(client.ask("POST", "/device/pi-1/act/scrub", data=given)) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert bench.hub.slow is not None
        bench.hub.slow.set()
        return [answer.headers["location"] for answer in await asyncio.gather(*posts)]

    first, second = asyncio.run(twice())
    third = bench.client().post("/device/pi-1/act/scrub", given)
    assert first == second == third.headers["location"]
    assert (len(bench.hub.sent), len(bench.records())) == (1, 1)


def test_a_form_that_sent_something_else_is_not_used_again(bench: ActRoom) -> None:
    client, given = bench.client(), form_of(bench, "qualify")
    assert client.post("/device/pi-1/act/qualify", given).status_code == 303
    answer = client.post("/device/pi-1/act/qualify", given | {"arg.minutes": "20"})
    assert (answer.status_code, len(bench.hub.sent)) == (422, 1)
    fresh = FormReader(answer.text).forms[0]
    assert fresh["token"] != given["token"]
    assert client.post("/device/pi-1/act/qualify", fresh).status_code == 303
    assert bench.opened().args == {"minutes": 20}


def test_a_token_of_one_user_is_not_anothers(bench: ActRoom) -> None:
    given = form_of(bench, "scrub")
    bench.client(name="ann").post("/device/pi-1/act/scrub", given)
    bench.client(name="ben").post("/device/pi-1/act/scrub", given)
    assert len({command_id for _, _, command_id, _, _ in bench.hub.sent}) == 2


def test_what_forms_sent_is_bounded(bench: ActRoom) -> None:
    for _ in range(MAX_FORMS + 5):
        bench.room.sent.show("ann", new_token(), "x")
    assert len(bench.room.sent._shown) == MAX_FORMS


def test_a_broker_that_does_not_confirm_gets_the_same_command_again(bench: ActRoom) -> None:
    client, given = bench.client(), form_of(bench, "scrub")
    bench.hub.fails = True
    answer = client.post("/device/pi-1/act/scrub", given)
    assert answer.status_code == 503
    assert "It was not sent" in answer.text
    assert FormReader(answer.text).forms[0]["token"] == given["token"]
    bench.hub.fails = False
    assert client.post("/device/pi-1/act/scrub", given).status_code == 303
    assert [record.action for record in bench.records()] == ["scrub", "command-not-confirmed"]
    assert bench.records()[0].commands == (bench.hub.sent[0][2],)


def test_without_a_broker_nothing_is_signed(bench: ActRoom) -> None:
    bench.hub.connected = False
    answer = bench.client().post("/device/pi-1/act/scrub", form_of(bench, "scrub"))
    assert (answer.status_code, bench.records()) == (503, [])


def test_an_audit_trail_that_cannot_be_written_stops_the_command(
    bench: ActRoom, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = form_of(bench, "scrub")

    def full(*_: Any, **__: Any) -> int:
        raise BoardError("no space left")

    monkeypatch.setattr(bench.audit, "write", full)
    answer = bench.client().post("/device/pi-1/act/scrub", given)
    assert (answer.status_code, bench.hub.sent) == (503, [])
    monkeypatch.undo()
    assert bench.client().post("/device/pi-1/act/scrub", given).status_code == 303
    assert [record.action for record in bench.records()] == ["scrub"]


def test_without_a_key_the_page_says_what_to_do(tmp_path: Path) -> None:
    bench = ActRoom(tmp_path, act_page.ROUTES, key=False)
    page = bench.client().get("/device/pi-1/act/scrub")
    assert "has no key" in page.text
    assert 'href="/key"' in page.text
    answer = bench.client().post("/device/pi-1/act/scrub", FormReader(page.text).forms[0])
    assert (answer.status_code, bench.hub.sent, bench.records()) == (422, [], [])
    bench.audit.close()


def test_a_refusal_is_put_on_record_while_pages_go_on(bench: ActRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    write, threads = bench.audit.write, []

    def seen(*words: Any, **named: Any) -> int:
        threads.append(asyncio._get_running_loop())
        return write(*words, **named)

    monkeypatch.setattr(bench.audit, "write", seen)
    assert bench.client(Role.OPERATOR).post("/device/pi-1/act/rollback", {"token": new_token()}).status_code == 403
    assert threads == [None]  # each commit waits for the disk: never on the loop of the pages


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_what_a_role_may_not_send_is_403_and_on_record(bench: ActRoom, kind: str, role: Role) -> None:
    allowed = role is not Role.VIEWER and kind in PERMITTED[role]
    seen = bench.client(role).get(f"/device/pi-1/act/{kind}").status_code
    assert seen == ((303 if kind == SET_POLICY else 200) if allowed else 403)
    answer = bench.client(role).post(f"/device/pi-1/act/{kind}", {"token": new_token(), "step": "send"})
    assert (answer.status_code == 403) is not allowed
    if not allowed:
        [record] = bench.records()
        assert (record.action, record.boards, record.details) == (
            "command-refused",
            ("pi-1",),
            {"type": kind, "role": str(role)},
        )
        assert bench.hub.sent == []


@pytest.mark.parametrize("path", ["/device/pi-9/act/scrub", "/device/PI/act/scrub", "/device/pi-1/act/dance"])
def test_unknown_boards_and_commands_are_404(bench: ActRoom, path: str) -> None:
    assert bench.client().get(path).status_code == 404
    assert bench.client().post(path, {"token": new_token()}).status_code == 404


def test_jobs_are_offered_by_what_they_do(bench: ActRoom) -> None:
    ids = [f"019f0000-0000-7000-8000-00000000000{number}" for number in range(5)]
    statuses: dict[str, tuple[str, dict[str, object]]] = {
        ids[0]: ("fine-tune", {"status": "running"}),
        ids[1]: ("fine-tune", {"status": "paused"}),
        ids[2]: ("fine-tune", {"status": "succeeded"}),
        ids[3]: ("qualify", {"status": "<script>alert(1)</script>"}),
        ids[4]: ("scrub", {"status": "running"}),
    }
    bench.hub.boards["pi-1"] = Board("pi-1", conn={"online": True}, statuses=statuses)
    offered = {}
    for kind in ("pause", "resume", "promote", "cancel"):
        text = bench.client().get(f"/device/pi-1/act/{kind}").text
        assert "<script>alert" not in text
        offered[kind] = [place for place, job in enumerate(ids) if job in text]
    assert offered == {"pause": [0], "resume": [1], "promote": [2], "cancel": [0, 1, 3]}


def test_a_board_that_told_nothing_gets_our_form_and_one_that_is_newer_its_own(bench: ActRoom) -> None:
    bench.hub.capabilities["qualify"] = None
    assert "has not told what this command takes" in bench.client().get("/device/pi-1/act/qualify").text
    told = {"supported": False, "args": {"type": "object", "properties": {"loops": {"type": "integer", "minimum": 2}}}}
    bench.hub.capabilities["qualify"] = {**told, "limits": {"lifetime_s": 1000}}
    page = bench.client().get("/device/pi-1/act/qualify")
    assert "does not carry this command out" in page.text
    given = FormReader(page.text).forms[0]
    assert ("arg.loops" in given, given["valid_s"]) == (True, "600")
    answer = bench.client().post("/device/pi-1/act/qualify", given | {"arg.loops": "1"})
    assert (answer.status_code, "At least 2." in answer.text) == (422, True)
    assert bench.client().post("/device/pi-1/act/qualify", given | {"arg.loops": "3"}).status_code == 303
    assert opened_args(bench) == {"loops": 3}


def opened_args(bench: ActRoom) -> object:
    envelope = json.loads(bench.hub.sent[-1][3])
    args: object = json.loads(base64.b64decode(envelope["payload"]))["args"]
    return args


@pytest.mark.parametrize("args", [7, {"properties": {"<img src=x>": {}, "a": {"description": "<script>x</script>"}}}])
def test_a_hostile_schema_is_text_on_a_page(bench: ActRoom, args: Any) -> None:
    bench.hub.capabilities["evaluate"] = {"args": args, "limits": [1], "supported": "maybe"}
    page = bench.client().get("/device/pi-1/act/evaluate")
    assert page.status_code == 200
    assert "<script>x" not in page.text
    assert "<img src=x>" not in page.text


def test_a_board_that_is_away_or_without_the_time_is_said(bench: ActRoom) -> None:
    bench.hub.boards["pi-1"] = Board("pi-1")
    bench.hub.births["pi-1"] = {"clock": "unsynchronised"}
    text = bench.client().get("/device/pi-1/act/scrub").text
    assert "is not connected" in text
    assert "does not know the time" in text
    assert "does not know the time" not in bench.client().get("/device/pi-1/act/cancel").text


def test_a_store_that_is_behind_does_not_hide_what_the_board_said_last(bench: ActRoom) -> None:
    live: dict[str, object] = {"active_model": {"model_sha256": "ef" * 32}, "state_version": 8}
    bench.hub.boards["pi-1"] = Board("pi-1", conn={"online": True}, birth=live)
    assert form_of(bench, "rollback")["expect.active_model"] == "ef" * 32
    bench.hub.boards["pi-1"] = Board("pi-1", conn={"online": True}, birth=live | {"state_version": "9"})
    assert form_of(bench, "rollback")["expect.active_model"] == MODEL


def test_the_list_of_commands_is_that_of_the_role(bench: ActRoom) -> None:
    owner, operator = (bench.client(role).get("/device/pi-1/act").text for role in (Role.OWNER, Role.OPERATOR))
    assert 'href="/device/pi-1/policy"' in owner
    assert "/act/rollback" not in operator
    assert bench.client(Role.VIEWER).get("/device/pi-1/act").status_code == 403


def test_a_form_lives_no_longer_than_its_command(bench: ActRoom) -> None:
    client, given = bench.client(), form_of(bench, "scrub") | {"valid_s": "600"}
    bench.hub.fails = True
    client.post("/device/pi-1/act/scrub", given)
    bench.hub.fails, bench.now = False, NOW + 601
    answer = client.post("/device/pi-1/act/scrub", given)
    assert (answer.status_code, bench.hub.sent) == (422, [])
    assert FormReader(answer.text).forms[0]["token"] != given["token"]


def test_rooms_have_their_own_forms(bench: ActRoom) -> None:
    other = dataclasses.replace(bench.room)
    assert other.sent is bench.room.sent
