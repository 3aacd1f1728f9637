"""Quick measurements for the reference figures, on the machine at hand: a minute together."""

from __future__ import annotations

import hashlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from agent.bandwidth import measure as measure_bandwidth
from agent.bandwidth import required_bandwidth
from agent.board.cache import last_level_cache_bytes
from agent.board.sysfs import BoardRoots
from agent.cost import cost_table
from agent.engine import choose_engine
from agent.engine.arena import LINE_FLOATS, Arena
from agent.engine.base import Float32, OptimizerSpec, TrainingRun, TrainingSetup
from agent.errors import ArtifactError, EngineError, ModelError
from agent.sealed import Binding, seal, unseal
from policies.policy import DEPTH_LADDER
from service.bench_files import bench_graph, layers_at

R10 = (7e6, 2.0, 0.020)
"""R10's own example: bytes of parameters, operations for each, seconds of one pass."""
FLIPS = 20_000
SEALED_BYTES = 100_000
SIZE, BATCH, CLASSES, DEPTH = 96, 8, 10, 50
REPEATS = 7
"""Trials of each form: on a machine that others use, one median of some turns says little."""
_KEY = bytes(32)
T = TypeVar("T")


def measure(model: str, threads: int, say: Callable[[str], None]) -> dict[str, object]:
    """All of it.

    Args:
        model: ONNX file, or efficientnet-lite0.
        threads: of the frozen part and of the copies.
        say: told before each.

    Raises:
        ModelError, BoardError, CallerError: the model cannot be read.
        EngineError: it cannot be run.
    """
    say("memory bandwidth")
    found = measure_bandwidth(threads, time.perf_counter, last_level_cache_bytes(BoardRoots().sys))
    say(f"{FLIPS} flipped bits of a sealed file")
    flips = flipped_bits(FLIPS)
    say(f"{model}: frozen part in 8 bits and in tiles")
    return {
        "threads": threads,
        "bandwidth": {
            "required": required_bandwidth(*R10),
            "measured": found.bytes_per_s,
            "beyond_cache": found.beyond_cache,
        },
        "flips": flips,
        "prefix": _prefix(model, threads),
        "layout": _layout(model),
    }


def flipped_bits(count: int) -> dict[str, int]:
    """One random bit of a sealed file flipped, again and again: how often that is not refused."""
    draw = np.random.default_rng(0)
    plain = draw.integers(0, 256, SEALED_BYTES, np.uint8).tobytes()
    binding = Binding("model", "1.0", hashlib.sha256(plain).hexdigest())
    target = io.BytesIO()
    seal(io.BytesIO(plain), target, _KEY, binding)
    whole = bytearray(target.getvalue())
    assert unseal(io.BytesIO(whole), _KEY, binding, SEALED_BYTES) == plain
    missed = 0
    for place in draw.integers(0, 8 * len(whole), count):
        whole[place // 8] ^= 1 << (place % 8)
        try:
            unseal(io.BytesIO(whole), _KEY, binding, SEALED_BYTES)
        except ArtifactError:
            pass
        else:
            missed += 1
        whole[place // 8] ^= 1 << (place % 8)
    return {"flipped": count, "missed": missed, "bytes": len(whole)}


def _prefix(model: str, threads: int) -> dict[str, object]:
    """The frozen half in 8 bits and in tiles against float32 and whole maps, taking turns; samples are noise."""
    graph = bench_graph(model, SIZE, CLASSES, 0)
    frozen = layers_at(cost_table(graph), DEPTH)
    setup = TrainingSetup(graph, BATCH, graph.input_shape, frozen, OptimizerSpec("sgd"), threads)
    told: dict[str, object] = {"model": model_name(model), "size": SIZE, "batch": BATCH, "depth_percent": DEPTH}
    try:
        tiles = [_tried(setup, lambda run: run.use_slices()) for _ in range(REPEATS)]
        told["slices"] = {
            "block_bytes": tiles[0].plan.block_bytes,
            "whole_block_bytes": tiles[0].plan.whole_block_bytes,
            "seconds_ratio": _spread([check.sliced_seconds / check.whole_seconds for check in tiles]),
        }
        draw = np.random.default_rng(0)
        noise = draw.uniform(-1.0, 1.0, (BATCH, *graph.input_shape)).astype(np.float32)
        forms = [_tried(setup, lambda run: run.use_int8(noise, noise, _no_score)) for _ in range(REPEATS)]
        told["int8_seconds_ratio"] = _spread([check.int8_seconds / check.float_seconds for check in forms])
    except (ModelError, EngineError) as error:  # another processor: what was measured before stays
        told["refused"] = str(error)
    return told


def _tried(setup: TrainingSetup, check: Callable[[TrainingRun], T]) -> T:
    """A check on a run of its own: one that was kept would be the next one's base."""
    run = choose_engine("graph").start(setup)
    try:
        return check(run)
    finally:
        run.close()


def _no_score(_activations: Sequence[Float32]) -> float:
    """Time alone is asked for; docs/engines.md has the accuracy."""
    return 0.0


def _spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"least": min(ratios), "median": statistics.median(ratios), "most": max(ratios)}


def _layout(model: str) -> dict[str, object]:
    """Where the weights of a model lie (R17)."""
    graph = bench_graph(model, SIZE, CLASSES, 0)
    names = [name for layer in graph.layers() for name in layer.parameters]
    arena = Arena({name: graph.initializers[name].shape for name in names})
    places = [arena.views[name].ctypes.data for name in names]
    held = sum(view.size for view in arena.views.values())
    return {
        "tensors": len(names),
        "aligned": sum(place % (4 * LINE_FLOATS) == 0 for place in places),
        "in_order": places == sorted(places),
        "contiguous": all(view.flags.c_contiguous for view in arena.views.values()),
        "padding_share": 1.0 - held / arena.flat.size,
    }


def step_work(model: str) -> dict[int, float]:
    """Multiply-accumulates of a training step for a sample, by freeze depth in percent."""
    costs = cost_table(bench_graph(model, SIZE, CLASSES, 0))
    return {depth: float(costs.step_macs(layers_at(costs, depth))) for depth in DEPTH_LADDER}


def model_name(model: str) -> str:
    """The model without the folder it lies in."""
    return Path(model).stem
