"""The last steps of a job: into a slot, on trial, tested as read back, and only then good."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path

import numpy as np

from agent.engine.base import Float32
from agent.engine.infer import Inference
from agent.engine.ir import parse
from agent.errors import EngineError, SealedFileError, SpecError
from agent.keys import load_identity
from agent.messages import Finished, Message, SelfTestOrder, SwitchOrder, Warned
from agent.slots import SlotView, read_status
from agent.store import Store
from agent.switch import WRONG_STATE, slot_of, stage, switch_back, switch_on

SELF_TEST = "self-test"
SELF_TEST_INPUTS = 4  # of no meaning: a model that answers them with numbers answers
SELF_TEST_TOLERANCE = 1e-3  # of the largest output: constants are folded in another order than in training


def settle(store: Store, job_id: str, warn: Callable[[str], None]) -> SlotView | None:
    """Clear what a crash left in the store.

    Args:
        store: the board's slots.
        job_id: the job that begins or goes on.
        warn: told what had to be mended.

    Returns:
        The active slot, when an earlier attempt of this very job had promoted its model: nothing is left to do.
    """
    for sentence in store.recover():
        warn(sentence)
    active = active_slot(store, warn)
    if active is None:
        return None
    if active.trial:  # nobody is left to judge it
        store.roll_back("interrupted trial")
        return None
    return active if active.manifest.get("job") == job_id else None


def active_slot(store: Store, warn: Callable[[str], None]) -> SlotView | None:
    """The active slot; a broken one is left for the one before it."""
    try:
        return store.active()
    except SealedFileError as error:
        warn(f"the active model is broken and no longer used: {error}")
        return _left(store, warn)


def load_active(store: Store, warn: Callable[[str], None]) -> tuple[bytes, dict[str, object]] | None:
    """The active model and its manifest; `None` when it does not verify, and it is active no longer."""
    try:
        return store.load_active()
    except SealedFileError as error:
        warn(f"the active model is broken and no longer used: {error}")
        _left(store, warn)
        return None


def _left(store: Store, warn: Callable[[str], None]) -> SlotView | None:
    try:
        return store.roll_back("broken slot")
    except SealedFileError as error:
        warn(f"the model before it is broken too: {error}")
        return None


def promote(
    store: Store,
    model: bytes,
    manifest: Mapping[str, object],
    samples: Float32,
    expected: Float32,
    threads: int,
    enter: Callable[[str], None],
    shared: Container[str] = (),
    *,
    hold: bool = False,
) -> tuple[str, str]:
    """Seal a tuned model into the free slot, activate it, and keep it only if it answers as it did in training.

    Args:
        store: the board's slots.
        model: the tuned model file.
        manifest: what is bound to it.
        samples: some inputs [M, ...].
        expected: their outputs by the run that trained it [M, ...].
        threads: intra-op threads.
        enter: called with the slot once it is staged, before it becomes active.
        shared: names of frozen weights to be kept once for both slots.
        hold: test it all the same, but leave it staged until somebody says so.

    Returns:
        The slot, and what was wrong: empty when the model stays, else the one before is active again, or still.
    """
    frozen = (value.tobytes() for name, value in parse(model).initializers.items() if name in shared) if shared else ()
    slot = store.stage(model, manifest, frozen)
    enter(slot)
    if hold:
        problem = _self_test(store.load(slot)[0], samples, expected, threads)
        if not problem:
            stage(store.folder, slot)
        return slot, problem
    store.activate(slot)
    try:
        problem = _self_test(store.load_active()[0], samples, expected, threads)
        if not problem:
            store.mark_good()
            return slot, ""
    except BaseException:
        store.roll_back("the self-test could not be finished")
        raise
    store.roll_back(problem)
    return slot, problem


def _self_test(model: bytes, samples: Float32, expected: Float32, threads: int) -> str:
    """What is wrong with a model that should answer as the run that trained it did; empty: nothing."""
    found = Inference(parse(model), threads).run(samples)
    worst = float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))
    return "" if worst <= SELF_TEST_TOLERANCE else f"self-test: outputs differ by {worst:.2g}"


def switch(order: SwitchOrder, emit: Callable[[Message], None]) -> Finished:
    """Carry out an order to make another model active.

    Raises:
        TemperdError: see `change_over`.
    """
    state = Path(order.state_dir)
    store = Store(state / "store", *load_identity(state / "keys").storage_keys)
    way = (order.before, order.after)
    slot = change_over(store, way, order.threads, lambda what: emit(Warned(what)), on=order.promotes)
    return Finished("SUCCEEDED", "", {"slot": slot})


def self_test(order: SelfTestOrder) -> Finished:
    """Whether the active model opens and answers with numbers; without a tuned model only the engine is there.

    Raises:
        SealedFileError, EngineError, ModelError: it does not.
        BoardError: the disk fails.
    """
    state = Path(order.state_dir)
    store = Store(state / "store", *load_identity(state / "keys").storage_keys)
    active = store.active()
    if active is not None:
        answers(store.load_active()[0], order.threads)
    return Finished("SUCCEEDED", "", {"model": active.plaintext_sha256 if active else ""})


def change_over(
    store: Store, way: tuple[str | None, str], threads: int, warn: Callable[[str], None], *, on: bool
) -> str:
    """Make another model active, once it was opened, is whole and answers. Done already, it is not done again.

    Args:
        store: the board's slots.
        way: hash of the model that is left, `None` for a broken one, and of the one that is to run; empty: the base.
        threads: intra-op threads.
        warn: told what had to be mended.
        on: to a staged model; else back to one that ran before.

    Returns:
        The slot that is active now; empty: none.

    Raises:
        SealedFileError, EngineError, ModelError: the model is bad; the active one is as it was.
        SpecError: `wrong-state`: another model is active than the one to be left. `no-such-slot`.
        BoardError: the disk fails.
    """
    for sentence in store.recover():
        warn(sentence)
    active = active_slot(store, warn)
    if active is not None and active.trial:
        active = store.roll_back("interrupted trial")
    before, after = way
    found = active.plaintext_sha256 if active else ""
    if found == after:
        return active.slot if active else ""
    if before is not None and found != before:
        raise SpecError("another model became active meanwhile", where=found[:16] or "base", reason=WRONG_STATE)
    folder, status = store.folder, read_status(store.folder)
    slot = slot_of(folder, after, (status.staged,) if on else (status.previous, status.left)) if after else ""
    if slot:
        answers(store.load(slot)[0], threads)
    if on:
        switch_on(folder, slot)
    else:
        switch_back(folder, slot, "by an operator")
    return slot


def answers(model: bytes, threads: int) -> None:
    """Try a model on inputs of its shape.

    Raises:
        EngineError, ModelError: it does not answer, or with what are no numbers (`self-test`).
    """
    graph = parse(model)
    inputs = np.random.default_rng(0).uniform(-1, 1, (SELF_TEST_INPUTS, *graph.input_shape)).astype(np.float32)
    if not np.isfinite(Inference(graph, threads).run(inputs)).all():
        raise EngineError("the model's outputs are not finite", reason=SELF_TEST)
