"""A worker obeys between two pieces of work: what it tells, what it keeps, and whose time a pause is."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.download import Downloads
from agent.images import load
from agent.messages import Message, Steer, Waits
from agent.orders import Obedience
from agent.sealed import SEGMENT_BYTES, Binding, seal, unseal
from agent.trainer import FREE, JobEndedError
from agent.web import GRACE_SECONDS, READ_BYTES, SlowPeerError, Web
from tests.agent.test_download import BODY, Board, Server, serving
from tests.simulators.fleet import one_pixel

pytestmark = pytest.mark.once

PAUSE = Steer("PAUSE", 0.0, 0, reverify=False, rule="held")
ABORT = Steer("ABORT", 0.0, 0, reverify=False, rule="canceled")


class Script:
    """Orders one after the other; the last one stays."""

    def __init__(self, *orders: Steer) -> None:
        self.orders = list(orders)
        self.told: list[Message] = []
        self.asked: list[str] = []
        self.obedience = Obedience(self, self.told.append, lambda stage, _detail: self.asked.append(stage))

    def steer(self) -> Steer:
        return self.orders.pop(0) if len(self.orders) > 1 else self.orders[0]

    def verified(self) -> None:
        raise AssertionError("nothing is verified here")


def test_nothing_is_told_while_there_is_nothing_to_obey() -> None:
    script = Script(FREE)
    script.obedience.enter("PULLING", "")
    assert (script.asked, script.told) == (["PULLING"], [])


def test_a_rest_is_told_with_its_rule_and_its_end() -> None:
    script = Script(PAUSE, PAUSE, PAUSE, FREE)
    assert script.obedience.obey() > 0
    assert script.told == [Waits(resting=True, rule="held"), Waits(resting=False, rule="run")]


def test_an_end_comes_out_of_work_and_out_of_a_rest() -> None:
    for orders in ([ABORT], [PAUSE, PAUSE, ABORT]):
        with pytest.raises(JobEndedError) as caught:
            Script(*orders).obedience.obey()
        assert caught.value.code == "canceled"


def test_a_wait_for_the_network_is_cut_short_by_an_end() -> None:
    with pytest.raises(JobEndedError):
        Script(FREE, FREE, ABORT).obedience.nap(3600.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as made:
        yield made


def test_a_download_that_is_ended_keeps_what_has_come(tmp_path: Path, server: Server) -> None:
    board = Board(tmp_path, server)
    script = Script(*[FREE] * 3, ABORT)
    with pytest.raises(JobEndedError):
        Downloads(tmp_path, Web(server.url, obey=script.obedience.obey)).fetch(board.signed, board.path)
    came = board.part.read_bytes()
    assert 0 < len(came) <= 3 * READ_BYTES
    assert came == BODY[: len(came)]
    board.fetch()
    assert server.asked == ["", f"bytes={len(came)}-"]
    assert board.path.read_bytes() == BODY


@pytest.mark.parametrize("paused", [True, False])
def test_the_time_of_a_rest_is_not_held_against_the_peer(tmp_path: Path, server: Server, *, paused: bool) -> None:
    now = [0.0]

    def tick() -> float:
        if not paused:
            now[0] += GRACE_SECONDS  # the peer takes so long itself
        return now[0]

    def rest() -> float:
        rested = 10 * GRACE_SECONDS if paused else 0.0
        now[0] += rested
        return rested

    board = Board(tmp_path, server)
    downloads = Downloads(tmp_path, Web(server.url, tick, rest), lambda _: None)
    if paused:
        downloads.fetch(board.signed, board.path)
        assert board.path.read_bytes() == BODY
    else:
        with pytest.raises(Exception, match="too slow") as caught:
            downloads.fetch(board.signed, board.path)
        assert isinstance(caught.value.__cause__, SlowPeerError)


def test_an_opening_is_ended_between_two_segments() -> None:
    plain = bytes(3 * SEGMENT_BYTES)
    binding = Binding("m", "1", hashlib.sha256(plain).hexdigest())
    sealed = io.BytesIO()
    seal(io.BytesIO(plain), sealed, bytes(32), binding)
    sealed.seek(0)
    with pytest.raises(JobEndedError):
        unseal(sealed, bytes(32), binding, len(plain), Script(FREE, ABORT).obedience.obey)
    assert sealed.tell() < len(sealed.getvalue())


def test_reading_pictures_is_ended_between_two(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            one_pixel(tmp_path / name / f"{number}.png", number)
    seen: list[int] = []
    load(str(tmp_path), 8, 0.25, 0, 100, lambda: seen.append(1))
    assert len(seen) == 8
    with pytest.raises(JobEndedError):
        load(str(tmp_path), 8, 0.25, 0, 100, Script(*[FREE] * 3, ABORT).obedience.obey)
