"""A real daemon and a real broker with a bad network between them: after each fault all that counts arrives, once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.commands import Request
from tests.simulators.far_board import TOPICS, Anybody, FarBoard, far_board
from tests.simulators.fleet import DEVICE
from tests.simulators.mosquitto import find_mosquitto
from tests.simulators.proxy import CONNECT, PUBACK, SUBSCRIBE, Packet, Wanted, Way, published

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto"),
]
BIRTH = published("/birth")
NO_SUCH_JOB = "rejected:wrong-state"
ANSWERS = 8  # more than a broker that kept its session is told again anyway
INTO_ANOTHER_TYPE = 0xC0  # of the first byte of a PUBLISH: makes an AUTH of it, which nobody expects here


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarBoard]:
    """One daemon for all of this."""
    with far_board(tmp_path_factory.mktemp("far")) as made:
        yield made


@pytest.fixture(autouse=True)
def _heals(board: FarBoard) -> Iterator[None]:
    """After each fault the board is as before, and knows all that it knew."""
    yield
    board.network.heal()
    board.obeys()


def same(bodies: list[dict[str, Any]]) -> bool:
    """Whether they say one thing; a status that is said again says when."""
    return all(body | {"ts": 0} == bodies[0] | {"ts": 0} for body in bodies)


def is_puback(way: Way) -> Wanted:
    return lambda packet: packet.kind == PUBACK and packet.way == way


# --- a connection that breaks ----------------------------------------------------------------------------------------


def test_a_half_open_connection_is_found_and_what_was_said_into_it_is_said_again(board: FarBoard) -> None:
    greeted, found, accepted = board.passes(BIRTH), board.count(b"silent for too long"), board.count(b"job accepted")
    board.network.swallow("up")
    asked = board.waiting_job()
    board.post(asked)
    board.world.wait(lambda: asked[0].id in board.ledger())
    assert board.statuses(asked[0]) == []
    board.world.wait(lambda: board.count(b"silent for too long") > found)  # 1.3 keepalives
    assert not board.world.record(asked[0].id).status_published
    board.network.cut()
    board.network.heal()
    board.reconnected(greeted)
    assert board.told(asked[0], "deferred")["until"]["what"] == "time"
    board.world.wait(lambda: board.world.record(asked[0].id).status_published)
    assert board.count(b"job accepted") == accepted + 1


TEARS = [("sts", 0), ("sts", 1), ("sts", 4), ("sts", -1), ("req", 0), ("req", 1), ("req", 4), ("req", -1)]
TEARS += [("ack", 1), ("ack", 3)]


def test_a_packet_that_is_torn_at_any_byte_is_sent_again_and_counts_once(board: FarBoard) -> None:
    for part, after in TEARS:
        asked = board.request()
        aim = {"sts": published(f"{asked[0].id}/sts"), "req": published(f"{asked[0].id}/req")}
        greeted = board.passes(BIRTH)
        torn = board.network.tear(aim.get(part, is_puback("down")), after)
        board.post(asked)
        assert torn.wait(60), (part, after)
        board.reconnected(greeted)
        assert board.told(asked[0], "rejected")["reason_code"] == "wrong-state"
        assert board.ledger()[asked[0].id] == NO_SUCH_JOB
        assert same(board.statuses(asked[0]))


@pytest.mark.parametrize("kind", [CONNECT, SUBSCRIBE])
def test_a_greeting_that_is_torn_begins_again(board: FarBoard, kind: int) -> None:
    greeted = board.passes(BIRTH)
    torn = board.network.tear(lambda packet: packet.kind == kind, 5)
    board.network.cut()
    assert torn.wait(60)
    board.reconnected(greeted)


def test_a_network_that_refuses_for_a_while_is_asked_on(board: FarBoard) -> None:
    tried, greeted = board.network.connections, board.passes(BIRTH)
    board.network.refuse()
    board.network.cut()
    board.world.wait(lambda: board.network.connections > tried + 3)
    board.world.wait(lambda: "closed before the broker answered" in board.live()["why"])
    assert board.live()["connected"] is False
    board.network.heal()
    board.reconnected(greeted)
    board.world.wait(lambda: board.live()["connected"])
    assert board.live()["why"] == ""


# --- a connection that is slow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow", [lambda network: network.drip(1), lambda network: network.delay(0.01)])
def test_a_slow_network_costs_nothing_but_time(board: FarBoard, slow: Callable[[object], None]) -> None:
    greeted = board.passes(BIRTH)
    slow(board.network)
    board.network.cut()  # all that is said after a connect goes through it too
    board.reconnected(greeted)
    tried = board.network.connections
    assert board.ask("set-policy", {"name": "default"})["status"] == "succeeded"
    assert board.ask("set-policy", {"reset": True})["status"] == "succeeded"
    assert board.network.connections == tried, "it was not lost"


# --- what is changed, held back or played again ----------------------------------------------------------------------


def test_a_byte_that_changed_in_a_command_makes_no_other_command_and_the_id_stays_good(board: FarBoard) -> None:
    asked = board.request()
    wrong = board.network.corrupt(published("/req"), at=-20)  # in the signature, or in what is signed
    board.post(asked)
    assert wrong.wait(60)
    answer = board.told(asked[0], "rejected")
    assert answer["reason_code"] in ("bad-signature", "malformed", "unknown-key"), answer
    assert asked[0].id not in board.ledger()
    board.post(asked)
    board.world.wait(lambda: board.statuses(asked[0])[-1]["reason_code"] == "wrong-state")
    assert board.ledger()[asked[0].id] == NO_SUCH_JOB


@pytest.mark.parametrize("part", ["req", "sts"])
def test_a_packet_of_a_wrong_type_ends_the_connection_and_comes_again_right(board: FarBoard, part: str) -> None:
    asked, greeted = board.request(), board.passes(BIRTH)
    wrong = board.network.corrupt(published(f"{asked[0].id}/{part}"), at=0, flip=INTO_ANOTHER_TYPE)
    board.post(asked)
    assert wrong.wait(60)
    board.reconnected(greeted)
    assert board.told(asked[0], "rejected")["reason_code"] == "wrong-state"
    assert same(board.statuses(asked[0]))


def test_a_status_that_the_broker_never_confirmed_is_said_again_as_it_was(board: FarBoard) -> None:
    greeted = board.passes(BIRTH)
    board.network.hold(is_puback("down"))
    asked = board.waiting_job()
    board.post(asked)
    before = board.told(asked[0], "deferred")
    board.world.wait(lambda: board.network.held)
    board.network.refuse()
    board.network.cut()
    board.world.wait(lambda: board.live()["connected"] is False)
    assert not board.world.record(asked[0].id).status_published, "nobody confirmed it"
    board.network.heal()
    board.reconnected(greeted)
    board.world.wait(lambda: board.world.record(asked[0].id).status_published)
    deferred = [body for body in board.statuses(asked[0]) if body["version"] == before["version"]]
    assert len(deferred) > 1
    assert same(deferred)


def test_a_command_whose_acknowledgement_was_lost_comes_again_and_does_not_run_again(board: FarBoard) -> None:
    greeted, repeats = board.passes(BIRTH), board.count(b"command repeated")
    board.network.hold(is_puback("up"))
    asked = board.waiting_job()
    board.post(asked)
    board.told(asked[0], "deferred")
    accepted = board.count(b"job accepted")
    board.network.cut()
    board.network.heal()
    board.reconnected(greeted)
    board.world.wait(lambda: board.count(b"command repeated") > repeats)
    assert board.count(b"job accepted") == accepted
    assert same([body for body in board.statuses(asked[0]) if body["status"] == "deferred"])


def test_a_command_that_is_played_again_changes_nothing_before_and_after_its_end(board: FarBoard) -> None:
    asked = board.waiting_job()
    board.post(asked)
    board.told(asked[0], "deferred")
    (packet,) = board.network.find(published(f"{asked[0].id}/req"), "down")
    version, accepted = board.world.record(asked[0].id).version, board.count(b"job accepted")
    play_again(board, packet, asked[0])
    assert board.world.record(asked[0].id).version == version
    assert board.ask("cancel", {"job": asked[0].id})["status"] == "succeeded"
    board.told(asked[0], "canceled")
    ended = board.world.record(asked[0].id).version
    play_again(board, packet, asked[0])
    assert (board.world.record(asked[0].id).version, board.count(b"job accepted")) == (ended, accepted)
    assert board.statuses(asked[0])[-1]["status"] == "canceled"


def play_again(board: FarBoard, packet: Packet, request: Request, times: int = 5) -> None:
    """As an attacker may who recorded it, or a broker that sends twice."""
    repeats = board.count(b"command repeated")
    for _ in range(times):
        board.network.play(packet)
    board.world.wait(lambda: board.count(b"command repeated") >= repeats + times)
    assert request.id in board.ledger()


# --- what the broker keeps -------------------------------------------------------------------------------------------


def test_a_last_will_that_comes_late_is_put_right_and_consoles_see_the_board(
    board: FarBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clustered broker may publish it after the board has come back."""
    greeted = board.passes(BIRTH)
    board.network.cut()
    board.reconnected(greeted)
    will = board.world.wait(lambda: [heard for heard in board.heard("/conn") if b'"online":false' in heard.payload])[-1]
    repaired = board.passes(published("/conn"))
    with Anybody(board.world.broker.port) as anybody:
        anybody.say(will.topic, will.payload)
    board.world.wait(lambda: board.passes(published("/conn")) > repaired)
    monkeypatch.setenv("TEMPERD_BROKER", f"127.0.0.1:{board.world.broker.port}")
    monkeypatch.setenv("XDG_STATE_HOME", str(board.world.folder / "laptop"))
    board.world.wait(lambda: b'"online":true' in board.heard("/conn")[-1].payload)
    listed = board.world.cli("fleet", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [one["online"] for one in json.loads(listed.stdout)] == [True]


@pytest.mark.parametrize("stays", [False, True], ids=["the connection breaks", "the connection stays"])
def test_a_broker_that_lost_all_that_was_retained_is_told_all_of_it_again(board: FarBoard, *, stays: bool) -> None:
    job, *answered = board.waiting_job(), *(board.request() for _ in range(ANSWERS))
    for asked in (job, *answered):
        board.post(asked)
    board.told(job[0], "deferred")
    board.told(answered[-1][0], "rejected")
    everything = (f"{TOPICS}/conn", f"{TOPICS}/birth", f"{TOPICS}/cmd/+", f"{TOPICS}/cmd/+/+/sts")
    with Anybody(board.world.broker.port) as anybody:
        before = anybody.kept(*everything)
    ids = {asked[0].id for asked in (job, *answered)}
    wanted = {topic for topic in before if not topic.endswith("/sts") or topic.split("/")[-2] in ids}
    assert len(wanted) > len(ids) + 10, "and presence, birth and capabilities"
    greeted = board.passes(BIRTH)
    with Anybody(board.world.broker.port) as anybody:
        for topic in anybody.kept(f"{TOPICS}/#"):  # requests too
            anybody.say(topic, b"")
    if not stays:
        board.network.cut()
        board.reconnected(greeted)
    again: dict[str, bytes] = {}

    def is_whole() -> bool:
        with Anybody(board.world.broker.port) as anybody:
            again.update(anybody.kept(*everything))
        return wanted <= set(again)

    board.world.wait(is_whole)
    assert all(
        json.loads(again[topic])["version"] == json.loads(before[topic])["version"] for topic in statuses(wanted)
    )


def statuses(topics: set[str]) -> list[str]:
    return [topic for topic in topics if topic.endswith("/sts")]


def test_a_stranger_with_our_id_who_takes_our_commands_away_takes_none_of_them(board: FarBoard) -> None:
    """He gets our session, and acknowledges what waits in it for us. But requests are retained."""
    greeted = board.passes(BIRTH)
    board.network.refuse()
    board.network.cut()
    asked = board.request()
    with Anybody(board.world.broker.port, f"temperd-default-{DEVICE}", keeps=True) as thief:
        board.post(asked)
        board.world.wait(lambda: [message for message in thief.heard if message.topic == board.req(asked[0])])
        assert asked[0].id not in board.ledger()
        board.network.heal()  # we come back, and he is thrown out
        board.reconnected(greeted)
    assert board.told(asked[0], "rejected")["reason_code"] == "wrong-state"


def test_a_stranger_with_our_id_who_always_comes_back_does_not_keep_us_from_obeying(board: FarBoard) -> None:
    made = board.network.connections
    with Anybody(board.world.broker.port, f"temperd-default-{DEVICE}", keeps=True):  # it connects again within a second
        board.world.wait(lambda: board.network.connections > made + 1)
        asked = board.request()
        board.post(asked)
        assert board.told(asked[0], "rejected")["reason_code"] == "wrong-state"
    assert board.ledger()[asked[0].id] == NO_SUCH_JOB
