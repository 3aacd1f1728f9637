"""The frozen part's first stage in tiles of rows: the same values from smaller blocks, kept where it is not slower."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from agent.card import Preprocess
from agent.classification import Classification
from agent.engine.base import LossSpec, OptimizerSpec, TrainingSetup
from agent.engine.graph import GraphEngine, GraphRun
from agent.engine.ir import Array, Graph, Node, model_proto, shapes
from agent.engine.sessions import session
from agent.engine.slices import MOST_MACS, SlicePlan, faster_slices, slice_rows
from agent.errors import EngineError, ModelError
from agent.images import Images
from agent.slices import choose_slices
from agent.spec import FineTuneSpec
from tests.simulators.small_models import colour_images, mobile_block_net

SIDE = 128  # of pictures whose maps are larger than the budget
SPEC = FineTuneSpec("net", "/data", slices="on", batch=8)


class Stack:
    """Random layers on one another."""

    def __init__(self, draw: Callable[..., int], height: int) -> None:
        self.draw, self.rng = draw, np.random.default_rng(draw(st.integers(0, 99)))
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {"low": np.float32(-1).reshape(()), "high": np.float32(6).reshape(())}
        self.top, self.channels, self.height = "x", 3, height

    def add(self, op: str, inputs: tuple[str, ...], attrs: dict[str, int | list[int]] | None = None) -> None:
        made = f"t{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (made,), attrs or {}, made))
        self.top = made

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        self.constants[name] = self.rng.standard_normal(shape, np.float32) / np.float32(math.prod(shape[1:]) ** 0.5)
        return name

    def window(self, *, dilated: bool) -> dict[str, int | list[int]]:
        kernel, dilation = self.draw(st.integers(1, 4)), self.draw(st.integers(1, 2 if dilated else 1))
        extent = (kernel - 1) * dilation + 1
        top, bottom = (self.draw(st.integers(0, min(2, kernel - 1))) for _ in range(2))
        stride = self.draw(st.integers(1, 3))
        after = (self.height + top + bottom - extent) // stride + 1
        if after < 4:
            return {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0]}
        self.height = after
        strided = {"kernel_shape": [kernel, 1], "strides": [stride, 1], "pads": [top, 0, bottom, 0]}
        return strided | ({"dilations": [dilation, 1]} if dilated else {})

    def conv(self) -> None:
        attrs = self.window(dilated=True)
        kernel = attrs["kernel_shape"]
        assert isinstance(kernel, list)
        if self.draw(st.booleans()):
            weight = self.weight(self.channels, 1, *kernel)
            attrs["group"] = self.channels
        else:
            made = self.draw(st.integers(1, 6))
            weight, self.channels = self.weight(made, self.channels, *kernel), made
        self.add("Conv", (self.top, weight), attrs)

    def pool(self) -> None:
        self.add("MaxPool" if self.draw(st.booleans()) else "AveragePool", (self.top,), self.window(dilated=False))

    def residual(self) -> None:
        start = self.top
        weight = self.weight(self.channels, self.channels, 3, 3)
        self.add("Conv", (start, weight), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})
        self.add("Clip", (self.top, "low", "high"))
        self.add("Add", (start, self.top) if self.draw(st.booleans()) else (self.top, start))

    def grow(self) -> None:
        kind = self.draw(st.sampled_from(("conv", "pool", "residual", "relu")))
        if kind == "relu":
            self.add("Relu", (self.top,))
        else:
            {"conv": self.conv, "pool": self.pool, "residual": self.residual}[kind]()


@st.composite
def stacks(draw: st.DrawFn) -> Graph:
    height = draw(st.integers(24, 72))
    stack = Stack(draw, height)
    stack.conv()
    for _ in range(draw(st.integers(1, 6))):
        stack.grow()
    stack.add("AveragePool", (stack.top,), {"kernel_shape": [4, 3], "strides": [4, 3]})  # else the last map stays
    return Graph(tuple(stack.nodes), stack.constants, "x", (3, height, 6), stack.top)


def plans_of(graph: Graph, budget: int = 64) -> tuple[SlicePlan, ...]:
    return slice_rows(graph.nodes, graph.initializers, shapes(graph, 1), (graph.output,), budget)


def run(graph: Graph, nodes: tuple[Node, ...], constants: dict[str, Array], x: np.ndarray) -> np.ndarray:
    shape = shapes(graph, len(x))[graph.output]
    model = model_proto(nodes, constants, {"x": (np.float32, x.shape)}, {graph.output: (np.float32, shape)})
    made = session(model, 1).run(None, {"x": x})[0]
    return np.asarray(made)


@settings(max_examples=60, deadline=None)
@given(stacks(), st.integers(1, 2), st.integers(64, 2000))
def test_tiles_give_what_whole_maps_give_from_smaller_blocks(graph: Graph, samples: int, budget: int) -> None:
    x = np.random.default_rng(1).standard_normal((samples, *graph.input_shape), np.float32)
    try:
        plans = plans_of(graph, budget)
    except ModelError as error:
        assert "would save nothing" in str(error)  # noqa: PT017 - small random stacks need not gain
        event("nothing to save")
        return
    exact = run(graph, graph.nodes, dict(graph.initializers), x)
    for plan in plans:
        tiled = run(graph, plan.nodes, {**graph.initializers, **plan.constants}, x)
        np.testing.assert_allclose(tiled, exact, rtol=0, atol=1e-6 * max(1, np.abs(exact).max()))
        assert plan.block_bytes < plan.whole_block_bytes
        assert plan.live_bytes <= plan.whole_live_bytes
        assert plan.macs_ratio <= MOST_MACS


def large_net() -> Graph:
    return mobile_block_net(size=SIDE)


def test_what_is_computed_of_a_plan_is_what_its_nodes_make() -> None:
    graph = replace(large_net(), nodes=large_net().nodes[:7])
    graph = replace(graph, output=graph.nodes[-1].outputs[0])
    for plan in plans_of(graph, 16 << 10):
        sliced = replace(graph, nodes=plan.nodes, initializers={**graph.initializers, **plan.constants})
        made = {name: shape for name, shape in shapes(sliced, 1).items() if name not in sliced.initializers}
        made.pop(graph.input)
        assert max(4 * math.prod(shape) for shape in made.values()) == plan.block_bytes
        assert [node.op for node in plan.nodes].count("Concat") == 1
        assert sum(name.startswith(f"{plan.stage_end}@tile") for name in made) == plan.tiles


def test_the_least_memory_comes_first_and_the_rest_has_fewer_multiplications() -> None:
    graph = large_net()
    end = graph.nodes[6].outputs[0]
    first, *others = slice_rows(graph.nodes[:7], graph.initializers, shapes(graph, 1), (end,), 16 << 10)
    for other in others:
        assert first.live_bytes < other.live_bytes <= first.whole_live_bytes // 2
        assert other.macs_ratio <= first.macs_ratio


def test_a_frozen_part_within_the_budget_stays_whole() -> None:
    graph = large_net()
    with pytest.raises(ModelError, match="would save nothing"):
        plans_of(graph, 1 << 30)


def test_the_decision_rests_on_values_and_time() -> None:
    graph = large_net()
    end = graph.nodes[6].outputs[0]
    plan = slice_rows(graph.nodes[:7], graph.initializers, shapes(graph, 1), (end,), 16 << 10)[0]
    value = np.ones(3, np.float32)

    def slow() -> tuple[Array]:
        np.linalg.inv(np.eye(200))
        return (value,)

    assert not faster_slices(lambda: (value,), slow, plan).keep
    assert faster_slices(slow, lambda: (value,), plan).keep
    assert faster_slices(lambda: (value,), slow, plan, math.inf).keep
    other = faster_slices(slow, lambda: (value + 1,), plan, math.inf)
    assert not other.keep
    assert "other values" in other.reason


def task(samples: int = 24) -> Classification:
    pixels, labels = colour_images(samples + 6, size=SIDE)
    parts = Images(pixels[:samples], labels[:samples], pixels[samples:], labels[samples:], ("red", "green", "blue"))
    return Classification(parts, Preprocess(1 / 127.5, -1.0), LossSpec())


def run_at(frozen: int, size: int = SIDE) -> GraphRun:
    net = mobile_block_net(size=size)
    made = GraphEngine().start(TrainingSetup(net, 8, net.input_shape, frozen, OptimizerSpec(), threads=1))
    assert isinstance(made, GraphRun)
    return made


def test_a_run_learns_the_same_with_tiles_and_through_every_change_of_plan() -> None:
    whole, sliced = run_at(4), run_at(4)
    digest = sliced.prefix_digest
    check = sliced.use_slices(math.inf)
    assert check.keep, check.reason
    assert sliced.prefix_digest == digest
    x, y = task().inputs(np.arange(8)), task().targets(np.arange(8))
    for frozen in (4, 4, 2, 4, 0):
        for one in (whole, sliced):
            one.set_frozen_layers(frozen)
        assert sliced.step(x, y, 0.01).loss == pytest.approx(whole.step(x, y, 0.01).loss, rel=1e-4)
    for name, value in whole.parameters().items():
        np.testing.assert_allclose(sliced.parameters()[name], value, rtol=0, atol=1e-4)


def test_a_smaller_micro_batch_keeps_the_tiles() -> None:
    whole, sliced = run_at(7), run_at(7)  # the head alone learns: the frozen part needs most of the memory
    assert sliced.use_slices(math.inf).keep
    for run in (whole, sliced):
        run.set_micro_batch_share(0.25)
    assert sliced.footprint.live < whole.footprint.live
    x = task().inputs(np.arange(8))
    np.testing.assert_allclose(sliced.boundary(x)[0], whole.boundary(x)[0], rtol=0, atol=1e-5)


def test_float32_after_8_bits_gives_the_same_again() -> None:
    made = run_at(4)
    x = task().inputs(np.arange(8))
    exact = made.boundary(x)[0]
    made.use_slices(math.inf)
    made.use_int8(x, x, lambda _: 1.0)
    made.use_float32()
    np.testing.assert_allclose(made.boundary(x)[0], exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "frozen", "size", "reason"),
    [
        ({"slices": "off"}, 4, 32, "asked for"),
        ({}, 0, 32, "nothing is frozen"),
        ({"slices": "auto"}, 4, 32, "not worth trying"),
        ({}, 4, 16, "would save nothing"),
    ],
)
def test_why_there_are_no_tiles_is_told(changes: dict[str, str], frozen: int, size: int, reason: str) -> None:
    told = choose_slices(run_at(frozen, size), replace(SPEC, **changes), task())
    assert told["used"] is False
    assert reason in str(told["reason"])


def test_what_is_used_is_told() -> None:
    told = choose_slices(run_at(4), SPEC, task())
    assert told["used"] is True
    assert isinstance(told["block_bytes"], int)
    assert told["block_bytes"] < told["whole_block_bytes"]  # type: ignore[operator]


def test_where_many_samples_will_run_through_them_tiles_are_tried_and_the_times_told() -> None:
    told = choose_slices(run_at(4), replace(SPEC, slices="auto", cache="off", epochs=100), task())
    assert isinstance(told["whole_ms"], float)
    assert isinstance(told["sliced_ms"], float)
    assert told["used"] == (told["sliced_ms"] <= 1.05 * told["whole_ms"])


def test_a_trial_that_the_runtime_breaks_off_leaves_whole_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("bad allocation")

    trained = run_at(4)
    monkeypatch.setattr("agent.engine.program.faster_slices", broken)
    told = choose_slices(trained, FineTuneSpec("net", "/data", slices="on"), task())
    assert told["used"] is False
    assert "bad allocation" in str(told["reason"])


def test_a_frozen_part_that_cannot_be_opened_again_stops_training(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = run_at(3)
    state = trained.state()
    x = task().inputs(np.arange(8))

    def refuse(*_: object) -> None:
        raise EngineError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("agent.engine.prefix.session", refuse)
        with pytest.raises(EngineError, match="no memory"):
            trained.load_state(state)
    with pytest.raises(EngineError, match="compilation failed"):
        trained.step(x, np.zeros(8, np.int64), 0.1)
