"""A disk that is full, broken or read-only, at every step of what the store does (fault 40): no good model is lost."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from agent.errors import BoardError
from agent.slots import read_status
from agent.store import Store
from tests.simulators.kill_matrix import fault_matrix

pytestmark = pytest.mark.once

KEY = bytes(range(32))
FROZEN, OTHER = bytes(range(256)) * 20, bytes(range(255)) * 20
ONE, TWO = b"one" * 400 + FROZEN + b"of models", b"two" * 500 + OTHER + b"of models"
OLD, NEW = b"checkpoint one" * 100, b"checkpoint two" * 100
CODES = {errno.ENOSPC: "no-space", errno.EIO: "disk", errno.EROFS: "disk"}


class Sharing(Store):
    """Keeps the frozen weights of its models once."""

    def stage(self, model: bytes, manifest: Mapping[str, object], frozen: Iterable[bytes] = (FROZEN, OTHER)) -> str:
        return super().stage(model, manifest, frozen)


FORMS = {"whole": Store, "delta": Sharing}


def good(store: Store) -> None:
    store.activate(store.stage(ONE, {}))
    store.mark_good()
    store.seal_checkpoint("job", OLD)


def staged(store: Store) -> None:
    good(store)
    store.stage(TWO, {})


def on_trial(store: Store) -> None:
    staged(store)
    store.activate("b")


def two_good(store: Store) -> None:
    on_trial(store)
    store.mark_good()


STEPS: dict[str, tuple[Callable[[Store], None], Callable[[Store], object], tuple[bytes, ...]]] = {
    "stage": (good, lambda store: store.stage(TWO, {}), (ONE,)),
    "stage over the one before": (two_good, lambda store: store.stage(ONE, {}), (TWO,)),
    "activate": (staged, lambda store: store.activate("b"), (ONE, TWO)),
    "mark good": (on_trial, lambda store: store.mark_good(), (TWO,)),
    "roll back": (two_good, lambda store: store.roll_back("worse"), (ONE, TWO)),
    "checkpoint": (good, lambda store: store.seal_checkpoint("job", NEW), (ONE,)),
    "recover": (two_good, lambda store: store.recover(), (TWO,)),
}


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STEPS)
def test_a_disk_that_fails_at_any_step_loses_no_good_model(
    tmp_path: Path, name: str, form: str, error: int, *, lasting: bool
) -> None:
    prepare, deed, allowed = STEPS[name]
    prepared = tmp_path / "prepared"
    prepare(FORMS[form](prepared, KEY))
    assert (prepared / "frozen").exists() == (form == "delta")
    if name == "recover":
        (prepared / "slots" / "status.json").write_bytes(b"?")

    def flow(folder: Path) -> None:
        store = FORMS[form](folder, KEY)
        try:
            deed(store)
        except BoardError as problem:
            if problem.code != CODES[error] or not problem.where:
                raise AssertionError(f"{problem.code} at {problem.where!r}") from problem
            raise

    def check(folder: Path) -> None:
        before = Store(folder, KEY).load_active()[0]
        assert before in allowed, "nobody has to clear up before the model runs"
        store = Store(folder, KEY)
        assert store.recover() == () or name == "recover"
        assert store.load_active()[0] == before
        assert store.open_checkpoint("job") in ((OLD, NEW) if name == "checkpoint" else (OLD,))
        assert not list(folder.rglob("*.partial"))
        status = read_status(folder)
        assert not status.previous or store.verifies(status.previous)
        if status.trial:
            store.roll_back("interrupted trial")
        store.activate(store.stage(b"the next model", {}))
        store.mark_good()
        assert store.load_active()[0] == b"the next model"

    assert fault_matrix(prepared, tmp_path / "cells", flow, check, error, lasting) >= 4
