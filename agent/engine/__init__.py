"""Training engines: the only package that imports onnx or onnxruntime."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

from agent.errors import SpecError

# Stock onnxruntime since 1.29 reports its use to its maker unless told otherwise before it is imported. Boards are in
# other people's hands: nothing leaves them that their owner did not ask for.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from agent.engine.base import TrainingEngine


def choose_engine(name: str) -> TrainingEngine:
    """The engine called `graph` or `ort-training`; `auto` is `graph`, which every runtime can run.

    Raises:
        SpecError: the runtime that the engine needs is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise SpecError("onnxruntime is not installed", fix='pip install "temperd[ort]"', reason="no-runtime")
    if name in ("auto", "graph"):
        from agent.engine.graph import GraphEngine  # noqa: PLC0415 - only the engine asked for is loaded

        return GraphEngine()
    from agent.engine.ort_training import OrtTrainingEngine  # noqa: PLC0415 - same

    return OrtTrainingEngine()
