from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from agent.errors import CommandError
from agent.keys import keyid
from agent.keys_consoles import Role, TrustedConsole
from service import commands
from service.commands import KNOWN, Command, Refusal, Request, new_id, open_command, sign_command

NOW = 1_772_366_400
CONSOLE = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
STRANGER = Ed25519PrivateKey.from_private_bytes(b"s" * 32)


def console(key: Ed25519PrivateKey, role: Role = Role.OWNER) -> dict[str, TrustedConsole]:
    public = key.public_key()
    return {keyid(public): TrustedConsole("ops", keyid(public), public.public_bytes_raw(), Path("ops.json"), role)}


TRUSTED = console(CONSOLE)
ID = new_id(NOW * 1000, lambda n: b"\x5a" * n)
JOB = new_id(NOW * 1000 - 5, lambda n: b"\xa5" * n)
FINE_TUNE = Request(ID, "pi-7", "fine-tune", NOW, NOW + 3600, {"model": "mobilenetv2", "data": "/srv/photos"})
PAUSE = replace(FINE_TUNE, type="pause", args={"job": JOB})


def opened(envelope: bytes, **changes: Any) -> Command:
    about: dict[str, Any] = {
        "topic_type": "fine-tune",
        "topic_id": ID,
        "trusted": TRUSTED,
        "device": "pi-7",
        "now": NOW,
        "clock_synchronised": True,
    }
    return open_command(envelope, **(about | changes))


def refusal(envelope: bytes, **changes: Any) -> str:
    with pytest.raises(CommandError) as caught:
        opened(envelope, **changes)
    assert caught.value.what
    return caught.value.code


def enveloped(payload: object, /, **changes: object) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signature = CONSOLE.sign(commands.pre_authentication(commands.PAYLOAD_TYPE, data))
    fields = {
        "payload": base64.b64encode(data).decode(),
        "payloadType": commands.PAYLOAD_TYPE,
        "signatures": [{"keyid": next(iter(TRUSTED)), "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(fields | changes).encode()


def table(request: Request = FINE_TUNE, **changes: object) -> dict[str, object]:
    payload = json.loads(base64.b64decode(json.loads(sign_command(request, CONSOLE))["payload"]))
    return payload | changes


def test_round_trip() -> None:
    command = opened(sign_command(FINE_TUNE, CONSOLE))
    assert (command.id, command.device, command.type) == (ID, "pi-7", "fine-tune")
    assert command.spec.model == "mobilenetv2"
    assert command.keyid == keyid(CONSOLE.public_key())
    pause = opened(sign_command(PAUSE, CONSOLE), topic_type="pause")
    assert pause.job == JOB


def test_the_digest_covers_what_was_signed_and_nothing_else() -> None:
    first = opened(enveloped(table()))
    spaced = opened(json.dumps(json.loads(enveloped(table())), indent=4).encode())
    other = opened(enveloped(table(issued_at=NOW - 1)))
    assert first.digest == spaced.digest == hashlib.sha256(json.dumps(table()).encode()).hexdigest()
    assert other.digest != first.digest


def test_url_safe_base64_is_read_too() -> None:
    body = json.loads(sign_command(replace(FINE_TUNE, args={"model": "m", "data": "???>>>~~~"}), CONSOLE))
    for item in (body, body["signatures"][0]):
        for key in ("payload", "sig"):
            if key in item:
                item[key] = item[key].replace("+", "-").replace("/", "_")
    assert opened(json.dumps(body).encode()).spec.data == "???>>>~~~"


def test_securesystemslib_accepts_ours() -> None:
    envelope = Envelope.from_dict(json.loads(sign_command(FINE_TUNE, CONSOLE)))
    raw = CONSOLE.public_key().public_bytes_raw().hex()
    key = SSlibKey(keyid(CONSOLE.public_key()), "ed25519", "ed25519", {"public": raw})
    assert list(envelope.verify([key], 1)) == [key.keyid]
    with pytest.raises(VerificationError):
        Envelope(envelope.payload + b" ", envelope.payload_type, envelope.signatures).verify([key], 1)


def test_we_accept_securesystemslibs() -> None:
    raw = CONSOLE.public_key().public_bytes_raw().hex()
    key = SSlibKey(keyid(CONSOLE.public_key()), "ed25519", "ed25519", {"public": raw})
    envelope = Envelope(json.dumps(table()).encode(), commands.PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(CONSOLE, key))
    assert opened(json.dumps(envelope.to_dict()).encode()).id == ID


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (b"", Refusal.MALFORMED),
        (b"\xff\xfe", Refusal.MALFORMED),
        (b"[]", Refusal.MALFORMED),
        (b"[" * 1000, Refusal.MALFORMED),
        (b"x" * (commands.MAX_ENVELOPE_BYTES + 1), Refusal.TOO_LARGE),
        (enveloped(table(), payloadType="text/plain"), Refusal.MALFORMED),
        (enveloped(table(), payload="%%%"), Refusal.MALFORMED),
        (enveloped(table(), payload="é"), Refusal.MALFORMED),
        (enveloped(table(), more=1), Refusal.MALFORMED),
        (enveloped(table(), signatures=[]), Refusal.UNSIGNED),
        (enveloped(table(), signatures=[{"sig": "AAAA"}]), Refusal.UNKNOWN_KEY),
        (enveloped(table(), signatures=[{"sig": "AAAA"}] * 9), Refusal.MALFORMED),
        (enveloped(table(), signatures=[{"sig": "AAAA", "keyid": next(iter(TRUSTED))}]), Refusal.BAD_SIGNATURE),
        (enveloped(table(), signatures=[{"sig": "A", "keyid": next(iter(TRUSTED))}]), Refusal.MALFORMED),
        (sign_command(FINE_TUNE, STRANGER), Refusal.UNKNOWN_KEY),
        (enveloped(b"not json"), Refusal.MALFORMED),
        (enveloped(b'{"id":1,"id":2}'), Refusal.MALFORMED),
        (enveloped(table(id="7")), Refusal.MALFORMED),
        (enveloped(table(id=str(uuid.UUID(int=4, version=4)))), Refusal.MALFORMED),
        (enveloped(table(id=ID.upper())), Refusal.MALFORMED),
        (enveloped(table(issued_at=1.5)), Refusal.MALFORMED),
        (enveloped(table(not_after=10**30)), Refusal.MALFORMED),
        (enveloped(table(digest="x")), Refusal.MALFORMED),
        (enveloped(table(device="pi-8")), Refusal.OTHER_DEVICE),
        (enveloped(table(type="pause")), Refusal.TOPIC_MISMATCH),
        (enveloped(table(id=JOB)), Refusal.TOPIC_MISMATCH),
        (enveloped(table(not_after=NOW + commands.MAX_LIFETIME_S + 1)), Refusal.LIFETIME_TOO_LONG),
        (enveloped(table(not_after=NOW - 1)), Refusal.LIFETIME_TOO_LONG),
        (enveloped(table(expect={"active_model": "x"})), Refusal.UNKNOWN_EXPECTATION),
        (enveloped(table(args={"modle": "x", "data": "y"})), Refusal.BAD_ARGUMENTS),
        (enveloped(table(args={"model": "x", "data": "y", "epochs": 0})), Refusal.BAD_ARGUMENTS),
    ],
)
def test_refusals(envelope: bytes, code: Refusal) -> None:
    assert refusal(envelope) == code


def test_times_at_their_borders() -> None:
    envelope = sign_command(FINE_TUNE, CONSOLE)
    assert opened(envelope, now=FINE_TUNE.not_after).id == ID
    assert refusal(envelope, now=FINE_TUNE.not_after + 1) == Refusal.EXPIRED
    assert opened(envelope, now=NOW - commands.MAX_SKEW_S).id == ID
    assert refusal(envelope, now=NOW - commands.MAX_SKEW_S - 1) == Refusal.NOT_YET
    assert refusal(envelope, now=NOW + 10 * 365 * 86400) == Refusal.EXPIRED
    assert refusal(envelope, now=0) == Refusal.NOT_YET


@pytest.mark.parametrize("now", [0, NOW, NOW + 10**9])
def test_without_a_clock_only_stopping_is_obeyed(now: float) -> None:
    for kind in ("pause", "cancel"):
        envelope = sign_command(replace(PAUSE, type=kind), CONSOLE)
        assert opened(envelope, topic_type=kind, now=now, clock_synchronised=False).job == JOB
    resume = sign_command(replace(PAUSE, type="resume"), CONSOLE)
    assert refusal(resume, topic_type="resume", now=now, clock_synchronised=False) == Refusal.CLOCK_UNSYNCHRONISED
    envelope = sign_command(FINE_TUNE, CONSOLE)
    assert refusal(envelope, now=now, clock_synchronised=False) == Refusal.CLOCK_UNSYNCHRONISED


def test_a_type_that_is_none_says_so() -> None:
    envelope = sign_command(replace(PAUSE, type="format-disk"), CONSOLE)
    assert refusal(envelope, topic_type="format-disk") == Refusal.UNKNOWN_TYPE


ROLES = {
    "viewer": {"collect-report"},
    "operator": {"collect-report", "fine-tune", "evaluate", "cancel", "pause", "resume", "scrub", "qualify"},
    "owner": set(KNOWN),
}


@pytest.mark.parametrize("role", list(Role))
def test_a_role_covers_its_types_and_no_other(role: Role) -> None:
    trusted = console(CONSOLE, role)
    for kind in KNOWN:
        envelope, refused = sign_command(replace(PAUSE, type=kind), CONSOLE), None
        try:
            opened(envelope, topic_type=kind, trusted=trusted)
        except CommandError as error:
            refused = error
        permitted = refused is None or refused.code != Refusal.NOT_PERMITTED
        assert permitted == (kind in ROLES[role])
        assert permitted or f"the role {role} may not send {kind!r}" in str(refused)


def test_of_two_signatures_the_first_that_holds_gives_the_role() -> None:
    ours = json.loads(sign_command(FINE_TUNE, CONSOLE))
    ours["signatures"] += json.loads(sign_command(FINE_TUNE, STRANGER))["signatures"]
    trusted = console(CONSOLE, Role.VIEWER) | console(STRANGER, Role.OWNER)
    assert refusal(json.dumps(ours).encode(), trusted=trusted) == Refusal.NOT_PERMITTED


def test_a_later_form_of_commands_is_told_from_a_broken_one() -> None:
    assert refusal(enveloped(table(schema=2, new="field"))) == Refusal.UNKNOWN_SCHEMA
    assert refusal(enveloped(table(schema=0))) == Refusal.UNKNOWN_SCHEMA
    for wrong in ("1", True, 1.0, None):
        assert refusal(enveloped(table(schema=wrong))) == Refusal.MALFORMED
    assert opened(enveloped(table(schema=1))).schema == 1
    assert "schema" not in table(), "boards that know no schema refuse the field"


@pytest.mark.parametrize(
    "expect",
    [
        {"temperature": 3},
        {"active_model": "x"},
        {"active_model": None, "policy": ""},
        {"policy": "AB" * 32},
        {"state_version": -1},
        {"state_version": 1.0},
        {"state_version": True},
        {"state_version": "7"},
        {"state_version": 1 << 53},
    ],
)
def test_an_expectation_that_this_version_cannot_check_is_refused(expect: dict[str, object]) -> None:
    assert refusal(enveloped(table(expect=expect))) == Refusal.UNKNOWN_EXPECTATION


def test_expectations_are_read() -> None:
    expect = {"active_model": "", "policy": "ab" * 32, "state_version": 7}
    assert opened(enveloped(table(expect=expect))).expectation == commands.Expectation("", "ab" * 32, 7)


def test_an_id_from_the_future_would_outlive_all_others_in_the_ledger() -> None:
    for ahead_s, code in ((commands.MAX_SKEW_S, ""), (commands.MAX_SKEW_S + 1, Refusal.NOT_YET)):
        later = new_id((NOW + ahead_s) * 1000, lambda n: b"\x5a" * n)
        envelope = sign_command(replace(FINE_TUNE, id=later), CONSOLE)
        if code:
            assert refusal(envelope, topic_id=later) == code
        else:
            assert opened(envelope, topic_id=later).id == later


@pytest.mark.parametrize("args", [{}, {"job": "1"}, {"job": JOB, "force": True}, {"job": None}])
def test_a_job_must_be_named_by_its_id(args: dict[str, object]) -> None:
    envelope = sign_command(replace(PAUSE, args=args), CONSOLE)
    assert refusal(envelope, topic_type="pause") == Refusal.BAD_ARGUMENTS


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"text": ""},
        {"reset": False},
        {"text": 'name = "x"', "name": "default"},
        {"name": "default", "reset": True},
        {"text": ["name"]},
        {"reset": 1},
        {"file": "/etc/passwd"},
        {"name": "x" * 64},
    ],
)
def test_a_policy_is_given_in_exactly_one_way(args: dict[str, object]) -> None:
    envelope = sign_command(replace(PAUSE, type="set-policy", args=args), CONSOLE)
    assert refusal(envelope, topic_type="set-policy") == Refusal.BAD_ARGUMENTS


@pytest.mark.parametrize("args", [{"text": 'name = "x"\n'}, {"name": "default"}, {"reset": True}])
def test_a_policy_comes_as_text_by_name_or_not_at_all(args: dict[str, object]) -> None:
    envelope = sign_command(replace(PAUSE, type="set-policy", args=args), CONSOLE)
    asked = opened(envelope, topic_type="set-policy").policy
    assert {key: getattr(asked, key) for key in args} == args


def test_a_second_valid_signature_is_enough() -> None:
    ours = json.loads(sign_command(FINE_TUNE, CONSOLE))
    theirs = json.loads(sign_command(FINE_TUNE, STRANGER))
    ours["signatures"] = theirs["signatures"] + ours["signatures"]
    assert opened(json.dumps(ours).encode()).keyid == keyid(CONSOLE.public_key())


@given(st.integers(0, len(sign_command(FINE_TUNE, CONSOLE)) - 1), st.integers(1, 255))
def test_one_changed_byte_never_gives_another_command(position: int, flip: int) -> None:
    envelope = bytearray(sign_command(FINE_TUNE, CONSOLE))
    envelope[position] ^= flip
    with contextlib.suppress(CommandError):  # if not refused: the same signed bytes in other base64 or JSON letters
        assert opened(bytes(envelope)) == opened(sign_command(FINE_TUNE, CONSOLE))


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_a_known_reason(data: bytes) -> None:
    assert refusal(data) in set(Refusal)


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_ids_are_uuid7_and_carry_their_time(now_ms: int, noise: bytes) -> None:
    made = uuid.UUID(new_id(now_ms, lambda n: noise[:n]))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == now_ms
    assert commands.COMMAND_ID.fullmatch(str(made))


def test_ids_sort_by_time_and_refuse_times_that_do_not_fit() -> None:
    ids = [new_id(ms, lambda n: b"\xff" * n) for ms in (0, 1, 1 << 47)]
    assert ids == sorted(ids)
    for wrong in (-1, 1 << 48):
        with pytest.raises(ValueError, match="48 bits"):
            new_id(wrong, bytes)


def test_the_page_lists_every_reason() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mqtt.md").read_text()
    for code in Refusal:
        assert f"`{code}`" in page
