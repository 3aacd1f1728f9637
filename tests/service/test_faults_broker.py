"""A real daemon and a broker that overflows, refuses, expires or does not confirm: nothing that counts is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from service.command_types import Request
from service.outbox import DAY_S, Outbox
from service.outbox_segment import Record
from tests.simulators.certificates import HOUR, certificate
from tests.simulators.far_board import TOPICS, Anybody, FarBoard, far_board
from tests.simulators.fleet import DEVICE
from tests.simulators.mosquitto import find_mosquitto, free_port
from tests.simulators.proxy import published

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto"),
]
QUEUE, COMMANDS = 20, 200
WAITED = 240  # messages of some hours without work: five pieces of a backfill


# --- a queue that overflows ------------------------------------------------------------------------------------------


def answers(board: FarBoard, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Retained statuses by id; asked for so many at a time as this broker can send."""
    found, wanted = {}, sorted(ids)
    for start in range(0, len(wanted), QUEUE):
        with Anybody(board.world.broker.port) as anybody:
            kept = anybody.kept(*(f"{TOPICS}/cmd/cancel/{one}/sts" for one in wanted[start : start + QUEUE]))
        found |= {body["id"]: body for body in map(json.loads, kept.values())}
    return found


def test_of_commands_that_a_queue_drops_in_silence_each_is_obeyed_once_it_is_repeated(tmp_path: Path) -> None:
    with far_board(tmp_path, broker=f"max_queued_messages {QUEUE}\n") as board:
        assert board.world.stop() == 0
        asked: dict[str, tuple[Request, bytes]] = {one[0].id: one for one in (board.request() for _ in range(COMMANDS))}
        post_all(board, asked.values())
        assert b"messages are being dropped for client temperd-default" in (tmp_path / "mosquitto.log").read_bytes()
        board.start()
        told: dict[str, dict[str, Any]] = {}

        def all_are_answered() -> bool:
            told.update(answers(board, asked.keys() - told.keys()))
            post_all(board, (asked[one] for one in asked.keys() - told.keys()))  # as a console does
            return len(told) == COMMANDS

        board.world.wait(all_are_answered)
        assert board.ledger() == dict.fromkeys(asked, "rejected:wrong-state")
        assert {body["reason_code"] for body in told.values()} == {"wrong-state"}


def post_all(board: FarBoard, asked: Iterable[tuple[Request, bytes]]) -> None:
    with Anybody(board.world.broker.port) as anybody:
        for request, envelope in asked:
            anybody.say(board.req(request), envelope)


# --- access rules and certificates -----------------------------------------------------------------------------------


def let_in(folder: Path, *denied: str) -> str:
    """Users and rules of a broker that lets the board do all but this, and everybody else all."""
    refused = "".join(f"topic deny {TOPICS}/{one}\n" for one in denied)
    (folder / "rules").write_text(f"topic readwrite #\nuser {DEVICE}\ntopic readwrite #\n{refused}")
    return f"password_file {folder}/users\nacl_file {folder}/rules\n"


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="needs mosquitto_passwd")
def test_a_broker_whose_rules_refuse_statuses_or_commands_is_told_of_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"{DEVICE}:secret\n")
    subprocess.run(["mosquitto_passwd", "-U", str(tmp_path / "users")], check=True, capture_output=True)
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "password").chmod(0o600)
    user = f'username = "{DEVICE}"\npassword_file = "password"\n'
    often = "[telemetry]\nidle_s = 1\n"
    with far_board(tmp_path, broker=let_in(tmp_path, "birth", "cmd/+/+/sts"), mqtt=user, config=often) as board:
        asked = board.waiting_job()
        board.post(asked)
        board.world.wait(lambda: board.live()["refused"].startswith(f"publication of {TOPICS}/cmd/fine-tune/"))
        assert "the broker refuses the publication of" in board.world.cli("status").stdout
        assert b"broker refused" in board.world.log()
        assert board.ledger()[asked[0].id] == "job"
        assert board.statuses(asked[0]) == []
        assert board.world.record(asked[0].id).status_published is False
        made = board.network.connections
        change_rules(board, let_in(tmp_path))
        assert board.told(asked[0], "deferred")["version"] == board.world.record(asked[0].id).version
        board.world.wait(lambda: board.world.record(asked[0].id).status_published)
        board.world.wait(lambda: board.heard("/birth"))
        board.world.wait(lambda: board.live()["refused"] == "")

        change_rules(board, let_in(tmp_path, "cmd/+/+/req"))
        deaf = board.request()
        board.post(deaf)
        marker = board.passes(published("/m/board"))
        board.world.wait(lambda: board.passes(published("/m/board")) > marker)
        assert deaf[0].id not in board.ledger(), "this broker lets nobody know that it withholds something"
        change_rules(board, let_in(tmp_path))
        board.post(deaf)  # who sees no status sends again
        assert board.told(deaf[0], "rejected")["reason_code"] == "wrong-state"
        assert board.network.connections == made, "all that without a new connection"


def change_rules(board: FarBoard, _written: str) -> None:
    """Let the broker read its rules again."""
    log = board.world.folder / "mosquitto.log"
    before = log.read_bytes().count(b"Reloading config")
    os.kill(board.world.broker.pid, signal.SIGHUP)
    board.world.wait(lambda: log.read_bytes().count(b"Reloading config") > before)


def test_a_certificate_that_expires_while_the_board_runs_is_named_and_a_new_one_lets_it_in(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority", None)
    certificate(tmp_path, "broker", authority)
    port = free_port()
    lines = f"listener {port} 127.0.0.1\ncertfile {tmp_path}/broker.crt\nkeyfile {tmp_path}/broker.key\n"
    keeps = f"persistence true\npersistence_location {tmp_path}/\n"
    ca = 'ca_file = "authority.crt"\n'
    with far_board(tmp_path, broker=keeps + lines, mqtt=ca, target=port) as board:
        board.world.broker.stop()  # a connection that stands outlives the certificate; the next one does not come about
        certificate(tmp_path, "broker", authority, starts=-3 * HOUR, ends=-HOUR)
        board.world.broker.start()
        board.world.wait(lambda: "certificate has expired" in board.live()["why"])
        asked = board.waiting_job()
        board.post(asked)
        assert b"the broker's certificate has expired: renew it there" in board.world.log()
        board.world.broker.stop()
        certificate(tmp_path, "broker", authority)
        assert asked[0].id not in board.ledger()
        board.world.broker.start()
        assert board.told(asked[0], "deferred")["until"]["what"] == "time"
        board.world.wait(lambda: board.live()["connected"])


# --- what waited on the disk -----------------------------------------------------------------------------------------


def fill(folder: Path) -> set[int]:
    """Leave what a daemon leaves that had no broker for some hours; the numbers of the messages."""
    outbox = Outbox(folder, 64 << 20, 30 * DAY_S, time.monotonic())
    seqs = [outbox.counters.next_seq() for _ in range(WAITED)]
    for seq in seqs:
        values = {"temperature_celsius": 40 + seq % 97 / 10, "notes": [f"{seq * 7919:x}" * 20]}
        head = {"group": "board", "seq": seq, "boot_id": "before", "ts": 1.8e9 + 60 * seq, "mono_ms": 60_000 * seq}
        outbox.add(Record(seq, json.dumps({**head, "values": values}).encode()), time.monotonic())
    outbox.close(time.monotonic())
    assert outbox.counters.dropped_total == 0
    return set(seqs)


def came_later(board: FarBoard) -> list[int]:
    bodies = [json.loads(heard.payload) for heard in board.heard("/m/backfill")]
    assert all(body["dropped_total"] == 0 and body["historical"] is True for body in bodies)
    return [one["seq"] for body in bodies for one in body["messages"] if one["boot_id"] == "before"]


def test_a_backfill_that_is_killed_half_way_brings_every_message(tmp_path: Path) -> None:
    with far_board(tmp_path, config="[telemetry]\nidle_s = 1\n", started=False) as board:
        waited = fill(board.world.state / "outbox")
        board.start()
        board.world.wait(lambda: came_later(board))
        board.network.hold(published("/m/backfill"))
        board.world.wait(lambda: board.network.held)
        came, ticks = len(came_later(board)), board.passes(published("/m/board"))
        board.world.wait(lambda: board.passes(published("/m/board")) > ticks + 1)  # it could have sent all of it
        assert board.network.held == 1, "it waits until the broker has confirmed it"
        board.world.kill()
        board.network.cut()
        board.network.heal()
        assert 0 < came < WAITED, "it was killed amid of it"
        assert list((board.world.state / "outbox").glob("telemetry-*.seg"))
        board.start()
        board.world.wait(lambda: set(came_later(board)) == waited)
        board.world.wait(lambda: board.live("telemetry")["outbox_messages"] == 0)
        assert board.live("telemetry")["dropped_total"] == 0
        assert len(came_later(board)) > WAITED, (
            "what was not confirmed came twice, and a consumer knows it by its number"
        )
