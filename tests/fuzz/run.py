"""`make fuzz`: every target for so many cases, coverage-guided where atheris is there, else by hypothesis.

Inputs that crashed are kept in build/fuzz/<target>; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
NAMES = [
    "card",
    "checkpoint",
    "command",
    "device",
    "grant",
    "manifest",
    "npz",
    "onnx",
    "parity",
    "policy",
    "sealed",
    "spec",
    "status",
    "strict-json",
    "tuf-root",
    "worker-line",
]
CASES = 75_000
TIMEOUT_S = 900  # of one target; the slowest needs about a minute
HANG_S = 10  # one input that takes longer counts as a crash
MAX_INPUT_BYTES = 32 << 10
MAX_RSS_MB = 2048


class Outcome(NamedTuple):
    """Of one target."""

    name: str
    cases: int
    edges: str
    crashed: bool
    told: str


def guided(name: str, cases: int, kept: Path) -> None:
    """Run one target under libFuzzer; ends the process."""
    import atheris  # noqa: PLC0415 - x86-64 only

    with atheris.instrument_imports(include=["agent", "policies", "service", "tuf", "securesystemslib"]):
        from fuzz_targets import targets  # noqa: PLC0415 - instrumented
    target = targets()[name]
    with tempfile.TemporaryDirectory() as corpus:
        Path(corpus, "seed").write_bytes(target.seed)
        flags = {
            "runs": cases,
            "seed": 1,
            "max_len": MAX_INPUT_BYTES,
            "timeout": HANG_S,
            "rss_limit_mb": MAX_RSS_MB,
            "print_final_stats": 1,
            "artifact_prefix": f"{kept}/",
        }
        atheris.Setup([name, *(f"-{key}={value}" for key, value in flags.items()), corpus], target.run)
        atheris.Fuzz()


def generated(name: str, cases: int, kept: Path) -> None:
    """Run one target under hypothesis."""
    from fuzz_edits import edited  # noqa: PLC0415
    from fuzz_targets import targets  # noqa: PLC0415
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415

    target, done = targets()[name], 0

    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edited(target.seed))
    def run(data: bytes) -> None:
        nonlocal done
        done += 1
        try:
            target.run(data)
        except BaseException:
            (kept / "crash").write_bytes(data)  # the last one written is the smallest
            raise

    run()
    print(f"stat::number_of_executed_units: {done}")  # noqa: T201 - as libFuzzer says it


def fuzz(name: str, cases: int) -> Outcome:
    """Run one target in a process of its own."""
    kept = ROOT / "build" / "fuzz" / name
    kept.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--target", name, "--cases", str(cases)]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(name, 0, "", crashed=True, told=f"not done after {TIMEOUT_S} s")
    said = done.stdout + done.stderr
    count = re.findall(r"stat::number_of_executed_units: (\d+)", said)
    edges = re.findall(r"cov: (\d+)", said)
    ran = int(count[-1]) if count else 0
    crashed = done.returncode != 0 or ran < cases // 2  # a target that stopped early has shown nothing
    return Outcome(name, ran, edges[-1] if edges else "-", crashed, said[-3000:])


def main() -> int:
    """Run all targets two at a time and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=NAMES)
    parser.add_argument("--cases", type=int, default=CASES, help="of each target")
    options = parser.parse_args()
    driver = "atheris" if find_spec("atheris") else "hypothesis"
    if options.target:
        kept = ROOT / "build" / "fuzz" / options.target
        (guided if driver == "atheris" else generated)(options.target, options.cases, kept)
        return 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        outcomes = list(pool.map(lambda name: fuzz(name, options.cases), NAMES))
    lines = [f"{'target':<14}{'cases':>9}{'edges':>8}  crash"]
    lines += [f"{o.name:<14}{o.cases:>9}{o.edges:>8}  {'CRASH' if o.crashed else '-'}" for o in outcomes]
    lines += [f"{'all':<14}{sum(o.cases for o in outcomes):>9}{'':>8}  driven by {driver}"]
    broken = [o for o in outcomes if o.crashed]
    lines += [f"\n{o.name}: inputs in build/fuzz/{o.name}\n{o.told}" for o in broken]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
