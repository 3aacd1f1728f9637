"""PyTorch's side of `temperd bench train`: the same network, batches and update rule in eager mode, at its best.

It needs torch and numpy only and runs in an environment of its own (`make bench` makes it). Requests come as lines of
JSON on standard input and each gets one line of JSON back; docs/bench.md lists them. The folder named in `open` holds
`graph.json` (nodes) and `weights.npz`; the file named there holds the batches.

What is done for PyTorch's sake: batch normalization is folded; activations work in place; a tensor is let go after its
last reader; the frozen part runs under `no_grad`; gradients are `None` between steps; the optimizer is the fused one;
denormals are zero; batches lie in the memory format asked for before the clock starts.
"""  # noqa: INP001 - a program, no package

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every PyTorch program has

Values = dict[str, torch.Tensor]
Call = Callable[..., torch.Tensor]
PARAMETRIC = ("Conv", "Gemm", "MatMul")
SIX = 6.0


def _conv(node: Mapping[str, object], weights: Values) -> Call:
    attrs = node["attrs"]
    rank = weights[node["inputs"][1]].dim() - 2
    stride = tuple(attrs.get("strides", [1] * rank))
    dilation = tuple(attrs.get("dilations", [1] * rank))
    pads = attrs.get("pads", [0] * 2 * rank)
    begin, end = pads[:rank], pads[rank:]
    groups = int(attrs.get("group", 1))
    function = F.conv2d if rank == 2 else F.conv1d  # noqa: PLR2004 - images and series
    if begin == end:
        return lambda x, w, b=None: function(x, w, b, stride, tuple(begin), dilation, groups)
    around = [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]
    return lambda x, w, b=None: function(F.pad(x, around), w, b, stride, 0, dilation, groups)


def _clip(node: Mapping[str, object], weights: Values) -> Call:
    low, high = (float(weights[name]) for name in node["inputs"][1:3])
    return lambda x, *_: F.hardtanh_(x, low, high) if node["in_place"] else F.hardtanh(x, low, high)


def _relu(node: Mapping[str, object], _: Values) -> Call:
    return F.relu_ if node["in_place"] else F.relu


def _gemm(node: Mapping[str, object], _: Values) -> Call:
    if node["attrs"].get("transB", 0):
        return F.linear
    return lambda x, w, b=None: F.linear(x, w.t(), b)


def _flatten(node: Mapping[str, object], _: Values) -> Call:
    axis = int(node["attrs"].get("axis", 1))
    return lambda x: torch.flatten(x, axis)


def _reshape(_: Mapping[str, object], __: Values) -> Call:
    return lambda x, shape: x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape.tolist())])


RULES: dict[str, Callable[[Mapping[str, object], Values], Call]] = {
    "Add": lambda *_: torch.add,
    "Clip": _clip,
    "Conv": _conv,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda *_: lambda x: F.adaptive_avg_pool2d(x, 1),
    "MatMul": lambda *_: torch.matmul,
    "Relu": _relu,
    "Reshape": _reshape,
}


class Part:
    """Consecutive nodes as calls; each tensor is let go after its last reader."""

    def __init__(self, nodes: list[Mapping[str, object]], weights: Values, kept: set[str]) -> None:
        last = {name: index for index, node in enumerate(nodes) for name in node["inputs"]}
        self._weights = weights
        self._calls = []
        for index, node in enumerate(nodes):
            names = tuple(node["inputs"])
            done = tuple(n for n in dict.fromkeys(names) if n not in weights and n not in kept and last[n] == index)
            self._calls.append((RULES[node["op"]](node, weights), names, node["outputs"][0], done))

    def run(self, values: Values) -> Values:
        """Run on tensors by name; what is left are the tensors nobody in this part reads last."""
        weights = self._weights
        for call, names, output, done in self._calls:
            found = [weights[n] if n in weights else values[n] for n in names if n]
            result = call(*found)
            del found
            for name in done:
                del values[name]
            values[output] = result
        return values


class Net:
    """The network, cut at a freeze boundary, with its optimizer."""

    def __init__(self, request: Mapping[str, object]) -> None:
        folder = Path(request["folder"])
        form = json.loads((folder / "graph.json").read_text("utf-8"))
        self.layout = torch.channels_last if request["layout"] == "channels-last" else torch.contiguous_format
        with np.load(folder / "weights.npz") as arrays:
            self.weights = {name: self._laid(torch.from_numpy(arrays[name].copy())) for name in arrays.files}
        nodes = form["nodes"]
        unknown = sorted({node["op"] for node in nodes} - set(RULES))
        if unknown:
            raise SystemExit(f"torch_peer.py has no rule for {', '.join(unknown)}")
        _mark_in_place(nodes, form["input"])
        self.input, self.output = form["input"], form["output"]
        learning = form["parameters"][request["frozen_layers"] :]
        self.learning = [name for names in learning for name in names]
        prefix, suffix = _cut(nodes, set(self.learning))
        made = {self.input} | {node["outputs"][0] for node in prefix}
        self.crossing = list(dict.fromkeys(n for node in suffix for n in node["inputs"] if n in made))
        self.prefix = Part(prefix, self.weights, set(self.crossing))
        self.suffix = Part(suffix, self.weights, {self.output})
        with np.load(request["batches"]) as arrays:
            self.samples = [self._laid(torch.from_numpy(batch)) for batch in arrays["samples"]]
            self.labels = [torch.from_numpy(batch) for batch in arrays["labels"]]
        for name in self.learning:
            self.weights[name].requires_grad_(True)
        self._make_optimizer(request["optimizer"])

    def _laid(self, value: torch.Tensor) -> torch.Tensor:
        return value.contiguous(memory_format=self.layout) if value.dim() == 4 else value  # noqa: PLR2004 - [N, C, H, W]

    def _make_optimizer(self, kind: str) -> None:
        weights = [self.weights[name] for name in self.learning]
        if kind == "adamw":
            self.optimizer = torch.optim.AdamW(weights, weight_decay=0.0, fused=True)
        else:
            self.optimizer = torch.optim.SGD(weights, momentum=0.9, fused=True)

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps that follow."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def boundary(self, index: int) -> Values:
        """What crosses into the learning part, for batch `index`."""
        with torch.no_grad():
            values = self.prefix.run({self.input: self.samples[index]})
        return {name: values[name] for name in self.crossing}

    def step(self, values: Values, labels: torch.Tensor) -> float:
        """One optimizer step; the loss before it."""
        logits = self.suffix.run(values)[self.output]
        loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def _cut(
    nodes: list[Mapping[str, object]], learning: set[str]
) -> tuple[list[Mapping[str, object]], list[Mapping[str, object]]]:
    """Nodes that depend on nothing that learns, and the others."""
    prefix, suffix, moved = [], [], set(learning)
    for node in nodes:
        if moved.isdisjoint(node["inputs"]):
            prefix.append(node)
        else:
            suffix.append(node)
            moved.update(node["outputs"])
    return prefix, suffix


def _mark_in_place(nodes: list[dict[str, object]], source: str) -> None:
    """An activation may overwrite what only it reads, where a convolution made it: that needs no output of its own."""
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node["inputs"]:
            readers[name] = readers.get(name, 0) + 1
    makers = {node["outputs"][0]: node["op"] for node in nodes}
    for node in nodes:
        first = node["inputs"][0]
        node["in_place"] = first != source and readers[first] == 1 and makers.get(first) in ("Conv", "Gemm", "Add")


class Peer:
    """Answers requests."""

    def __init__(self) -> None:
        self.net: Net | None = None
        self.cache: list[Values] = []

    def answer(self, request: Mapping[str, object]) -> dict[str, object]:
        """One reply to one request."""
        return getattr(self, f"do_{request['do']}")(request)

    def do_open(self, request: Mapping[str, object]) -> dict[str, object]:
        """Build the network for a boundary."""
        torch.set_num_threads(request["threads"])
        torch.set_flush_denormal(True)
        began = time.perf_counter()
        self.net = Net(request)
        self.cache = []
        return {"ready_s": time.perf_counter() - began, "version": f"torch {torch.__version__}"}

    def do_steps(self, request: Mapping[str, object]) -> dict[str, object]:
        """Run steps over the batches in turn; milliseconds and loss of each."""
        net, times, losses = self.net, [], []
        net.set_rate(request["learning_rate"])
        for step in range(request["first"], request["first"] + request["count"]):
            index = step % len(net.labels)
            began = time.perf_counter()
            losses.append(net.step(net.boundary(index), net.labels[index]))
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times, "losses": losses}

    def do_first_epoch(self, request: Mapping[str, object]) -> dict[str, object]:
        """An epoch that keeps what crosses the boundary, a batch at a time; milliseconds of each step."""
        net, times = self.net, []
        net.set_rate(request["learning_rate"])
        self.cache = []
        for step in range(request["count"]):
            index = step % len(net.labels)
            began = time.perf_counter()
            crossing = net.boundary(index)
            self.cache.append(crossing)
            net.step(dict(crossing), net.labels[index])
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times}

    def do_cached_steps(self, request: Mapping[str, object]) -> dict[str, object]:
        """Steps of a later epoch, from the kept activations; whole batches, which spares the gathering."""
        net, times = self.net, []
        net.set_rate(request["learning_rate"])
        for step in range(request["first"], request["first"] + request["count"]):
            index = step % len(self.cache)
            began = time.perf_counter()
            net.step(dict(self.cache[index]), net.labels[index % len(net.labels)])
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times}

    def do_parameters(self, request: Mapping[str, object]) -> dict[str, object]:
        """Write the learning weights to a file."""
        arrays = {name: self.net.weights[name].detach().contiguous().numpy() for name in self.net.learning}
        np.savez(request["file"], **arrays)
        return {}

    def do_memory(self, _: Mapping[str, object]) -> dict[str, object]:
        """Peak and present resident memory of this process, in KiB."""
        status = Path("/proc/self/status").read_text("ascii")
        return {key: int(status.split(f"{field}:")[1].split()[0]) for key, field in MEMORY.items()}


MEMORY = {"peak_kib": "VmHWM", "resident_kib": "VmRSS"}


def main() -> None:
    """Serve until standard input ends."""
    peer = Peer()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(peer.answer(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
