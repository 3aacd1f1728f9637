"""What is kept out of the daemon's memory is there for everybody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def said(program: str, *, path: str = "") -> str:
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {path!r})\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=60).stdout.strip()


def test_the_link_loads_no_web_client_and_leaves_the_real_one_to_others() -> None:
    program = (
        "import service.link\n"
        "print([name for name in ('urllib.request', 'http.client', 'email.message') if name in sys.modules])\n"
        "import urllib.request\n"
        "print(urllib.request.Request('http://a.example').host)\n"
    )
    assert said(program).splitlines() == ["[]", "a.example"]


def test_the_log_loads_no_pickle_and_leaves_the_real_one_to_others() -> None:
    program = (
        "import service.logs\n"
        "print('pickle' in sys.modules)\n"
        "import pickle\n"
        "print(pickle.loads(pickle.dumps(7)), issubclass(pickle.PicklingError, TypeError))\n"
    )
    assert said(program).splitlines() == ["False", "7 False"]


@pytest.mark.parametrize("first", ["import urllib.request", "pass"])
def test_where_paho_can_use_proxies_it_has_the_web_client(tmp_path: Path, first: str) -> None:
    (tmp_path / "socks.py").write_text("HTTP = SOCKS4 = SOCKS5 = 0\n")
    program = f"{first}\nimport service.link\nprint('urllib.request' in sys.modules, 'socks' in sys.modules)\n"
    assert said(program, path=str(tmp_path)) == "True True"


def test_memory_is_given_back_while_nothing_else_changes() -> None:
    program = (
        "import gc\n"
        "from service.footprint import give_back\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1])\n"
        "kept = []\n"
        "blocks = [bytes(1000) + bytes([i % 256]) for i in range(20000)]\n"  # 20 MB of C's heap
        "kept.append(b'x' * 1000)\n"
        "del blocks\n"
        "before = resident()\n"
        "give_back()\n"
        "print(before > resident(), kept == [b'x' * 1000])\n"
    )
    assert said(program) == "True True"
