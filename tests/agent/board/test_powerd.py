from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.board.lever_files import cooling_file
from agent.board.powerd_firmware import GET_THROTTLED, answered_bits, property_message, throttled_bits
from agent.board.powerd_server import MAX_CONNECTIONS, REQUEST_BURST, Peer
from agent.board.powerd_wire import VERBS, Refusal
from tests.simulators.powerd_board import CAP, CAP4, FAN, FOUND, TABLE, Client, LeverTree, SteppedHelper, as_user

pytestmark = pytest.mark.once
NOBODY = 65534


@pytest.fixture
def tree(tmp_path: Path) -> LeverTree:
    return LeverTree(tmp_path)


@pytest.fixture
def helper(tree: LeverTree) -> Iterator[SteppedHelper]:
    started = SteppedHelper(tree)
    yield started
    started.close()


def test_hello_tells_version_and_tree(tree: LeverTree, helper: SteppedHelper) -> None:
    assert helper.client().ask("hello") == {"id": 1, "ok": True, "version": 1, "sys_root": str(tree.sys)}


def test_limits_are_set_and_put_back_by_the_values_found(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    assert client.ask("set-cap", policy=0, khz=1_000_000)["ok"]
    assert client.ask("set-cooling", device=0, level=4)["ok"]
    assert tree.values() == FOUND | {CAP: "1000000", FAN: "4"}
    undo = json.loads((tree.run / "undo.json").read_text())
    assert (undo["boot"], undo["found"]) == ("boot-1", {CAP: 1_800_000, FAN: 1})
    assert client.ask("set-cap", policy=0, khz=1_300_000)["ok"]
    assert tree.get(CAP) == "1300000"
    assert client.ask("set-cap", policy=0, khz=1_800_000)["ok"]
    assert client.ask("set-cooling", device=0, level=1)["ok"]
    assert tree.values() == FOUND
    assert not (tree.run / "undo.json").exists()
    assert not helper.limits.held


@pytest.mark.parametrize(
    ("verb", "arguments", "code", "says"),
    [
        ("set-cap", {"policy": 0, "khz": 1_200_000}, "range", "not in the board's table"),
        ("set-cap", {"policy": 0, "khz": 1_900_000}, "range", "above the 1800000 kHz"),
        ("set-cap", {"policy": 0, "khz": 0}, "range", "not in the board's table"),
        ("set-cap", {"policy": 4, "khz": 1_800_000}, "range", "above the 1300000 kHz"),
        ("set-cap", {"policy": 1, "khz": 600_000}, "absent", "no cpufreq policy 1"),
        ("set-cooling", {"device": 0, "level": 5}, "range", "above the highest, 4"),
        ("set-cooling", {"device": 0, "level": 0}, "range", "below the 1"),
        ("set-cooling", {"device": 9999, "level": 1}, "absent", "no cooling device 9999"),
    ],
)
def test_out_of_range_is_refused_and_nothing_changes(
    tree: LeverTree, helper: SteppedHelper, verb: str, arguments: dict[str, int], code: str, says: str
) -> None:
    answer = helper.client().ask(verb, **arguments)
    assert (answer["ok"], answer["error"], answer["id"]) == (False, code, 1)
    assert says in answer["message"]
    assert tree.values() == FOUND
    assert not (tree.run / "undo.json").exists()


def test_found_counts_while_a_limit_is_held(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.ask("set-cap", policy=0, khz=600_000)
    tree.put(CAP, "1300000")  # another program; what was found stays the bound
    assert client.ask("set-cap", policy=0, khz=1_800_000)["ok"]
    assert tree.get(CAP) == "1800000"


def test_without_a_table_the_drivers_bounds_count(tree: LeverTree, helper: SteppedHelper) -> None:
    folder = (tree.sys / CAP).parent
    (folder / "scaling_available_frequencies").unlink()
    client = helper.client()
    assert client.ask("set-cap", policy=0, khz=700_000)["error"] == "range"  # no bound is known
    (folder / "cpuinfo_min_freq").write_text("400000\n")
    assert client.ask("set-cap", policy=0, khz=399_999)["error"] == "range"
    assert client.ask("set-cap", policy=0, khz=400_000)["ok"]


def test_cap_below_the_owners_minimum_is_refused(tree: LeverTree, helper: SteppedHelper) -> None:
    ((tree.sys / CAP).parent / "scaling_min_freq").write_text("1000000\n")
    client = helper.client()
    assert "scaling_min_freq" in client.ask("set-cap", policy=0, khz=600_000)["message"]
    assert client.ask("set-cap", policy=0, khz=1_000_000)["ok"]


@pytest.mark.parametrize(
    "packet",
    [
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 400,
        b'{"id":1}',
        b'{"id":1,"verb":"reboot"}',
        b'{"id":1,"verb":["set-cap"]}',
        b'{"id":1,"verb":"set-cap","policy":0}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":NaN}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":6e5}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":"600000"}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":true}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":600000,"khz":1000000}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":600000,"force":1}',
        b'{"id":1,"verb":"set-cap","policy":-1,"khz":600000}',
        b'{"id":1,"verb":"set-cap","policy":10000,"khz":600000}',
        b'{"id":1,"verb":"set-cap","policy":"0/../policy0","khz":600000}',
        b'{"id":1,"verb":"set-cooling","device":"../../../etc","level":1}',
        b'{"id":-1,"verb":"hello"}',
        b'{"verb":"hello"}',
        b'{"id":1,"verb":"hello","pad":"' + b"x" * 600 + b'"}',
        b'{"id":1,"verb":"set-cap","policy":0,"khz":' + b"9" * 440 + b"}",
    ],
)
def test_bad_request_is_named_and_changes_nothing(tree: LeverTree, helper: SteppedHelper, packet: bytes) -> None:
    client = helper.client()
    answer = client.raw(packet)
    assert (answer["ok"], answer["error"]) == (False, "bad-request")
    assert answer["message"]
    assert tree.values() == FOUND
    assert client.ask("hello")["ok"]  # the connection is as good as before


def test_a_line_of_a_megabyte_is_refused_in_bounded_memory(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.sock.setsockopt(1, 7, 4 << 20)  # SO_SNDBUF: as much as the machine allows
    size = 1 << 20
    while True:  # the kernel itself refuses packets above the send buffer
        try:
            answer = client.raw(b'{"id":1,"verb":"' + b"x" * size)
            break
        except OSError:
            size //= 2
    assert size > 4096
    assert answer["error"] == "bad-request"
    assert "512" in answer["message"]
    assert client.ask("set-cap", policy=0, khz=600_000)["ok"]
    assert tree.get(CAP) == "600000"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=700) | st.text(min_size=1, max_size=200).map(str.encode))
def test_any_bytes_are_answered(helper: SteppedHelper, packet: bytes) -> None:
    helper.now += 10.0
    client = helper.client()
    answer = client.raw(packet)
    assert answer["ok"] is False
    assert len(json.dumps(answer)) < 2048
    client.close()


def test_one_client_holds_the_limits(tree: LeverTree, helper: SteppedHelper) -> None:
    first, second = helper.client(), helper.client()
    assert first.ask("set-cap", policy=0, khz=600_000)["ok"]
    for answer in (
        second.ask("set-cap", policy=0, khz=1_000_000),
        second.ask("set-cooling", device=0, level=2),
        second.ask("restore"),
    ):
        assert answer["error"] == "busy"
    assert second.ask("hello")["ok"]
    assert tree.values() == FOUND | {CAP: "600000"}
    assert first.ask("restore")["ok"]
    assert tree.values() == FOUND
    assert second.ask("set-cap", policy=0, khz=1_000_000)["ok"]
    first.close()
    assert tree.get(CAP) == "1000000"
    second.close()
    assert tree.values() == FOUND


def test_limits_come_back_when_the_client_is_gone_even_if_it_still_asked(
    tree: LeverTree, helper: SteppedHelper
) -> None:
    client = helper.client()
    client.ask("set-cap", policy=0, khz=600_000)
    client.sock.send(b'{"id":9,"verb":"set-cap","policy":4,"khz":600000}')
    client.close()
    assert tree.values() == FOUND


def test_more_clients_than_allowed_are_turned_away(helper: SteppedHelper) -> None:
    clients = [helper.client() for _ in range(MAX_CONNECTIONS)]
    answer = json.loads(helper.client().sock.recv(4096))
    assert (answer["error"], clients[0].ask("hello")["ok"]) == ("busy", True)


def test_a_flood_is_answered_once_and_then_not_read(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.ask("set-cap", policy=0, khz=600_000)
    for _ in range(int(REQUEST_BURST) - 1):
        assert client.ask("hello")["ok"]
    assert client.ask("set-cap", policy=0, khz=1_000_000)["error"] == "rate"
    client.sock.send(b'{"id":1,"verb":"restore"}')
    for _ in range(5):
        helper.turn()
    assert tree.get(CAP) == "600000"
    helper.now += 1.01
    helper.turn()
    assert json.loads(client.sock.recv(4096))["ok"]
    assert tree.values() == FOUND


def test_the_end_of_a_muted_client_is_seen(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.ask("set-cap", policy=0, khz=600_000)
    for _ in range(int(REQUEST_BURST)):
        client.ask("hello")
    client.close()
    assert tree.values() == FOUND


def test_connections_are_taken_at_a_bounded_rate(helper: SteppedHelper) -> None:
    for _ in range(10):
        helper.client().close()
    late = helper.client()
    late.sock.setblocking(False)
    late.sock.send(b'{"id":1,"verb":"hello"}')
    helper.turn()
    with pytest.raises(BlockingIOError):
        late.sock.recv(4096)
    helper.now += 1.0
    helper.turn()
    helper.turn()
    assert json.loads(late.sock.recv(4096))["ok"]


def test_a_silent_client_is_let_go_unless_it_holds(tree: LeverTree, helper: SteppedHelper) -> None:
    holder, other = helper.client(), helper.client()
    holder.ask("set-cap", policy=0, khz=600_000)
    helper.now += 60.0
    helper.turn()
    assert other.sock.recv(10) == b""
    assert helper.server.idle_s == 0.0
    assert tree.get(CAP) == "600000"
    assert holder.ask("restore")["ok"]
    helper.now += 10.0
    helper.turn()
    assert holder.sock.recv(10) == b""
    helper.now += 7.0
    assert helper.server.idle_s == 7.0


def test_another_user_is_refused(tree: LeverTree) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    helper = SteppedHelper(tree, lambda peer: peer.uid == 0 or 4242 in peer.groups)

    def look() -> object:
        client = Client(helper.address, helper.turn)
        return json.loads(client.sock.recv(4096))

    def greet() -> object:
        client = Client(helper.address, helper.turn)
        return client.ask("hello")

    denied = as_user(NOBODY, [], look)
    assert (denied["error"], "65534" in denied["message"]) == ("denied", True)
    assert tree.values() == FOUND
    assert as_user(NOBODY, [4242], greet)["ok"]  # by a group beside its first one
    helper.crash()


def test_own_user_is_seen_by_the_kernel(tree: LeverTree) -> None:
    seen: list[Peer] = []

    def allowed(peer: Peer) -> bool:
        seen.append(peer)
        return True

    helper = SteppedHelper(tree, allowed)
    helper.client()
    assert (seen[0].uid, os.getegid() in seen[0].groups) == (os.geteuid(), True)
    helper.crash()


def test_a_write_that_the_kernel_refuses_is_named(tree: LeverTree, helper: SteppedHelper) -> None:
    number = Path("/sys/kernel/uevent_seqnum")
    if not number.exists():
        pytest.skip("needs /sys/kernel/uevent_seqnum, a read-only file of a real sysfs")
    fan = tree.sys / FAN
    fan.unlink()
    fan.symlink_to(number)
    tree.put(FAN.replace("cur_state", "max_state"), "100000000")
    answer = helper.client().ask("set-cooling", device=0, level=99_999_999)
    assert answer["error"] == "refused"
    assert "Permission denied" in answer["message"]
    assert not helper.limits.held


def test_a_limit_that_cannot_be_remembered_is_not_set(tree: LeverTree, helper: SteppedHelper) -> None:
    tree.run.rename(tree.folder / "gone")
    answer = helper.client().ask("set-cap", policy=0, khz=600_000)
    assert answer["error"] == "undo"
    assert tree.values() == FOUND
    (tree.folder / "gone").rename(tree.run)


def test_what_cannot_be_put_back_is_tried_again(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.ask("set-cap", policy=0, khz=600_000)
    cap = tree.sys / CAP
    cap.unlink()
    cap.mkdir()  # a write is refused, root's too
    client.close()
    assert any("not put back" in text for text in helper.said)
    assert (tree.run / "undo.json").exists()
    cap.rmdir()
    tree.put(CAP, "600000")
    helper.now += 1.0
    helper.turn()
    assert tree.values() == FOUND
    assert sum("not put back" in text for text in helper.said) == 1


def test_a_device_that_is_gone_is_forgotten(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    client.ask("set-cooling", device=0, level=3)
    (tree.sys / FAN).unlink()
    assert client.ask("restore")["ok"]
    assert not helper.limits.held


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"boot":"boot-1","found":3}', '{"boot":"boot-1","found":{"victim":7,"../sys/victim":7}}']
)
def test_a_foreign_undo_file_moves_nothing(tree: LeverTree, text: str) -> None:
    (tree.sys / "victim").write_text("1\n")
    (tree.run / "undo.json").write_text(text)
    helper = SteppedHelper(tree)
    assert tree.values() == FOUND
    assert (tree.sys / "victim").read_text() == "1\n"
    helper.close()


def test_an_undo_file_of_an_earlier_boot_is_dropped(tree: LeverTree) -> None:
    (tree.run / "undo.json").write_text(json.dumps({"boot": "boot-0", "found": {CAP: 600_000}}))
    helper = SteppedHelper(tree)
    assert tree.values() == FOUND
    client = helper.client()
    assert client.ask("set-cap", policy=0, khz=1_000_000)["ok"]
    helper.close()
    assert tree.values() == FOUND


# --- firmware ----------------------------------------------------------------------------------------------------


def test_throttled_comes_from_the_kernels_file(tree: LeverTree, helper: SteppedHelper) -> None:
    client = helper.client()
    answer = client.ask("throttled")
    assert (answer["error"], "/dev/null" in answer["message"]) == ("unavailable", True)  # no file, no mailbox
    tree.put("devices/platform/soc/soc:firmware/get_throttled", "50005")
    assert client.ask("throttled")["bits"] == 0x50005


def test_without_file_and_mailbox_throttled_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="No such file"):
        throttled_bits(tmp_path, tmp_path / "vcio")


def test_the_mailbox_message_is_laid_out_as_the_firmware_expects() -> None:
    words = [int.from_bytes(property_message()[at : at + 4], "little") for at in range(0, 28, 4)]
    assert words == [28, 0, 0x00030046, 4, 0, 0, 0]


def test_the_firmwares_answer_is_read_and_an_error_is_no_answer() -> None:
    def message(code: int, tag: int, tag_code: int) -> bytes:
        return b"".join(word.to_bytes(4, "little") for word in (28, code, tag, 4, tag_code, 0x50005, 0))

    assert answered_bits(message(0x80000000, GET_THROTTLED, 0x80000004)) == 0x50005
    for wrong in ((0x80000001, GET_THROTTLED, 0x80000004), (0x80000000, 1, 0x80000004), (0x80000000, GET_THROTTLED, 4)):
        with pytest.raises(Refusal):
            answered_bits(message(*wrong))


# --- any sequence ------------------------------------------------------------------------------------------------

NUMBERS = st.integers(-1, 6) | st.sampled_from([9999, 10_000])
ACTIONS = st.one_of(
    st.tuples(st.just("set-cap"), st.integers(0, 2), st.sampled_from([0, 4, 1]), st.sampled_from([*TABLE, 5, 2**40])),
    st.tuples(st.just("set-cooling"), st.integers(0, 2), st.integers(-1, 2), NUMBERS),
    st.tuples(st.sampled_from(["restore", "hello", "throttled", "hang-up", "crash", "stop"]), st.integers(0, 2)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, max_size=14))
@example([("set-cap", 1, 1, 600_000), *[("restore", 0)] * 12, ("set-cap", 1, 0, 600_000)])  # 1 is silent for too long
def test_any_sequence_of_verbs_and_deaths_ends_as_found(
    tmp_path_factory: pytest.TempPathFactory, row: list[tuple[str, int, int, int]]
) -> None:
    tree = LeverTree(tmp_path_factory.mktemp("any") / "tree")
    helper, clients = SteppedHelper(tree), dict[int, Client]()
    for what, who, *numbers in row:
        if what in ("crash", "stop"):
            helper.crash() if what == "crash" else helper.close()
            clients.clear()
            helper = SteppedHelper(tree)
            assert tree.values() == FOUND
        elif what == "hang-up":
            if client := clients.pop(who, None):
                client.close()
        else:
            helper.now += 1.0
            client = clients.setdefault(who, None) or helper.client()  # type: ignore[arg-type]
            clients[who] = client
            if not client.ask(what, **dict(zip(VERBS[what], numbers, strict=True))):
                client.close()  # it was silent for too long, and the helper hung up
                del clients[who]
        assert 600_000 <= int(tree.get(CAP)) <= 1_800_000
        assert 600_000 <= int(tree.get(CAP4)) <= 1_300_000
        assert 1 <= int(tree.get(FAN)) <= 4
        assert 0 <= int(tree.get(cooling_file(1))) <= 3
        if not clients:
            assert tree.values() == FOUND
    helper.crash()
    SteppedHelper(tree).close()
    assert tree.values() == FOUND
    assert not (tree.run / "undo.json").exists()
