from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import memory
from agent.engine.autodiff import step_graph
from agent.engine.base import LossSpec, UpdatePlan
from agent.engine.footprint import ACTIVATION_BUDGET, choose_micro_batch, live_peak, peak_live_bytes
from agent.memory import free_bytes, peak_resident_bytes, resident_bytes
from tests.simulators.small_models import mobile_block_net

ROOT = Path(__file__).parents[2]
KIB = 1024


def chain(*ops: str) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    return [(op, (f"t{i}",), (f"t{i + 1}",)) for i, op in enumerate(ops)]


def test_a_chain_holds_two_tensors_at_a_time() -> None:
    sizes = {f"t{i}": 100 for i in range(1, 5)}
    assert live_peak(chain("Conv", "Conv", "Conv", "Conv"), sizes, {"t4"}) == 200


def test_what_is_read_late_lives_long() -> None:
    nodes = [*chain("Conv", "Conv", "Conv"), ("Add", ("t3", "t1"), ("t4",))]
    assert live_peak(nodes, {"t1": 7, "t2": 10, "t3": 20, "t4": 20}, {"t4"}) == 7 + 10 + 20


def test_views_and_operators_in_place_take_no_memory() -> None:
    sizes = {f"t{i}": 100 for i in range(1, 6)}
    assert live_peak(chain("Conv", "Reshape", "Relu", "Flatten", "Clip"), sizes, ()) == 100
    still_read = [*chain("Conv", "Relu"), ("Add", ("t1", "t2"), ("t3",))]
    assert live_peak(still_read, sizes, {"t3"}) == 200  # Relu may not overwrite what Add reads


def test_outputs_and_inputs_are_not_counted() -> None:
    assert live_peak(chain("Conv"), {"t1": 1 << 30}, {"t1"}) == 0


@given(st.integers(1, 64), st.integers(0, 1 << 34), st.integers(0, 1 << 33))
def test_the_micro_batch_divides_the_batch_and_fits(batch: int, live: int, free: int) -> None:
    micro = choose_micro_batch(batch, live, free=free)
    budget = min(ACTIVATION_BUDGET, free // 2)
    assert batch % micro == 0
    assert micro == 1 or live * micro // batch <= budget
    larger = [n for n in range(micro + 1, batch + 1) if batch % n == 0]
    assert all(live * n // batch > budget for n in larger)


def test_a_frozen_part_needs_no_memory_for_a_way_back() -> None:
    net = mobile_block_net()
    peaks = [
        peak_live_bytes(step_graph(net, UpdatePlan(frozen), 8, 8, LossSpec()).model)
        for frozen in range(len(net.layers()))
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert 0 < peaks[-1] < peaks[0] / 2


def test_the_system_tells_what_is_free_and_taken() -> None:
    assert free_bytes() > 0
    assert 0 < resident_bytes() <= peak_resident_bytes()
    held = np.ones(32 << 17)  # 32 MiB
    assert peak_resident_bytes() >= held.nbytes


def test_files_that_were_read_leave_room_in_a_control_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mib = 1 << 20
    (tmp_path / "memory.max").write_text(f"{512 * mib}\n")
    (tmp_path / "memory.current").write_text(f"{505 * mib}\n")
    monkeypatch.setattr(memory, "own_group", lambda _: tmp_path)
    assert free_bytes() == 7 * mib
    (tmp_path / "memory.stat").write_text(f"anon {80 * mib}\ninactive_file {3 * mib}\nactive_file {mib}\n")
    assert free_bytes() == 10 * mib
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes() > 10 * mib


SPARSE = """
import numpy as np
from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.memory import peak_resident_bytes
from agent.engine.graph import GraphEngine
from tests.simulators.wide_net import wide_net
net = wide_net()
learning = frozenset({net.layers()[1].bias, *net.layers()[-1].parameters})
run = GraphEngine().start(TrainingSetup(net, 4, net.input_shape, 1, OptimizerSpec(), 2, learning=learning))
samples = np.random.default_rng(0).standard_normal((4, *net.input_shape)).astype(np.float32)
for _ in range(3):
    assert run.step(samples, np.arange(4), 1e-4).kept
run.outputs(samples)
print(run.footprint.peak, peak_resident_bytes())
"""


def test_constants_among_what_learns_are_counted_and_not_copied_twice() -> None:
    made = subprocess.run(
        [sys.executable, "-c", SPARSE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    predicted, measured = map(int, made.stdout.split())
    assert abs(predicted - measured) <= 0.15 * measured, (predicted >> 20, measured >> 20)


LARGE = """
import numpy as np
from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.engine.graph import GraphEngine
from agent.engine.ir import Graph, Node
from agent.memory import resident_bytes
wide = 3000  # one matrix of 36 MB past the boundary that does not learn
shapes = {"a.w": (wide, 8), "a.b": (wide,), "b.w": (wide, wide), "b.b": (wide,), "c.w": (4, wide), "c.b": (4,)}
rng = np.random.default_rng(0)
weights = {name: (rng.standard_normal(shape, np.float32) * 0.01) for name, shape in shapes.items()}
nodes, x = [], "x"
for name in "abc":
    nodes.append(Node("Gemm", (x, f"{name}.w", f"{name}.b"), (name,), {"transB": 1}, name))
    x = name if name == "c" else f"{name}.r"
    nodes += [] if name == "c" else [Node("Relu", (name,), (x,), {}, x)]
net = Graph(tuple(nodes), weights, "x", (8,), "c")
del weights
learning = frozenset({"a.b", "c.w", "c.b"})
run = GraphEngine().start(TrainingSetup(net, 4, (8,), 0, OptimizerSpec(), 2, learning=learning))
del net
samples = rng.standard_normal((4, 8), np.float32)
for _ in range(3):
    assert run.step(samples, np.arange(4), 1e-4).kept
run.outputs(samples)
print(run.footprint.peak, resident_bytes())
"""


def test_a_large_constant_among_what_learns_is_held_once_beside_its_packed_copy() -> None:
    made = subprocess.run(
        [sys.executable, "-c", LARGE], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    predicted, resident = map(int, made.stdout.split())
    assert abs(predicted - resident) <= 0.15 * resident, (predicted >> 20, resident >> 20)


PROGRAM = """
import sys
import numpy as np
from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.memory import peak_resident_bytes
from agent.engine.graph import GraphEngine
from tests.simulators.wide_net import wide_net
net = wide_net()
run = GraphEngine().start(TrainingSetup(net, 16, net.input_shape, int(sys.argv[1]), OptimizerSpec(), 2))
rng = np.random.default_rng(0)
for _ in range(3):
    samples = rng.standard_normal((16, *net.input_shape)).astype(np.float32)
    assert run.step(samples, rng.integers(0, 10, 16), 1e-4).kept
print(run.footprint.peak, peak_resident_bytes())
"""


@pytest.mark.parametrize("frozen", [0, 4, 8])
def test_the_predicted_peak_is_the_measured_one(frozen: int) -> None:
    made = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(frozen)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    predicted, measured = map(int, made.stdout.split())
    assert abs(predicted - measured) <= 0.15 * measured, (predicted >> 20, measured >> 20)
