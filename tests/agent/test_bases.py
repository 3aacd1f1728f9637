"""The small bases: shapes, how they begin, what they see."""

from __future__ import annotations

import numpy as np
import pytest

from agent.engine.bases import FORECASTER_CHANNELS, dense_autoencoder, dilated_forecaster
from agent.engine.infer import Inference
from agent.engine.ir import parse, serialize, shapes


def test_the_autoencoder_has_the_shape_of_the_benchmarks() -> None:
    graph = dense_autoencoder(640, seed=0)
    assert shapes(graph, 1)[graph.output] == (1, 640)
    widths = [graph.initializers[layer.weight].shape[0] for layer in graph.layers()]
    assert widths == [128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    assert parse(serialize(graph)).input_shape == (640,)


@pytest.mark.parametrize(("columns", "window", "horizon"), [(1, 1, 1), (1, 8, 3), (3, 5, 2), (7, 168, 24)])
def test_the_forecaster_begins_as_the_last_value(columns: int, window: int, horizon: int) -> None:
    target = columns // 2
    graph = dilated_forecaster(columns, window, horizon, target, seed=1)
    x = np.random.default_rng(0).standard_normal((64, columns, window)).astype(np.float32)
    found = Inference(graph, 1).run(x)
    assert found.shape == (64, horizon)
    np.testing.assert_allclose(found, np.repeat(x[:, target, -1:], horizon, axis=1), rtol=1e-6)
    summed = Inference(graph, 1, [node.outputs[0] for node in graph.nodes if node.op == "Add"][-2]).run(x)
    assert 0.1 < summed.std() < 3, "the blocks keep the size of what they add to"


@pytest.mark.parametrize("window", [2, 4, 5, 9, 32, 168])
def test_the_last_row_of_the_forecaster_sees_the_whole_window_and_no_row_the_future(window: int) -> None:
    graph = dilated_forecaster(1, window, 1, 0, seed=3)
    blocks = [node.outputs[0] for node in graph.nodes if node.op == "Add"][:-1]
    inference = Inference(graph, 1, blocks[-1])
    x = np.random.default_rng(window).standard_normal((1, 1, window)).astype(np.float32)
    plain = inference.run(x)
    assert plain.shape == (1, FORECASTER_CHANNELS, window)
    first, last = x.copy(), x.copy()
    first[..., 0] += 5
    last[..., -1] += 5
    assert not np.array_equal(inference.run(first)[..., -1], plain[..., -1])
    np.testing.assert_array_equal(inference.run(last)[..., :-1], plain[..., :-1])


def test_the_seed_makes_the_weights() -> None:
    first, same, other = (dilated_forecaster(2, 8, 2, 0, seed) for seed in (1, 1, 2))
    assert serialize(first) == serialize(same) != serialize(other)
