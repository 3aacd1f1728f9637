"""Two jobs side by side: what is computed, what is said of it, and what hostile boards make of the page."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.keys_consoles import Role
from policies.policy import differences
from service.command_types import FINE_TUNE, SET_POLICY, new_id
from service.config import Mqtt
from service.console import compare_curves, compare_facts, compare_page
from service.console.audit import Audit
from service.console.compare_curves import Curve
from service.console.compare_facts import Job, Verdict
from service.console.compare_policies import in_force, shipped
from service.console.page import Viewer
from service.console.reads import Reads
from service.console.room import Room, Settings
from service.console.texts import LANGUAGES, catalog
from service.fleet.state import FleetState, RollOut, Sent
from service.fleet.store import Birth, Fact, Status, open_store
from service.fleet.store_chart import Chart, Column
from tests.simulators.stored_jobs import TENANT, fine_tune, telemetry, write

NOW = 1_790_000_000.0
ENERGY = {
    "joules": 100.0,
    "joules_per_sample": 0.1,
    "gops_per_watt": 5.0,
    "modelled": True,
    "sources": {"model": 100.0},
}


def job(**result: object) -> Job:
    return Job("pi-1", "0" * 36, {"status": "succeeded", "result": result})


def line(a: Job, b: Job, key: str) -> compare_facts.Line:
    return next(one for one in compare_facts.lines(a, b) if one.key == key)


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "better"), [("accuracy", Verdict.B), ("auc", Verdict.B), ("mae", Verdict.A)])
def test_whether_more_is_better_is_the_metrics_word(metric: str, better: Verdict) -> None:
    low, high = job(metric=metric, **{f"{metric}_after": 0.5}), job(metric=metric, **{f"{metric}_after": 0.75})
    found = line(low, high, "score_after")
    assert found.difference == pytest.approx(0.25)
    assert found.share == pytest.approx(0.5)
    assert found.verdict is better


def test_scores_of_two_kinds_have_no_difference() -> None:
    found = line(job(metric="auc", auc_after=0.5), job(metric="mae", mae_after=3.0), "score_after")
    assert (found.difference, found.verdict) == (None, Verdict.OTHER_METRIC)


def test_measured_and_modelled_energy_are_not_judged() -> None:
    a, b = job(samples=10, energy=ENERGY), job(samples=10, energy={**ENERGY, "joules": 50.0, "modelled": False})
    assert line(a, b, "joules").verdict is Verdict.OTHER_SOURCE
    assert line(a, b, "joules_per_sample").verdict is Verdict.OTHER_SOURCE
    assert line(a, a, "joules").verdict is Verdict.EQUAL


def test_sums_of_other_work_are_not_judged_but_rates_are() -> None:
    a = job(samples=10, wall_s=5.0, samples_per_s=2.0, energy=ENERGY)
    b = job(samples=20, wall_s=8.0, samples_per_s=2.5, energy={**ENERGY, "joules": 50.0, "joules_per_sample": 0.05})
    assert line(a, b, "wall_s").verdict is Verdict.OTHER_WORK
    assert line(a, b, "joules").verdict is Verdict.OTHER_WORK
    assert line(a, b, "samples_per_s").verdict is Verdict.B
    assert line(a, b, "joules_per_sample").verdict is Verdict.B


def test_a_job_that_goes_on_is_not_judged() -> None:
    going = Job("pi-1", "x", {"status": "running", "energy_j": 5.0, "attempt": 1}, power_is_modelled=True)
    ended = job(samples=10, energy=ENERGY)
    assert line(going, ended, "joules").verdict is Verdict.OPEN
    assert (going.modelled, ended.modelled, job().modelled) == (True, True, None)


def test_energy_of_an_unknown_meter_is_not_judged() -> None:
    unknown = job(samples=10, energy={"joules": 5.0})
    assert line(unknown, unknown, "joules").verdict is Verdict.OTHER_SOURCE


def test_what_one_does_not_tell_is_no_zero() -> None:
    found = line(job(wall_s=5.0), job(), "wall_s")
    assert (found.b, found.difference, found.verdict) == (None, None, Verdict.UNKNOWN)
    assert compare_facts.lines(job(), job()) == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
        max_leaves=12,
    )
)
def test_whatever_a_board_tells_a_figure_is_a_finite_number(value: object) -> None:
    keys = ("metric", "samples", "wall_s", "energy", "peak_rss_bytes", "accuracy_after", "task")
    told = Job(
        "pi-1", "x", {"result": dict.fromkeys(keys, value), "attempt": value, "energy_j": value, "reason": value}
    )
    assert all(math.isfinite(number) for number in compare_facts.figures(told).values())
    compare_facts.lines(told, job(metric="accuracy", wall_s=1.0))
    assert all(len(word.a) <= compare_facts.MAX_TEXT for word in compare_facts.words(told, told))


def test_arguments_that_differ_come_first() -> None:
    a = Job("a", "x", arguments={"model": "m", "epochs": 3, "columns": ["t", "p"], "promote": "auto"})
    b = Job("b", "y", arguments={"model": "m", "epochs": 4, "columns": ["t", "p"], "promote": "auto"})
    found = compare_facts.arguments(a, b)
    assert [(one.key, one.a, one.b) for one in found if one.differs] == [("epochs", "3", "4")]
    assert found[0].differs
    assert ("columns", "t, p") in [(one.key, one.a) for one in found]


def test_time_under_rules_adds_up_and_is_bounded() -> None:
    held = compare_facts.held([(0.0, "run"), (10.0, "thermal.delta-t-slow"), (14.0, "run")], 20.0)
    assert held == {"run": 16.0, "thermal.delta-t-slow": 4.0}
    assert compare_facts.held([], 20.0) == {}
    many = {f"rule-{index}": 1.0 for index in range(500)}
    shown = compare_facts.spans(many, held)
    assert len(shown) == compare_facts.MAX_RULES + 1
    assert sum(x for _, x, _ in shown) == 500.0
    assert sum(y for _, _, y in shown) == 20.0


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_mean_is_over_time_and_no_silence_counts() -> None:
    assert Curve((0, 10, 20), (1, 3, 1), (1, 3, 1), (1, 3, 1)).mean() == 2.0
    silent = Curve((0, 100, 100_000), (1, 3, 3), (1, 3, 3), (1, 3, 3)).mean()
    assert silent == pytest.approx((100 * 1 + 120 * 3) / 220)


def test_the_least_and_the_greatest_of_a_bucket_are_drawn() -> None:
    column = Column((40.0, None), (90.0, None), (50.0, None))
    found = compare_curves.curves(Chart((100.0, 160.0), 60.0, {"board.temperature_celsius": column}), 100.0)
    assert found["temperature_celsius"].drawn() == [(0.0, 40.0), (0.0, 90.0), (0.0, 50.0)]
    assert found["temperature_celsius"].most() == 90.0


def test_columns_of_both_stand_over_one_time() -> None:
    a, b = Curve((0.0, 2.0), (1, 2), (1, 2), (1, 2)), Curve((1.0, 2.0), (5, 6), (7, 8), (6, 7))
    found = cast("dict[str, Any]", compare_curves.numbers({"a": {"loss": a}, "b": {"loss": b}}))
    assert found["data"]["ts"] == [0.0, 1.0, 2.0]
    assert found["data"]["metrics"]["a.loss"]["last"] == [1.0, None, 2.0]
    assert found["data"]["metrics"]["b.loss"]["max"] == [None, 7.0, 8.0]
    assert [panel["name"] for panel in found["panels"]] == ["loss"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\tx", "\r=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    ((cell,),) = csv.reader(io.StringIO(compare_curves.csv_text([(text,)]), newline=""))
    assert cell == f"'{text}"


def test_numbers_in_cells_stay_numbers() -> None:
    assert compare_curves.csv_text([("-1.5", "+2", 3)]) == "-1.5,+2,3\r\n"


# --- policies --------------------------------------------------------------------------------------------------------


def answered(ts: float, sha256: str, source: str = "command") -> dict[str, object]:
    return {"status": "succeeded", "ts": ts, "result": {"sha256": sha256, "source": source, "changed": {}}}


def test_a_policy_is_in_force_until_the_next_and_a_reset_ends_it() -> None:
    bodies = [answered(30.0, "b"), answered(10.0, "a"), answered(50.0, "c", "board"), {"status": "failed", "ts": 20.0}]
    assert in_force([], 99.0) == []
    assert in_force(bodies, 99.0) == [(10.0, 30.0, "a"), (30.0, 50.0, "b")]


# --- the pages -------------------------------------------------------------------------------------------------------


class AsViewer:
    """In the guard's place: who asks is known."""

    def __init__(self, app: ASGIApp, viewer: Viewer) -> None:
        self._app, self._viewer = app, viewer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["viewer"] = self._viewer
        await self._app(scope, receive, send)


class Client:
    """Asks the pages as a script would, one question after the other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def get(self, path: str, params: Mapping[str, str] | None = None) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, params=params or {}))

    def post(self, path: str, data: Mapping[str, str]) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, data=dict(data)))

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url="http://console") as client:
            return await client.request(method, path, **more)


class Stage:
    """The pages over a real store and a real audit trail."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(str(folder / "store.sqlite"))
        self.audit = Audit(folder / "state", lambda: NOW - 500)
        self.reads = Reads(str(folder / "store.sqlite"))
        settings = Settings(
            Mqtt(host="localhost"), TENANT, str(folder / "store.sqlite"), folder, folder / "fleet.sqlite"
        )
        hub = SimpleNamespace(connected=True)
        self.room = Room(
            settings, lambda: NOW, lambda: 0.0, cast("Any", hub), self.reads, cast("Any", None), self.audit,
            cast("Any", SimpleNamespace(ready=False, locked=False)), cast("Any", None),
        )  # fmt: skip

    def client(self, role: Role = Role.VIEWER, language: str = "en") -> Client:
        app = Starlette(routes=compare_page.ROUTES)
        app.state.room = self.room
        return Client(AsViewer(app, Viewer("ann", role, language, "token")))

    def add(self, *facts: Fact) -> None:
        write(self.store, *facts, now=NOW)

    def fine_tune(self, board: str, began: float, took: float, place: int, **result: object) -> str:
        found, statuses = fine_tune(board, began, took, place, **result)
        for status in statuses:
            self.add(status)  # one by one: each version is heard
        return found

    def telemetry(self, board: str, began: float, values: Mapping[str, object], seconds: range) -> None:
        self.add(*telemetry(board, began, values, seconds))

    def close(self) -> None:
        self.reads.close()
        self.store.close()
        self.audit.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.close()


def two_jobs(stage: Stage) -> tuple[str, str]:
    began = NOW - 5000
    stage.add(
        Birth(TENANT, "pi-1", 1, "0.1", "raspberry-pi-4", "", json.dumps({"board": {"profile": "raspberry-pi-4"}}))
    )
    a = stage.fine_tune("pi-1", began, 100.0, 1, accuracy_after=0.5, samples=100, energy=ENERGY)
    b = stage.fine_tune(
        "pi-2", began + 1000, 80.0, 2, accuracy_after=0.75, samples=100, energy={**ENERGY, "joules": 50.0}
    )
    hot = {"temperature_celsius": 71.5, "duty": 0.5, "rule": "thermal.delta-t-slow", "action": "SLOW"}
    cool = {"temperature_celsius": 50.0, "duty": 1.0, "rule": "run", "action": "RUN"}
    stage.telemetry("pi-1", began, cool, range(60))
    stage.telemetry("pi-1", began, hot, range(60, 100))
    stage.telemetry("pi-2", began + 1000, cool, range(80))
    return f"pi-1:{a}", f"pi-2:{b}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_jobs_stand_side_by_side(stage: Stage, language: str) -> None:
    a, b = two_jobs(stage)
    stage.audit.write(
        "ann", FINE_TUNE, boards=("pi-1",), commands=(a[5:],), details={"args": {"model": "m", "epochs": 3}}
    )
    answer = stage.client(language=language).get("/compare", params={"a": a, "b": b})
    assert answer.status_code == 200
    words = catalog(language)
    assert words["compare.verdict.b"] in answer.text
    assert words["compare.energy-modelled"] in answer.text
    assert "thermal.delta-t-slow" in answer.text
    assert words["compare.no-arguments"].format(side="B") in answer.text
    assert "raspberry-pi-4" in answer.text


def test_a_job_of_a_roll_out_has_its_arguments_too(stage: Stage) -> None:
    found = stage.fine_tune("pi-1", NOW - 500, 50.0, 6, accuracy_after=0.5)
    other = stage.fine_tune("pi-1", NOW - 400, 50.0, 7, accuracy_after=0.5)
    roll_out = "0192f0c1-0000-7000-8000-000000000009"
    with FleetState(stage.room.settings.fleet_state) as state:
        state.begin(RollOut(roll_out, TENANT, FINE_TUNE, {}, NOW - 600, "running", ""), ["pi-10", "pi-1"])
        state.write(roll_out, [Sent(0, "pi-10", other), Sent(1, "pi-1", found)])
    details = {"roll_out": roll_out, "type": FINE_TUNE, "args": {"model": "m", "seed": 4711}}
    stage.audit.write("ann", "roll-out-begun", boards=("pi-10", "pi-1"), details=details)
    stage.audit.write("ann", "roll-out-begun", boards=("pi-1",), details={"roll_out": 5})
    text = stage.client().get("/compare", params={"a": f"pi-1:{found}", "b": f"pi-1:{other}"}).text
    assert "4711" in text
    unknown = catalog("en")["compare.no-arguments"]
    assert unknown.format(side="A") not in text
    assert unknown.format(side="B") in text


def test_the_table_as_csv_has_the_differences(stage: Stage) -> None:
    a, b = two_jobs(stage)
    answer = stage.client().get("/compare.csv", params={"a": a, "b": b, "download": "1"})
    assert answer.headers["content-disposition"] == 'attachment; filename="temperd-compare.csv"'
    rows = {row[0]: row[1:] for row in csv.reader(io.StringIO(answer.text))}
    assert rows["wall_s"] == ["s", "100", "80", "-20", "b"]
    assert rows["joules"] == ["J", "100", "50", "-50", "b"]
    assert rows["temperature_max_celsius"] == ["°C", "71.5", "50", "-21.5", "b"]
    assert rows["energy"][1:3] == ["modelled", "modelled"]
    assert [float(cell) for cell in rows["rule thermal.delta-t-slow"][1:4]] == pytest.approx([40.0, 0.0, -40.0])
    curves = stage.client().get("/compare.csv", params={"a": a, "b": b, "part": "curves"}).text
    moments = [row for row in csv.DictReader(io.StringIO(curves)) if row["metric"] == "temperature_celsius"]
    assert [len([row for row in moments if row["job"] == side]) for side in "ab"] == [100, 80]
    assert {float(row["seconds"]) for row in moments} == {float(at) for at in range(100)}


def test_the_curves_are_a_picture(stage: Stage) -> None:
    a, b = two_jobs(stage)
    answer = stage.client().get("/compare.svg", params={"a": a, "b": b})
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.text.count("<polyline") == 4  # temperature and duty of both


def test_decisions_beyond_one_look_count_too(stage: Stage) -> None:
    began = NOW - 5000
    found = stage.fine_tune("pi-1", began, 2500.0, 8, accuracy_after=0.5)
    for at in range(0, 2500, 2):
        stage.telemetry("pi-1", began, {"rule": "run", "action": "RUN"}, range(at, at + 1))
        stage.telemetry("pi-1", began, {"rule": "battery.low", "action": "SLOW"}, range(at + 1, at + 2))
    named = f"pi-1:{found}"
    rows = {
        row[0]: row[1:]
        for row in csv.reader(io.StringIO(stage.client().get("/compare.csv", {"a": named, "b": named}).text))
    }
    assert [float(rows[f"rule {rule}"][1]) for rule in ("run", "battery.low")] == pytest.approx([1250.0, 1250.0])


def test_jobs_are_chosen_by_board(stage: Stage) -> None:
    a, b = two_jobs(stage)
    text = stage.client().get("/compare", params={"a": a, "board": "pi-2"}).text
    assert f"/compare?a={a.replace(':', '%3A')}&amp;b={b.replace(':', '%3A')}" in text
    assert "pi-2" in text
    assert stage.client().get("/compare", params={"board": "nobody"}).status_code == 200


@pytest.mark.parametrize("name", ["pi-1", "pi-1:1", "PI:0192f0c1-0000-7000-8000-000000000001", ":", "x" * 5000])
def test_what_names_no_job_is_not_found(stage: Stage, name: str) -> None:
    assert stage.client().get("/compare", params={"a": name}).status_code == 404


def test_a_job_that_the_store_does_not_know_is_said(stage: Stage) -> None:
    answer = stage.client().get("/compare", params={"a": "pi-9:0192f0c1-0000-7000-8000-000000000001"})
    assert answer.status_code == 404
    assert catalog("en")["compare.unknown-job"].format(side="A") in answer.text
    assert (
        stage.client().get("/compare.svg", params={"a": "pi-9:0192f0c1-0000-7000-8000-000000000001"}).status_code == 404
    )


def test_what_boards_say_is_no_markup(stage: Stage) -> None:
    evil = "</script><script>alert(1)</script>\u202e"
    result = {"metric": evil, f"{evil}_after": 1.0, "task": evil, "engine": evil, "energy": {"joules": 1e400}}
    found = stage.fine_tune("pi-1", NOW - 500, 50.0, 3, **result)
    stage.telemetry("pi-1", NOW - 500, {"rule": evil, "action": evil, "temperature_celsius": 50}, range(50))
    stage.audit.write("ann", FINE_TUNE, boards=("pi-1",), commands=(found,), details={"args": {evil: evil}})
    named = f"pi-1:{found}"
    text = stage.client().get("/compare", params={"a": named, "b": named}).text
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert stage.client().get("/compare.csv", params={"a": named, "b": named}).status_code == 200


def test_policies_are_told_apart_by_key_and_meaning(stage: Stage) -> None:
    text = stage.client().get("/compare/policies", params={"a": "default", "b": "raspberry-pi-4"}).text
    assert catalog("en")["compare.lived-unknown"] in text
    client = stage.client(Role.OPERATOR)
    form = {"a": "ship:default", "b": "text", "text_b": "[thermal.slow]\r\nduty = 0.6\r\n", "csrf": "token"}
    answer = client.post("/compare/policies", data=form)
    assert answer.status_code == 200
    assert "thermal.slow.duty" in answer.text
    assert catalog("en")["policy-keys.thermal.slow.duty"] in answer.text
    assert "-0.15" in answer.text


@pytest.mark.parametrize("text", ["", "[thermal", "[thermal]\nnonsense = 1", "x = '<script>'", "a" * 60_000])
def test_a_text_that_is_no_policy_is_said(stage: Stage, text: str) -> None:
    form = {"a": "ship:default", "b": "text", "text_b": text, "csrf": "token"}
    answer = stage.client(Role.OPERATOR).post("/compare/policies", data=form)
    assert answer.status_code == (200 if text == "" else 422)
    assert "<script>'" not in answer.text


def test_viewers_post_no_texts_and_nobody_names_what_is_not_there(stage: Stage) -> None:
    assert stage.client().post("/compare/policies", data={"a": "default"}).status_code == 403
    for name in ("nonsense", "ship:../../x", "sent:99", "sent:x"):
        assert stage.client().get("/compare/policies", params={"a": name}).status_code == 422


def test_jobs_under_a_policy_that_was_sent_from_here(stage: Stage) -> None:
    text = "[thermal.slow]\nduty = 0.6\n"
    record = stage.audit.write("ann", SET_POLICY, boards=("pi-1",), details={"args": {"text": text}})
    digest = hashlib.sha256(text.encode()).hexdigest()
    command = new_id(int((NOW - 900) * 1000), bytes)
    body = {"id": command, "version": 2, **answered(NOW - 900, digest)}
    stage.add(Status(TENANT, "pi-1", command, SET_POLICY, 2, "succeeded", NOW - 900, json.dumps(body)))
    before = stage.fine_tune("pi-1", NOW - 1000, 200.0, 4, accuracy_after=0.1)
    under = stage.fine_tune("pi-1", NOW - 500, 50.0, 5, accuracy_after=0.9, energy=ENERGY)
    answer = stage.client().get("/compare/policies", params={"a": f"sent:{record}", "b": "default"}).text
    assert f"/device/pi-1/jobs/{under}" in answer
    assert f"/device/pi-1/jobs/{before}" not in answer
    assert catalog("en")["compare.lived-unknown"] in answer


def test_every_verdict_and_measure_has_a_word() -> None:
    for language in LANGUAGES:
        words = catalog(language)
        assert all(f"compare.verdict.{verdict}" in words for verdict in Verdict)
        assert all(f"compare.measure.{measure.key}" in words for measure in compare_facts.MEASURES)
        assert all(f"compare.curve.{metric.key}" in words for metric in compare_curves.METRICS)


def test_every_key_of_a_policy_has_a_meaning() -> None:
    other = shipped("emulated").policy
    keys = differences(shipped("default").policy, other)
    assert keys
    assert all(f"policy-keys.{key}" in catalog(language) for key in keys for language in LANGUAGES)
