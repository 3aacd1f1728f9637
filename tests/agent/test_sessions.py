"""Sessions share one thread pool, whose size the first of them decides for the whole program."""

from __future__ import annotations

import subprocess
import sys

import onnxruntime as ort
import pytest

PROGRAM = """
from agent.engine import sessions
from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.engine.graph import GraphEngine
from tests.simulators.small_models import mobile_block_net
GraphEngine().start(TrainingSetup(mobile_block_net(classes=3), 2, (3, 12, 12), 0, OptimizerSpec("sgd"), 3))
print(sessions._shared_threads)
"""


@pytest.mark.skipif(not hasattr(ort, "set_global_thread_pool_sizes"), reason="this runtime has no shared pool")
def test_a_run_gets_the_threads_it_asks_for() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[3]"
