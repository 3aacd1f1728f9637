from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from agent.engine.base import Float32, Int64, OptimizerSpec, TrainingRun, TrainingSetup
from agent.engine.ir import Array, Graph, Node
from agent.engine.ort_artifacts import DIFFERENTIABLE, SHARED_MEMORY, library, write_artifacts
from agent.engine.ort_training import OrtTrainingEngine
from agent.errors import EngineError, ModelError, SpecError

try:
    library()
    INSTALLED = True
except SpecError:
    INSTALLED = False

needs_runtime = pytest.mark.skipif(not INSTALLED, reason="onnxruntime-training is not installed")
BATCH, CLASSES = 5, 3
Parameters = Mapping[str, np.ndarray]


def _graph(seed: int = 0) -> Graph:
    """Every operator the engine trains, once: stride 2 with asymmetric pads, depthwise, pointwise, skip."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    nodes = (
        Node(
            "Conv", ("x", "w0", "b0"), ("c0",), {"strides": [2, 2], "pads": [0, 0, 1, 1], "kernel_shape": [3, 3]}, "c0"
        ),
        Node("Clip", ("c0", "low", "high"), ("a0",), {}, "clip"),
        Node(
            "Conv", ("a0", "w1", "b1"), ("c1",), {"group": 4, "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, "depthwise"
        ),
        Node("Relu", ("c1",), ("a1",), {}, "relu"),
        Node("Add", ("a0", "a1"), ("s",), {}, "skip"),
        Node("Conv", ("s", "w2", "b2"), ("c2",), {"kernel_shape": [1, 1]}, "pointwise"),
        Node("GlobalAveragePool", ("c2",), ("p",), {}, "pool"),
        Node("Flatten", ("p",), ("f",), {"axis": 1}, "flat"),
        Node("Reshape", ("f", "rows"), ("r",), {}, "reshape"),
        Node("MatMul", ("r", "w3"), ("h",), {}, "product"),
        Node("Gemm", ("h", "w4", "b4"), ("y",), {"transB": 1}, "head"),
    )
    weights = {
        "w0": normal(4, 2, 3, 3),
        "b0": normal(4) + np.float32(1),
        "w1": normal(4, 1, 3, 3),
        "b1": normal(4),
        "w2": normal(6, 4, 1, 1),
        "b2": normal(6),
        "w3": normal(6, 4),
        "w4": normal(CLASSES, 4),
        "b4": normal(CLASSES),
    }
    constants = {
        "low": np.asarray(0, np.float32),
        "high": np.asarray(2, np.float32),
        "rows": np.asarray([-1, 6], np.int64),
    }
    return Graph(nodes, weights | constants, "x", (2, 8, 8), "y")


def _conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, *, group: int = 1) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    split = windows.reshape(len(x), group, -1, *windows.shape[2:])
    kernels = w.reshape(group, -1, *w.shape[1:])
    return np.einsum("ngchwij,gocij->ngohw", split, kernels).reshape(len(x), -1, *windows.shape[2:4]) + b[:, None, None]


def _logits(p: Parameters, x: np.ndarray) -> np.ndarray:
    """The same network in NumPy, float64."""
    a0 = np.clip(_conv(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))), p["w0"], p["b0"])[:, :, ::2, ::2], 0, 2)
    a1 = np.maximum(_conv(np.pad(a0, ((0, 0), (0, 0), (1, 1), (1, 1))), p["w1"], p["b1"], group=4), 0)
    pooled = _conv(a0 + a1, p["w2"], p["b2"]).mean(axis=(2, 3))
    result: np.ndarray = pooled @ p["w3"] @ p["w4"].T + p["b4"]
    return result


def _loss(p: Parameters, x: np.ndarray, labels: Int64) -> float:
    scores = _logits(p, x)
    return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(x)), labels]))


def _gradients(p: Parameters, x: np.ndarray, labels: Int64) -> dict[str, np.ndarray]:
    """Central differences of the float64 loss."""
    found = {}
    for name, value in p.items():
        flat = np.zeros(value.size)
        for i in range(value.size):
            pair = []
            for change in (1e-6, -1e-6):
                moved = value.copy()
                moved.flat[i] += change
                pair.append(_loss({**p, name: moved}, x, labels))
            flat[i] = (pair[0] - pair[1]) / 2e-6
        found[name] = flat.reshape(value.shape)
    return found


def _batch(seed: int = 1) -> tuple[Float32, Int64]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (BATCH, 2, 8, 8)).astype(np.float32), rng.integers(0, CLASSES, BATCH)


def _start(frozen: int = 0, optimizer: OptimizerSpec | None = None, graph: Graph | None = None) -> TrainingRun:
    setup = TrainingSetup(graph or _graph(), BATCH, (2, 8, 8), frozen, optimizer or OptimizerSpec(), threads=1)
    return OrtTrainingEngine().start(setup)


def _exact(parameters: Mapping[str, Float32]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float64) for name, value in parameters.items()}


@pytest.mark.skipif(INSTALLED, reason="onnxruntime-training is installed")
def test_a_missing_wheel_is_named_with_the_way_to_get_it() -> None:
    with pytest.raises(SpecError, match=r"temperd\[ort-training\]") as caught:
        _start()
    assert caught.value.code == "engine-missing"


def test_the_graph_under_test_has_every_operator_the_engine_claims() -> None:
    assert {node.op for node in _graph().nodes} == DIFFERENTIABLE


@needs_runtime
def test_gradients_match_central_differences_of_a_float64_reference() -> None:
    run, (x, labels) = _start(optimizer=OptimizerSpec(momentum=0.0)), _batch()
    before = _exact(run.parameters())
    assert run.step(x, labels, 1.0).loss == pytest.approx(_loss(before, x, labels), rel=1e-5)
    after = run.parameters()
    for name, gradient in _gradients(before, x, labels).items():
        np.testing.assert_allclose(before[name] - after[name], gradient, rtol=1e-3, atol=2e-6, err_msg=name)


@needs_runtime
def test_logits_agree_with_the_reference_for_any_number_of_samples() -> None:
    run, rng = _start(), np.random.default_rng(3)
    for count in (1, BATCH, 65):
        x = rng.normal(0, 1, (count, 2, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(run.outputs(x), _logits(_exact(run.parameters()), x), atol=1e-5)


def _reference_sgd(p: dict[str, np.ndarray], learning: tuple[str, ...], spec: OptimizerSpec) -> dict[str, np.ndarray]:
    velocity = {name: np.zeros_like(p[name]) for name in learning}
    for seed in (1, 2, 3):
        x, labels = _batch(seed)
        gradient = _gradients({name: p[name] for name in p}, x, labels)
        for name in learning:
            velocity[name] = spec.momentum * velocity[name] + gradient[name] + spec.weight_decay * p[name]
            p[name] = p[name] - 0.1 * velocity[name]
    return p


@needs_runtime
@pytest.mark.parametrize("frozen", [0, 2, 4], ids=["all", "half", "head"])
def test_three_momentum_steps_match_the_reference_and_frozen_weights_stay_bit_identical(frozen: int) -> None:
    spec = OptimizerSpec("sgd", momentum=0.9, weight_decay=0.01)
    run = _start(frozen, spec)
    initial = run.parameters()
    for seed in (1, 2, 3):
        run.step(*_batch(seed), 0.1)
    expected = _reference_sgd(_exact(initial), run.trainable, spec)
    for name, value in run.parameters().items():
        if name in run.trainable:
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
        else:
            assert value.tobytes() == initial[name].tobytes()
    assert set(initial) - set(run.trainable) == {n for layer in _graph().layers()[:frozen] for n in layer.parameters}


@needs_runtime
def test_adamw_agrees_with_the_runtimes_own_kernel(tmp_path: Path) -> None:
    spec = OptimizerSpec("adamw", weight_decay=0.05)
    run = _start(2, spec)
    theirs = _RuntimeAdamW(run, spec, tmp_path)
    for seed in range(5):
        run.step(*_batch(seed), 0.01)
        theirs.step(*_batch(seed))
    after, reference = run.parameters(), theirs.checkpoint.parameters
    for name in run.trainable:
        np.testing.assert_allclose(after[name], reference[name].data, rtol=2e-4, atol=2e-6, err_msg=name)


class _RuntimeAdamW:
    """Module and Optimizer of the runtime as published, in its PyTorch mode (decay before the update)."""

    def __init__(self, run: TrainingRun, spec: OptimizerSpec, folder: Path) -> None:
        runtime, weights = library(), run.parameters()
        write_artifacts(_graph(), weights.keys(), run.trainable, folder)
        block = runtime.onnxblock.optim.AdamW(
            betas=(spec.beta1, spec.beta2), eps=spec.epsilon, weight_decay=spec.weight_decay
        )
        tensors = [onnx.numpy_helper.from_array(weights[name], name) for name in run.trainable]
        with runtime.onnxblock.empty_base(opset_version=17):
            block((tensors, []))
            model = block.to_model_proto()
        next(a for a in model.graph.node[0].attribute if a.name == "adam_mode").i = 0
        model.ir_version = 9
        onnx.save(model, folder / "optimizer.onnx")
        self.checkpoint = runtime.api.CheckpointState.load_checkpoint(folder / "checkpoint")
        self._module = runtime.api.Module(folder / "training_model.onnx", self.checkpoint, folder / "eval_model.onnx")
        self._optimizer = runtime.api.Optimizer(folder / "optimizer.onnx", self._module)
        self._optimizer.set_learning_rate(0.01)
        for name, value in weights.items():
            self.checkpoint.parameters[name] = value

    def step(self, x: Float32, labels: Int64) -> None:
        self._module(x, labels)
        self._optimizer.step()
        self._module.lazy_reset_grad()


@needs_runtime
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moving_the_boundary_keeps_weights_and_the_state_of_what_stays_trainable(kind: str) -> None:
    spec = OptimizerSpec(kind, weight_decay=0.01)
    run, still = _start(2, spec), _start(2, spec)
    for seed in (1, 2):
        run.step(*_batch(seed), 0.05)
        still.step(*_batch(seed), 0.05)
    run.set_frozen_layers(4)
    assert run.frozen_layers == 4
    assert run.trainable == ("w4", "b4")
    for name, value in still.parameters().items():
        assert run.parameters()[name].tobytes() == value.tobytes()
    # The head's gradients do not depend on where the boundary is, so it must go on exactly like the run that stayed.
    run.step(*_batch(3), 0.05)
    still.step(*_batch(3), 0.05)
    for name in ("w4", "b4"):
        np.testing.assert_allclose(run.parameters()[name], still.parameters()[name], rtol=1e-5, atol=1e-7)
        assert int(run.state()[f"updates/{name}"]) == 3


@needs_runtime
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_thawed_parameter_learns_like_one_that_starts(kind: str) -> None:
    spec = OptimizerSpec(kind)
    run = _start(4, spec)
    for seed in range(4):
        run.step(*_batch(seed), 0.01)
    run.set_frozen_layers(3)
    fresh = _start(3, spec, _graph().with_weights(run.parameters()))
    run.step(*_batch(9), 0.01)
    fresh.step(*_batch(9), 0.01)
    np.testing.assert_allclose(run.parameters()["w3"], fresh.parameters()["w3"], rtol=1e-6, atol=1e-8)
    assert not np.allclose(run.parameters()["w4"], fresh.parameters()["w4"], rtol=1e-6, atol=1e-8)


@needs_runtime
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_resumed_run_goes_on_bit_for_bit(kind: str) -> None:
    spec = OptimizerSpec(kind)
    run = _start(1, spec)
    run.step(*_batch(1), 0.02)
    resumed = _start(1, spec, _graph(seed=8))
    resumed.load_state(run.state())
    for seed in (2, 3):
        assert run.step(*_batch(seed), 0.02) == resumed.step(*_batch(seed), 0.02)
    first, second = run.state(), resumed.state()
    assert first.keys() == second.keys()
    assert all(first[key].tobytes() == second[key].tobytes() for key in first)


@needs_runtime
@pytest.mark.parametrize("broken", ["weight/w0", "momentum/w4", "updates/b4"])
def test_a_state_that_does_not_fit_changes_nothing(broken: str) -> None:
    run = _start(1)
    run.step(*_batch(1), 0.02)
    before = run.state()
    for replacement in ({}, {broken: np.zeros(99)}):
        kept = {key: value + 1 for key, value in before.items() if key != broken}
        with pytest.raises(EngineError, match=broken):
            run.load_state(kept | replacement)
    assert all(before[key].tobytes() == value.tobytes() for key, value in run.state().items())


@needs_runtime
def test_what_run_hands_out_are_copies() -> None:
    run = _start()
    run.parameters()["w0"][...] = 0
    run.state()["weight/w0"][...] = 0
    assert run.parameters()["w0"].any()


@needs_runtime
@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_beyond_the_classes_is_refused(label: int) -> None:
    x, labels = _batch()
    labels[2] = label
    with pytest.raises(EngineError, match=r"outside 0\.\.2"):
        _start().step(x, labels, 0.1)


@needs_runtime
def test_a_batch_of_another_shape_is_refused() -> None:
    x, labels = _batch()
    with pytest.raises(EngineError, match="does not fit"):
        _start().step(x[:-1], labels[:-1], 0.1)


@needs_runtime
@pytest.mark.parametrize("frozen", [-1, 5])
def test_a_boundary_that_leaves_nothing_to_learn_is_refused(frozen: int) -> None:
    with pytest.raises(ModelError, match="at least the last must learn"):
        _start(frozen)


@needs_runtime
def test_an_operator_it_cannot_train_is_refused_by_name_and_node() -> None:
    graph = _graph()
    nodes = tuple(replace(node, op="HardSwish") if node.name == "relu" else node for node in graph.nodes)
    with pytest.raises(ModelError, match="HardSwish") as caught:
        _start(graph=replace(graph, nodes=nodes))
    assert caught.value.where == "relu"


@needs_runtime
def test_no_file_holds_a_weight_and_none_is_left(tmp_path: Path) -> None:
    graph = _graph()
    names = [name for layer in graph.layers() for name in layer.parameters]
    write_artifacts(graph, names, names, tmp_path)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert written
    assert not [name for name in names if graph.initializers[name].tobytes() in written]
    run = _start()
    run.step(*_batch(), 0.1)
    assert not list(SHARED_MEMORY.glob("temperd-*/training_model.onnx"))
    run.close()
    with pytest.raises(EngineError, match="closed"):
        run.outputs(_batch()[0])


@needs_runtime
def test_a_batch_normalised_model_is_folded_first() -> None:
    weights = {
        "w": np.full((1, 1, 1, 1), 2, np.float32),
        "g": np.asarray([3], np.float32),
        "z": np.asarray([0.5], np.float32),
        "one": np.ones(1, np.float32),
        "h": np.asarray([[1.0], [-1.0]], np.float32),
        "k": np.zeros(2, np.float32),
    }
    nodes = (
        Node("Conv", ("x", "w"), ("c",), {"kernel_shape": [1, 1]}, "c"),
        Node("BatchNormalization", ("c", "g", "z", "one", "one"), ("n",), {"epsilon": 0.0}, "n"),
        Node("GlobalAveragePool", ("n",), ("p",), {}, "p"),
        Node("Flatten", ("p",), ("f",), {}, "f"),
        Node("Gemm", ("f", "h", "k"), ("y",), {"transB": 1}, "y"),
    )
    run = OrtTrainingEngine().start(
        TrainingSetup(Graph(nodes, weights, "x", (1, 2, 2), "y"), 1, (1, 2, 2), 0, threads=1)
    )
    value = 3 * (2 * 4.0 - 1) + 0.5
    np.testing.assert_allclose(run.outputs(np.full((1, 1, 2, 2), 4, np.float32)), [[value, -value]], rtol=1e-6)
