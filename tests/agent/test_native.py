"""The kernel library against NumPy, in every instruction set that this processor runs; and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.engine.ir import Node, model_proto
from agent.engine.native import DOMAIN, SWITCH, kernels, library
from agent.engine.sessions import session
from tests.simulators.depthwise_reference import HAND_PICKED, Sizes, compare, random_sizes

ROOT = Path(__file__).parents[2]
needs_library = pytest.mark.skipif(library() is None, reason="needs the kernel library")


def run_python(program: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@needs_library
@pytest.mark.parametrize("sizes", HAND_PICKED, ids=str)
def test_depthwise_and_its_gradients_are_those_of_the_definition(sizes: Sizes) -> None:
    compare(sizes)


@needs_library
def test_without_an_input_gradient_nothing_is_made_for_it() -> None:
    compare(HAND_PICKED[0], input_gradient=False)


@needs_library
@pytest.mark.parametrize("seed", range(30))
def test_any_geometry(seed: int) -> None:
    compare(random_sizes(np.random.default_rng(seed)), seed)


@needs_library
@pytest.mark.parametrize("instructions", ["base", "avx2"])
def test_every_instruction_set_computes_the_same(instructions: str) -> None:
    made = run_python(["-m", "tests.simulators.depthwise_reference", "20"], **{SWITCH: instructions})
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() in (instructions, "base")  # a processor without AVX2 has the base set only


def test_the_switch_leaves_the_library_out() -> None:
    made = run_python(["-c", "from agent.engine.native import library; print(library())"], **{SWITCH: "0"})
    assert made.stdout.strip() == "None", made.stderr


@needs_library
@pytest.mark.parametrize("spread", [False, True], ids=["one a position", "one a plane"])
def test_the_gradient_of_a_clip_is_zero_outside_it(spread: bool) -> None:
    rng = np.random.default_rng(1)
    y = np.clip(rng.standard_normal((5, 3, 4, 7)), -0.5, 0.5).astype(np.float32)
    dy = rng.standard_normal((5, 3, 1, 1) if spread else y.shape).astype(np.float32)
    attrs = attributes(low=-0.5, high=0.5)
    node = Node("ClipGrad", ("y", "dy"), ("dz", "sums"), attrs, "clip", DOMAIN)
    inputs = {"y": (np.float32, y.shape), "dy": (np.float32, dy.shape)}
    dz, sums = session(model_proto([node], {}, inputs, {"dz": None, "sums": None}), 2).run(None, {"y": y, "dy": dy})
    expected = np.where((y > -0.5) & (y < 0.5), dy, 0)
    np.testing.assert_array_equal(dz, expected)
    np.testing.assert_allclose(sums, expected.sum((1, 2, 3)), atol=1e-5)


def attributes(**given: float) -> dict[str, float]:
    whole = {
        "stride": 1, "pad_top": 0, "pad_left": 0, "out_height": 1, "out_width": 1, "low": -1.0, "high": 1.0,
        "x_low": -1.0, "x_high": 1.0, "input_gradient": 0,
    }  # fmt: skip
    return whole | given


@needs_library
@pytest.mark.parametrize(
    ("node", "shapes", "what"),
    [
        ("Depthwise", [(3, 2, 4, 4), (2, 1, 3, 3), (3,)], "shapes do not fit"),
        ("Depthwise", [(3, 2, 4, 4), (3, 1, 3, 3), (2,)], "bias has another length"),
        ("Depthwise", [(3, 2, 4, 4), (3, 1, 16, 3), (3,)], "kernel or stride is too large"),
        ("Depthwise", [(3, 2, 4), (3, 1, 3, 3), (3,)], "another rank"),
        ("DepthwiseGrad", [(3, 2, 4, 4), (3, 1, 3, 3), (3, 2, 4, 4), (3, 2, 4, 4)], "gradient has another shape"),
        ("ClipGrad", [(3, 2, 4, 4), (3, 2, 4, 1)], "gradient has another shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(node: str, shapes: list[tuple[int, ...]], what: str) -> None:
    values = {f"in{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    outputs = {"Depthwise": ("y",), "DepthwiseGrad": ("dx", "dw", "db", "sums"), "ClipGrad": ("dz", "sums")}[node]
    made = Node(node, tuple(values), outputs, attributes(out_height=2, out_width=2), node, DOMAIN)
    inputs = {name: (np.float32, value.shape) for name, value in values.items()}
    running = session(model_proto([made], {}, inputs, dict.fromkeys(outputs)), 1)
    with pytest.raises(Exception, match=what):
        running.run(None, values)


@needs_library
def test_sums_of_squares_are_as_exact_as_float64() -> None:
    values = np.random.default_rng(2).standard_normal(1_000_003).astype(np.float32)
    found = kernels()
    assert found is not None
    assert found.square_sum(values) == pytest.approx(float(np.vdot(values.astype(np.float64), values)), rel=1e-6)
    values[500_000] = np.nan
    assert np.isnan(found.square_sum(values))
    values[500_000] = 1e30
    assert np.isinf(found.square_sum(values))
