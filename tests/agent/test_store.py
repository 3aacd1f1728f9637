from __future__ import annotations

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.errors import BoardError, SealedFileError, SpecError
from agent.slots import COPY, MAIN, read_active, read_manifest, read_status
from agent.store import Store
from tests.simulators.kill_matrix import CAME_THROUGH, KILLED, run_to

KEY = bytes(range(32))
MANIFEST = "manifest.json"
ONE, TWO, THREE = b"model one", b"model two" * 1000, b"model three"


def tuned(store: Store, model: bytes, manifest: dict[str, object] | None = None) -> str:
    slot = store.stage(model, manifest or {"n": 1})
    store.activate(slot)
    store.mark_good()
    return slot


def flip(path: Path, position: int = -1) -> None:
    body = bytearray(path.read_bytes())
    body[position] ^= 1
    path.write_bytes(body)


def spoil(folder: Path, body: bytes | None) -> None:
    """Both copies of the status."""
    for name in (MAIN, COPY):
        if body is None:
            (folder / "slots" / name).unlink(missing_ok=True)
        else:
            (folder / "slots" / name).write_bytes(body)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, KEY)


def test_a_life(store: Store, tmp_path: Path) -> None:
    assert store.recover() == ()
    assert store.active() is None
    with pytest.raises(BoardError) as nothing:
        store.load_active()
    assert nothing.value.code == "no-active-model"

    manifest: dict[str, object] = {"accuracy": 0.875, "labels": ["é", "b"], "deep": {"x": None}}
    assert store.stage(ONE, manifest) == "a"
    assert store.active() is None
    view = store.activate("a")
    assert (view.slot, view.trial, view.previous, view.manifest) == ("a", True, "", manifest)
    assert view.plaintext_sha256 == hashlib.sha256(ONE).hexdigest()
    store.mark_good()
    assert store.load_active() == (ONE, manifest)

    assert store.stage(TWO, {"n": 2}) == "b"
    assert store.load_active() == (ONE, manifest)
    store.activate("b")
    with pytest.raises(SpecError) as trial:
        store.stage(THREE, {})
    assert trial.value.code == "trial-open"
    back = store.roll_back("held-out accuracy fell" * 100)
    assert back is not None
    assert (back.slot, back.trial, back.previous) == ("a", False, "")
    assert store.load_active() == (ONE, manifest)
    assert len(read_status(tmp_path).rolled_back) == 300
    assert read_active(tmp_path) == store.active()
    assert Store(tmp_path, KEY).load_active() == (ONE, manifest)


def test_back_by_hand_from_a_good_model(store: Store) -> None:
    tuned(store, ONE)
    tuned(store, TWO, {"n": 2})
    assert store.roll_back("asked") is not None
    assert store.load_active()[0] == ONE
    assert store.roll_back("asked again") is None
    assert store.active() is None
    for deed in (store.mark_good, lambda: store.roll_back("once more")):
        with pytest.raises(SpecError) as caught:
            deed()
        assert caught.value.code == "no-active-model"


def test_staging_over_the_model_before_forgets_it_first(store: Store) -> None:
    tuned(store, ONE)
    tuned(store, TWO)
    assert store.stage(THREE, {}) == "a"
    assert store.roll_back("asked") is None


def test_nothing_readable_lies_on_the_disk(store: Store, tmp_path: Path) -> None:
    secret = random.Random(1).randbytes(5000)
    tuned(store, secret)
    store.seal_checkpoint("job", secret)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert secret[:32] not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["model.sealed", "manifest.json"])
def test_a_broken_slot_is_not_activated(store: Store, tmp_path: Path, name: str) -> None:
    tuned(store, ONE)
    slot = store.stage(TWO, {"n": 2})
    path = tmp_path / "slots" / slot / name
    for spoil in (lambda: flip(path), lambda: path.write_bytes(b""), path.unlink):
        spoil()
        with pytest.raises(SealedFileError):
            store.activate(slot)
        assert store.load_active()[0] == ONE
    for unusable in ("a", "c", ""):
        with pytest.raises(SpecError):
            store.activate(unusable)


def test_a_changed_manifest_does_not_open_the_model(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE, {"labels": ["good", "bad"]})
    path = tmp_path / "slots" / "a" / "manifest.json"
    path.write_text(path.read_text().replace('["good","bad"]', '["bad","good"]'))
    with pytest.raises(SealedFileError) as caught:
        store.load_active()
    assert caught.value.code == "sealed-tag"


def test_files_of_two_slots_cannot_be_mixed(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE, {"n": 1})
    store.stage(ONE, {"n": 2})
    shutil.copy(tmp_path / "slots" / "a" / "model.sealed", tmp_path / "slots" / "b" / "model.sealed")
    with pytest.raises(SealedFileError):
        store.activate("b")


def test_another_boards_key_opens_nothing(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    with pytest.raises(SealedFileError) as caught:
        Store(tmp_path, bytes(32)).load_active()
    assert caught.value.code == "sealed-tag"


def test_when_the_model_before_is_broken_too_nothing_is_active(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    store.activate(store.stage(TWO, {}))
    flip(tmp_path / "slots" / "a" / "model.sealed")
    with pytest.raises(SealedFileError):
        store.roll_back("worse")
    assert store.active() is None
    assert read_status(tmp_path).rolled_back == "worse"


@pytest.mark.parametrize("spoiled", [b"", b"{}", b"[]", b"\xff", b"x" * 5000, b'{"active":"b"}', None])
def test_a_corrupt_status_is_told_set_aside_and_rebuilt(store: Store, tmp_path: Path, spoiled: bytes | None) -> None:
    tuned(store, ONE)
    tuned(store, TWO, {"n": 2})
    spoil(tmp_path, spoiled)
    for deed in (store.active, store.load_active, store.mark_good, lambda: store.stage(ONE, {})):
        with pytest.raises(BoardError) as caught:
            deed()  # type: ignore[operator]
        assert caught.value.code == "status-corrupt"
    told = store.recover()
    assert "cannot be used" in told[0]
    assert "active is b" in told[1]
    assert store.load_active() == (TWO, {"n": 2})
    assert (tmp_path / "slots" / "status.corrupt").exists() == (spoiled is not None)
    assert store.recover() == ()
    assert store.roll_back("asked") is not None
    assert store.load_active()[0] == ONE


@pytest.mark.parametrize("name", [MAIN, COPY])
def test_every_flipped_bit_of_one_copy_of_the_status_changes_nothing(store: Store, tmp_path: Path, name: str) -> None:
    tuned(store, ONE)
    tuned(store, TWO)
    good, path = read_status(tmp_path), tmp_path / "slots" / name
    body = path.read_bytes()
    for position in range(len(body)):
        for bit in range(8):
            changed = bytearray(body)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            assert read_status(tmp_path) == good
        assert "mended" in store.recover()[1]
        assert path.read_bytes() == body
        assert store.recover() == ()


def test_every_flipped_bit_of_both_copies_of_the_status_is_seen(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    good = (tmp_path / "slots" / MAIN).read_bytes()
    (tmp_path / "slots" / COPY).write_bytes(b"{}")
    for position in range(len(good)):
        for bit in (0, 5):
            changed = bytearray(good)
            changed[position] ^= 1 << bit
            (tmp_path / "slots" / MAIN).write_bytes(changed)
            with pytest.raises(BoardError) as caught:
                read_status(tmp_path)
            assert caught.value.code == "status-corrupt"


@pytest.mark.parametrize("name", [MAIN, COPY])
def test_one_copy_of_the_status_is_enough(store: Store, tmp_path: Path, name: str) -> None:
    tuned(store, ONE)
    (tmp_path / "slots" / name).unlink()
    assert store.load_active()[0] == ONE
    store.recover()
    assert (tmp_path / "slots" / MAIN).read_bytes() == (tmp_path / "slots" / COPY).read_bytes()
    assert store.load_active()[0] == ONE


def test_a_copy_that_is_ahead_is_levelled_before_its_slot_is_written(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    before = (tmp_path / "slots" / MAIN).read_bytes()
    store.activate(store.stage(TWO, {}))
    (tmp_path / "slots" / MAIN).write_bytes(before)  # as if the power had gone between the two
    assert store.load_active()[0] == ONE
    store.stage(THREE, {})
    flip(tmp_path / "slots" / MAIN)
    assert store.load_active()[0] == ONE


def test_a_lost_status_never_brings_back_an_untried_or_left_model(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    store.activate(store.stage(TWO, {}))
    spoil(tmp_path, None)
    store.recover()
    assert store.load_active()[0] == ONE
    tuned(store, THREE)
    store.roll_back("asked")
    spoil(tmp_path, b"?")
    store.recover()
    assert store.load_active()[0] == ONE
    flip(tmp_path / "slots" / "a" / "model.sealed")
    spoil(tmp_path, b"?")
    assert "none" in store.recover()[1]
    assert store.active() is None


def test_a_lost_status_does_not_take_a_reused_slot_for_tried(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    tuned(store, TWO)
    store.activate(store.stage(THREE, {}))
    spoil(tmp_path, None)
    store.recover()
    assert store.load_active()[0] == TWO


def test_manifests_that_are_refused(store: Store) -> None:
    for manifest in ({"x": float("nan")}, {"x": object()}, {"x": "y" * (1 << 20)}):
        with pytest.raises(SpecError):
            store.stage(ONE, manifest)
    assert store.recover() == ()
    mixed = {10: "ten", 2: "two"}  # keys that sort otherwise once they are texts
    tuned(store, ONE, mixed)  # type: ignore[arg-type]
    assert store.load_active()[1] == {"10": "ten", "2": "two"}


def test_full_disk_keeps_the_active_model(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        for deed in (lambda: store.stage(bytes(10_000), {}), lambda: store.seal_checkpoint("job", bytes(10_000))):
            with pytest.raises(BoardError) as caught:
                deed()
            assert caught.value.code == "no-space"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.load_active()[0] == ONE
    assert store.open_checkpoint("job") is None
    assert not list(tmp_path.rglob("*.partial"))
    tuned(store, TWO)
    assert store.load_active()[0] == TWO


def test_checkpoints(store: Store, tmp_path: Path) -> None:
    assert store.open_checkpoint("job-1") is None
    store.seal_checkpoint("job-1", TWO)
    store.seal_checkpoint("job-1", THREE)
    assert store.open_checkpoint("job-1") == THREE
    path = tmp_path / "checkpoints" / "job-1.sealed"
    shutil.copy(path, tmp_path / "checkpoints" / "job-2.sealed")
    with pytest.raises(SealedFileError):
        store.open_checkpoint("job-2")
    body = path.read_bytes()
    for position in (0, 31, 32, 33, 80, len(body) - 1):
        changed = bytearray(body)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(SealedFileError):
            store.open_checkpoint("job-1")
    for length in (0, 10, 32, 60, len(body) - 1):
        path.write_bytes(body[:length])
        with pytest.raises(SealedFileError):
            store.open_checkpoint("job-1")
    store.drop_checkpoint("job-1")
    store.drop_checkpoint("job-1")
    assert store.open_checkpoint("job-1") is None
    with pytest.raises(SpecError):
        store.seal_checkpoint("../escape", b"")


GOOD_A = ["stage 1", "activate a", "mark good"]
GOOD_B = [*GOOD_A, "stage 2", "activate b", "mark good"]


@pytest.mark.parametrize(
    "story",
    [
        ["stage 1"],
        ["stage 1", "activate a"],
        GOOD_A,
        [*GOOD_A, "roll back"],
        [*GOOD_A, "stage 2"],
        [*GOOD_A, "stage 2", "activate b"],
        [*GOOD_A, "stage 2", "activate b", "roll back"],
        GOOD_B,
        [*GOOD_B, "stage 3"],
        [*GOOD_B, "roll back"],
        [*GOOD_B, "spoil", "recover"],
        [*GOOD_B, "back to a"],
        [*GOOD_B, "back to the base"],
        [*GOOD_B, "back to a", "back to b"],
        [*GOOD_B, "back to the base", "back to b"],
        [*GOOD_B, "back to a", "stage 3"],
        [*GOOD_B, "back to the base", "stage 3"],
        [*GOOD_A, "stage 2", "keep b"],
        [*GOOD_A, "stage 2", "keep b", "on to b"],
        [*GOOD_A, "stage 2", "keep b", "stage 3"],
    ],
    ids=lambda story: f"{len(story)} {story[-1]}",
)
def test_killed_before_each_file_operation(tmp_path: Path, story: list[str]) -> None:
    script = Path(__file__).with_name("crash_steps.py")
    subprocess.run([sys.executable, str(script), str(tmp_path), *story], check=True)
    ends = [tmp_path / "before", tmp_path / "after"]
    allowed = [seen(folder) for folder in ends if folder.exists()]
    crashed = [path for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert len(crashed) > 2
    for folder in crashed:
        store = Store(folder, KEY)
        told = store.recover()
        assert told == () or story[-1] == "recover"
        assert not list(folder.rglob("*.partial"))
        assert seen(folder) in allowed
        assert all(store.verifies(slot) for slot in read_status(folder).in_use())  # what could be asked for is whole
        carry_on(store)


def seen(folder: Path) -> tuple[str, bool, bytes] | None:
    """Slot, trial and model of the one active slot; a slot that is active must open."""
    store = Store(folder, KEY)
    store.recover()
    view = store.active()
    return None if view is None else (view.slot, view.trial, store.load_active()[0])


def carry_on(store: Store) -> None:
    view = store.active()
    if view and view.trial:
        store.mark_good()
    tuned(store, b"the next model")
    assert store.load_active()[0] == b"the next model"


def test_killed_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    script = Path(__file__).with_name("crash_steps.py")
    subprocess.run([sys.executable, str(script), str(tmp_path), "checkpoint 1", "checkpoint 2"], check=True)
    found = [Store(path, KEY).open_checkpoint("job") for path in tmp_path.iterdir() if path.name.isdecimal()]
    assert set(found) == {b"step one", b"step two"}
    assert Store(tmp_path / "after", KEY).open_checkpoint("job") == b"step two"


SHARED, OTHERS = random.Random(2).randbytes(5000), random.Random(3).randbytes(6000)


def named(folder: Path) -> set[str]:
    parts = [
        read_manifest(folder, slot).core.frozen for slot in ("a", "b") if (folder / "slots" / slot / MANIFEST).exists()
    ]
    return {part.sha256 for part in parts if part}


def blobs(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "frozen").glob("*.sealed")}


def test_slots_share_frozen_weights(store: Store, tmp_path: Path) -> None:
    one, two, three = (b"a" * n + SHARED + b"%d" % n for n in (1, 2, 3))
    for model in (one, two, three):
        slot = store.stage(model, {"n": 1}, [SHARED])
        view = store.activate(slot)
        assert view.plaintext_sha256 == hashlib.sha256(model).hexdigest()
        store.mark_good()
        assert store.load_active() == (model, {"n": 1})
        assert blobs(tmp_path) == named(tmp_path) == {hashlib.sha256(SHARED).hexdigest()}
        assert (tmp_path / "slots" / slot / "model.sealed").stat().st_size < 1000
    assert SHARED[:32] not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    store.stage(b"b" + OTHERS, {}, [OTHERS])
    assert blobs(tmp_path) == named(tmp_path)
    assert len(blobs(tmp_path)) == 2
    store.roll_back("asked")
    tuned(store, ONE)
    tuned(store, TWO)
    assert blobs(tmp_path) == set(), "nothing names them any more"


def test_frozen_weights_that_save_little_stay_in_the_slot(store: Store, tmp_path: Path) -> None:
    model = SHARED + bytes(3 * len(SHARED))
    store.activate(store.stage(model, {}, [SHARED]))
    assert store.load_active()[0] == model
    assert blobs(tmp_path) == set()
    table = json.loads((tmp_path / "slots" / "a" / MANIFEST).read_bytes())
    assert table["core"].keys() == {"manifest", "plaintext_length", "plaintext_sha256", "sequence"}, "as before deltas"


@pytest.mark.parametrize("gone", [False, True])
def test_a_slot_without_its_frozen_weights_is_left(store: Store, tmp_path: Path, *, gone: bool) -> None:
    tuned(store, ONE)
    store.activate(store.stage(b"a" + SHARED, {}, [SHARED]))
    path = next((tmp_path / "frozen").iterdir())
    if gone:
        path.unlink()
    else:
        flip(path)
    assert not store.verifies("b")
    with pytest.raises(SealedFileError):
        store.load_active()
    store.roll_back("broken slot")
    assert store.load_active()[0] == ONE
    store.activate(store.stage(b"b" + SHARED, {}, [SHARED]))
    assert store.load_active()[0] == b"b" + SHARED, "what is damaged is written anew"


def test_a_manifest_that_may_be_mended_keeps_its_frozen_weights(store: Store, tmp_path: Path) -> None:
    store.activate(store.stage(b"a" + SHARED, {}, [SHARED]))
    manifest = tmp_path / "slots" / "a" / MANIFEST
    whole = manifest.read_bytes()
    flip(manifest, 0)
    store.recover()
    manifest.write_bytes(whole)
    assert store.load_active()[0] == b"a" + SHARED


@pytest.mark.parametrize("change", [{"form": "whole"}, {"form": "other"}, {"frozen": None}, {"delta": None}])
def test_a_form_that_does_not_fit_its_parts_is_refused(store: Store, tmp_path: Path, change: dict[str, object]) -> None:
    store.stage(b"a" + SHARED, {}, [SHARED])
    path = tmp_path / "slots" / "a" / MANIFEST
    table = json.loads(path.read_bytes())
    table["core"] |= change
    path.write_text(json.dumps(table))
    with pytest.raises(SealedFileError) as caught:
        store.activate("a")
    assert caught.value.code == "slot-broken"


MODELS = st.tuples(st.binary(max_size=50), st.integers(0, 3))


def model_of(drawn: tuple[bytes, int]) -> bytes:
    """A model without frozen weights or with one of three kinds."""
    return drawn[0] + (b"", SHARED, OTHERS, SHARED + OTHERS)[drawn[1]]


class Slots(RuleBasedStateMachine):
    """Any order of operations, killed ones and flipped bits among them, against a model of four variables."""

    @initialize()
    def start(self) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.store = Store(Path(self.scratch.name), KEY)
        self.now: bytes | None = None
        self.before: bytes | None = None
        self.staged: tuple[str, bytes] | None = None
        self.trial = False

    @precondition(lambda self: not self.trial)
    @rule(drawn=MODELS)
    def stage(self, drawn: tuple[bytes, int]) -> None:
        model = model_of(drawn)
        self.staged = (self.store.stage(model, {}, [SHARED, OTHERS]), model)
        self.before = None

    @precondition(lambda self: not self.trial and self.staged)
    @rule()
    def activate(self) -> None:
        assert self.staged
        self.store.activate(self.staged[0])
        self.before, self.now, self.staged, self.trial = self.now, self.staged[1], None, True

    @precondition(lambda self: self.now is not None)
    @rule()
    def mark_good(self) -> None:
        self.store.mark_good()
        self.trial = False

    @precondition(lambda self: self.now is not None)
    @rule()
    def roll_back(self) -> None:
        self.store.roll_back("worse")
        self.now, self.before, self.trial = self.before, None, False
        self.staged = None

    @rule()
    def restart(self) -> None:
        self.store = Store(Path(self.scratch.name), KEY)
        assert self.store.recover() == ()

    @rule(name=st.sampled_from([MAIN, COPY]), place=st.integers(0, 2000))
    def flip_a_bit_of_one_copy_of_the_status(self, name: str, place: int) -> None:
        path = Path(self.scratch.name) / "slots" / name
        if path.exists():
            body = bytearray(path.read_bytes())
            body[place // 8 % len(body)] ^= 1 << place % 8
            path.write_bytes(body)
            self.exactly_one_or_none()
            assert self.store.recover() != ()

    @rule(step=st.integers(1, 30), drawn=MODELS, good=st.booleans())
    def killed_at_any_step(self, step: int, drawn: tuple[bytes, int], *, good: bool) -> None:
        """What a job does next: judge the trial, or stage and activate; the power goes at one of its steps."""
        folder, before = Path(self.scratch.name), (self.now, self.trial)
        trial, model = self.trial, model_of(drawn)

        def flow(folder: Path) -> None:
            store = Store(folder, KEY)
            if not trial:
                store.activate(store.stage(model, {}, [SHARED, OTHERS]))
            elif good:
                store.mark_good()
            else:
                store.roll_back("worse")

        if not trial:
            after: tuple[bytes | None, bool] = (model, True)
            into = self.now
        else:
            after = (self.now, False) if good else (self.before, False)
            into = self.before if good else None
        assert run_to(folder, flow, step).code in (KILLED, CAME_THROUGH)
        self.store = Store(folder, KEY)
        assert self.store.recover() == ()
        view, status = self.store.active(), read_status(folder)
        found = (self.store.load_active()[0] if view else None, view is not None and view.trial)
        assert found in (before, after)
        if found == after:
            self.before = into
        self.now, self.trial = found
        self.staged = None
        if not status.previous:
            assert not trial or self.before is None or found == after, "a trial keeps what it may go back to"
            self.before = None

    @invariant()
    def exactly_one_or_none(self) -> None:
        view = self.store.active()
        assert named(Path(self.scratch.name)) == blobs(Path(self.scratch.name))
        assert (view is None) == (self.now is None)
        if view:
            assert self.store.load_active()[0] == self.now
            assert view.trial == self.trial

    def teardown(self) -> None:
        self.scratch.cleanup()


Slots.TestCase.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
test_any_order_of_operations = Slots.TestCase


def test_status_is_plain_json(store: Store, tmp_path: Path) -> None:
    tuned(store, ONE)
    table = json.loads((tmp_path / "slots" / "status.json").read_text())
    assert {key: table[key] for key in ("active", "previous", "trial")} == {
        "active": "a",
        "previous": "",
        "trial": False,
    }
