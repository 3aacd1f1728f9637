"""The last steps of a job: into a slot, on trial, tested as read back, and only then good."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

import numpy as np

from agent.engine.base import Float32
from agent.engine.infer import Inference
from agent.engine.ir import parse
from agent.errors import SealedFileError
from agent.slots import SlotView
from agent.store import Store

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

    Returns:
        The slot, and what was wrong: empty when the model stays, else the one before is active again.
    """
    frozen = (value.tobytes() for name, value in parse(model).initializers.items() if name in shared) if shared else ()
    slot = store.stage(model, manifest, frozen)
    enter(slot)
    store.activate(slot)
    try:
        file, _ = store.load_active()
        found = Inference(parse(file), threads).run(samples)
        worst = float(np.abs(expected - found).max() / max(1.0, float(np.abs(expected).max())))
        if worst <= SELF_TEST_TOLERANCE:
            store.mark_good()
            return slot, ""
    except BaseException:
        store.roll_back("the self-test could not be finished")
        raise
    problem = f"self-test: outputs differ by {worst:.2g}"
    store.roll_back(problem)
    return slot, problem
