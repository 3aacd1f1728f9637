"""What the frozen part of a run is, as a digest: two parts of one digest give the same activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from agent.engine.ir import Array, Node


def prefix_digest(nodes: Iterable[Node], constants: Mapping[str, Array], input_name: str) -> bytes:
    """SHA-256 over nodes, the constants that they read and the name of what enters them.

    Names of nodes are left out: they mean nothing. Tensor names and the order of nodes stay in, so equal digests mean
    the same program; the same program may still have two digests, which costs a cache its hits and nothing else.

    Args:
        nodes: the frozen nodes as they run, in order.
        constants: everything they may read beside `input_name` and each other.
        input_name: the tensor that samples enter by.
    """
    digest = hashlib.sha256(repr(("prefix 1", input_name)).encode())
    for node in nodes:
        attributes = sorted((key, repr(value)) for key, value in node.attrs.items())
        digest.update(repr((node.domain, node.op, node.inputs, node.outputs, attributes)).encode())
        for name in node.inputs:
            if name in constants:
                value = np.asarray(constants[name])
                digest.update(repr((name, value.dtype.str, value.shape)).encode())
                digest.update(np.ascontiguousarray(value).data)
    return digest.digest()


def runs_nothing(digest: bytes, boundary: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `digest` is that of no nodes at all: the boundary is the input itself."""
    return len(boundary) == 1 and digest == prefix_digest((), {}, next(iter(boundary)))
