"""The house's laws, read off the syntax trees."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.keys_consoles import create_console_key, load_console_key
from service.commands import Request, new_id, sign_command

NOW = 1_790_000_000
ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "agent", "service")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NUMERIC = {"numpy", "onnx", "onnxruntime"}
MAX_LINES = 400
SYSFS_WORDS = ("class/thermal", "class/hwmon", "class/power_supply", "cpufreq")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> set[str]:
    """Every module named in an import statement, anywhere in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
    return found


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    package = name_of(path).partition("/")[0]
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert not roots(path) & above
    if package == "policies":
        assert roots(path) <= set(sys.stdlib_module_names) | {"policies"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_foreign_worlds_have_one_door(path: Path) -> None:
    name = name_of(path)
    if name not in ("service/link.py", "service/link_client.py"):
        assert "paho" not in roots(path)
    if not name.startswith("agent/engine/"):
        assert not roots(path) & {"onnx", "onnxruntime"}
    if not name.startswith("agent/board/"):
        text = path.read_text("utf-8")
        assert not [word for word in SYSFS_WORDS if word in text]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_daemon_owns_clock_and_tasks_of_the_service(path: Path) -> None:
    """Long-running parts get their time handed in; programs with a beginning and an end may look at the clock."""
    programs = ("service/bench", "service/cli", "service/demo", "service/broker.py", "service/fleet/")
    name = name_of(path)
    if name.startswith("service/") and name != "service/daemon.py" and not name.startswith(programs):
        text = path.read_text("utf-8")
        assert "time.time(" not in text
        assert "time.monotonic(" not in text
        assert "TaskGroup(" not in text


def test_the_supervisor_imports_no_numeric_library_and_stays_small_after_a_signed_command(tmp_path: Path) -> None:
    console = create_console_key(tmp_path / "mine", "alice")
    consoles = tmp_path / "consoles"
    consoles.mkdir(mode=0o755)
    shutil.copy(console, consoles)
    request = Request(new_id(NOW * 1000, os.urandom), "pi-7", "scrub", NOW, NOW + 60, {})
    envelope = sign_command(request, load_console_key(tmp_path / "mine" / "alice.key"))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from service import logs\nlogs.configure()\nimport service.cli_board, service.daemon\n"
        "from agent.keys_consoles import load_trusted_consoles\n"
        "from service.commands import open_command\n"
        "trusted = load_trusted_consoles(Path(sys.argv[1]))\n"
        "about = dict(zip(('topic_type', 'topic_id', 'device'), sys.argv[2:5]), now=float(sys.argv[5]))\n"
        "command = open_command(sys.stdin.buffer.read(), trusted=trusted, clock_synchronised=True, **about)\n"
        "service.daemon.give_back()\n"
        "names = {m.partition('.')[0] for m in sys.modules}\n"
        "status = open('/proc/self/status').read()\n"
        "print(command.id)\n"
        "print(sorted(names & {'numpy', 'onnx', 'onnxruntime', 'rich', 'PIL', 'tuf', 'cryptography'}))\n"
        "print(status.split('VmRSS:')[1].split()[0])\n"
    )
    arguments = [str(consoles), request.type, request.id, request.device, str(NOW)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=envelope,
        capture_output=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    opened, modules, kilobytes = done.stdout.decode().splitlines()
    assert opened == request.id
    assert modules == "[]"
    assert int(kilobytes) <= 35 * 1024


def test_nothing_that_the_daemon_reaches_imports_the_numeric_stack_at_the_top() -> None:
    """By the import statements themselves, so that a new import is named before it is paid for."""
    seen: set[str] = set()
    todo = ["service/daemon.py"]
    while todo:
        name = todo.pop()
        seen.add(name)
        tree = ast.parse((ROOT / name).read_text("utf-8"))
        for node in tree.body:
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            assert not {m.partition(".")[0] for m in modules} & NUMERIC, name
            for module in modules:
                path = module.replace(".", "/") + ".py"
                if (ROOT / path).exists() and path not in seen:
                    todo.append(path)
    assert "service/desk.py" in seen
    assert "agent/board/sysfs.py" in seen
