"""Two storage keys are live: what the previous one sealed opens, and is sealed again before it goes."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest

from agent.errors import SealedFileError
from agent.keys_storage import unseal_with_any
from agent.sealed import Binding, seal
from agent.store import Store

OLD, NEW = b"o" * 32, b"n" * 32
MODEL, BEFORE = b"model " * 300_000, b"the model before"  # two segments and one


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A state with two good slots and a checkpoint under the old key."""
    store = Store(tmp_path, OLD)
    for model in (BEFORE, MODEL):
        store.activate(store.stage(model, {"name": "parts"}))
        store.mark_good()
    store.seal_checkpoint("job-1", b"weights and moments")
    return tmp_path


def test_the_previous_key_opens_and_the_current_one_seals(kept: Path) -> None:
    store = Store(kept, NEW, OLD)
    assert store.load_active()[0] == MODEL
    assert store.open_checkpoint("job-1") == b"weights and moments"
    store.activate(store.stage(b"newer", {}))
    store.seal_checkpoint("job-2", b"more")
    alone = Store(kept, NEW)
    assert alone.load_active()[0] == b"newer"
    assert alone.open_checkpoint("job-2") == b"more"
    with pytest.raises(SealedFileError):
        alone.open_checkpoint("job-1")


def test_everything_is_sealed_again_once(kept: Path) -> None:
    both = Store(kept, NEW, OLD)
    status = (kept / "slots" / "status.json").read_bytes()
    assert both.reseal() == ("slot a", "slot b", "checkpoint job-1")
    assert both.reseal() == ()
    assert (kept / "slots" / "status.json").read_bytes() == status
    alone = Store(kept, NEW)
    assert alone.load_active() == (MODEL, {"name": "parts"})
    assert alone.open_checkpoint("job-1") == b"weights and moments"
    alone.roll_back("wanted")
    assert alone.load_active()[0] == BEFORE
    with pytest.raises(SealedFileError):
        Store(kept, OLD).load_active()


def test_a_crash_between_file_and_manifest_is_mended(kept: Path) -> None:
    manifest = (kept / "slots" / "b" / "manifest.json").read_bytes()
    both = Store(kept, NEW, OLD)
    both.reseal()
    (kept / "slots" / "b" / "manifest.json").write_bytes(manifest)
    assert both.reseal() == ("slot b",)
    assert json.loads((kept / "slots" / "b" / "manifest.json").read_bytes()) != json.loads(manifest)
    assert both.reseal() == ()


def test_what_no_key_opens_is_left(kept: Path) -> None:
    path = kept / "slots" / "a" / "model.sealed"
    broken = bytearray(path.read_bytes())
    broken[50] ^= 1
    path.write_bytes(broken)
    assert Store(kept, NEW, OLD).reseal() == ("slot b", "checkpoint job-1")
    assert path.read_bytes() == broken


def test_the_first_key_s_error_is_told() -> None:
    binding = Binding("slot/tuned-model", "1", hashlib.sha256(MODEL).hexdigest())
    sealed = io.BytesIO()
    sealed.write(b"before")
    seal(io.BytesIO(MODEL), sealed, NEW, binding)
    broken = bytearray(sealed.getvalue())
    broken[-1] ^= 1
    for keys, where in (((NEW, OLD), "segment 1"), ((OLD, NEW), "segment 0")):
        source = io.BytesIO(bytes(broken))
        source.seek(len(b"before"))
        with pytest.raises(SealedFileError) as caught:
            unseal_with_any(source, keys, binding, len(MODEL))
        assert (caught.value.code, caught.value.where) == ("sealed-tag", where)
