"""The frozen prefix in 8 bits: calibrated on the target's own samples, kept only where it is as good and faster.

Frozen layers never learn, so they may run on integers: weights int8, one scale an output channel; activations uint8,
one scale and zero point a tensor (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"). The integer operators are written out (`QLinearConv`, `QLinearAdd`) instead of
QuantizeLinear/DequantizeLinear pairs around float ones: they are what the runtime makes of such pairs, and nothing
depends on whether it recognises the pattern. uint8 activations with int8 weights are the one pairing with fast kernels
on x86-64 (VNNI) as well as on aarch64.

The runtime's own quantization tool is not used: it writes weights to plain files, and it opens sessions of its own,
which a process with one shared thread pool cannot have.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from agent.engine.base import Float32
from agent.engine.ir import MICROSOFT, Array
from agent.engine.sessions import first_line, session
from agent.engine.trials import median_seconds
from agent.errors import DataError, EngineError, ModelError

Float64 = npt.NDArray[np.float64]

CALIBRATION_SAMPLES = 64  # ranges hardly move after some dozens
OUTLYING = 0.1  # samples whose extremes may be cut off: finer steps for all others; least error among those tried
HELD_OUT_SAMPLES = 256  # boundary activations of both forms are in memory at once
ALLOWED_DROP = 0.005  # half a point
LEVELS = 255  # steps of uint8 between the ends of a range
WEIGHT_LIMIT = 127  # symmetric: -128 stays unused, so that a weight and its negative are as exact
BIAS_LIMIT = 1 << 30  # int32 with room for the sums of products that are added to it
BIAS_INPUT = 2
LEAST_KERNEL_RANK = 3  # [O, I, K]: a one-dimensional convolution


@dataclass(frozen=True, slots=True)
class Observed:
    """What calibration saw of one tensor.

    Attributes:
        low: least value that gets a level of its own.
        high: greatest such value.
        mean: of each channel [C], over samples and positions; `None` where nobody asks.
    """

    low: float
    high: float
    mean: Float64 | None = None

    def scale(self) -> float:
        """Size of one step; the range always holds zero, so that padding is exact."""
        width = max(self.high, 0.0) - min(self.low, 0.0)
        return width / LEVELS if width > 0 else 1.0

    def zero_point(self) -> int:
        """The level that means 0."""
        return int(np.clip(round(-min(self.low, 0.0) / self.scale()), 0, LEVELS))


def quantize_prefix(model: onnx.ModelProto, calibration: Iterable[Float32], threads: int) -> onnx.ModelProto:
    """The same function in 8 bits, with the same float32 input and outputs.

    Conv and Add become integer operators and absorb a Clip or Relu that follows; any other operator stays as it is,
    between conversions.

    Args:
        model: one input [N, ...], constant weights, batch normalization folded.
        calibration: arrays of samples [M, ...] in the model's input form; the first CALIBRATION_SAMPLES count.
        threads: intra-op threads of the calibration runs.

    Raises:
        DataError: no calibration samples.
        ModelError: nothing in the model can run in 8 bits.
        EngineError: the runtime failed, or a tensor was not finite.
    """
    observed = observe(model, calibration, threads)
    graph = _IntegerGraph(model, observed)
    return graph.model()


def observe(model: onnx.ModelProto, calibration: Iterable[Float32], threads: int) -> dict[str, Observed]:
    """Range of every float tensor, and channel means of what convolutions read, over the calibration samples.

    The reductions are part of the graph, so no tensor of it ever has to be kept.
    """
    source = model.graph.input[0].name
    means = {node.input[0] for node in model.graph.node if node.op_type == "Conv"}
    tensors = [source, *(name for node in model.graph.node for name in node.output if name)]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    wanted: list[str] = []
    for name in tensors:
        kinds = {"low": "ReduceMin", "high": "ReduceMax"} | ({"mean": "GlobalAveragePool"} if name in means else {})
        for kind, op in kinds.items():
            attrs: dict[str, Any] = (
                {} if kind == "mean" else {"keepdims": 0}
            )  # without axes: all of them, in every opset
            probe.graph.node.append(helper.make_node(op, [name], [f"{kind}:{name}"], **attrs))
            wanted.append(f"{kind}:{name}")
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted)
    runs: list[dict[str, Array]] = []
    runner = session(probe, threads)
    for sample in itertools.islice((one for chunk in calibration for one in chunk), CALIBRATION_SAMPLES):
        try:
            values = runner.run(wanted, {source: np.ascontiguousarray(sample[None], np.float32)})
        except Exception as error:  # onnxruntime raises many unrelated types from C++
            raise EngineError("a calibration run failed", where=first_line(error)) from error
        runs.append(dict(zip(wanted, values, strict=True)))
    if not runs:
        raise DataError("no samples to calibrate the 8-bit prefix with")
    return {name: _observed(name, runs) for name in tensors}


def _observed(name: str, runs: list[dict[str, Array]]) -> Observed:
    lows, highs = ([float(run[f"{kind}:{name}"]) for run in runs] for kind in ("low", "high"))
    if not np.isfinite([*lows, *highs]).all():
        raise EngineError("a frozen tensor is not finite", where=name)
    low, high = float(np.quantile(lows, OUTLYING)), float(np.quantile(highs, 1 - OUTLYING))
    key = f"mean:{name}"
    mean = np.mean([run[key].astype(np.float64).ravel() for run in runs], axis=0) if key in runs[0] else None
    return Observed(low, high, mean)


@dataclass(frozen=True, slots=True)
class Int8Check:
    """Whether the 8-bit prefix replaces the float one on this board, and what that rests on.

    Attributes:
        keep: use the 8-bit form.
        reason: why, in one clause.
        float_seconds: median duration of one batch in float32.
        int8_seconds: the same in 8 bits.
        float_score: the caller's score of the held-out boundary activations in float32.
        int8_score: the same in 8 bits.
    """

    keep: bool
    reason: str
    float_seconds: float
    int8_seconds: float
    float_score: float
    int8_score: float


Run = Callable[[Float32], Sequence[Float32]]
"""A prefix: samples [M, ...] to one array [M, ...] for each boundary tensor."""


def check_int8(
    float_run: Run,
    int8_run: Run,
    held_out: Float32,
    score: Callable[[Sequence[Float32]], float],
    batch: int,
    *,
    allowed_drop: float = ALLOWED_DROP,
    clock: Callable[[], float] = time.perf_counter,
) -> Int8Check:
    """Keep 8 bits only where they score as well and are faster on this processor.

    Args:
        float_run: the float32 prefix.
        int8_run: the 8-bit one.
        held_out: samples [M, ...] that calibration did not see; the first HELD_OUT_SAMPLES count.
        score: rates boundary activations of the held-out samples, greater is better; accuracies as 0..1.
        batch: samples a call, for scoring and timing.
        allowed_drop: how much lower the 8-bit score may be.
        clock: a monotonic clock in seconds.

    Raises:
        DataError: no held-out samples.
    """
    if not len(held_out):
        raise DataError("no held-out samples to check the 8-bit prefix with")
    samples = held_out[:HELD_OUT_SAMPLES]
    float_score, int8_score = (score(_chunked(run, samples, batch)) for run in (float_run, int8_run))
    first = samples[:batch]
    times = median_seconds({"float": lambda: float_run(first), "int8": lambda: int8_run(first)}, clock=clock)
    keep, reason = _verdict(float_score - int8_score, allowed_drop, times["float"] / times["int8"])
    return Int8Check(keep, reason, times["float"], times["int8"], float_score, int8_score)


def _chunked(run: Run, samples: Float32, batch: int) -> list[Float32]:
    parts = [run(samples[start : start + batch]) for start in range(0, len(samples), batch)]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _verdict(drop: float, allowed_drop: float, speedup: float) -> tuple[bool, str]:
    if not drop <= allowed_drop:  # a score that is not a number is no pass
        return False, f"8 bits score {drop:.4f} lower, {allowed_drop:.4f} is allowed"
    if speedup <= 1:
        return False, f"8 bits are not faster here ({speedup:.2f} times)"
    return True, f"8 bits are {speedup:.2f} times as fast and score no more than {allowed_drop:.4f} lower"


class _IntegerGraph:
    """Rewrites node by node; every tensor exists as uint8, as float32, or as both when both are read."""

    def __init__(self, model: onnx.ModelProto, observed: Mapping[str, Observed]) -> None:
        self._model, self._observed = model, observed
        self._constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._real, self._integer = {model.graph.input[0].name}, set[str]()
        self._nodes: list[NodeProto] = []
        self._outputs = {value.name for value in model.graph.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def model(self) -> onnx.ModelProto:
        """Rewrite all."""
        absorbed: set[str] = set()
        for node in self._model.graph.node:
            if node.output[0] in absorbed:
                continue
            if self._is_convolution(node) or self._is_sum(node):
                result = self._after_clip(node)
                absorbed.add(result)
                write = self._convolution if node.op_type == "Conv" else self._sum
                write(node, result)
                self._integer.add(result)
            else:
                self._keep(node)
        if not self._integer:
            raise ModelError("nothing in the frozen part can run in 8 bits", fix="Keep it in float32")
        for name in sorted(self._outputs):
            self._as_real(name)
        return self._assembled()

    def _is_convolution(self, node: NodeProto) -> bool:
        constant = all(name in self._constants for name in node.input[1:] if name)
        return node.op_type == "Conv" and constant and self._constants[node.input[1]].ndim >= LEAST_KERNEL_RANK

    def _is_sum(self, node: NodeProto) -> bool:
        return node.op_type == "Add" and all(name in self._observed for name in node.input)

    def _after_clip(self, node: NodeProto) -> str:
        """The tensor to make instead of the node's own output.

        A Clip or Relu that alone reads the output only cuts the range, and saturation of the integers does that, as
        long as zero is inside: the observed range of the clipped tensor lies between its bounds.
        """
        made: str = node.output[0]
        readers = self._readers.get(made, [])
        if len(readers) != 1 or made in self._outputs or readers[0].op_type not in {"Clip", "Relu"}:
            return made
        clip = readers[0]
        bounds = [self._constants.get(name) for name in clip.input[1:] if name]
        if any(bound is None for bound in bounds):
            return made
        low = self._bound(clip, 1, -np.inf if clip.op_type == "Clip" else 0.0)
        high = self._bound(clip, 2, np.inf)
        return str(clip.output[0]) if low <= 0 <= high else made

    def _bound(self, clip: NodeProto, position: int, absent: float) -> float:
        name = clip.input[position] if len(clip.input) > position else ""
        return float(self._constants[name].item()) if name else absent

    def _convolution(self, node: NodeProto, result: str) -> None:
        """QLinearConv: y = q((sum (x - zx) w + b) sx sw / sy), b in steps of sx sw."""
        source = node.input[0]
        weight = self._constants[node.input[1]].astype(np.float64)
        given = len(node.input) > BIAS_INPUT and node.input[BIAS_INPUT]
        bias = self._constants[node.input[BIAS_INPUT]].astype(np.float64) if given else np.zeros(len(weight))
        integers, scale = quantized_weight(weight, bias, self._observed[source].scale())
        mean = self._observed[source].mean
        if mean is not None:
            bias = bias - mean_error(integers * _per_channel(scale, weight.ndim) - weight, mean)
        steps = np.rint(bias / (scale * self._observed[source].scale())).astype(np.int32)
        constants: dict[str, Array] = {
            "w": integers,
            "w_scale": scale.astype(np.float32),
            "w_zero": np.zeros(len(scale), np.int8),
        }
        names = [self._constant(f"{result}.{part}", value) for part, value in constants.items()]
        inputs = [*self._as_integer(source), *names, *self._scales(result), self._constant(f"{result}.b", steps)]
        self._emit("QLinearConv", inputs, _integer_name(result), node.name, **_attributes(node))

    def _sum(self, node: NodeProto, result: str) -> None:
        inputs = [name for source in node.input for name in self._as_integer(source)]
        self._emit("QLinearAdd", [*inputs, *self._scales(result)], _integer_name(result), node.name, domain=MICROSOFT)

    def _keep(self, node: NodeProto) -> None:
        for name in node.input:
            self._as_real(name)
        self._nodes.append(node)
        self._real.update(node.output)

    def _as_integer(self, name: str) -> tuple[str, str, str]:
        if name not in self._integer:
            self._emit("QuantizeLinear", [name, *self._scales(name)], _integer_name(name), f"{name}.quantize")
            self._integer.add(name)
        return (_integer_name(name), *self._scales(name))

    def _as_real(self, name: str) -> None:
        if name in self._integer and name not in self._real:
            inputs = [_integer_name(name), *self._scales(name)]
            self._emit("DequantizeLinear", inputs, name, f"{name}.dequantize")
            self._real.add(name)

    def _scales(self, name: str) -> tuple[str, str]:
        seen = self._observed[name]
        scale = self._constant(f"{name}.scale", np.asarray(seen.scale(), np.float32))
        return scale, self._constant(f"{name}.zero", np.asarray(seen.zero_point(), np.uint8))

    def _constant(self, name: str, value: Array) -> str:
        self._constants[name] = value
        return name

    def _emit(self, op: str, inputs: list[str], output: str, name: str, domain: str = "", **attrs: Any) -> None:  # noqa: ANN401 - whatever the node had
        self._nodes.append(helper.make_node(op, inputs, [output], name=name, domain=domain, **attrs))

    def _assembled(self) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        used = {name for node in self._nodes for name in node.input}
        del made.graph.node[:], made.graph.initializer[:]
        made.graph.node.extend(self._nodes)
        made.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), name) for name, value in self._constants.items() if name in used
        )
        if all(entry.domain != MICROSOFT for entry in made.opset_import):
            made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return made


def quantized_weight(weight: Float64, bias: Float64, input_scale: float) -> tuple[npt.NDArray[np.int8], Float64]:
    """Weights [O, ...] as int8 and the scale of each output channel [O].

    A channel whose weights are so small that its bias would not fit gets a coarser scale.
    """
    widest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = np.maximum(widest / WEIGHT_LIMIT, np.abs(bias) / (input_scale * BIAS_LIMIT))
    scale = np.where(scale > np.finfo(np.float32).tiny, scale, 1.0)
    return np.rint(weight / _per_channel(scale, weight.ndim)).astype(np.int8), scale


def mean_error(error: Float64, mean: Float64) -> Float64:
    """What rounding the weights adds to each output channel on average [O].

    Empirical bias correction (Nagel et al. 2019, section 4.2): E[y' - y] = sum over inputs of error times E[x].

    Args:
        error: rounded minus true weights [O, I / groups, ...].
        mean: of each input channel [I].
    """
    groups = len(mean) // error.shape[1]
    per_group = mean.reshape(groups, error.shape[1])
    outputs = np.repeat(per_group, len(error) // groups, axis=0)
    summed: Float64 = error.reshape(*error.shape[:2], -1).sum(axis=2)
    total: Float64 = (summed * outputs).sum(axis=1)
    return total


def _per_channel(scale: Float64, rank: int) -> Float64:
    return scale.reshape(-1, *[1] * (rank - 1))


def _integer_name(name: str) -> str:
    return f"{name}.u8"


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
