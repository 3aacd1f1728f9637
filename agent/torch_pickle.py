"""Reads PyTorch's legacy state-dict files (`torch.save` before 1.6) without PyTorch and without trusting them.

A legacy file is a row of pickles followed by raw numbers (source: `torch/serialization.py`, `_legacy_save`):

    magic number, protocol version 1001, system information, the state dict, the list of storage keys
    then for each key: the element count (int64) and the elements, little-endian

A pickle is a program. Two fences stand around it. `_scan` walks the opcodes before anything runs: only those a state
dict needs, memo slots within the opcode count (a huge slot makes the unpickler allocate gigabytes), and no tuple taken
from the memo (nested sharing takes exponential time to hash; for the same reason nothing unknown is printed).
`_Unpickler` then knows four names and gives objects without attributes for them, so a program has nothing to call and
nothing to alter.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from agent.errors import ArtifactError

MAX_FILE_BYTES = 256 << 20  # as for ONNX files: a board holds weights, gradients and optimizer state at once
MAX_OPCODES = 500_000  # EfficientNet-Lite0 needs 10,696
MAX_TENSORS = 20_000  # EfficientNet-B7 has about 1,700
MAX_ELEMENTS = MAX_FILE_BYTES // 4  # over all tensors: views may not multiply what the file holds
MAX_RANK = 8

_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_PROTOCOL = pickle.dumps(1001, protocol=2)
_DTYPES: Final[dict[str, np.dtype[np.generic]]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}
_PUT = frozenset({"BINPUT", "LONG_BINPUT"})
_GET = frozenset({"BINGET", "LONG_BINGET"})
_SHAREABLE = frozenset({"GLOBAL", "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "REDUCE"})
_ALLOWED = (
    _PUT
    | _GET
    | _SHAREABLE
    | frozenset({"PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"})
    | frozenset({"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPERSID"})
    | frozenset({"SETITEM", "SETITEMS", "APPEND", "APPENDS", "BUILD"})
)


def read_state_dict(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Read the bytes of a legacy PyTorch state-dict file.

    Returns:
        Arrays by name in the file's order: float32 or int64, contiguous, with memory of their own.

    Raises:
        ArtifactError: not such a file, a pickle that asks for anything but tensors, truncation, trailing bytes, or a
            size beyond the bounds above; names what was asked for.
    """
    if len(data) > MAX_FILE_BYTES:
        raise ArtifactError(f"weights file has {len(data)} bytes, at most {MAX_FILE_BYTES} are read")
    header = _MAGIC + _PROTOCOL
    if not data.startswith(header):
        raise ArtifactError(
            "not a legacy PyTorch file", fix="Save with _use_new_zipfile_serialization=False, or as ONNX"
        )
    storages = _Storages()
    position, system = _load(data, len(header), storages)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ArtifactError("weights file is not little-endian")
    position, state = _load(data, position, storages)
    position, keys = _load(data, position, storages)
    tensors = _named_tensors(state)
    arrays = _read_storages(data, position, storages, keys)
    return {name: tensor.view(arrays[tensor.storage.key], name) for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    """A run of numbers that tensors look into."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """A view into a storage: what `torch._utils._rebuild_tensor_v2` is called with."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def view(self, storage: npt.NDArray[np.generic], name: str) -> npt.NDArray[np.generic]:
        """Copy the tensor out of its storage; bounds are checked here, before memory is touched."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        if self.offset + reach >= storage.size:
            raise ArtifactError("tensor reaches beyond its storage", where=name)
        width = storage.itemsize
        strides = tuple(stride * width for stride in self.strides)
        start = storage[self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False).copy()


@dataclass(slots=True)
class _Storages:
    """The storages a file has named so far."""

    by_key: dict[str, _Storage] = field(default_factory=dict)

    def claim(self, identity: object) -> _Storage:
        match identity:
            case ("storage", str(kind), str(key), str(), int(count), None) if (
                kind in _DTYPES and 0 <= count <= MAX_ELEMENTS
            ):
                storage = self.by_key.setdefault(key, _Storage(key, kind, count))
            case _:
                raise ArtifactError("unknown kind of storage", where=type(identity).__name__)
        if (storage.kind, storage.count) != (kind, count):
            raise ArtifactError("storage described in two ways", where=key[:120])
        return storage


class _Rebuild:
    """Stands in for `torch._utils._rebuild_tensor_v2`; without attributes, so BUILD cannot alter it."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Tensor:
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), OrderedDict() as hooks) if (
                not hooks
            ):
                tensor = _Tensor(storage, offset, _sizes(shape, 1), _sizes(strides, 0))
            case _:
                raise ArtifactError("tensor of an unknown form", where=f"{len(arguments)} arguments")
        if len(shape) != len(strides) or len(shape) > MAX_RANK or not 0 <= offset <= storage.count:
            raise ArtifactError("tensor with an impossible shape", where=f"{len(shape)} axes")
        if tensor.count > storage.count:
            raise ArtifactError("tensor larger than its storage", where=f"{len(shape)} axes")
        return tensor


def _sizes(values: tuple[object, ...], least: int) -> tuple[int, ...]:
    if not all(type(value) is int and least <= value <= MAX_ELEMENTS for value in values):
        raise ArtifactError("tensor with an impossible shape", where=f"{len(values)} axes")
    return tuple(int(value) for value in values)  # type: ignore[call-overload]


class _Unpickler(pickle.Unpickler):
    """Knows four names."""

    def __init__(self, file: io.BytesIO, storages: _Storages) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str, /) -> object:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Rebuild()
            case "torch", kind if kind in _DTYPES:
                return kind
        raise ArtifactError("weights file asks for code, which is refused", where=f"{module}.{name}"[:120])

    def persistent_load(self, pid: object) -> _Storage:
        return self._storages.claim(pid)


def _scan(data: bytes, start: int) -> int:
    """Check the opcodes of the pickle at `start` and return its end; nothing is executed."""
    shareable: dict[object, bool] = {}
    last, count, stop = "", 0, start
    stream = io.BytesIO(data)
    stream.seek(start)
    for opcode, argument, at in pickletools.genops(stream):
        count, stop = count + 1, (at or 0) + 1
        name = opcode.name
        if name not in _ALLOWED or count > MAX_OPCODES or (name == "PROTO" and argument != 2):  # noqa: PLR2004 - torch's default protocol
            raise ArtifactError("weights file holds a pickle beyond a state dict", where=f"{name} at byte {at}")
        if name in _PUT:
            if not isinstance(argument, int) or argument > count:
                raise ArtifactError("weights file names an impossible memo slot", where=f"{argument} at byte {at}")
            shareable[argument] = last in _SHAREABLE
        elif name in _GET and not shareable.get(argument, False):
            raise ArtifactError("weights file shares what a state dict does not", where=f"slot {argument} at byte {at}")
        last = last if name in _PUT else name
    return stop


def _load(data: bytes, start: int, storages: _Storages) -> tuple[int, object]:
    """Unpickle what starts at `start`: (end, object)."""
    try:
        stop = _scan(data, start)
        return stop, _Unpickler(io.BytesIO(data[start:stop]), storages).load()
    except ArtifactError:
        raise
    except Exception as error:  # hostile bytes make the unpickler raise almost anything
        raise ArtifactError(
            "weights file is broken or truncated", where=f"pickle at byte {start}: {error}"[:200]
        ) from error


def _named_tensors(state: object) -> dict[str, _Tensor]:
    if not isinstance(state, OrderedDict) or len(state) > MAX_TENSORS:
        raise ArtifactError("weights file holds no state dict")
    tensors = dict(OrderedDict.items(state))  # the class's own method: BUILD may have hidden the instance's
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ArtifactError("state dict holds something else than tensors", where=type(tensor).__name__)
    if sum(tensor.count for tensor in tensors.values()) > MAX_ELEMENTS:
        raise ArtifactError(f"state dict has more than {MAX_ELEMENTS} elements")
    return tensors


def _read_storages(data: bytes, position: int, storages: _Storages, keys: object) -> dict[str, npt.NDArray[np.generic]]:
    known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not isinstance(keys, list) or not known or sorted(keys) != sorted(storages.by_key):
        raise ArtifactError("weights file names storages that no tensor uses, or lacks some")
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for key in keys:
        storage = storages.by_key[key]
        dtype = _DTYPES[storage.kind]
        begin, end = position + 8, position + 8 + storage.count * dtype.itemsize
        if end > len(data):
            raise ArtifactError("weights file is truncated", where=f"storage {key}")
        if struct.unpack_from("<q", data, position)[0] != storage.count:
            raise ArtifactError("storage has another length than announced", where=f"storage {key}")
        arrays[key] = np.frombuffer(data, dtype, storage.count, begin)
        position = end
    if position != len(data):
        raise ArtifactError(f"weights file has {len(data) - position} bytes after its end")
    return arrays
