"""What an idle daemon with a broker has loaded, and how large it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.fleet import World
from tests.simulators.mosquitto import find_mosquitto

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

MOST_KIB = 35 << 10  # the promise: resident, idle
NEEDED_BY_OTHERS = {
    "argparse of other verbs": ("service.cli_verbs_board", "service.cli_verbs_fleet", "service.cli_verbs_bench"),
    "laptops": ("service.cli_fleet", "service.status_lines", "service.fleet", "rich"),
    "training": ("numpy", "onnx", "onnxruntime", "cryptography"),
    "the web": ("http.client", "email.message", "urllib.request"),
    "what is not configured": ("service.prometheus", "cbor2"),
    "names beyond ASCII": ("encodings.idna", "stringprep", "unicodedata"),
    "mistakes in tables": ("difflib",),
    "exact medians": ("statistics", "fractions", "decimal"),
    "loggers that are pickled": ("pickle",),
    "compressors": ("tempfile", "shutil", "lzma", "bz2"),
    "dice for science": ("random",),
    "RAUC": ("jeepney",),
    "packages in archives": ("zipfile", "importlib.readers"),
}
PROGRAM = """
import signal, sys
from pathlib import Path

def tell(*_):
    fresh = Path(sys.argv[-1]).with_name("loaded.new")
    fresh.write_text("\\n".join(sorted(sys.modules)))
    fresh.replace(fresh.with_name("loaded"))

signal.signal(signal.SIGUSR1, tell)
from service.cli import main
sys.exit(main(["run", *sys.argv[1:]]))
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.broker.start()
    yield made
    made.close()


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Rss:")))


def test_an_idle_daemon_has_loaded_nothing_that_only_others_need(world: World) -> None:
    world.start(("-c", PROGRAM))
    world.wait(lambda: b" connected " in world.log(), 60)
    world.daemon.send_signal(signal.SIGUSR1)
    told = world.folder / "loaded"
    world.wait(told.exists, 60)
    loaded = set(told.read_text().split())
    assert {"paho.mqtt.client", "service.daemon"} <= loaded
    found = {why: [name for name in names if name in loaded] for why, names in NEEDED_BY_OTHERS.items()}
    assert not {why: names for why, names in found.items() if names}
    assert resident_kib(world.daemon.pid) <= MOST_KIB
