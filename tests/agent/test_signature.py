from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.ir import Array, Graph, Node
from agent.engine.signature import signature_from_batch_norm, signature_from_samples


def _graph(gamma: list[float], beta: list[float], activation: str = "Clip", norm: str = "BatchNormalization") -> Graph:
    """Conv -> batch norm -> activation -> pool -> Gemm, with channels of the given scale and shift."""
    channels = len(gamma)
    constants: dict[str, Array] = {
        "w": np.ones((channels, 1, 1, 1), np.float32),
        "gamma": np.asarray(gamma, np.float32),
        "beta": np.asarray(beta, np.float32),
        "mean": np.full(channels, 5, np.float32),
        "var": np.full(channels, 4, np.float32),
        "low": np.asarray(0, np.float32),
        "high": np.asarray(6, np.float32),
        "k": np.ones((channels, 2), np.float32),
    }
    nodes = (
        Node("Conv", ("x", "w"), ("c",), {}, "c"),
        Node(norm, ("c", "gamma", "beta", "mean", "var"), ("n",), {}, "n"),
        Node(activation, ("n", "low", "high") if activation == "Clip" else ("n",), ("a",), {}, "a"),
        Node("GlobalAveragePool", ("a",), ("p",), {}, "p"),
        Node("Flatten", ("p",), ("f",), {}, "f"),
        Node("Gemm", ("f", "k"), ("y",), {}, "y"),
    )
    return Graph(nodes, constants, "x", (1, 4, 4), "y")


# Quarters, not st.floats: a runtime session in the same process may have switched subnormal numbers off.
@given(st.integers(-32, 32).map(lambda n: n / 4), st.integers(-48, 48).map(lambda n: n / 4))
def test_the_closed_form_is_the_integral_it_claims(scale: float, shift: float) -> None:
    found = signature_from_batch_norm(_graph([scale], [shift]))
    assert found is not None
    z = np.linspace(-9, 9, 20_001)
    density = np.exp(-(z**2) / 2)
    expected = float((np.clip(shift + abs(scale) * z, 0, 6) * density).sum() / density.sum())
    assert found[0] == pytest.approx(expected, abs=1e-4)
    assert found[0] + 1e-12 >= 0
    assert found[0] <= 6 + 1e-12


def test_without_an_upper_bound_it_is_the_mean_of_a_rectified_normal() -> None:
    found = signature_from_batch_norm(_graph([1.0, 2.0, 0.0], [0.0, 0.0, 3.0], "Relu"))
    assert found == pytest.approx([0.39894228, 0.79788456, 3.0])


def test_a_constant_channel_is_its_clipped_shift() -> None:
    assert signature_from_batch_norm(_graph([0.0, 0.0, 0.0], [-1.0, 2.0, 9.0])) == (0.0, 2.0, 6.0)


def test_it_predicts_the_pooled_feature_of_normalised_channels() -> None:
    rng = np.random.default_rng(0)
    gamma, beta = [0.5, 1.5, 3.0], [-0.5, 0.2, 4.0]
    drawn = np.clip(np.asarray(beta) + np.asarray(gamma) * rng.normal(size=(200, 100, 3)), 0, 6).mean(axis=1)
    assert signature_from_batch_norm(_graph(gamma, beta)) == pytest.approx(signature_from_samples(drawn), rel=0.03)


@pytest.mark.parametrize(
    "graph",
    [_graph([1.0], [0.0], activation="Sigmoid"), _graph([1.0], [0.0], norm="InstanceNormalization")],
    ids=["another activation", "no batch norm"],
)
def test_other_patterns_have_no_signature(graph: Graph) -> None:
    assert signature_from_batch_norm(graph) is None


def test_a_graph_without_layers_has_no_signature() -> None:
    graph = Graph((Node("Relu", ("x",), ("y",), {}, "r"),), {}, "x", (1,), "y")
    assert signature_from_batch_norm(graph) is None


def test_samples_are_averaged_channel_by_channel() -> None:
    assert signature_from_samples(np.asarray([[1, 2], [3, 6]], np.float32)) == (2.0, 4.0)
