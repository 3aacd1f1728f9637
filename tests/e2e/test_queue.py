"""The job queue with a real daemon and real workers: orders obeyed in every stage, budgets, the line."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from agent.engine.ir import serialize
from agent.slots import read_active
from service.commands import sign_command
from service.job import TERMINAL, WORKING, State
from tests.simulators.fleet import ROOT, Quiet, World, weights_on_disk, world
from tests.simulators.wide_net import wide_net

BEFORE_PROMOTION = (
    "PULLING", "VERIFYING", "UNSEALING", "PLANNING", "COMPILING", "TRAINING", "EVALUATING", "SEALING",
)  # fmt: skip
PIECE = 2048  # bytes of a model that come at once from the slow server


class Slow(Quiet):
    """A web server that hands out sealed models a little at a time."""

    sent: ClassVar[list[int]] = []
    """Bytes of each request."""
    hurry = threading.Event()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if not self.path.endswith(".sealed"):
            super().copyfile(source, outputfile)
            return
        mine = len(self.sent)
        self.sent.append(0)
        with contextlib.suppress(ConnectionError):  # the board hangs up in the middle
            while piece := source.read(PIECE):
                outputfile.write(piece)
                outputfile.flush()
                self.sent[mine] += len(piece)
                if not self.hurry.is_set():
                    time.sleep(0.1)


class Operated:
    """A board whose operator acts in stages of a job."""

    def __init__(self, made: World) -> None:
        self.world, self.orders = made, made.folder / "orders.json"
        self.data = made.images()
        self.act({})
        made.start((str(ROOT / "tests/simulators/ordered_daemon.py"), str(self.orders)))

    def act(self, orders: dict[str, str]) -> None:
        """From now on the operator acts so: {stage: verb}."""
        fresh = self.orders.with_suffix(".new")
        fresh.write_text(json.dumps(orders))
        fresh.replace(self.orders)

    def send(self, **changes: object) -> str:
        """A fine-tune job that is not waited for; its id."""
        request = self.world.request("fine-tune", self.world.job(self.data, **changes))
        envelope = sign_command(request, self.world.console_key)
        self.world.send_envelope("fine-tune", request.id, envelope, until=("accepted", "deferred", "running", "paused"))
        return request.id

    def paused(self, job_id: str) -> Any:
        record = self.world.wait(
            lambda: (r := self.world.record(job_id)).standing.state in (State.PAUSED, *TERMINAL) and r
        )
        assert record.standing.state is State.PAUSED, record.standing
        return record


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    with world(tmp_path_factory.mktemp("operated"), started=False) as made:
        yield Operated(made)


def test_a_pause_is_obeyed_in_every_stage_and_the_job_still_succeeds(operated: Operated) -> None:
    operated.act(dict.fromkeys(BEFORE_PROMOTION, "pause"))
    job_id = operated.send()
    for stage in BEFORE_PROMOTION:
        record = operated.paused(job_id)
        assert record.standing.reason_code == "held"
        assert record.standing.reason.endswith(stage.lower() if stage != "TRAINING" else "training is paused"), stage
        assert record.until == {"what": "operator", "below": None, "above": None, "ts": None}
        assert operated.world.send("resume", {"job": job_id})["status"] == "succeeded"
        operated.world.wait(lambda since=record.version: operated.world.record(job_id).version > since)
    record = operated.world.ended(job_id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 1), record.standing


@pytest.mark.parametrize("stage", BEFORE_PROMOTION)
def test_a_cancel_is_obeyed_in_every_stage_and_nothing_is_promoted(operated: Operated, stage: str) -> None:
    store = operated.world.state / "store"
    active = read_active(store)
    operated.act({stage: "cancel"})
    job_id = operated.send()
    record = operated.world.ended(job_id)
    assert (record.standing.state, record.standing.reason_code, record.standing.attempt) == ("CANCELED", "canceled", 1)
    assert record.result is not None
    assert record.result["spent"]["worked_s"] > 0
    stages = re.findall(rf"stage=([A-Z]+) .*job_id={job_id}", operated.world.log().decode())
    assert stages[-1:] in ([stage], []), "no later stage was entered; a worker that is not up yet enters none"
    assert read_active(store) == active
    operated.world.wait(lambda: not list(store.glob("checkpoints/*")))  # after the journal has the end
    assert weights_on_disk(operated.world.state) == []


def test_a_job_that_rests_can_be_canceled(operated: Operated) -> None:
    operated.act({"COMPILING": "pause"})
    job_id = operated.send()
    operated.paused(job_id)
    assert operated.world.send("cancel", {"job": job_id})["status"] == "succeeded"
    assert operated.world.ended(job_id).standing.state == "CANCELED"
    assert operated.world.send("resume", {"job": job_id})["reason_code"] == "wrong-state"


# --- a download under way ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A board whose repository hands out models 20 KB a second."""
    with world(tmp_path_factory.mktemp("slow"), started=False) as made:
        made.publish("2.0", serialize(wide_net(classes=5)))
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Slow, directory=str(made.folder / "repository"))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = made.config.read_text()
        made.config.write_text(text.replace(f":{made.web.server_port}", f":{server.server_port}"))
        made.start()
        yield made
        Slow.hurry.set()
        server.shutdown()
        server.server_close()


def part_bytes(made: World) -> int:
    return sum(part.stat().st_size for part in (made.state / "repository" / "bases").glob("*.part"))


def begun(made: World, **changes: object) -> str:
    """A job that is downloading its model; its id."""
    before = len(Slow.sent)
    request = made.request("fine-tune", made.job(made.folder / "images", image_size=96, **changes))
    made.send_envelope("fine-tune", request.id, sign_command(request, made.console_key), until=("running",))
    made.wait(lambda: len(Slow.sent) > before and Slow.sent[-1] > 0 and part_bytes(made) > 0)
    return request.id


def test_a_download_under_way_is_canceled_paused_and_resumed(slow: World) -> None:
    slow.images()
    canceled = begun(slow)
    assert slow.send("cancel", {"job": canceled})["status"] == "succeeded"
    assert slow.ended(canceled).standing.state is State.CANCELED
    assert part_bytes(slow) > 0, "what has come is there for the next job"

    paused = begun(slow)
    slow.send("pause", {"job": paused})
    record = slow.wait(lambda: (r := slow.record(paused)).standing.state is State.PAUSED and r)
    assert (record.standing.reason_code, record.standing.reason) == ("held", "rests in pulling")
    came, sent = part_bytes(slow), Slow.sent[-1]
    slow.wait(lambda: Slow.sent[-1] > sent)  # the server goes on into the sockets' buffers, nobody takes it
    assert part_bytes(slow) == came
    Slow.hurry.set()
    slow.send("resume", {"job": paused})
    slow.wait(lambda: slow.record(paused).standing.state in (State.TRAINING, *TERMINAL))
    slow.send("cancel", {"job": paused})
    record = slow.ended(paused)
    assert (record.standing.state, record.standing.attempt) == (State.CANCELED, 1), record.standing


def test_a_job_ends_when_its_time_is_spent_and_tells_how_far_it_came(slow: World) -> None:
    """And the one behind it says that it waits for it, and goes first by its priority once it may."""
    Slow.hurry.set()
    data = slow.images(samples=240)
    first = slow.request("fine-tune", slow.job(data, image_size=96, epochs=1000, most_time_s=6.0))
    slow.send_envelope("fine-tune", first.id, sign_command(first, slow.console_key), until=("running",))
    later = [slow.request("fine-tune", slow.job(data, image_size=96, priority=rank)) for rank in (0, 5)]
    for request in later:
        slow.send_envelope("fine-tune", request.id, sign_command(request, slow.console_key), until=("deferred",))
        record = slow.record(request.id)
        assert (record.standing.reason_code, record.until and record.until["what"]) == ("queued", "job")
    ended = slow.ended(first.id)
    assert (ended.standing.state, ended.standing.reason_code) == (State.TIMED_OUT, "most-time")
    assert ended.result["reached"]["epochs"] == 1000
    assert ended.result["spent"]["worked_s"] >= 6.0
    slow.wait(lambda: slow.record(later[1].id).standing.state in WORKING)
    assert slow.record(later[0].id).standing.reason_code == "queued", "the higher priority goes first"
    for request in later:
        slow.send("cancel", {"job": request.id})
        assert slow.ended(request.id).standing.state is State.CANCELED
    assert read_active(slow.state / "store") is None
