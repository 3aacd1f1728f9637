"""Every copy of a frozen weight in memory: a bit is flipped in it as RAM would, and the guard must say so."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from agent.card import Preprocess
from agent.classification import Classification
from agent.engine import choose_engine, quantize
from agent.engine.base import Float32, LossSpec, OptimizerSpec, TrainingRun, TrainingSetup, UpdatePlan
from agent.engine.graph import GraphRun
from agent.engine.ir import Graph, parse, serialize
from agent.errors import EngineError
from agent.frozen_guard import PIECE_BYTES, PROBE_SAMPLES, FrozenGuard, digests, kept
from agent.images import Images
from agent.model import BaseModel, with_head
from tests.simulators.memory_faults import find, flip
from tests.simulators.small_models import CLASSES, colour_images, mobile_block_net
from tests.simulators.wide_net import wide_net

HAS_ORT_TRAINING = importlib.util.find_spec("onnxruntime.training") is not None
ENGINES = ["graph", pytest.param("ort-training", marks=pytest.mark.skipif(not HAS_ORT_TRAINING, reason="needs it"))]
BATCH, EVERY_S, SIZE = 4, 300.0, 48
TILED = 128  # pixels from which tiles of rows save memory
SOME_FLOATS = 8  # outputs of one input channel lie side by side in the runtime's order, 8 or 16 of them
EXPONENT_BIT = 30
ME = os.getpid()


def task(size: int, samples: int = 40) -> Classification:
    pixels, labels = colour_images(samples + 8, size=size)
    parts = Images(pixels[:samples], labels[:samples], pixels[samples:], labels[samples:], ("red", "green", "blue"))
    return Classification(parts, Preprocess(1 / 127.5, -1.0), LossSpec())


class Watch:
    """A clock that moves when told to."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


def run_of(graph: Graph, frozen: int, engine: str = "graph", learning: frozenset[str] | None = None) -> TrainingRun:
    setup = TrainingSetup(graph, BATCH, graph.input_shape, frozen, OptimizerSpec(), threads=1, learning=learning)
    return choose_engine(engine).start(setup)


def guard_of(run: TrainingRun, graph: Graph, clock: Watch | None = None) -> FrozenGuard:
    return FrozenGuard(run, task(graph.input_shape[1]), clock or Watch(), EVERY_S)


def learn(run: TrainingRun, graph: Graph, steps: int = 2) -> None:
    data = task(graph.input_shape[1])
    for step in range(steps):
        chosen = np.arange(step * BATCH, (step + 1) * BATCH)
        assert run.step(data.inputs(chosen), data.targets(chosen), 0.01).kept


def where(verify: Callable[[], None]) -> str:
    """The value that a verification blames."""
    with pytest.raises(EngineError, match="frozen weights changed in memory") as caught:
        verify()
    assert caught.value.code == "memory-corrupt"
    assert "test the board's memory" in caught.value.fix
    return caught.value.where


def flipped(value: np.ndarray, index: int = -1, bit: int = 2) -> None:
    """Flip a bit where the array lies; RAM does not ask whether it may be written."""
    ctypes.c_uint8.from_address(value.ctypes.data + index % value.nbytes).value ^= 1 << bit


# --- what can be hashed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_each_single_value_that_does_not_learn_is_hashed(engine: str) -> None:
    net = parse(serialize(mobile_block_net()))
    run = run_of(net, 5, engine)
    guard = guard_of(run, net)
    learn(run, net)
    guard.verify()
    frozen = run.frozen_memory()
    assert frozen.keys() == net.initializers.keys() - set(run.trainable)
    for name, value in frozen.items():
        flipped(value)
        assert where(guard.verify) == name
        flipped(value)
        guard.verify()


@pytest.mark.skipif(not HAS_ORT_TRAINING, reason="needs onnxruntime-training")
def test_the_training_runtime_reads_the_values_that_are_hashed() -> None:
    """Why nothing more has to be asked of this engine."""
    net = mobile_block_net()
    run = run_of(net, 5, "ort-training")
    inputs = task(net.input_shape[1]).inputs(np.arange(BATCH))
    before = run.outputs(inputs)
    weight = run.frozen_memory()["expand.w"]
    weight.reshape(-1)[:] *= -1
    assert not np.array_equal(run.outputs(inputs), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_learns_may_change(engine: str) -> None:
    net = mobile_block_net()
    run = run_of(net, 5, engine)
    guard = guard_of(run, net)
    before = run.parameters()["head.w"]
    learn(run, net)
    assert not np.array_equal(run.parameters()["head.w"], before)
    guard.verify()


def test_a_run_that_took_other_weights_than_were_unsealed_does_not_begin() -> None:
    net = mobile_block_net()
    unsealed = digests(net.initializers)
    data = task(net.input_shape[1])
    assert FrozenGuard(run_of(net, 5), data, Watch(), EVERY_S, unsealed).never_learn >= {"stem.w", "expand.b", "six"}
    flipped(net.initializers["project.w"])
    run = run_of(net, 5)
    assert where(lambda: FrozenGuard(run, data, Watch(), EVERY_S, unsealed) and None) == "project.w"


def test_a_head_that_was_replaced_is_not_compared_with_the_base() -> None:
    """Even where it does not learn: a plan may name single tensors."""
    net = mobile_block_net(classes=5)
    unsealed = digests(net.initializers)
    graph, _ = with_head(BaseModel(net, None), "replace", ("red", "green", "blue"), 0)  # type: ignore[arg-type]
    still = kept(net.initializers, graph.initializers, unsealed)
    assert net.initializers.keys() - still.keys() == {"head.w", "head.b"}
    run = run_of(graph, 5, learning=frozenset({"project2.b", "head.b"}))
    FrozenGuard(run, task(net.input_shape[1]), Watch(), EVERY_S, still).verify()


# --- the runtime's own copies -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide() -> Iterator[tuple[Graph, GraphRun, FrozenGuard]]:
    net = wide_net(size=SIZE, classes=CLASSES)
    run = run_of(net, 9)
    assert isinstance(run, GraphRun)
    yield net, run, guard_of(run, net)
    run.close()


def places_that_count(run: TrainingRun, packed: bytes, samples: Float32) -> list[int]:
    """Where a pattern lies in this process so that the run reads it: memory that was given back may hold it, too."""
    found, before = [], run.boundary(samples)[0]
    this = id(packed) + bytes.__basicsize__ - 1  # where the pattern itself lies
    for place in find(ME, packed):
        if place != this and flip(ME, place, packed, EXPONENT_BIT):
            if not np.array_equal(run.boundary(samples)[0], before):
                found.append(place)
            assert unflip(place, packed)
    return found


def unflip(place: int, packed: bytes) -> bool:
    now = bytearray(packed)
    now[EXPONENT_BIT // 8] ^= 1 << EXPONENT_BIT % 8
    return flip(ME, place, bytes(now), EXPONENT_BIT)


@pytest.mark.parametrize("layer", ["pw1", "pw2", "pw3"])
def test_a_flip_in_a_packed_copy_is_found_by_asking(wide: tuple[Graph, GraphRun, FrozenGuard], layer: str) -> None:
    _, run, guard = wide
    guard.verify()
    weight = run.frozen_memory()[f"{layer}.w"]
    packed = np.ascontiguousarray(weight[:SOME_FLOATS, 0, 0, 0]).tobytes()
    places = places_that_count(run, packed, task(SIZE).inputs(np.arange(BATCH)))
    if not places:
        pytest.skip("this runtime packs convolutions in another order")
    for place in places:
        assert flip(ME, place, packed, EXPONENT_BIT)
        assert where(guard.verify) == "copies packed by the runtime"
        assert unflip(place, packed)
        guard.verify()


def test_the_weights_and_the_packed_copy_are_two(wide: tuple[Graph, GraphRun, FrozenGuard]) -> None:
    """Why hashing is not enough: the run goes on computing with a copy that nothing can read."""
    _, run, guard = wide
    samples = task(SIZE).inputs(np.arange(BATCH))
    before = run.boundary(samples)[0]
    weight = run.frozen_memory()["pw3.w"]
    flipped(weight, 3, 6)
    same = np.array_equal(run.boundary(samples)[0], before)
    assert where(guard.verify) == "pw3.w"
    flipped(weight, 3, 6)
    if not same:
        pytest.skip("this runtime reads the weights where they lie")


def test_copies_made_anew_are_sound_and_give_the_same_answers() -> None:
    """What a probe did not see, because no answer changed, is gone as well."""
    net = wide_net(size=SIZE, classes=CLASSES)
    run = run_of(net, 9)
    guard = guard_of(run, net)
    samples = task(SIZE).inputs(np.arange(BATCH))
    before = run.boundary(samples)[0]
    packed = np.ascontiguousarray(run.frozen_memory()["pw2.w"][:SOME_FLOATS, 0, 0, 0]).tobytes()
    places = places_that_count(run, packed, samples)
    form = run.form
    guard.verify_and_renew()
    assert run.form != form
    np.testing.assert_array_equal(run.boundary(samples)[0], before)
    if not places:
        pytest.skip("this runtime packs convolutions in another order")
    assert flip(ME, places_that_count(run, packed, samples)[0], packed, EXPONENT_BIT)
    assert not np.array_equal(run.boundary(samples)[0], before)
    run.renew()
    np.testing.assert_array_equal(run.boundary(samples)[0], before)


def test_a_form_whose_source_was_damaged_is_not_taken_for_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 8-bit form is compiled anew from a graph in memory that no hash covers: its answers must be the old ones."""
    keep_int8(monkeypatch)
    net = wide_net(size=SIZE, classes=CLASSES)
    run, data = run_of(net, 9), task(SIZE)
    guard = guard_of(run, net)
    assert run.use_int8(data.inputs(np.arange(16)), data.inputs(np.arange(16, 24)), lambda _: 1.0).keep
    guard.verify_and_renew()
    assert isinstance(run, GraphRun)
    integer = run._running.prefix._integer
    assert integer is not None
    weight = max(integer.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = bytes(byte ^ 64 for byte in weight.raw_data)
    assert where(guard.verify_and_renew) == "copies packed by the runtime"


def keep_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the 8-bit form win its trial, as it does on some processors."""
    monkeypatch.setattr(
        quantize, "median_seconds", lambda runs, **_: {name: 1.0 if name == "int8" else 2.0 for name in runs}
    )


@pytest.mark.parametrize("form", ["float32", "slices", "int8"])
def test_answers_stay_the_same_while_a_form_runs(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """To the bit, whatever is learnt and whatever else the sessions ran meanwhile."""
    keep_int8(monkeypatch)
    net = wide_net(size=TILED, classes=CLASSES)
    run, data = run_of(net, 9), task(TILED)
    guard = guard_of(run, net)
    first = run.form
    if form == "int8":
        assert run.use_int8(data.inputs(np.arange(16)), data.inputs(np.arange(16, 24)), lambda _: 1.0).keep
    if form == "slices":
        assert run.use_slices(np.inf).keep
    assert (run.form == first) == (form == "float32")
    guard.verify()
    for step in range(4):
        learn(run, net, 1)
        run.outputs(data.test_inputs(0, 1 + step))
        guard.verify()
    run.use_float32()
    assert run.form != first
    guard.verify()


def test_constants_among_what_learns_are_asked_too() -> None:
    """A plan that learns biases packs the weights around them into the sessions of steps and of evaluations."""
    net = wide_net(size=SIZE, classes=CLASSES)
    learning = frozenset(name for name in net.initializers if name.endswith(".b") or name == "head.w")
    run = run_of(net, 0, learning=learning)
    data = task(SIZE)
    samples = data.inputs(np.arange(run.probe_samples + 1))
    guard = guard_of(run, net)
    answer = run.probe(samples)
    learn(run, net, 3)
    guard.verify()
    assert run.probe(samples) == answer, "what was learnt has no part in it"
    changed = {name: value.copy() for name, value in net.initializers.items()}
    flipped(changed["pw2.w"], 3, 6)
    other = run_of(replace(net, initializers=changed), 0, learning=learning)
    assert run_of(net, 0, learning=learning).probe(samples) == answer
    assert other.probe(samples) != answer


def test_a_probe_leaves_training_as_it_was() -> None:
    """It uses the buffers of steps, so a run with probes between steps must end like one without."""
    net = wide_net(size=SIZE, classes=CLASSES)
    biases = frozenset(name for name in net.initializers if name.startswith(("pw", "head")) and name.endswith(".b"))
    for frozen, learning in ((5, None), (2, biases)):
        runs = [run_of(net, frozen, learning=learning) for _ in range(2)]
        for step in range(4):
            for run in runs:
                learn(run, net, 1)
            runs[1].probe(task(SIZE).inputs(np.arange(1 + step)))
        for name, value in runs[0].state().items():
            np.testing.assert_array_equal(value, runs[1].state()[name], err_msg=name)


def test_a_run_with_nothing_frozen_has_nothing_to_answer() -> None:
    net = mobile_block_net()
    run = run_of(net, 0)
    assert run.probe(task(net.input_shape[1]).inputs(np.arange(1))) == b""
    guard_of(run, net).verify()


# --- plans that move --------------------------------------------------------------------------------------------------


def test_what_learnt_before_it_froze_is_known_from_then_on() -> None:
    net = mobile_block_net()
    run = run_of(net, 2)
    guard = guard_of(run, net)
    learn(run, net)
    guard.verify()
    run.set_plan(UpdatePlan(6))
    guard.take()
    guard.verify()
    learn(run, net)
    guard.verify()
    for name in ("stem.w", "project.w"):
        flipped(run.frozen_memory()[name])
        assert where(guard.verify) == name
        flipped(run.frozen_memory()[name])


def test_a_flip_just_before_the_boundary_moves_is_not_taken_for_the_truth() -> None:
    net = mobile_block_net()
    run = run_of(net, 2)
    guard = guard_of(run, net)
    flipped(run.frozen_memory()["stem.w"])
    run.set_plan(UpdatePlan(6))
    guard.take()
    assert where(guard.verify) == "stem.w"


def test_sessions_that_waited_are_asked_what_they_were_asked_before(wide: tuple[Graph, GraphRun, FrozenGuard]) -> None:
    _, run, guard = wide
    weight = run.frozen_memory()["pw2.w"]
    packed = np.ascontiguousarray(weight[:SOME_FLOATS, 0, 0, 0]).tobytes()
    places = places_that_count(run, packed, task(SIZE).inputs(np.arange(BATCH)))
    if not places:
        pytest.skip("this runtime packs convolutions in another order")
    form = run.form
    guard.verify()
    run.set_plan(UpdatePlan(3))
    guard.take()
    guard.verify()
    assert run.form != form
    for place in places:
        assert flip(ME, place, packed, EXPONENT_BIT)
    run.set_plan(UpdatePlan(9))
    guard.take()
    assert run.form == form
    assert where(guard.verify) == "copies packed by the runtime"
    for place in places:
        assert unflip(place, packed)
    guard.verify()


# --- pieces -----------------------------------------------------------------------------------------------------------


def test_a_round_begins_when_it_is_due_and_goes_on_piece_by_piece() -> None:
    net = wide_net(size=SIZE, classes=CLASSES)
    run, clock = run_of(net, 9), Watch()
    guard = guard_of(run, net, clock)
    weight = run.frozen_memory()["pw3.w"]
    flipped(weight)
    clock.now += EVERY_S - 0.001
    guard.advance()
    clock.now += 0.001
    assert where(lambda: [guard.advance() for _ in range(100)] and None) == "pw3.w"
    flipped(weight)
    guard.verify()
    asked = counted_probes(run)
    clock.now += EVERY_S
    hashed = sum(value.nbytes for value in run.frozen_memory().values())
    pieces = 0
    while guard._round is not None or not pieces:
        guard.advance()
        pieces += 1
    assert pieces >= hashed // PIECE_BYTES + PROBE_SAMPLES // BATCH
    assert asked == [BATCH] * (PROBE_SAMPLES // BATCH)
    guard.advance()
    assert guard._round is None, "the next round is due in five minutes"


def counted_probes(run: TrainingRun) -> list[int]:
    """Notes how many samples each probe has from now on."""
    sizes: list[int] = []
    probe = run.probe

    def counted(samples: Float32) -> bytes:
        sizes.append(len(samples))
        return probe(samples)

    run.probe = counted  # type: ignore[method-assign]
    return sizes


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_finished_model_has_the_frozen_weights_of_its_base() -> None:
    net = mobile_block_net()
    run = run_of(net, 5)
    guard = guard_of(run, net)
    learn(run, net)
    made = net.with_weights(dict(run.parameters()))
    values = dict(parse(serialize(made)).initializers)
    guard.check(values)
    values["expand.w"] = values["expand.w"].copy()
    flipped(values["expand.w"])
    assert where(lambda: guard.check(values)) == "expand.w"


def test_a_fingerprint_is_that_of_one_base() -> None:
    net, data = mobile_block_net(), task(12)

    def fingerprint(graph: Graph, frozen: int) -> bytes:
        return FrozenGuard(run_of(graph, frozen), data, Watch(), EVERY_S).fingerprint().tobytes()

    first = fingerprint(net, 5)
    assert fingerprint(mobile_block_net(), 5) == first
    changed = mobile_block_net()
    flipped(changed.initializers["stem.b"])
    assert len({first, fingerprint(changed, 5), fingerprint(net, 4), fingerprint(mobile_block_net(seed=1), 5)}) == 4
