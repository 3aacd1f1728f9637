from __future__ import annotations

from typing import Any

import pytest

from service.status_lines import deadline_line, energy_line, status_lines

BOARD: dict[str, Any] = {
    "temperature_celsius": 61.25, "delta_t_celsius": 31.5, "frequency_hz": 1_300_000_000, "charge": 0.5,
    "power_watts": 4.125, "power_is_modelled": False, "power_source": "hwmon", "action": "SLOW", "duty": 0.6,
    "rule": "thermal.delta-t-slow", "frequency_rule": "dvfs.frozen", "depth_rule": "plan", "notes": [],
    "health": {"temperature": "ok", "power": "ok"},
}  # fmt: skip


def shown(**board: object) -> str:
    return "\n".join(status_lines({"device": "pi-1", "connected": True, "board": BOARD | board}))


def test_a_board_is_told_with_the_rule_of_each_limit_and_the_source_of_its_power() -> None:
    assert shown().splitlines() == [
        "pi-1: connected",
        "temperature 61.25 °C, delta-T 31.50 K, clock 1.30 GHz, charge 50.00 %",
        "power 4.12 W from hwmon (measured)",
        "SLOW by thermal.delta-t-slow, clock by dvfs.frozen, duty 60.00 %",
    ]


def test_what_others_worded_moves_no_cursor() -> None:
    assert "by ?[2J?" in shown(rule="\x1b[2J\n")


def test_a_modelled_power_is_called_so() -> None:
    assert "power 4.12 W from model (modelled)" in shown(power_is_modelled=True, power_source="model")


@pytest.mark.parametrize("missing", [None, "none", True, [1]])
def test_a_value_that_is_not_there_is_a_dash(missing: object) -> None:
    assert "temperature - °C" in shown(temperature_celsius=missing)


def test_ill_sensors_and_further_rules_are_named() -> None:
    told = shown(notes=["battery.low"], health={"temperature": "frozen", "power": "ok", "frequency-cap": "refused"})
    assert "rules that apply too: battery.low" in told
    assert "not all is well: temperature frozen, frequency-cap refused" in told


def test_a_rule_that_is_named_is_not_named_again() -> None:
    told = shown(notes=["dvfs.frozen", "battery.low"])
    assert told.endswith("rules that apply too: battery.low")


def test_a_smaller_micro_batch_is_told_with_its_rule() -> None:
    told = shown(notes=["memory.pressure"], batch_rule="memory.pressure")
    assert told.endswith("clock by dvfs.frozen, micro-batch by memory.pressure, duty 60.00 %")
    training = {"epoch": 1, "epochs": 4, "loss": 0.5, "depth_percent": 75, "micro_batch": 4}
    assert status_lines({"training": training})[-1] == "epoch 1/4, loss 0.50, 75 % frozen, 4 samples at once"


def test_energy_says_where_it_comes_from() -> None:
    energy = {"joules": 59.0, "joules_per_sample": 0.59, "gops_per_watt": 1.5, "source": "model", "modelled": True}
    assert energy_line(energy) == "energy 59.00 J, 0.5900 J a sample, 1.50 GOPS/W from model (modelled)"
    assert energy_line(energy | {"joules": None}) == "energy not known yet", "nothing is called measured"


def test_a_job_a_scrub_and_a_policys_complaint_have_their_lines() -> None:
    view = {
        "device": "pi-1", "board": {}, "job": {"id": "j", "status": "running", "step": "training", "reason_code": ""},
        "training": {"epoch": 1, "epochs": 4, "loss": 0.5, "depth_percent": 75},
        "store": {"files": 3, "damaged": 1, "repaired": 1, "unrepairable": 0},
        "policy": {"name": "mine", "complaint": "thermal: no"},
    }  # fmt: skip
    told = status_lines(view)
    assert told[0] == "pi-1: no broker"
    assert {
        "job j: running training", "epoch 1/4, loss 0.50, 75 % frozen", "policy mine stays in force: thermal: no",
        "last scrub: 3 files, 1 damaged, 1 repaired, 0 unrepairable",
    } <= set(told)  # fmt: skip


def test_where_no_rule_binds_none_is_named() -> None:
    assert "\nRUN, duty 100.00 %" in shown(action="RUN", rule="run", frequency_rule="unlimited", duty=1.0)


@pytest.mark.parametrize(
    ("left_s", "told"),
    [(41.6, "deadline in 42 s"), (0.0, "deadline in 0 s"), (-12.3, "deadline missed by 12 s so far")],
)
def test_a_deadline_is_told(left_s: float, told: str) -> None:
    view = {"board": {}, "deadline": {"deadline_s": 60.0, "left_s": left_s, "met": left_s >= 0}}
    assert told in status_lines(view)
    assert not any("deadline" in line for line in status_lines({"board": {}, "deadline": None}))


@pytest.mark.parametrize(("left_s", "told"), [(8.0, "deadline met, 8 s left"), (-12.3, "deadline missed by 12 s")])
def test_an_ended_job_says_whether_it_was_in_time(left_s: float, told: str) -> None:
    assert deadline_line({"deadline_s": 60.0, "left_s": left_s, "met": left_s >= 0}, ended=True) == told


def test_a_policy_that_is_not_the_boards_own_is_named() -> None:
    assert "policy calm, by command" in status_lines({"board": {}, "policy": {"name": "calm", "source": "command"}})
    assert not any("policy" in line for line in status_lines({"board": {}, "policy": {"name": "d", "source": "board"}}))


def test_a_job_that_waits_says_for_what() -> None:
    job = {"id": "j", "status": "deferred", "step": "", "reason_code": "battery.pause"}
    assert "job j: deferred (battery.pause)" in status_lines({"board": {}, "job": job})


def test_the_line_of_waiting_jobs_says_what_each_waits_for() -> None:
    def until(what: str, **numbers: float) -> dict[str, object]:
        return {"what": what, "below": None, "above": None, "ts": None, **numbers}

    def waits(name: str, code: str, until: object, priority: int = 0) -> dict[str, object]:
        return {"id": name, "priority": priority, "status": "deferred", "reason_code": code, "until": until}

    queue = [
        waits("a", "thermal.delta-t-pause", until("delta_t_celsius", below=32.0), 5),
        waits("b", "battery.pause", until("charge", above=0.15)),
        waits("c", "queued", until("job")),
        waits("d", "network", until("network", ts=1_800_000_000.0)),
        waits("e", "old", None),
    ]
    job = {"id": "z", "status": "running", "step": "training", "eta_s": 90.4}
    lines = status_lines({"device": "pi-1", "connected": True, "board": BOARD, "queue": queue, "job": job})
    assert "job z: running training 90 s of training left" in lines
    told = [line for line in lines if line.startswith("waiting")]
    assert told[:3] == [
        "waiting a: priority 5 deferred (thermal.delta-t-pause) until delta_t_celsius is at most 32.0",
        "waiting b: deferred (battery.pause) until charge is 0.15 at least",
        "waiting c: deferred (queued) waits for job",
    ]
    assert told[3].startswith("waiting d: deferred (network) until 2027-01-")
    assert told[3].endswith(", network")
    assert told[4] == "waiting e: deferred (old)"
