"""What every engine promises, on a small network; and the engines against each other on the real one."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from agent.engine.base import LossSpec, OptimizerSpec, TrainingEngine, TrainingSetup, UpdatePlan
from agent.engine.graph import GraphEngine
from agent.engine.ir import Graph, Node, parse
from agent.engine.passes import replace_head
from agent.errors import EngineError, ModelError
from tests.simulators.real_data import FLOWERS, MOBILENET
from tests.simulators.small_models import colour_images, mobile_block_net

HAS_ORT_TRAINING = importlib.util.find_spec("onnxruntime.training") is not None
OPTIMIZERS = (
    OptimizerSpec("sgd", momentum=0.9),
    OptimizerSpec("sgd", momentum=0.9, weight_decay=0.01),
    OptimizerSpec("sgd", momentum=0.0),
    OptimizerSpec("adamw", weight_decay=0.01),
)


def ort_training() -> TrainingEngine:
    from agent.engine.ort_training import OrtTrainingEngine  # noqa: PLC0415 - not on every machine

    return OrtTrainingEngine()


needs_ort_training = pytest.mark.skipif(not HAS_ORT_TRAINING, reason="needs onnxruntime-training")
ENGINES = [
    pytest.param(GraphEngine, id="graph"),
    pytest.param(ort_training, id="ort-training", marks=needs_ort_training),
]
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_optimizer = pytest.mark.parametrize(
    "optimizer", OPTIMIZERS, ids=lambda o: f"{o.kind}-{o.momentum}-{o.weight_decay}"
)


def batches(count: int, batch: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    pixels, labels = colour_images(count * batch, seed=3)
    inputs = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return [(inputs[i * batch : (i + 1) * batch], labels[i * batch : (i + 1) * batch]) for i in range(count)]


def setup(frozen: int, optimizer: OptimizerSpec = OPTIMIZERS[0], graph: Graph | None = None) -> TrainingSetup:
    net = graph or mobile_block_net()
    return TrainingSetup(net, 6, net.input_shape, frozen, optimizer, threads=1)


def numpy_update(spec: OptimizerSpec, w: np.ndarray, g: np.ndarray, state: dict, lr: float) -> np.ndarray:
    """The formulas of OptimizerSpec, in float64."""
    if spec.kind == "sgd":
        state["v"] = spec.momentum * state.get("v", 0) + g + spec.weight_decay * w
        return w - lr * state["v"]
    t = state["t"] = state.get("t", 0) + 1
    state["m"] = spec.beta1 * state.get("m", 0) + (1 - spec.beta1) * g
    state["s"] = spec.beta2 * state.get("s", 0) + (1 - spec.beta2) * g * g
    step = (state["m"] / (1 - spec.beta1**t)) / (np.sqrt(state["s"] / (1 - spec.beta2**t)) + spec.epsilon)
    return w * (1 - lr * spec.weight_decay) - lr * step


@each_engine
@each_optimizer
def test_head_only_follows_the_formulas(engine: type[TrainingEngine], optimizer: OptimizerSpec) -> None:
    """The head's gradient is known in closed form, so every update rule can be checked against NumPy."""
    net = mobile_block_net()
    run = engine().start(setup(7, optimizer, net))
    features = engine().start(setup(7, optimizer, net))  # features do not depend on the head
    w, b = (net.initializers[name].astype(np.float64) for name in ("head.w", "head.b"))
    states: tuple[dict, dict] = ({}, {})
    probe = replace(net, output="features", nodes=net.nodes[:-1])
    from agent.engine.infer import Inference  # noqa: PLC0415 - keeps onnxruntime out of collection

    for samples, labels in batches(5):
        f = Inference(probe, 1).run(samples).astype(np.float64)
        logits = f @ w.T + b
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        expected_loss = -np.log(p[np.arange(6), labels]).mean()
        p[np.arange(6), labels] -= 1
        dw, db = p.T @ f / 6, p.sum(axis=0) / 6
        assert run.step(samples, labels, 0.05).loss == pytest.approx(expected_loss, rel=1e-4)
        w, b = numpy_update(optimizer, w, dw, states[0], 0.05), numpy_update(optimizer, b, db, states[1], 0.05)
    np.testing.assert_allclose(run.parameters()["head.w"], w, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(run.parameters()["head.b"], b, rtol=1e-3, atol=1e-5)
    features.close()
    run.close()


@each_engine
@each_optimizer
@pytest.mark.parametrize("frozen", [0, 3, 7])
def test_frozen_weights_stay_bit_identical(engine: type[TrainingEngine], optimizer: OptimizerSpec, frozen: int) -> None:
    net = mobile_block_net()
    run = engine().start(setup(frozen, optimizer, net))
    for samples, labels in batches(3):
        run.step(samples, labels, 0.05)
    after = run.parameters()
    for layer in net.layers():
        for name in layer.parameters:
            same = np.array_equal(after[name], net.initializers[name])
            assert same == (layer.index < frozen), name
    run.close()


@each_engine
@pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[3]], ids=["sgd", "adamw"])
def test_moving_the_boundary_keeps_weights_and_optimizer_state(
    engine: type[TrainingEngine], optimizer: OptimizerSpec
) -> None:
    """Head-only steps give the same head whether or not the run passed through other boundaries between two steps."""
    straight, moved = (engine().start(setup(5, optimizer)) for _ in range(2))
    data = batches(6)
    for i, (samples, labels) in enumerate(data):
        straight.step(samples, labels, 0.05)
        moved.step(samples, labels, 0.05)
        if i == 2:
            moved.set_frozen_layers(2)
            assert moved.frozen_layers == 2
            moved.set_frozen_layers(5)
    for name, value in straight.parameters().items():
        np.testing.assert_allclose(moved.parameters()[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@each_engine
def test_going_deeper_freezes_what_was_learnt(engine: type[TrainingEngine]) -> None:
    run = engine().start(setup(0))
    data = batches(4)
    for samples, labels in data[:2]:
        run.step(samples, labels, 0.05)
    learnt = run.parameters()
    run.set_frozen_layers(4)
    for samples, labels in data[2:]:
        run.step(samples, labels, 0.05)
    after = run.parameters()
    for layer in mobile_block_net().layers():
        for name in layer.parameters:
            assert np.array_equal(after[name], learnt[name]) == (layer.index < 4), name


@each_engine
@pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[3]], ids=["sgd", "adamw"])
def test_saved_state_goes_on_as_if_never_stopped(engine: type[TrainingEngine], optimizer: OptimizerSpec) -> None:
    first = engine().start(setup(2, optimizer))
    data = batches(6)
    for samples, labels in data[:3]:
        first.step(samples, labels, 0.05)
    second = engine().start(setup(2, optimizer))
    second.load_state(first.state())
    for samples, labels in data[3:]:
        assert first.step(samples, labels, 0.05).loss == pytest.approx(
            second.step(samples, labels, 0.05).loss, rel=1e-5
        )
    for name, value in first.parameters().items():
        np.testing.assert_allclose(second.parameters()[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@each_engine
def test_logits_use_current_weights_for_any_count(engine: type[TrainingEngine]) -> None:
    run = engine().start(setup(3))
    (samples, labels), *_ = batches(1)
    before = run.outputs(samples[:1])
    run.step(samples, labels, 0.5)
    assert not np.allclose(run.outputs(samples[:1]), before)
    many = np.concatenate([samples] * 12)
    assert run.outputs(many).shape == (72, 3)
    np.testing.assert_allclose(run.outputs(many)[:6], run.outputs(samples), rtol=1e-4, atol=1e-5)


@each_engine
def test_bad_calls_are_refused(engine: type[TrainingEngine]) -> None:
    with pytest.raises(ModelError, match="cannot freeze 8 of 8 layers"):
        engine().start(setup(8))
    run = engine().start(setup(3))
    (samples, labels), *_ = batches(1)
    with pytest.raises(EngineError, match="does not fit"):
        run.step(samples[:2], labels[:2], 0.1)
    with pytest.raises(EngineError, match="does not fit this model"):
        run.load_state({"weight/other": np.zeros(3, np.float32)})
    run.step(samples, labels, 0.1)  # still usable


def mobilenet(frozen: int, optimizer: OptimizerSpec, batch: int) -> TrainingSetup:
    graph = replace_head(parse(MOBILENET.read_bytes()), 5, seed=1)
    return TrainingSetup(graph, batch, (3, 96, 96), frozen, optimizer, threads=2)


def photographs(count: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    with np.load(FLOWERS) as data:
        order = np.random.default_rng(0).permutation(len(data["y_train"]))
        pixels, labels = data["x_train"][order], data["y_train"][order].astype(np.int64)
    inputs = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    starts = [i * batch % (len(labels) - batch) for i in range(count)]
    return [(inputs[i : i + batch], labels[i : i + batch]) for i in starts]


needs_photographs = pytest.mark.skipif(not (MOBILENET.exists() and FLOWERS.exists()), reason="needs TEMPERD_TEST_DATA")


@needs_ort_training
@needs_photographs
@pytest.mark.parametrize(
    ("optimizer", "frozen", "rate"),
    [(OPTIMIZERS[0], 46, 1e-4), (OPTIMIZERS[3], 26, 3e-5)],
    ids=["sgd-momentum", "adamw"],
)
def test_both_engines_run_freely_alike_for_twenty_steps(optimizer: OptimizerSpec, frozen: int, rate: float) -> None:
    """Where training is not chaotic; docs/engines.md says why it is elsewhere."""
    ours, theirs = (engine.start(mobilenet(frozen, optimizer, 16)) for engine in (GraphEngine(), ort_training()))
    for samples, labels in photographs(20, 16):
        assert ours.step(samples, labels, rate).loss == pytest.approx(theirs.step(samples, labels, rate).loss, rel=1e-3)


@needs_ort_training
@needs_photographs
@pytest.mark.parametrize(
    ("optimizer", "rate"), [(OPTIMIZERS[0], 0.001), (OPTIMIZERS[3], 0.0003)], ids=["sgd-momentum", "adamw"]
)
def test_both_engines_agree_step_by_step_with_nothing_frozen(optimizer: OptimizerSpec, rate: float) -> None:
    """Twenty steps on the same batches; before each, both stand on the same weights and optimizer state."""
    ours, theirs = (engine.start(mobilenet(0, optimizer, 16)) for engine in (GraphEngine(), ort_training()))
    for samples, labels in photographs(20, 16):
        theirs.load_state(ours.state())
        assert ours.step(samples, labels, rate).loss == pytest.approx(theirs.step(samples, labels, rate).loss, rel=1e-3)
        mine, other = ours.parameters(), theirs.parameters()
        moved = max(float(np.abs(mine[name] - other[name]).max() / (np.abs(mine[name]).max() + 1e-6)) for name in mine)
        assert moved < (1e-3 if optimizer.kind == "sgd" else 5e-3)  # AdamW's first step is lr times the gradient's sign


@each_engine
def test_a_boundary_that_comes_back_sees_what_was_learnt_meanwhile(engine: type[TrainingEngine]) -> None:
    """Programs of other boundaries may be kept, but never with weights of another time."""
    run = engine().start(setup(4))
    data = batches(6)
    for frozen, (samples, labels) in zip((4, 0, 4, 2, 0, 4), data, strict=True):
        run.set_frozen_layers(frozen)
        assert run.step(samples, labels, 0.05).kept
    fresh = engine().start(setup(4, graph=mobile_block_net().with_weights(dict(run.parameters()))))
    samples, labels = data[0]
    np.testing.assert_array_equal(run.outputs(samples), fresh.outputs(samples))
    assert run.step(samples, labels, 0.0).loss == fresh.step(samples, labels, 0.0).loss
    run.close()
    fresh.close()


@each_engine
def test_the_boundary_can_be_crossed_in_two_steps(engine: type[TrainingEngine]) -> None:
    """What a cache does: keep what crosses, go on from it."""
    whole, halves = engine().start(setup(5)), engine().start(setup(5))
    for samples, labels in batches(3):
        crossed = halves.boundary(samples)
        assert [part.shape[1:] for part in crossed] == list(halves.boundary_shapes.values())
        np.testing.assert_array_equal(halves.outputs_from_boundary(crossed), halves.outputs(samples))
        assert halves.step_from_boundary(crossed, labels, 0.05) == whole.step(samples, labels, 0.05)
    whole.close()
    halves.close()


@each_engine
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_a_step_that_is_not_finite_changes_nothing(engine: type[TrainingEngine], bad: float) -> None:
    run = engine().start(setup(0))
    (samples, labels), (spoilt, _) = batches(2)
    run.step(samples, labels, 0.05)
    before = run.state()
    spoilt[0, 0, 0, 0] = bad
    made = run.step(spoilt, labels, 0.05)
    assert not made.kept
    after = run.state()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value, err_msg=key)
    assert run.step(samples, labels, 0.05).kept
    run.close()


@each_engine
def test_gradients_are_clipped_to_their_global_norm(engine: type[TrainingEngine]) -> None:
    samples, labels = batches(1)[0]
    free = engine().start(setup(0, OptimizerSpec("sgd", momentum=0.0)))
    norm = free.step(samples, labels, 0.0).gradient_norm
    bound = norm / 3
    clipped = engine().start(setup(0, OptimizerSpec("sgd", momentum=0.0, clip_norm=bound)))
    before = clipped.parameters()
    assert clipped.step(samples, labels, 1.0).gradient_norm == pytest.approx(norm, rel=1e-4)
    after = clipped.parameters()
    moved = np.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in before))
    assert moved == pytest.approx(bound, rel=1e-3)
    free.close()
    clipped.close()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.kind}-{o.momentum}-{o.weight_decay}")
def test_micro_batches_give_the_update_of_the_whole_batch(optimizer: OptimizerSpec) -> None:
    whole = GraphEngine().start(replace(setup(0, optimizer), micro_batch=6))
    parts = GraphEngine().start(replace(setup(0, optimizer), micro_batch=2))
    for samples, labels in batches(3):
        one, three = whole.step(samples, labels, 0.01), parts.step(samples, labels, 0.01)
        assert three.loss == pytest.approx(one.loss, rel=1e-3)
    np.testing.assert_allclose(parts.outputs(samples), whole.outputs(samples), rtol=0.05, atol=0.02)
    with pytest.raises(EngineError, match="a micro-batch of 4 does not divide a batch of 6"):
        GraphEngine().start(replace(setup(0), micro_batch=4))


@pytest.mark.parametrize("frozen", [0, 4], ids=["all", "some-frozen"])
def test_a_smaller_micro_batch_for_a_while_changes_no_update(frozen: int) -> None:
    """Sums in another order differ in their last bits; a rate as in fine-tuning keeps that from growing."""
    steady, steered = (GraphEngine().start(setup(frozen)) for _ in range(2))
    usual, seen = steered.micro_batch, []
    for number, (samples, labels) in enumerate(batches(20)):
        if number in SHARES:
            steered.set_micro_batch_share(SHARES[number])
        seen.append(steered.micro_batch)
        one, other = steady.step(samples, labels, 1e-3), steered.step(samples, labels, 1e-3)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert usual == 6, "what follows needs a whole batch at once"
    assert seen == [6] * 4 + [3] * 4 + [1] * 4 + [3] * 4 + [6] * 4
    steady.close()
    steered.close()


SHARES = {4: 0.5, 8: 0.25, 12: 0.5, 16: 1.0}


def test_a_smaller_micro_batch_takes_less_memory_and_lasts_over_other_plans() -> None:
    run = GraphEngine().start(setup(0))
    live, samples = run.footprint.live, batches(1)[0]
    run.set_micro_batch_share(0.5)
    assert run.footprint.live <= 0.6 * live
    run.set_frozen_layers(4)
    assert run.micro_batch == 3
    run.set_micro_batch_share(0.125)
    assert run.micro_batch == 1, "one sample is the least"
    run.set_micro_batch_share(1.0)
    run.set_frozen_layers(0)
    assert (run.micro_batch, run.footprint.live) == (6, live)
    assert run.step(*samples, 0.01).kept
    run.close()


def test_a_micro_batch_that_cannot_be_compiled_leaves_the_run_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = GraphEngine().start(setup(0))
    samples, labels = batches(1)[0]
    with monkeypatch.context() as broken:
        broken.setattr("agent.engine.program.session", no_memory)
        with pytest.raises(EngineError, match="no memory"):
            run.set_micro_batch_share(0.5)
    assert run.micro_batch == 6
    assert run.step(samples, labels, 0.01).kept
    run.close()


def no_memory(*_: object) -> None:
    raise EngineError("no memory")


@needs_ort_training
def test_the_other_engine_takes_whole_batches_only() -> None:
    run = ort_training().start(setup(0))
    run.set_micro_batch_share(1.0)
    with pytest.raises(ModelError, match="whole batches only"):
        run.set_micro_batch_share(0.5)
    assert run.micro_batch == 6
    assert run.step(*batches(1)[0], 0.01).kept
    run.close()


@pytest.mark.parametrize("optimizer", [OPTIMIZERS[0], OPTIMIZERS[3]], ids=["sgd", "adamw"])
def test_a_sparse_plan_moves_what_learns_and_nothing_else(optimizer: OptimizerSpec) -> None:
    net = mobile_block_net()
    layers = net.layers()
    biases = frozenset(layer.bias for layer in layers[2:] if layer.bias)
    run = GraphEngine().start(setup(0, optimizer))
    run.set_plan(UpdatePlan(2, biases))
    assert set(run.trainable) == biases
    for samples, labels in batches(3):
        run.step(samples, labels, 0.05)
    after = run.parameters()
    for name, value in after.items():
        assert np.array_equal(value, net.initializers[name]) == (name not in biases), name
    with pytest.raises(ModelError, match="names a parameter that cannot learn"):
        run.set_plan(UpdatePlan(2, frozenset({layers[0].weight})))
    with pytest.raises(ModelError, match="lets nothing learn"):
        run.set_plan(UpdatePlan(2, frozenset()))
    assert set(run.trainable) == biases  # goes on as before
    assert run.step(samples, labels, 0.05).kept
    run.close()


def test_an_input_that_the_learning_part_reads_too_crosses_the_boundary() -> None:
    """A forecaster that adds to the last value it saw: the input skips the frozen layers."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((4, 4)),
        "b1": np.zeros(4),
        "w2": rng.standard_normal((4, 4)),
        "b2": np.zeros(4),
    }
    nodes = (
        Node("Gemm", ("x", "w1", "b1"), ("h",), {}, "first"),
        Node("Relu", ("h",), ("r",), {}, "relu"),
        Node("Gemm", ("r", "w2", "b2"), ("change",), {}, "second"),
        Node("Add", ("x", "change"), ("y",), {}, "add"),
    )
    net = Graph(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, "x", (4,), "y")
    frozen = TrainingSetup(net, 6, (4,), 1, threads=1, loss=LossSpec("mse"), micro_batch=3)
    run, whole = GraphEngine().start(frozen), GraphEngine().start(replace(frozen, frozen_layers=0))
    samples = rng.standard_normal((6, 4)).astype(np.float32)
    targets = rng.standard_normal((6, 4)).astype(np.float32)
    assert set(run.boundary_shapes) == {"x", "r"}
    np.testing.assert_allclose(run.outputs(samples), whole.outputs(samples), rtol=1e-5, atol=1e-6)
    expected = whole.step(samples, targets, 0.0).loss
    assert run.step(samples, targets, 0.0).loss == pytest.approx(expected, rel=1e-5)
    assert run.step_from_boundary(run.boundary(samples), targets, 0.0).loss == pytest.approx(expected, rel=1e-5)
