"""The training runtime (onnxruntime-training 1.19.2): finding it, making its artifacts, loading a session from them.

The runtime loads from files only. Files are written to a private folder in memory where the system has one, with every
parameter zero, and are gone before the first step: real weights reach the session through its parameter interface and
never a file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from agent.engine.base import Float32, Int64
from agent.engine.ir import Graph, model_proto
from agent.engine.sessions import LOG_ERRORS_ONLY, first_line
from agent.errors import EngineError, ModelError, SpecError

LABELS = "labels"  # the name the runtime's loss block gives its input
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - only ever used through a 0700 folder of random name
# Operators whose gradients were checked here against a reference; the runtime knows more.
DIFFERENTIABLE = frozenset({"Add", "Clip", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "MatMul", "Relu", "Reshape"})


@dataclass(frozen=True, slots=True)
class Library:
    """The runtime's modules: making artifacts, its building blocks, and running them."""

    artifacts: Any
    onnxblock: Any
    api: Any


def library() -> Library:
    """Load the runtime's modules.

    `import onnxruntime.training` pulls in PyTorch; its parts without its `__init__` do not.

    Raises:
        SpecError: the training wheel is not installed.
    """
    name = "onnxruntime.training"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise SpecError(
                "engine ort-training is not installed",
                fix='Use engine "graph", or pip install "temperd[ort-training]" where no onnxruntime is installed '
                "(x86-64, Python 3.12 or older)",
                reason="engine-missing",
            )
        sys.modules[name] = importlib.util.module_from_spec(spec)  # made, not executed
    return Library(*(importlib.import_module(f"{name}.{part}") for part in ("artifacts", "onnxblock", "api")))


def check_operators(graph: Graph) -> None:
    """Refuse what this engine cannot train.

    Raises:
        ModelError: names operator and node.
    """
    for node in graph.nodes:
        if node.op not in DIFFERENTIABLE:
            raise ModelError(f"engine ort-training does not train {node.op}", where=node.name, fix='Use engine "graph"')
        if LABELS in (*node.inputs, *node.outputs):
            raise ModelError(f"a tensor may not be named {LABELS!r}", where=node.name, fix="Rename it and export again")


@dataclass(frozen=True, slots=True)
class Session:
    """A loaded training session.

    Attributes:
        weights: all parameters, live: writing to an array changes the model. Valid while the session is.
        gradients: of the trainable parameters, live: `step` overwrites them.
    """

    module: Any
    checkpoint: Any
    weights: Mapping[str, Float32]
    gradients: Mapping[str, Float32]

    def backward(self, samples: Float32, labels: Int64) -> float:
        """Mean loss of the batch; fills `gradients`."""
        with _runtime_errors("a training step failed"):
            self.module.train()
            loss, _ = self.module(samples, labels)
            self.module.lazy_reset_grad()
        return float(loss)

    def forward(self, samples: Float32) -> Float32:
        """Logits of any number of samples."""
        with _runtime_errors("a forward pass failed"):
            self.module.eval()
            _, logits = self.module(samples, np.zeros(len(samples), np.int64))
        return np.array(logits, np.float32)


def open_session(graph: Graph, weights: Mapping[str, Float32], trainable: Sequence[str], threads: int) -> Session:
    """Compile the training step for a set of trainable parameters.

    Args:
        graph: with a classification head as its output.
        weights: current value of every parameter, trainable or not.
        trainable: those that get gradients; at least one.
        threads: intra-op threads.

    Raises:
        SpecError: the training wheel is not installed.
        EngineError: the runtime refuses the graph.
    """
    runtime = library()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = LOG_ERRORS_ONLY
    # Velocities of idle channels decay into subnormals, which are slow; the first session decides for the process.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    with _private_folder() as folder, _runtime_errors("onnxruntime-training refuses the graph"):
        write_artifacts(graph, weights.keys(), trainable, folder)
        checkpoint = runtime.api.CheckpointState.load_checkpoint(folder / "checkpoint")
        module = runtime.api.Module(
            folder / "training_model.onnx", checkpoint, folder / "eval_model.onnx", session_options=options
        )
        for name, value in weights.items():
            checkpoint.parameters[name] = np.ascontiguousarray(value)
        live = {name: checkpoint.parameters[name].data for name in weights}
        gradients = {name: checkpoint.parameters[name].grad for name in trainable}
    return Session(module, checkpoint, live, gradients)


def write_artifacts(graph: Graph, parameters: Collection[str], trainable: Sequence[str], folder: Path) -> None:
    """Write training model, evaluation model and checkpoint, every parameter zero, to `folder`."""
    learning = set(trainable)
    constants = dict(graph.initializers) | {name: np.zeros_like(graph.initializers[name]) for name in parameters}
    model = model_proto(
        graph.nodes,
        constants,
        {graph.input: (np.float32, ("N", *graph.input_shape))},
        {graph.output: (np.float32, ("N", "K"))},
        opset=graph.opset,
    )
    artifacts = library().artifacts
    with _quiet_stderr():
        artifacts.generate_artifacts(
            model,
            requires_grad=list(trainable),
            frozen_params=[name for name in parameters if name not in learning],
            loss=artifacts.LossType.CrossEntropyLoss,
            additional_output_names=[graph.output],
            artifact_directory=folder,
        )


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A 0700 folder, in memory where the system has a place for that; removed at the end."""
    base = SHARED_MEMORY if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="temperd-", dir=base) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send file descriptor 2 nowhere: making artifacts logs every graph pass there, whatever severity is set."""
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _runtime_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (SpecError, ModelError):
        raise
    except Exception as error:  # onnxruntime raises many unrelated types from C++
        raise EngineError(what, where=first_line(error)) from error
