"""Runtime sessions: options in one place, one thread pool and one memory arena for all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from agent.engine.ir import Array, Node, model_proto
from agent.engine.native import library
from agent.errors import EngineError

LOG_ERRORS_ONLY = 3
FORWARD_CHUNK = 16  # samples a forward call: an evaluation must not need more memory than a training step
OUTSIDE_FROM = 1 << 10  # bytes of a constant that is read where it lies; what decides shapes is smaller
MOST_DEAD_BYTES = 64 << 10  # in a piece of the arena before it is split: 128 MB by default, so pieces stay half empty
EXACT_EXTENSION = 1  # arena strategy kSameAsRequested: doubling would leave half of the last extension unused


def session(
    model: onnx.ModelProto | bytes, threads: int, weights: Mapping[str, Array] | None = None
) -> ort.InferenceSession:
    """A CPU session.

    Args:
        model: the graph.
        threads: intra-op threads.
        weights: constants that the graph reads and does not hold, used where they lie and not copied into messages:
            contiguous, and they must outlive the session.

    Raises:
        EngineError: the runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.enable_mem_pattern = False  # a planned block would lie beside what the first, unplanned run took
    _make_shared_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Constants stay for long: between what comes and goes they would keep the arena from shrinking.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if hasattr(ort, "set_global_thread_pool_sizes"):
        _make_shared_pool(threads)
        options.use_per_session_threads = False
    else:  # runtimes such as 1.19: pools of their own, which must not spin
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    native = library()
    if native is not None:
        options.register_custom_ops_library(str(native))
    data = model if isinstance(model, bytes) else model.SerializeToString()
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
        data += _declaration(weights)
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many unrelated types from C++
        raise EngineError("onnxruntime refuses the graph", where=first_line(error)) from error


@cache
def _make_shared_arena() -> None:
    """One arena for all sessions of the program: prefix, step and evaluation take turns in the same memory."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, EXACT_EXTENSION, -1, MOST_DEAD_BYTES))


def take_out(model: onnx.ModelProto, values: Mapping[str, Array]) -> dict[str, Array]:
    """Remove large constants from a model that holds copies of `values`, for `session` to read where those lie.

    Returns:
        What was removed, by name.
    """
    names = {tensor.name for tensor in model.graph.initializer}
    found = {name: value for name, value in values.items() if name in names and lies_outside(value)}
    for index in range(len(model.graph.initializer) - 1, -1, -1):
        if model.graph.initializer[index].name in found:
            del model.graph.initializer[index]
    return found


def lies_outside(value: Array) -> bool:
    """Whether a constant is worth reading where it lies, and can be."""
    return value.nbytes >= OUTSIDE_FROM and value.flags.c_contiguous


def _declaration(weights: Mapping[str, Array]) -> bytes:
    """External initializers without values, as a message that adds them to the model it is written behind."""
    model = onnx.ModelProto()
    for name, value in weights.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = onnx.TensorProto(name=name, data_type=kind, dims=value.shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", "memory"), ("offset", "0"), ("length", str(value.nbytes))):
            tensor.external_data.add(key=key, value=text)
        model.graph.initializer.append(tensor)
    return bytes(model.SerializeToString())


def shrink_arena(threads: int) -> None:
    """Give back what no session holds of the shared arena: the next plan's tensors have other sizes.

    The runtime shrinks at the end of a run, so a small one is made for it.

    Args:
        threads: as for all sessions; the first session of the program may be this one.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    _small_session(threads).run(None, {"x": np.zeros(1, np.float32)}, options)


@cache
def _small_session(threads: int) -> ort.InferenceSession:
    value: Any = (np.float32, (1,))
    return session(model_proto([Node("Neg", ("x",), ("y",), {}, "shrink")], {}, {"x": value}, {"y": value}), threads)


_shared_threads: list[int] = []


def _make_shared_pool(threads: int) -> None:
    """One thread pool for all sessions of the program: idle pools that spin would take the busy one's cores.

    Its size is that of the first call; the runtime allows no other pool afterwards.
    """
    if not _shared_threads:
        ort.set_global_thread_pool_sizes(threads, 1)
        _shared_threads.append(threads)


def first_line(error: Exception) -> str:
    """The telling part of a runtime error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
