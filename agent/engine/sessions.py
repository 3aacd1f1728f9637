"""Runtime sessions: options in one place, one thread pool for all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from agent.errors import EngineError

LOG_ERRORS_ONLY = 3
FORWARD_CHUNK = 16  # samples a forward call: an evaluation must not need more memory than a training step


def session(model: onnx.ModelProto | bytes, threads: int) -> ort.InferenceSession:
    """A CPU session.

    Raises:
        EngineError: the runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if hasattr(ort, "set_global_thread_pool_sizes"):
        _make_shared_pool(threads)
        options.use_per_session_threads = False
    else:  # runtimes such as 1.19: pools of their own, which must not spin
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many unrelated types from C++
        raise EngineError("onnxruntime refuses the graph", where=first_line(error)) from error


_shared_threads: list[int] = []


def _make_shared_pool(threads: int) -> None:
    """One thread pool for all sessions of the program: idle pools that spin would take the busy one's cores.

    Its size is that of the first call; the runtime allows no other pool afterwards.
    """
    if not _shared_threads:
        ort.set_global_thread_pool_sizes(threads, 1)
        _shared_threads.append(threads)


def device_value(array: npt.NDArray[np.generic]) -> ort.OrtValue:
    """A value in the runtime's memory, filled with a copy of `array`."""
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "cpu", 0)
    value.update_inplace(np.ascontiguousarray(array))
    return value


def first_line(error: Exception) -> str:
    """The telling part of a runtime error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
