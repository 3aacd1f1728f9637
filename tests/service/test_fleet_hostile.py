"""A board, or whoever may write to the broker, against a laptop's verbs: it does not fool, crash or fill them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest

from agent.keys import create_console_key
from service.fleet import state
from service.fleet.follow import Follow
from service.fleet.outcome import Outcome
from service.fleet.roll_out import Inbox, RollOutRun, Terms, _with_status
from service.fleet.roll_out_plan import Rules
from service.fleet.state import FleetState, RollOut, Sent
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.stranger import ROOT, Stranger

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (make tools)")

ID = "0192f0c1-0000-7000-8000-000000000001"
WAIT_S = 60.0
HUGE = 10**4000  # a number of JSON that no float holds
ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e"


class Listener(Stranger):
    """Who also knows the ids of what is asked."""

    def __init__(self, port: int) -> None:
        self.ids: dict[str, str] = {}
        super().__init__(port)

    def prepare(self, client: mqtt.Client) -> None:
        client.on_message = self._heard
        client.on_connect = lambda *_: client.subscribe(f"{ROOT}/+/cmd/+/+/req")

    def _heard(self, _client: object, _about: object, message: mqtt.MQTTMessage) -> None:
        levels = message.topic.split("/")
        self.ids[levels[3]] = levels[6]

    def status(self, board: str, command_id: str, status: str, version: int, **more: object) -> None:
        body = {"id": command_id, "status": status, "version": version, "ts": 0, **more}
        self.say(f"{board}/cmd/scrub/{command_id}/sts", body)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def stranger(broker: Mosquitto) -> Iterator[Listener]:
    made = Listener(broker.port)
    yield made
    made.close()


@contextmanager
def fleet(broker: Mosquitto, folder: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "service.cli", "fleet", *map(str, words), "--broker", f"127.0.0.1:{broker.port}"]
    with subprocess.Popen(
        [*command, "--state", str(folder / "fleet.sqlite")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def until(true: Any) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_another_board_cannot_end_a_command_and_no_word_of_a_board_ends_the_console(
    broker: Mosquitto, stranger: Listener, tmp_path: Path
) -> None:
    create_console_key(tmp_path, "alice")
    words = ("send", "pi-1", "scrub", "--key", tmp_path / "alice.key", "--watch")
    energy = {"joules": HUGE, "joules_per_sample": -HUGE, "source": ESCAPES}
    hostile = {"metric": ESCAPES, f"{ESCAPES}_after": HUGE, "energy": energy, "deadline": {"left_s": HUGE}}
    with fleet(broker, tmp_path, *words) as watching:
        command_id = until(lambda: stranger.ids.get("pi-1"))
        stranger.status("pi-2", command_id, "succeeded", 9)
        stranger.say(f"pi-2/cmd/scrub/{command_id}/sts", b"\xff what is no status, and would be told as a warning")
        stranger.status("pi-1", command_id, "running", 1, step=ESCAPES, progress=1e308, reason=ESCAPES, result=hostile)
        stranger.status("pi-1", command_id, "failed", 2, reason_code=ESCAPES, reason=ESCAPES * 999, result=hostile)
        code, out, err = ended(watching)
    assert (code, err) == (1, "")
    assert "failed" in out
    assert max(map(len, out.splitlines())) < 1000
    assert all(c.isprintable() or c == "\n" for c in out)


def take(follow: Follow, board: str, body: Mapping[str, object] | None) -> None:
    follow.take(f"{ROOT}/{board}/cmd/scrub/{ID}/sts", body, True)


def test_only_the_board_that_has_a_command_is_heard_about_it() -> None:
    follow = Follow({ID: "pi-1"})
    for board in ("pi-2", "", ESCAPES):
        take(follow, board, {"status": "succeeded", "version": 9})
    assert follow.outcomes[ID] is Outcome.OPEN
    assert follow.seen == set()
    take(follow, "pi-1", {"status": "failed", "version": 1})
    assert follow.outcomes[ID] is Outcome.FAILED
    assert follow.seen == {"pi-1"}


def test_where_the_board_is_not_known_the_first_that_speaks_has_the_word() -> None:
    follow = Follow({ID: ""})
    take(follow, ESCAPES, {"status": "succeeded", "version": 9})
    take(follow, "", {"status": "succeeded", "version": 9})
    take(follow, "pi-1", {"status": "running", "version": 1})
    take(follow, "pi-2", {"status": "succeeded", "version": 9})
    assert follow.outcomes[ID] is Outcome.OPEN


def test_boards_that_a_broker_invents_anew_each_time_do_not_fill_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_REMEMBERED", 4)
    with FleetState(tmp_path / "fleet.sqlite") as kept:
        kept.add_members("default", "plant", ["mine"])
        kept.remember_boards("other", [{"board": "theirs", "last_seen": 1.0}])
        kept.remember_boards("default", [{"board": "mine", "last_seen": 1.0}, {"board": "old", "last_seen": 2.0}])
        for n in range(9):
            kept.remember_boards("default", [{"board": f"evil-{n}", "last_seen": 1e300}])
        assert sorted(kept.known_boards("default")) == ["evil-0", "evil-1", "evil-2", "mine"]
        assert sorted(kept.known_boards("other")) == ["theirs"]


def test_what_a_roll_out_keeps_of_a_status_has_a_size() -> None:
    huge: dict[str, object] = {key: {"k" * 9999: [HUGE, "v" * 9999] * 99} for key in ("step", "progress", "eta_s")}
    fresh = _with_status(Sent(0, "pi-1", ID, outcome=Outcome.OPEN), {"status": "running", "version": HUGE, **huge})
    assert fresh is not None
    assert len(json.dumps(fresh.status)) < 2000


def test_a_roll_out_hears_of_its_commands_only_and_only_from_their_boards(tmp_path: Path) -> None:
    inbox, cancel = Inbox(), f"{ID[:-1]}2"
    made = RollOut(ID, "default", "fine-tune", Terms(Rules(), {}).to_table(), 0.0, "running", "")
    with FleetState(tmp_path / "fleet.sqlite") as kept:
        kept.begin(made, ["pi-1"])
        kept.write(ID, [Sent(0, "pi-1", ID, b"x", 600, outcome=Outcome.OPEN, cancel_id=cancel, cancel=b"y")])
        run = RollOutRun(kept, made, lambda _request: b"", inbox, now=lambda: 0.0)
        for board, command_id in (("pi-2", ID), ("pi-2", cancel), ("pi-1", f"{ID[:-1]}3"), (ESCAPES, ID)):
            body = {"id": command_id, "status": "rejected", "reason_code": "wrong-state", "version": 9}
            inbox.take(f"{ROOT}/{board}/cmd/fine-tune/{command_id}/sts", body, True)
        assert not inbox.statuses
        inbox.take(f"{ROOT}/pi-1/cmd/fine-tune/{ID}/sts", {"id": ID, "status": "succeeded", "version": 1}, True)
        run._look()
        assert kept.commands(ID)[0].outcome == Outcome.SUCCEEDED
