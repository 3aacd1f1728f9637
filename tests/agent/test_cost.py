from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.cost import cost_table
from agent.engine.ir import Graph, Node, parse
from agent.errors import ModelError
from tests.simulators.real_data import MOBILENET
from tests.simulators.small_models import mobile_block_net

# The small net by hand, for 12 x 12 inputs. The stem's stride 2 makes all maps 6 x 6 = 36 positions.
MACS = {
    "stem": 36 * 8 * 3 * 3 * 3,
    "expand": 36 * 24 * 8,
    "depthwise": 36 * 24 * 3 * 3,
    "project": 36 * 8 * 24,
    "expand2": 36 * 24 * 8,
    "depthwise2": 36 * 24 * 3 * 3,
    "project2": 36 * 8 * 24,
    "head": 3 * 8,
}
WEIGHTS = {
    "stem": 8 * 27 + 8,
    "expand": 24 * 8 + 24,
    "depthwise": 24 * 9 + 24,
    "project": 8 * 24 + 8,
    "expand2": 24 * 8 + 24,
    "depthwise2": 24 * 9 + 24,
    "project2": 8 * 24 + 8,
    "head": 3 * 8 + 3,
}
MAP8, MAP24 = 36 * 8, 36 * 24
OUTPUTS = dict(zip(MACS, (MAP8, MAP24, MAP24, MAP8, MAP24, MAP24, MAP8, 3), strict=True))
CROSSING = (  # numbers, with k layers frozen
    3 * 12 * 12,  # the input itself
    MAP8,
    MAP24,
    MAP24,
    MAP8,  # project's map is read by expand2 and by the residual, and stored once
    MAP24 + MAP8,  # within the residual block: its own map and the short cut
    MAP24 + MAP8,
    8,  # pooled features
)


def test_every_layer_of_the_small_net_by_hand() -> None:
    table = cost_table(mobile_block_net())
    assert {layer.name: layer.macs for layer in table.layers} == MACS
    assert {layer.name: layer.weight_bytes for layer in table.layers} == {k: 4 * v for k, v in WEIGHTS.items()}
    assert {layer.name: layer.output_bytes for layer in table.layers} == {k: 4 * v for k, v in OUTPUTS.items()}
    assert table.crossing_bytes == tuple(4 * size for size in CROSSING)
    assert table.weight_bytes() == 4 * sum(WEIGHTS.values())


def test_a_step_costs_forward_and_twice_the_learning_part_but_one_input_gradient() -> None:
    table = cost_table(mobile_block_net())
    macs = list(MACS.values())
    assert table.step_macs(0) == 3 * sum(macs) - macs[0]
    assert table.step_macs(3) == sum(macs) + 2 * sum(macs[3:]) - macs[3]
    assert table.step_macs(7) == sum(macs) + macs[7]
    assert [table.step_macs(k) for k in range(8)] == sorted((table.step_macs(k) for k in range(8)), reverse=True)


def test_a_larger_image_costs_in_proportion_to_its_positions() -> None:
    small, large = (cost_table(mobile_block_net(size=size)) for size in (12, 24))
    for a, b in zip(small.layers[:-1], large.layers[:-1], strict=True):
        assert (b.macs, b.weight_bytes, b.output_bytes) == (4 * a.macs, a.weight_bytes, 4 * a.output_bytes)
    assert small.layers[-1] == large.layers[-1]


@pytest.mark.parametrize(("op", "shape"), [("Gemm", (8, 5)), ("MatMul", (8, 5))])
def test_dense_layers_by_hand(op: str, shape: tuple[int, int]) -> None:
    node = Node(op, ("x", "w"), ("y",), {}, "dense")
    table = cost_table(Graph((node,), {"w": np.ones(shape, np.float32)}, "x", (8,), "y"))
    assert [(layer.macs, layer.weight_bytes, layer.output_bytes) for layer in table.layers] == [(40, 160, 20)]
    assert table.crossing_bytes == (32,)


@pytest.mark.skipif(not MOBILENET.exists(), reason="needs TEMPERD_TEST_DATA")
def test_mobilenet_v2_costs_what_its_paper_says() -> None:
    """300 million multiply-adds and 3.4 million parameters (Sandler et al. 2018, table 4)."""
    table = cost_table(parse(MOBILENET.read_bytes()))
    assert len(table.layers) == 53
    assert sum(layer.macs for layer in table.layers) == pytest.approx(300e6, rel=0.01)
    assert table.weight_bytes() / 4 == pytest.approx(3.4e6, rel=0.04)


def test_an_input_of_unknown_size_has_no_cost() -> None:
    with pytest.raises(ModelError):
        cost_table(replace(mobile_block_net(), input_shape=(3, 0, 0)))
