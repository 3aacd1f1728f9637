"""A job that trains while its broker, its repository or its clock fails."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from service.commands import sign_command
from service.job import State
from service.kernel_clock import EARLIEST_TIME
from tests.simulators.far_board import FarBoard, far_board
from tests.simulators.fleet import ENDED, ROOT, Quiet, World, world
from tests.simulators.proxy import PUBACK
from tests.simulators.wiretap import Heard

pytestmark = pytest.mark.e2e
LONG, SAMPLES = 200, 240  # epochs of the small net and samples: a second or two on a machine with nothing else to do
STEPS = LONG * 24 * 8
JUMPS = (-3600.0, -2_000_000_000.0, 10 * 365 * 86400.0, 0.0)
"""An hour back, to 1970, ten years ahead, right again; seconds."""


# --- the broker ------------------------------------------------------------------------------------------------------


def test_a_broker_that_dies_twice_while_statuses_are_on_their_way_costs_the_job_nothing(tmp_path: Path) -> None:
    """Once it comes back as it was before the job, once empty."""
    keeps = f"persistence true\npersistence_location {tmp_path}/\nautosave_interval 0\n"
    with far_board(tmp_path, broker=keeps) as board:
        made = board.world
        made.publish()
        made.broker.save()
        asked = board.request("fine-tune", made.job(made.images(samples=SAMPLES), epochs=LONG))
        board.post(asked)
        made.wait(lambda: (r := made.record(asked[0].id)) and r.standing.state == State.TRAINING)
        for empty in (False, True):
            board.network.hold(lambda packet: packet.kind == PUBACK and packet.way == "down")
            made.wait(lambda: board.network.held)  # a status, or the birth, that nobody will confirm
            connected = board.network.connections
            made.broker.kill()
            if empty:
                (tmp_path / "mosquitto.db").unlink()
            made.broker.start()
            board.network.heal()
            made.wait(lambda connected=connected: board.network.connections > connected and board.live()["connected"])
        told = board.told(asked[0], *ENDED)
        record = made.record(asked[0].id)
        assert (told["status"], told["version"], told["attempt"]) == ("succeeded", record.version, 1)
        assert told["result"]["samples"] == STEPS, "every step was done exactly once"
        assert ends(board, asked[0].id) == {(told["status"], told["version"])}
        made.wait(lambda: made.record(asked[0].id).status_published)
        assert board.ledger() == {asked[0].id: "job"}


def ends(board: FarBoard, command_id: str) -> set[tuple[str, int]]:
    bodies = [json.loads(heard.payload) for heard in board.heard(f"/{command_id}/sts")]
    return {(body["status"], body["version"]) for body in bodies if body["status"] in ENDED}


# --- the repository --------------------------------------------------------------------------------------------------


class Answering(Quiet):
    """A repository that is there, or answers everything with an error."""

    code = 0

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        if self.code:
            self.send_error(self.code)
        else:
            super().do_GET()


@pytest.fixture
def away(tmp_path: Path) -> Iterator[World]:
    """A board whose repository is `Answering`."""
    Answering.code = 0
    with world(tmp_path, started=False) as made:
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Answering, directory=str(made.folder / "repository"))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = made.config.read_text()
        made.config.write_text(text.replace(f":{made.web.server_port}", f":{server.server_port}"))
        made.start()
        yield made
        server.shutdown()
        server.server_close()


def test_a_repository_that_answers_with_errors_for_ever_ends_a_new_job_and_lets_a_begun_one_wait(away: World) -> None:
    images = away.images(samples=SAMPLES)
    Answering.code = 503  # is asked again some times
    status = away.send("fine-tune", away.job(images, epochs=LONG))
    assert (status["status"], status["reason_code"]) == ("failed", "network"), status
    assert "503" in status["reason"]

    Answering.code = 0
    request = away.request("fine-tune", away.job(images, epochs=LONG))
    away.send_envelope("fine-tune", request.id, sign_command(request, away.console_key), until=("running",))
    away.wait(lambda: away.record(request.id).standing.state == State.TRAINING)
    assert away.stop() == 0
    Answering.code = 404
    shutil.rmtree(away.state / "repository")
    away.start()
    record = away.wait(lambda: (r := away.record(request.id)).standing.reason_code == "network" and r)
    assert record.standing.state == State.DEFERRED
    assert record.until["what"] == "network"
    assert "404" in record.standing.reason
    assert record.until["ts"] >= record.updated, "when it is asked next"

    Answering.code = 0
    assert away.stop() == 0
    away.start()  # asks at once
    record = away.ended(request.id)
    assert record.standing.state == State.SUCCEEDED, record.standing
    assert record.result["samples"] == STEPS, "it went on from its checkpoint"


# --- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_while_a_job_trains_changes_nothing_but_what_messages_say(tmp_path: Path) -> None:
    (tmp_path / "ahead").write_text("0")
    with world(tmp_path, started=False) as made:
        with made.config.open("a") as config:
            config.write("[telemetry]\nidle_s = 1\n")
        made.start((str(ROOT / "tests" / "simulators" / "wrong_clock.py"), str(tmp_path / "ahead")))
        bounds = {"most_time_s": 300.0, "most_wait_s": 300.0, "most_energy_j": 1e6}
        request = made.request("fine-tune", made.job(made.images(samples=SAMPLES), epochs=LONG, **bounds))
        made.send_envelope("fine-tune", request.id, sign_command(request, made.console_key), until=("running",))
        made.wait(lambda: made.record(request.id).standing.state == State.TRAINING)
        for ahead_s in JUMPS:
            heard = len(made.tap.heard)
            (tmp_path / "ahead").write_text(str(ahead_s))
            made.wait(lambda heard=heard, ahead_s=ahead_s: any(is_of(one, ahead_s) for one in made.tap.heard[heard:]))
        record = made.ended(request.id)
        assert (record.standing.state, record.standing.attempt) == (State.SUCCEEDED, 1), record.standing
        assert record.result["samples"] == STEPS
        assert 0 < record.worked_s < 300
        assert 0 < record.energy_j < 1e6
        assert b"Traceback" not in made.log()


def is_of(heard: Heard, ahead_s: float) -> bool:
    """Whether it is telemetry of a board whose clock is so wrong, which says so where it can know it."""
    if not heard.topic.endswith("/m/board"):
        return False
    body = json.loads(heard.payload)
    expected = max(0.0, time.time() + ahead_s)
    return abs(body["ts"] - expected) < 600 and ("clock" in body) is (expected < EARLIEST_TIME)
