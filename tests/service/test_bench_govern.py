from __future__ import annotations

import dataclasses
import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.simulated import SimulatedBoard
from agent.engine.ir import serialize
from agent.errors import ArtifactError
from agent.images import Images
from policies.policy import DEPTH_LADDER
from policies.reading import Action, Decision
from service.bench_govern import GOVERNORS, PREDICTIVE, WITHOUT, Study, compared, measure, stays_from
from service.bench_govern_kept import kept_file, read_kept, write_kept
from service.bench_govern_learning import Course, EpochCost, Learning, rate_share_after, runs_prefix
from service.bench_govern_report import chart, show
from service.bench_govern_run import (
    LONGEST_JOB_S,
    KernelGovernor,
    SimulatedJob,
    TemperdGovernor,
    Track,
    board_policy,
)
from service.cli import main
from tests.simulators.small_models import CLASSES, colour_images, mobile_block_net

SIZE = 16
EPOCHS = 4
COSTS = tuple(
    EpochCost(
        depth, depth // 10, steps_s=2.0 - depth / 60, judging_s=0.25, prefix_s=depth / 200, compile_s=0.1, sample_s=0.01
    )
    for depth in DEPTH_LADDER
)
depths = st.lists(st.sampled_from(DEPTH_LADDER), min_size=1, max_size=6).map(tuple)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("model") / "small.onnx"
    file.write_bytes(serialize(mobile_block_net(size=SIZE)))
    return str(file)


@pytest.fixture(scope="module")
def images() -> Images:
    x_train, y_train = colour_images(48, size=SIZE)
    x_test, y_test = colour_images(30, seed=1, size=SIZE)
    return Images(x_train, y_train, x_test, y_test, tuple(map(str, range(CLASSES))))


def course(model: str) -> Course:
    return Course(model, size=SIZE, batch=8, epochs=EPOCHS, learning_rate=0.02, seed=0)


@pytest.fixture
def learning(model: str, images: Images) -> Iterator[Learning]:
    made = Learning(course(model), images)
    yield made
    made.close()


def job(plan: int = 0, slowdown: float = 1.0, epochs: int = EPOCHS) -> SimulatedJob:
    return SimulatedJob(COSTS, plan, epochs, samples=100, slowdown=slowdown)


def test_the_rate_warms_up_again_in_the_epoch_after_the_head_alone_and_in_no_other() -> None:
    steps, epochs = 40, 4  # a warm-up of 8 steps
    plain, moved = (0, 50, 0, 0), (100, 0, 0, 0)
    for upto, step in itertools.product((1, 2, 3, 4), (0, 3, 7, 39)):
        found = [rate_share_after(depths[:upto], step, steps, epochs) for depths in (plain, moved)]
        again = min(1.0, (step + 1) / 8) if upto == 2 else 1.0
        assert found[1] == pytest.approx(found[0] * again)


def test_what_a_sequence_of_depths_teaches_does_not_depend_on_what_was_asked_before(
    learning: Learning, model: str, images: Images
) -> None:
    wanted = (100, 0, 50, 50)
    first = [learning.after(wanted[: n + 1]) for n in range(EPOCHS)]
    other = Learning(course(model), images)
    try:
        other.after((0,))
        other.after((0, 75))
        other.costs()
        other.after((100,))
        other.after((100, 25))
        assert [other.after(wanted[: n + 1]) for n in range(EPOCHS)] == first
    finally:
        other.close()


def test_training_learns_and_a_sequence_is_trained_once(learning: Learning) -> None:
    found = [learning.after((0,) * (n + 1)) for n in range(EPOCHS)]
    assert found[-1].loss < found[0].loss
    assert found[-1].accuracy > 0.6  # three classes
    trained = learning.epochs_trained
    assert learning.after((0, 0)) == found[1]
    assert learning.epochs_trained == trained


def test_costs_fall_with_the_depth_and_only_a_frozen_part_is_run(learning: Learning) -> None:
    costs = learning.costs()
    assert [cost.depth_percent for cost in costs] == list(DEPTH_LADDER)
    assert [cost.prefix_s > 0 for cost in costs] == [False, True, True, True, True]
    assert all(cost.steps_s > 0 and cost.judging_s > 0 for cost in costs)


@pytest.mark.parametrize(
    ("sequence", "runs"),
    [((0,), False), ((50,), True), ((50, 50), False), ((75, 50), True), ((50, 0, 50), True), ((50, 0), False)],
)
def test_the_frozen_part_runs_when_the_boundary_came_here(sequence: tuple[int, ...], runs: bool) -> None:
    assert runs_prefix(sequence) is runs


@given(
    wanted=depths,
    tick=st.floats(0.01, 5.0, allow_subnormal=False),
    slowdown=st.floats(0.5, 10.0, allow_subnormal=False),
    plan=st.sampled_from(DEPTH_LADDER),
)
def test_a_job_takes_as_long_in_small_ticks_as_in_large_ones_and_never_trains_shallower_than_planned(
    wanted: tuple[int, ...], tick: float, slowdown: float, plan: int
) -> None:
    running = job(plan, slowdown, epochs=len(wanted))
    spent, before = 0.0, 0.0
    while not running.finished:
        left = tick
        while left > 0.0 and not running.finished:
            spent -= left
            depth = wanted[min(running.epochs_done, len(wanted) - 1)]
            left = running.work(left, Decision(least_depth_percent=depth))
            spent += left
        assert before <= running.samples_done + 1e-9
        before = running.samples_done
    trained = tuple(max(plan, depth) for depth in wanted)
    assert running.depths == trained
    due = 0.0
    for place, depth in enumerate(trained):
        cost = next(cost for cost in COSTS if cost.depth_percent == depth)
        due += cost.steps_s + cost.judging_s
        due += cost.prefix_s if runs_prefix(trained[: place + 1]) else 0.0
        due += cost.compile_s if place and trained[place - 1] != depth else 0.0
    assert -spent == pytest.approx(due * slowdown)
    assert running.samples_done == len(wanted) * 100


def test_energy_and_time_of_the_jobs_add_up_to_those_of_the_run() -> None:
    board = SimulatedBoard("raspberry-pi-4", start_fan=0)
    track = Track(board, KernelGovernor(board), board_policy(board, predictive=False))
    for _ in range(2):
        assert track.run(job(slowdown=8.0))
    seen = track.seen
    assert sum(epochs[-1].seconds for epochs in seen.jobs) == pytest.approx(seen.seconds)
    assert sum(epochs[-1].joules for epochs in seen.jobs) == pytest.approx(seen.joules)
    assert seen.joules == pytest.approx(board.joules)
    assert seen.samples == 2 * EPOCHS * 100
    for epochs in seen.jobs:
        assert all(a.joules < b.joules and a.seconds < b.seconds for a, b in itertools.pairwise(epochs))


def test_without_a_fan_the_kernel_lets_a_board_get_hot_and_the_fixed_rules_do_not() -> None:
    hottest = {}
    for name in ("kernel", "rules"):
        board = SimulatedBoard("raspberry-pi-4", start_fan=0)
        policy = board_policy(board, predictive=False)
        track = Track(board, KernelGovernor(board) if name == "kernel" else TemperdGovernor(policy), policy)
        while track.seen.seconds < 900:
            track.run(job(slowdown=8.0))
        hottest[name] = track.seen.hottest_delta_kelvin
    assert hottest["kernel"] > 33
    assert hottest["rules"] < 33


def test_a_job_that_is_never_allowed_to_run_is_given_up() -> None:
    class Paused:
        def tick(self, board: SimulatedBoard, outlook: object) -> Decision:
            del board, outlook
            return Decision(action=Action.PAUSE, rule="thermal.delta-t-pause", duty=0.0)

    board = SimulatedBoard("raspberry-pi-4")
    track = Track(board, Paused(), board_policy(board, predictive=False))
    assert not track.run(job())
    assert LONGEST_JOB_S < track.seen.seconds <= LONGEST_JOB_S + 2
    assert track.seen.samples == 0


def test_qualifying_leaves_a_board_cool_and_without_limits() -> None:
    board = SimulatedBoard("raspberry-pi-5", start_fan=0)
    TemperdGovernor(board_policy(board, predictive=True)).qualify(board)
    assert board.fan_level == 0
    assert board.clock_share == 1.0
    assert board.truth.die_celsius - board.truth.ambient_celsius < 20


@pytest.fixture(scope="module")
def report(model: str, images: Images) -> dict[str, object]:
    study = Study(
        course(model), seeds=(0, 1), plans=(0,), boards=("edge-22w",), ambients=(25,), mains_s=30.0, charge=0.3
    )
    machine: dict[str, object] = {"processor": "any", "cores": 1}
    return {"machine": machine, **measure(study, images, lambda _: None)}


def test_the_table_has_every_governor_and_every_part_left_out(
    report: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    json.dumps(report)
    (plan,) = cast("list[dict[str, Any]]", report["plans"])
    assert [row["governor"] for row in plan["rows"]] == list(GOVERNORS)
    assert [row["without"] for row in plan["ablation"]] == list(WITHOUT)
    assert plan["equal_accuracy"] == pytest.approx(plan["planned_accuracy"] - 0.005)
    kernel = plan["rows"][0]
    assert kernel["accuracy"] == plan["planned_accuracy"]  # nobody changed its depth
    assert kernel["joules_to_equal"] <= kernel["joules_a_job"] * 1.5
    show(report)
    text = capsys.readouterr().out
    assert "modelled" in text
    assert "assumed" in text


def test_the_picture(report: dict[str, object]) -> None:
    root = ET.fromstring(chart(report))  # noqa: S314 - our own
    texts = [text for node in root.iter("{http://www.w3.org/2000/svg}text") if (text := node.text)]
    assert any("modelled" in text for text in texts)
    assert "edge-22w" in texts


@settings(deadline=None)
@given(
    ours=st.floats(1, 1e6, allow_subnormal=False),
    kernel=st.floats(1, 1e6, allow_subnormal=False),
    rules=st.one_of(st.none(), st.floats(1, 1e6, allow_subnormal=False)),
)
def test_prediction_is_held_against_the_better_of_the_others(ours: float, kernel: float, rules: float | None) -> None:
    def row(governor: str, joules: float | None) -> dict[str, object]:
        return {
            "board": "b", "ambient_celsius": 25, "governor": governor, "joules_to_equal": joules,
            "seconds_to_equal": joules, "joules_to_touch": joules, "joules_a_job": joules or 1.0, "accuracy": 0.9,
            "charge": {"samples": 10},
        }  # fmt: skip

    (found,) = compared([row("kernel", kernel), row("rules", rules), row(PREDICTIVE, ours)])
    better = kernel if rules is None else min(kernel, rules)
    assert found["joules_percent"] == pytest.approx(100 * (ours / better - 1))
    assert found["samples_a_charge"] == 1.0


@given(curve=st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=8))
def test_equal_accuracy_is_reached_where_it_is_not_lost_again(curve: list[float]) -> None:
    place = stays_from(curve, 0.5)
    if place is None:
        assert curve[-1] < 0.5
    else:
        assert min(curve[place:]) >= 0.5
        assert place == 0 or curve[place - 1] < 0.5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--depths=30"], "--depths"),
        (["--boards=toaster"], "--boards"),
        (["--epochs=0"], "--epochs"),
        (["--learning-rate=2"], "--learning-rate"),
        (["--seeds=-1"], "--seeds"),
        (["--learnt=/proc/nowhere"], "--learnt"),
    ],
)
def test_bad_options_are_named(options: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "govern", *options]) == 2
    assert named in capsys.readouterr().err


def test_data_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "govern", "--data", str(tmp_path / "none.npz")]) != 0
    assert "none.npz" in capsys.readouterr().err


class TestKept:
    def test_what_was_trained_comes_back_and_is_not_trained_again(
        self, model: str, images: Images, learning: Learning, tmp_path: Path
    ) -> None:
        found = [learning.after((0,)), learning.after((0, 50))]
        file = kept_file(tmp_path, course(model), images)
        assert read_kept(file, EPOCHS) == {}
        write_kept(file, learning.learnt)
        other = Learning(course(model), images, read_kept(file, EPOCHS))
        try:
            assert [other.after((0,)), other.after((0, 50))] == found
            assert other.epochs_trained == 0
            other.after((0, 50, 50))
            assert other.epochs_trained == 3  # there is no state to go on from
        finally:
            other.close()

    def test_another_course_model_or_data_has_another_file(self, model: str, images: Images, tmp_path: Path) -> None:
        same = course(model)
        (tmp_path / "copy.onnx").write_bytes(Path(model).read_bytes())
        assert kept_file(tmp_path, same, images) == kept_file(
            tmp_path, dataclasses.replace(same, model=str(tmp_path / "copy.onnx")), images
        )
        (tmp_path / "copy.onnx").write_bytes(serialize(mobile_block_net(seed=1, size=SIZE)))
        names = {
            kept_file(tmp_path, same, images),
            kept_file(tmp_path, dataclasses.replace(same, seed=1), images),
            kept_file(tmp_path, dataclasses.replace(same, epochs=5), images),
            kept_file(tmp_path, dataclasses.replace(same, model=str(tmp_path / "copy.onnx")), images),
            kept_file(tmp_path, same, dataclasses.replace(images, y_train=images.y_train[::-1])),
        }
        assert len(names) == 5

    @pytest.mark.parametrize(
        "text",
        [
            "[]", "{", '{"0": 1}', '{"0": [1.0]}', '{"0": [1.0, 2.0]}', '{"0": [null, 0.5]}', '{"x": [1.0, 0.5]}',
            '{"": [1.0, 0.5]}', '{"30": [1.0, 0.5]}', '{"0,0,0,0,0": [1.0, 0.5]}', '{"0": [1.0, 0.5, 0.5]}',
        ],
    )  # fmt: skip
    def test_a_file_that_is_none_of_ours_is_named(self, text: str, tmp_path: Path) -> None:
        file = tmp_path / "learnt.json"
        file.write_text(text)
        with pytest.raises(ArtifactError, match="learnt"):
            read_kept(file, EPOCHS)
