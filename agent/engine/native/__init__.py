"""The optional library of kernels in C: depthwise convolutions, their gradients and update rules.

It is built where a C compiler is found at installation and used where it loads; the engine computes the same without
it, slower. `TEMPERD_NATIVE=0` in the environment leaves it out; `base` or `avx2` keeps it to that instruction set.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path

import onnxruntime as ort

from agent.engine.base import Float32

DOMAIN = "temperd"
SWITCH = "TEMPERD_NATIVE"
LARGEST_KERNEL, LARGEST_STRIDE = 15, 4  # MAX_SIDE and MAX_STRIDE of kernels.h
FIRST_RUNTIME = (1, 16)  # the interface version that ort_abi.h describes


@cache
def library() -> Path | None:
    """Path of the library, or `None` where it was not built, does not load or is switched off."""
    if os.environ.get(SWITCH, "1") == "0" or _runtime() < FIRST_RUNTIME:
        return None
    for found in sorted(Path(__file__).parent.glob("_ops*.so")):
        try:
            ctypes.CDLL(str(found))
        except OSError:  # built for another machine
            continue
        return found
    return None


def _runtime() -> tuple[int, int]:
    major, minor = ort.__version__.split(".")[:2]
    return int(major), int(minor)


class AdamwRule(ctypes.Structure):
    """`struct adamw` of kernels.h."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in ("beta1", "beta2", "epsilon", "shrink", "step_size", "root_correction", "scale")
    )


class Kernels:
    """Update rules over flat float32 arrays, in place; the interpreter's lock is free meanwhile."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        pointer, count, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        self._sgd, self._adamw, self._square_sum = loaded.temperd_sgd, loaded.temperd_adamw, loaded.temperd_square_sum
        self._sgd.argtypes = [pointer, pointer, pointer, count, number, number, number, number]
        self._adamw.argtypes = [pointer, pointer, pointer, pointer, count, pointer]
        self._square_sum.argtypes = [pointer, count]
        self._sgd.restype = self._adamw.restype = None
        self._square_sum.restype = ctypes.c_double
        loaded.temperd_kernels.restype = ctypes.c_char_p
        self.instructions: str = loaded.temperd_kernels().decode()

    def square_sum(self, values: Float32) -> float:
        """Sum of squares of a contiguous array."""
        return float(self._square_sum(values.ctypes.data, values.size))

    def sgd(
        self, weight: Float32, velocity: Float32 | None, gradient: Float32, *, rate: float, momentum: float,
        decay: float, scale: float,
    ) -> None:  # fmt: skip
        """SGD of `OptimizerSpec` with the gradient times `scale`; contiguous arrays of one length."""
        state = None if velocity is None else velocity.ctypes.data
        self._sgd(weight.ctypes.data, state, gradient.ctypes.data, weight.size, rate, momentum, decay, scale)

    def adamw(self, weight: Float32, first: Float32, second: Float32, gradient: Float32, rule: AdamwRule) -> None:
        """AdamW of `OptimizerSpec`; contiguous arrays of one length."""
        self._adamw(
            weight.ctypes.data, first.ctypes.data, second.ctypes.data, gradient.ctypes.data, weight.size,
            ctypes.addressof(rule),
        )  # fmt: skip


@cache
def kernels() -> Kernels | None:
    """The library's update rules, if there is a library."""
    path = library()
    return None if path is None else Kernels(path)
