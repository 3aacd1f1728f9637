"""Boards, and whoever writes to the broker, against the people who look: no script of theirs runs, nothing breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from service.commands import new_id
from tests.simulators.stranger import Stranger
from tests.simulators.visitor import Stage, Visitor

SCRIPT = "<script>window.owned=1</script><img src=x onerror=window.owned=1>'\"&{{7*7}}</title></textarea>\u202e"
HUGE = 10**400
JOB = new_id(1_790_000_000_000, bytes)


@pytest.fixture(scope="module")
def evil(stage: Stage) -> Iterator[str]:
    """A board whose every text is an attack."""
    stranger = Stranger(stage.broker.port)
    name = "evil-1"
    stranger.say(f"{name}/conn", {"online": True, "session": 1, "connection": 1, "boot_id": SCRIPT, "ts": time.time()})
    birth = {
        "schema": 1,
        "agent": SCRIPT,
        "release": {"slot": SCRIPT, "trial": SCRIPT, "safe_mode": SCRIPT},
        "board": {"model": SCRIPT, "profile": SCRIPT},
        "sensors": {SCRIPT: SCRIPT},
        "engine": SCRIPT,
        "active_model": {"name": SCRIPT, "version": SCRIPT, "model_sha256": SCRIPT},
        "state_version": HUGE,
        "policy": {"name": SCRIPT, "sha256": SCRIPT, "source": SCRIPT, "complaint": SCRIPT},
        "clock": SCRIPT,
        "metrics": {SCRIPT: {SCRIPT: {"unit": SCRIPT, "type": SCRIPT}}},
        "telemetry": {"format": SCRIPT},
    }
    stranger.say(f"{name}/birth", birth)
    until = {"what": SCRIPT, "below": HUGE, "above": None, "ts": -1e300}
    status = {
        "id": JOB,
        "status": "deferred",
        "step": SCRIPT,
        "version": 1,
        "attempt": HUGE,
        "reason_code": SCRIPT,
        "reason": SCRIPT * 20,
        "progress": 1e308,
        "eta_s": -1,
        "until": until,
        "ts": 1e300,
        "clock": SCRIPT,
        "energy_j": SCRIPT,
        "result": {SCRIPT: [SCRIPT, {SCRIPT: SCRIPT}]},
    }
    stranger.say(f"{name}/cmd/fine-tune/{JOB}/sts", status)
    alarm = {"type": SCRIPT, "severity": SCRIPT, "since": 1e300, "ts": SCRIPT, "reason": SCRIPT}
    stranger.say(f"{name}/a/overheated", alarm)
    schema = {
        "type": "object",
        "properties": {SCRIPT: {"type": "string", "default": SCRIPT}, "depth": {"enum": [SCRIPT]}},
        "required": [SCRIPT],
    }
    capability = {"type": "fine-tune", "schema": SCRIPT, "supported": True, "roles": [SCRIPT], "args": schema}
    stranger.say(f"{name}/cmd/fine-tune", capability)
    for seq in range(3):
        values = {
            "temperature_celsius": 10.0**300,
            "action": SCRIPT,
            "rule": f"{SCRIPT}{seq}",
            "health": {SCRIPT: SCRIPT},
            "charge": SCRIPT,
            "alarms": [SCRIPT],
            SCRIPT[:60]: 1,
        }
        body = {"seq": seq, "boot_id": "b", "ts": time.time() - 9 + seq, "mono_ms": 1, "dropped_total": 0}
        stranger.say(f"{name}/m/board", body | {"values": values}, retain=False)
        stranger.say(f"{name}/m/training", body | {"seq": seq + 9, "values": {"loss": SCRIPT}}, retain=False)
    for number in range(40):  # forty messages of two hundred names each, and none of them twice
        values = {f"k{number}_{key}": key for key in range(200)}
        body = {"seq": 100 + number, "boot_id": "b", "ts": time.time(), "mono_ms": 1, "dropped_total": 0}
        stranger.say(f"{name}/m/board", body | {"values": values}, retain=False)
    stranger.say(f"{name}/m/board", b'{"values": {"temperature_celsius": NaN}', retain=False)
    stranger.say(f"{name}/birth/../../x", b"\xff\xfe", retain=False)
    stranger.close()
    return name


PAGES = (
    *("/fleet?search=evil", "/device/{}", "/device/{}/jobs/{}", "/device/{}/act/fine-tune", "/device/{}/policy"),
    *(
        "/compare?a={}:{}&b={}:{}",
        "/roll-outs/new?boards={}",
        "/fleet?search=%3Cscript%3Ewindow.owned%3D1%3C/script%3E",
    ),
)


@pytest.mark.parametrize("path", PAGES)
def test_no_script_of_a_board_runs(visit: Callable[..., Visitor], evil: str, path: str) -> None:
    visitor = visit()
    page = visitor.go(path.replace(":{}", f":{JOB}").replace("jobs/{}", f"jobs/{JOB}").replace("{}", evil))
    expect(page.locator("h1")).to_be_visible()
    page.wait_for_timeout(1000)  # what comes live is shown, too
    assert page.evaluate("window.owned") is None
    assert page.locator("main script:not([type='application/json']):not([src]), main img[src=x]").count() == 0
    assert visitor.overflow() <= 0


def test_the_board_is_in_the_list_all_the_same(visit: Callable[..., Visitor], evil: str) -> None:
    page = visit().go("/fleet?search=evil")
    expect(page.get_by_role("link", name=evil, exact=True)).to_be_visible()
