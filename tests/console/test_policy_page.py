"""The policy editor: every mistake with its line, the difference by key and by line, one question, one command."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.profile import named_policy_text, policy_names
from agent.keys_consoles import Role
from policies.policy import MAX_POLICY_BYTES, PolicyError, parse_policy
from service.console import policy_page
from service.console.act_sent import new_token
from service.console.policy_check import MAX_DIFF_LINES, MAX_FAULTS, check, key_difference, line_of, text_difference
from service.fleet.boards import Board
from tests.simulators.act_room import BIRTH, JOB, ActRoom, FormReader

WHY = "the cabinet is hotter in summer"
DEFAULT = named_policy_text("default")
SUMMER = 'name = "summer"\n\n[thermal.slow]\nduty = 0.6\n'
FAULTY = """name = "x"
[thermal]
hysteresis-kelvin = 100
[thermal.slow]
dutty = 0.5
duty = 7
[gate]
least_gain = "a"
[battery]
order = "<b>z"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ActRoom]:
    made = ActRoom(tmp_path, policy_page.ROUTES)
    in_force(made, DEFAULT)
    yield made
    made.audit.close()


def in_force(bench: ActRoom, text: str, source: str = "board", where: str = "default") -> None:
    told = {"name": "default", "source": source, "where": where, "complaint": ""}
    digest = hashlib.sha256(text.encode()).hexdigest()
    bench.hub.births["pi-1"] = BIRTH | {"policy": told | {"sha256": digest}}


def editor(bench: ActRoom) -> dict[str, str]:
    page = bench.client().get("/device/pi-1/policy")
    assert page.status_code == 200
    return next(form for form in FormReader(page.text).forms if "token" in form)


def ask(bench: ActRoom, **fields: str) -> tuple[str, dict[str, str]]:
    """The page that asks, and its form."""
    shown = bench.client().post("/device/pi-1/policy", editor(bench) | {"what": "text", "why": WHY} | fields)
    assert shown.status_code == 200, shown.text
    return shown.text, FormReader(shown.text).forms[0]


# --- the text ---------------------------------------------------------------------------------------------------------


def test_every_mistake_is_told_with_its_line_and_key() -> None:
    policy, mistakes = check(FAULTY)
    assert policy is None
    assert [(one.line, one.key) for one in mistakes] == [
        (3, "thermal.hysteresis_kelvin"),
        (5, "thermal.slow.dutty"),
        (6, "thermal.slow.duty"),
        (8, "gate.least_gain"),
        (10, "battery.order"),
    ]


def test_keys_that_contradict_each_other_are_told_when_each_alone_is_right() -> None:
    assert [one.key for one in check("[thermal.hot]\nduty = 0.9\n[gate]\nclass_drop = 2\n")[1]] == ["gate.class_drop"]
    [one] = check("[thermal.hot]\nduty = 0.9\n")[1]
    assert (one.line, one.key) == (2, "thermal.hot.duty")
    assert "milder" in one.what


@pytest.mark.parametrize(
    ("text", "line"), [("a = \n", 1), ('name = "x"\n[thermal\n', 2), ("a = 1\na = 2\n", 2), ("x" * 70_000, 0)]
)
def test_what_is_no_toml_is_told_with_its_line(text: str, line: int) -> None:
    policy, [mistake] = check(text)
    assert (policy, mistake.key, mistake.line) == (None, "", line)


def test_mistakes_are_bounded() -> None:
    assert len(check("".join(f"k{number} = 1\n" for number in range(500)))[1]) == MAX_FAULTS


@pytest.mark.parametrize("name", policy_names())
def test_what_ships_is_right(name: str) -> None:
    text = named_policy_text(name)
    assert check(text) == (parse_policy(text), [])


def test_the_line_of_a_key_is_found_among_equal_names() -> None:
    lines = DEFAULT.split("\n")
    slow, hot = (line_of(DEFAULT, f"thermal.{stage}.duty") for stage in ("slow", "hot"))
    assert lines[slow - 1].startswith("duty = 0.75")
    assert lines[hot - 1].startswith("duty = 0.5")
    assert lines[line_of(DEFAULT, "thermal.hot.absent") - 1].startswith("[thermal.hot]")
    assert line_of(DEFAULT, "absent") == 0


def test_a_line_within_a_text_of_several_lines_is_no_key() -> None:
    assert line_of('note = """\nname = 1\n"""\nname = 2\n', "name") == 4


LINES = st.sampled_from(
    [
        "[thermal]",
        "[thermal.slow]",
        "duty = 0.5",
        "duty = 9",
        "name = 1",
        "[gate]",
        "x.y = 3",
        '"a b" = 1',
        "thermal = 3",
    ]
)


@given(st.lists(LINES | st.text(max_size=20), max_size=12))
def test_whatever_is_written_is_judged_as_the_board_judges_it(lines: list[str]) -> None:
    text = "\n".join(lines)
    policy, mistakes = check(text)
    try:
        assert parse_policy(text) == policy
        assert mistakes == []
    except PolicyError:
        assert policy is None
        assert mistakes
        assert all(0 <= one.line <= text.count("\n") + 1 for one in mistakes)


def test_a_difference_is_told_by_key_and_by_line() -> None:
    after = DEFAULT.replace("duty = 0.75", "duty = 0.6", 1)
    assert key_difference(parse_policy(DEFAULT), parse_policy(after)) == [("thermal.slow.duty", "0.75", "0.6")]
    lines = text_difference(DEFAULT, after)
    assert lines is not None
    assert [line.text.split("#")[0].strip() for line in lines if line.mark in "+-"] == ["duty = 0.75", "duty = 0.6"]
    assert text_difference(DEFAULT, DEFAULT) == []
    assert text_difference("", "\n" * (MAX_DIFF_LINES + 1)) is None


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["en", "vi"])
def test_the_editor_begins_with_what_is_in_force(bench: ActRoom, language: str) -> None:
    page = bench.client(language=language).get("/device/pi-1/policy")
    form = next(form for form in FormReader(page.text).forms if "token" in form)
    assert (form["text"], form["from"]) == (DEFAULT, "ship:default")
    assert "expect.policy" in form
    for bad in ("policy.way.", "style=", "onclick"):
        assert bad not in page.text


def test_a_policy_that_is_not_known_here_is_said_to_be_so(bench: ActRoom) -> None:
    in_force(bench, "secret", "file", "/etc/temperd/<b>.toml")
    text = bench.client().get("/device/pi-1/policy").text
    assert "what it says is not known here" in text
    assert "<b>.toml" not in text
    shown, _ = ask(bench, text=SUMMER)
    assert "What is in force is not known here" in shown


def test_another_start_is_chosen_by_its_key(bench: ActRoom) -> None:
    page = bench.client().get("/device/pi-1/policy?from=ship:raspberry-pi-4")
    assert 'name = "raspberry-pi-4"' in FormReader(page.text).forms[1]["text"].replace("&quot;", '"')
    assert bench.client().get("/device/pi-1/policy?from=sent:99999").status_code == 200


def test_mistakes_come_back_beside_the_text_as_it_was_typed(bench: ActRoom) -> None:
    answer = bench.client().post("/device/pi-1/policy", editor(bench) | {"text": FAULTY, "why": WHY})
    assert (answer.status_code, bench.hub.sent) == (422, [])
    assert 'data-line="6"' in answer.text
    assert "<b>z" not in answer.text
    assert next(form for form in FormReader(answer.text).forms if "token" in form)["text"] == FAULTY


def test_a_policy_is_shown_with_its_difference_then_signed_as_it_was_shown(bench: ActRoom) -> None:
    text = DEFAULT.replace("duty = 0.75", "duty = 0.6", 1)
    shown, kept = ask(bench, text=text.replace("\n", "\r\n"))
    assert "<code>thermal.slow.duty</code>" in shown
    assert "0.75" in shown
    assert (bench.hub.sent, bench.records()) == ([], [])
    other = bench.client().post("/device/pi-1/policy", kept | {"step": "send", "text": SUMMER})
    assert (other.status_code, bench.hub.sent) == (200, [])  # not what was shown: it is shown first
    _, kept = ask(bench, text=text)
    answer = bench.client().post("/device/pi-1/policy", kept | {"step": "send"})
    assert answer.status_code == 303
    command = bench.opened()
    assert command.policy.text == text
    assert command.expectation.policy == hashlib.sha256(DEFAULT.encode()).hexdigest()
    [record] = bench.records()
    assert (record.action, record.why, record.details["args"]["text"]) == ("set-policy", WHY, text)
    in_force(bench, text, "command")
    page = bench.client().get("/device/pi-1/policy").text
    assert "was sent from here by ann" in page
    assert f"sent:{record.id}" in page


@pytest.mark.parametrize(
    ("fields", "args"),
    [({"what": "name", "name": "raspberry-pi-5"}, {"name": "raspberry-pi-5"}), ({"what": "reset"}, {"reset": True})],
)
def test_shipped_ones_and_a_reset_are_sent_by_name(
    bench: ActRoom, fields: dict[str, str], args: dict[str, object]
) -> None:
    _, kept = ask(bench, **fields)
    assert bench.client().post("/device/pi-1/policy", kept | {"step": "send"}).status_code == 303
    assert bench.opened().args == args
    assert bench.client().get("/device/pi-1/policy").status_code == 200  # the trail has one without a text now


@pytest.mark.parametrize(
    "fields",
    [
        {"what": "text", "text": " \r\n"},
        {"what": "name", "name": "../../etc/passwd"},
        {"what": "<b>"},
        {"why": " "},
        {"why": "x" * 501},
        {"expect.policy": "x"},
        {"valid_s": "31536000"},
    ],
)
def test_bad_fields_are_422(bench: ActRoom, fields: dict[str, str]) -> None:
    answer = bench.client().post("/device/pi-1/policy", editor(bench) | {"why": WHY} | fields)
    assert (answer.status_code, bench.hub.sent) == (422, [])


def test_a_policy_longer_than_a_command_is_refused(bench: ActRoom) -> None:
    _, kept = ask(bench, text=SUMMER + "#" * (MAX_POLICY_BYTES - 1000))
    answer = bench.client().post("/device/pi-1/policy", kept | {"step": "send"})
    assert (answer.status_code, bench.hub.sent, bench.records()) == (422, [], [])
    assert "boards read at most" in answer.text


def test_a_gate_that_is_milder_is_foreseen_and_the_boards_refusal_shown(bench: ActRoom) -> None:
    shown, _ = ask(bench, text="[gate]\nclass_drop = 0.5\n")
    assert "The board will refuse this" in shown
    assert "gate.class_drop" in shown
    refusal = "gate.class_drop: 0.5 is milder than this board's own 0.1<script>"
    body: dict[str, object] = {"status": "rejected", "reason_code": "bad-policy", "reason": refusal, "ts": 1e9}
    bench.hub.boards["pi-1"] = Board("pi-1", conn={"online": True}, statuses={JOB: ("set-policy", body)})
    text = bench.client().get("/device/pi-1/policy").text
    assert "0.5 is milder than this board" in text
    assert "0.1<script>" not in text
    assert f"/device/pi-1/jobs/{JOB}" in text


def test_who_may_not_set_policies_reads_them(bench: ActRoom) -> None:
    for role in (Role.VIEWER, Role.OPERATOR):
        page = bench.client(role).get("/device/pi-1/policy")
        assert (page.status_code, "<textarea" in page.text) == (200, False)
        answer = bench.client(role).post("/device/pi-1/policy", {"token": new_token(), "step": "send"})
        assert answer.status_code == 403
        assert bench.client(role).post("/device/pi-1/policy/check", {"text": "a"}).status_code == 403
    assert [(record.action, record.details["role"]) for record in bench.records()] == [
        ("command-refused", "viewer"),
        ("command-refused", "operator"),
    ]


def test_the_script_is_told_the_mistakes(bench: ActRoom) -> None:
    answer = bench.client().post("/device/pi-1/policy/check", {"text": FAULTY})
    assert [one["line"] for one in json.loads(answer.text)["mistakes"]] == [3, 5, 6, 8, 10]
    assert json.loads(bench.client().post("/device/pi-1/policy/check", {"text": SUMMER}).text) == {"mistakes": []}


def test_a_board_that_is_not_known_has_no_policy_page(bench: ActRoom) -> None:
    assert bench.client().get("/device/pi-9/policy").status_code == 404
    assert bench.client().post("/device/pi-9/policy", {"what": "reset"}).status_code == 404
