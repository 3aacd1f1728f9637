from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.ir import serialize
from agent.errors import EngineError, SpecError
from service import bench
from service.bench_files import CLASSES, DISTINCT_BATCHES, Case, write_batches, write_case
from service.bench_peers import Entry, Side, entries
from service.bench_train import (
    BLOCK,
    CHECKED_STEPS,
    EPOCHS,
    LOSS_TOLERANCE,
    Figures,
    Load,
    best,
    check_agreement,
    epoch_steps,
    epochs_s,
    line,
    measure_depth,
    measure_linearity,
    relative_difference,
)  # fmt: skip
from service.cli import main
from tests.simulators.small_models import mobile_block_net

(OURS,) = entries((), Path())
ECHO = """\
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "die":
        sys.exit("the last words")
    print(json.dumps({"error": "no"} if request["do"] == "refuse" else {"got": request}), flush=True)
"""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path, mobile_block_net(classes=CLASSES))


def program(folder: Path, text: str, name: str = "other") -> Entry:
    file = folder / f"{name}.py"
    file.write_text(textwrap.dedent(text), "utf-8")
    return Entry(name, "", (sys.executable, str(file)))


def state_of(side: Side) -> str:
    return Path(f"/proc/{side._process.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


def test_a_side_answers_and_stands_still_between_requests(tmp_path: Path) -> None:
    side = Side(program(tmp_path, ECHO), tmp_path)
    try:
        assert side.ask("steps", count=3) == {"got": {"do": "steps", "count": 3}}
        assert state_of(side) == "T"
        assert side.ask("memory") == {"got": {"do": "memory"}}
    finally:
        side.close()


def test_a_refusal_and_an_end_are_told_with_the_side_s_own_words(tmp_path: Path) -> None:
    side = Side(program(tmp_path, ECHO), tmp_path)
    try:
        with pytest.raises(EngineError, match=r"other refuses 'refuse' \(no\)"):
            side.ask("refuse")
        with pytest.raises(EngineError, match=r"no answer to 'die' \(the last words\)"):
            side.ask("die")
        with pytest.raises(EngineError, match="no answer to 'again'"):
            side.ask("again")
    finally:
        side.close()


def test_a_peer_without_an_environment_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"torch has no environment here .*make bench"):
        entries(("torch",), tmp_path)
    python = tmp_path / ".venv-bench-torch" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    found = entries(("torch",), tmp_path)
    assert [(e.name, e.variant) for e in found[1:]] == [
        (name, layout) for name in ("torch", "torch+malloc") for layout in ("channels-first", "channels-last")
    ]


def test_the_neutral_form_is_the_whole_network(case: Case) -> None:
    form = json.loads((case.folder / "graph.json").read_text("utf-8"))
    assert [node["op"] for node in form["nodes"]] == [node.op for node in case.graph.nodes]
    assert [tuple(names) for names in form["parameters"]] == [layer.parameters for layer in case.graph.layers()]
    with np.load(case.folder / "weights.npz") as arrays:
        assert set(arrays.files) == set(case.graph.initializers)
        for name, value in case.graph.initializers.items():
            np.testing.assert_array_equal(arrays[name], value)
    assert (case.folder / "model.onnx").read_bytes() == serialize(case.graph)


def test_batches_are_the_same_for_all_and_labels_are_classes(case: Case) -> None:
    with np.load(write_batches(case, 3)) as first:
        samples, labels = first["samples"], first["labels"]
    with np.load(write_batches(case, 3)) as again:
        np.testing.assert_array_equal(again["samples"], samples)
    assert samples.shape == (DISTINCT_BATCHES, 3, *case.graph.input_shape)
    assert set(labels.ravel()) <= set(range(CLASSES))


def test_two_equal_sides_are_measured_and_agree_exactly(case: Case) -> None:
    twin = Entry("twin", "", OURS.command)
    ours, other = measure_depth(case, Load(4, "sgd", 1, 2), 4, [OURS, twin])
    assert ours.losses == other.losses
    assert len(ours.losses) == CHECKED_STEPS
    assert other.update_difference == 0
    for found in (ours, other):
        assert len(found.step_ms) == len(found.cached_step_ms) == 2 * BLOCK
        assert len(found.first_epoch_ms) == epoch_steps(4)
        assert min(found.step_ms) > 0
        assert 0 < found.start_mib < found.peak_mib <= found.cached_peak_mib
        assert found.version.startswith("onnxruntime")


def test_a_side_that_learns_at_another_momentum_is_found_out(case: Case) -> None:
    cheat = program(
        case.folder,
        """
        import functools, service.bench_side as side
        side.OptimizerSpec = functools.partial(side.OptimizerSpec, momentum=0.8)
        side.sys.argv[1:] = ["graph"]
        side.main()
        """,
    )
    cheat = Entry("cheat", "", (sys.executable, "-c", Path(cheat.command[1]).read_text("utf-8")))
    with pytest.raises(EngineError, match="cheat and temperd do not learn the same: weight updates"):
        measure_depth(case, Load(4, "sgd", 1, 1), 0, [OURS, cheat])


def test_linearity_has_a_point_a_batch_and_depth(case: Case) -> None:
    found: dict[str, Any] = measure_linearity(case, Load(4, "sgd", 1, 1), OURS)
    assert [x for x, _ in found["samples"]["points"]] == [4, 8, 16, 24, 32]
    assert found["learning_layers"]["points"][0][0] == len(case.graph.layers())
    assert {0 <= fit["r_squared"] <= 1 for fit in found.values()} == {True}


def pair(losses: list[float], difference: float = 0.0) -> Figures:
    return Figures("side", "", losses=losses, update_difference=difference)


@pytest.mark.parametrize(
    ("losses", "difference", "wrong"),
    [
        ([2.0, 1.0], 0.0, None),
        ([2.0, 1.0 + 0.9 * LOSS_TOLERANCE], 0.04, None),
        ([2.0, 1.0 + 1.1 * LOSS_TOLERANCE], 0.0, "losses"),
        ([2.0, float("nan")], 0.0, "losses"),
        ([2.0, 1.0], 0.06, "weight updates"),
        ([2.0, 1.0], float("nan"), "weight updates"),
    ],
)
def test_agreement_has_a_bound(losses: list[float], difference: float, wrong: str | None) -> None:
    if wrong is None:
        check_agreement(pair(losses, difference), pair([2.0, 1.0]), 0.05)
        return
    with pytest.raises(EngineError, match=wrong):
        check_agreement(pair(losses, difference), pair([2.0, 1.0]), 0.05)


def test_relative_difference_is_over_all_weights_together() -> None:
    a, b = {"w": np.array([3.0, 4.0]), "b": np.zeros(1)}, {"w": np.array([3.0, 4.0]), "b": np.ones(1)}
    assert relative_difference(a, a) == 0
    assert relative_difference(b, a) == pytest.approx(1 / 5)
    assert relative_difference({"w": a["w"]}, a) == float("inf")
    assert relative_difference(a, {"w": np.zeros(2), "b": np.zeros(1)}) == float("inf")


def test_epochs_with_a_cache_run_the_frozen_part_once() -> None:
    found = Figures("side", "", step_ms=[10, 10], first_epoch_ms=[100, 200], cached_step_ms=[4, 4])
    steps = epoch_steps(16)
    assert epochs_s(found, 16, cached=False) == pytest.approx((steps * 0.01, steps * 0.01, EPOCHS * steps * 0.01))
    later = steps * 0.004
    assert epochs_s(found, 16, cached=True) == pytest.approx((0.3, later, 0.3 + 9 * later))


def test_the_best_of_variants_is_taken_figure_by_figure() -> None:
    fast = Figures("torch", "fast", step_ms=[1], peak_mib=9, start_mib=2)
    small = Figures("torch", "small", step_ms=[2], peak_mib=8, start_mib=3)
    found = best([Figures("temperd", "", step_ms=[5]), small, fast], "torch")
    assert found is not None
    assert (found.variant, found.step_ms, found.peak_mib, found.start_mib) == ("fast", [1], 8, 2)
    assert fast.peak_mib == 9
    assert best([fast], "ort-training") is None


@settings(derandomize=True)
@given(
    st.floats(-100, 100, allow_subnormal=False),  # the runtime has switched subnormals off
    st.floats(-100, 100, allow_subnormal=False).filter(lambda v: abs(v) > 1e-3),
    st.lists(st.integers(-50, 50), min_size=2, max_size=9, unique=True),
)
def test_a_line_is_found_again(intercept: float, slope: float, xs: list[int]) -> None:
    found = line([(float(x), intercept + slope * x) for x in xs])
    assert found["slope"] == pytest.approx(slope, rel=1e-6)
    assert found["intercept"] == pytest.approx(intercept, abs=1e-6 * (1 + abs(slope) * 50))
    assert found["r_squared"] == pytest.approx(1)


def test_what_is_no_line_explains_less() -> None:
    assert line([(0, 0), (1, 1), (2, 0)])["r_squared"] == pytest.approx(0)
    assert line([(1, 1), (2, 4), (3, 9), (4, 16)])["r_squared"] < 0.99


@pytest.mark.parametrize("text", ["", "x", "1,,2", "101", "-1", ",".join(map(str, range(13)))])
def test_wrong_lists_are_refused_with_their_option(text: str) -> None:
    with pytest.raises(SpecError, match="--depths"):
        bench.numbers(text, 0, 100, "--depths")


def test_lists_keep_their_order_once() -> None:
    assert bench.numbers("75,0,75", 0, 100, "--depths") == [75, 0]
    assert bench.names("ort-training,torch,torch", bench.PEERS, "--vs") == ["ort-training", "torch"]
    assert bench.names("", bench.PEERS, "--vs") == []
    with pytest.raises(SpecError, match="'jax' is none of torch, ort-training"):
        bench.names("torch,jax", bench.PEERS, "--vs")


@pytest.mark.parametrize("option", ["--batch=0", "--size=15", "--threads=65", "--rounds=101", "--depths=200"])
def test_numbers_out_of_bounds_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_bench_train_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, chart = tmp_path / "small.onnx", tmp_path / "chart.svg"
    model.write_bytes(serialize(mobile_block_net(size=16)))
    command = ["bench", "train", "--model", str(model), "--size=16", "--batch=4", "--depths=0,50", "--rounds=1"]
    assert main([*command, "--threads=1", "--json", "--chart", str(chart)]) == 0
    report = json.loads(capsys.readouterr().out)
    (found,) = report["cases"]
    assert [row["depth_percent"] for row in found["depths"]] == [0, 50]
    side = found["depths"][1]["sides"]["temperd"]
    assert side["ten_epochs_s"] == pytest.approx(side["first_epoch_s"] + 9 * side["later_epoch_s"])
    assert "small" in chart.read_text("utf-8")
    assert main([*command, "--threads=1"]) == 0
    assert "50 %  temperd" in capsys.readouterr().out


def test_a_chart_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="the chart cannot be written"):
        bench.write_chart(str(tmp_path / "missing" / "chart.svg"), "<svg/>")
