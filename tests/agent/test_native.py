"""The kernel library against NumPy, in every instruction set that this processor runs; and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.engine.ir import Node, model_proto
from agent.engine.native import DOMAIN, SWITCH, kernels, library
from agent.engine.sessions import session
from agent.errors import EngineError
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


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: the library could not be built")
@pytest.mark.skipif(os.environ.get(SWITCH) == "0", reason="switched off")
def test_where_there_is_a_compiler_there_is_the_library() -> None:
    assert library() is not None


def test_the_switch_leaves_the_library_out() -> None:
    made = run_python(["-c", "from agent.engine.native import library; print(library())"], **{SWITCH: "0"})
    assert made.stdout.strip() == "None", made.stderr


@needs_library
@pytest.mark.parametrize("spread", [False, True], ids=["one a position", "one a plane"])
def test_the_gradient_of_a_clip_is_zero_outside_it(spread: bool) -> None:
    rng = np.random.default_rng(1)
    y = np.clip(rng.standard_normal((5, 3, 4, 7)), -0.5, 0.5).astype(np.float32)
    dy = rng.standard_normal((5, 3, 1, 1) if spread else y.shape).astype(np.float32)
    p, q = dy.shape[2:]
    attrs = attributes(channels=5, samples=3, height=4, width=7, out_height=p, out_width=q, low=-0.5, high=0.5)
    node = Node("ClipGrad", ("y", "dy"), ("dz", "sums"), attrs, "clip", DOMAIN)
    inputs = {"y": (np.float32, y.shape), "dy": (np.float32, dy.shape)}
    dz, sums = session(model_proto([node], {}, inputs, {"dz": None, "sums": None}), 2).run(None, {"y": y, "dy": dy})
    expected = np.where((y > -0.5) & (y < 0.5), dy, 0)
    np.testing.assert_array_equal(dz, expected)
    np.testing.assert_allclose(sums, expected.sum((1, 2, 3)), atol=1e-5)


def attributes(**given: float) -> dict[str, float]:
    whole = {
        "channels": 3, "samples": 2, "height": 4, "width": 4, "kernel_height": 3, "kernel_width": 3, "stride": 1,
        "pad_top": 0, "pad_left": 0, "out_height": 2, "out_width": 2, "low": -1.0, "high": 1.0,
        "x_low": -1.0, "x_high": 1.0, "input_gradient": 0,
    }  # fmt: skip
    return whole | given


OUTPUTS = {"Depthwise": ("y",), "DepthwiseGrad": ("dx", "dw", "db", "sums"), "ClipGrad": ("dz", "sums")}


def run_with(node: str, shapes: list[tuple[int, ...]], **attrs: float) -> None:
    values = {f"in{i}": np.zeros(shape, np.float32) for i, shape in enumerate(shapes)}
    made = Node(node, tuple(values), OUTPUTS[node], attributes(**attrs), node, DOMAIN)
    inputs = {name: (np.float32, value.shape) for name, value in values.items()}
    session(model_proto([made], {}, inputs, dict.fromkeys(OUTPUTS[node])), 1).run(None, values)


@needs_library
@pytest.mark.parametrize(
    ("node", "shapes"),
    [
        ("Depthwise", [(3, 2, 4, 4), (2, 1, 3, 3), (3,)]),
        ("Depthwise", [(3, 2, 4, 4), (3, 1, 3, 3), (2,)]),
        ("Depthwise", [(3, 2, 4), (3, 1, 3, 3), (3,)]),
        ("DepthwiseGrad", [(3, 2, 4, 4), (3, 1, 3, 3), (3, 2, 4, 4), (3, 2, 4, 4)]),
        ("ClipGrad", [(3, 2, 4, 4), (3, 2, 4, 1)]),
    ],
)
def test_shapes_that_are_not_the_stated_ones_are_refused(node: str, shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(Exception, match="an input has another shape"):
        run_with(node, shapes)


@needs_library
@pytest.mark.parametrize(
    "attrs", [{"kernel_height": 16}, {"stride": 0}, {"stride": 5}, {"samples": 0}, {"height": 1 << 20, "width": 5}]
)
def test_sizes_that_the_kernels_are_not_made_for_are_refused(attrs: dict[str, float]) -> None:
    with pytest.raises(EngineError, match="out of bounds"):
        run_with("Depthwise", [(3, 2, 4, 4), (3, 1, 3, 3), (3,)], **attrs)


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
