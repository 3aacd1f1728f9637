from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import choose_engine
from agent.engine.base import TrainingSetup
from agent.engine.identity import prefix_digest, runs_nothing
from agent.engine.ir import Node
from tests.simulators.small_models import mobile_block_net

GRAPH = mobile_block_net()
NODES = GRAPH.nodes[:6]
DIGEST = prefix_digest(NODES, GRAPH.initializers, "image")
READ = sorted({name for node in NODES for name in node.inputs if name in GRAPH.initializers})


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(READ), st.integers(0, 4000), st.integers(1, 255))
def test_each_byte_of_each_weight_counts(name: str, place: int, change: int) -> None:
    value = np.array(GRAPH.initializers[name])
    raw = value.reshape(-1).view(np.uint8)
    raw[place % raw.size] ^= change
    assert prefix_digest(NODES, {**GRAPH.initializers, name: value}, "image") != DIGEST


@pytest.mark.parametrize("index", range(len(NODES)))
@pytest.mark.parametrize(
    "change",
    [
        lambda node: replace(node, op="Relu"),
        lambda node: replace(node, domain="com.microsoft"),
        lambda node: replace(node, inputs=(*node.inputs, "")),
        lambda node: replace(node, outputs=(node.outputs[0] + "x",)),
        lambda node: replace(node, attrs={**node.attrs, "strides": [2, 1]}),
        lambda node: replace(node, attrs={**node.attrs, "group": "24"}),
    ],
)
def test_each_part_of_each_node_counts(index: int, change: object) -> None:
    nodes = [change(node) if i == index else node for i, node in enumerate(NODES)]  # type: ignore[operator]
    assert prefix_digest(nodes, GRAPH.initializers, "image") != DIGEST


def test_shape_and_type_of_weights_the_input_and_the_order_count() -> None:
    weights = dict(GRAPH.initializers)
    weights["expand.w"] = weights["expand.w"].reshape(8, 24, 1, 1)
    assert prefix_digest(NODES, weights, "image") != DIGEST
    weights["expand.w"] = GRAPH.initializers["expand.w"].view(np.int32)
    assert prefix_digest(NODES, weights, "image") != DIGEST
    assert prefix_digest(NODES, GRAPH.initializers, "picture") != DIGEST
    assert prefix_digest(NODES[::-1], GRAPH.initializers, "image") != DIGEST
    assert prefix_digest(NODES[:-1], GRAPH.initializers, "image") != DIGEST


def test_names_of_nodes_and_what_is_not_read_do_not_count() -> None:
    renamed = [replace(node, name="other") for node in NODES]
    read = {name: np.array(GRAPH.initializers[name]) for name in READ}
    assert prefix_digest(renamed, read, "image") == DIGEST


def test_nothing_runs_before_a_boundary_that_is_the_input() -> None:
    assert runs_nothing(prefix_digest((), {}, "image"), {"image": (3, 12, 12)})
    assert not runs_nothing(DIGEST, {"image": (3, 12, 12)})
    assert not runs_nothing(prefix_digest((), {}, "image"), {"image": (3, 12, 12), "x": (1,)})
    assert not runs_nothing(prefix_digest((Node("Relu", ("image",), ("image",)),), {}, "image"), {"image": (3, 12, 12)})


def test_a_run_has_a_digest_of_its_depth_and_of_its_frozen_weights_alone() -> None:
    run = choose_engine("graph").start(TrainingSetup(GRAPH, 2, GRAPH.input_shape, 3, threads=1))
    found = {3: run.prefix_digest}
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((2, *GRAPH.input_shape)).astype(np.float32)
    run.step(samples, np.asarray([0, 1]), 0.1)
    assert run.prefix_digest == found[3]
    for depth in (5, 0, 4):
        run.set_frozen_layers(depth)
        found[depth] = run.prefix_digest
    assert len(set(found.values())) == 4
    assert runs_nothing(found[0], {"image": GRAPH.input_shape})
    run.set_frozen_layers(3)
    assert run.prefix_digest == found[3]
    run.set_frozen_layers(0)
    run.step(samples, np.asarray([0, 1]), 0.1)
    run.set_frozen_layers(3)
    assert run.prefix_digest != found[3]
