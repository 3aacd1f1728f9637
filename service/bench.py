"""`temperd bench`: figures measured on this machine, both sides in one run."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import BoardError, SpecError
from policies.policy import DEPTH_LADDER
from service.cli import say_json

if TYPE_CHECKING:
    from service.bench_peers import Entry
    from service.bench_train import Load

PEERS = ("torch", "ort-training")
MAX_LIST = 12  # depths, models, data sets or seeds of one run: each takes minutes
BOUNDS = {
    "batch": (1, 256),
    "size": (16, 1024),
    "threads": (1, 64),
    "rounds": (1, 100),
    "epochs": (1, 200),
    "mib": (1, 4095),  # a sealed file holds a little less than 4 GiB
    "readings": (10, 100_000),  # a minute at half a millisecond each
    "devices": (1, 50_000),  # simulated ones have some KiB each, and a socket
    "seconds": (1, 3600),
    "consumers": (1, 16),
    "processes": (1, 64),
    "commands": (1, 10_000),
}
MAX_SEED = 1 << 31
DEEPEST = 100


def train(options: argparse.Namespace) -> int:
    """Speed and memory of training beside the peers, by freeze depth."""
    from service import bench_peers, bench_report, bench_train  # noqa: PLC0415 - need the numeric stack

    check_bounds(options)
    depths = numbers(options.depths, 0, DEEPEST, "--depths")
    peers = names(options.vs, PEERS, "--vs")
    found = bench_peers.entries(peers, Path(options.environments))
    load = bench_train.Load(options.batch, options.optimizer, options.threads, options.rounds)
    cases = [_train_case(model, options, load, depths, found, linearity=options.linearity) for model in options.model]
    report: dict[str, object] = {
        "bench": "train",
        "machine": machine(),
        "batch": load.batch,
        "size": options.size,
        "optimizer": load.optimizer,
        "threads": load.threads,
        "rounds": load.rounds,
        "cases": cases,
    }
    if options.chart:
        write_chart(options.chart, bench_report.train_chart(report))
    if options.json:
        say_json(report)
    else:
        bench_report.show_train(report)
    return 0


def _train_case(
    model: str,
    options: argparse.Namespace,
    load: Load,
    depths: Sequence[int],
    sides: Sequence[Entry],
    *,
    linearity: bool,
) -> dict[str, object]:
    from service import bench_files, bench_report, bench_train  # noqa: PLC0415 - need the numeric stack

    graph = bench_files.bench_graph(model, options.size, bench_files.CLASSES, seed=0)
    rows = []
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as folder:
        case = bench_files.write_case(Path(folder), graph)
        for depth in depths:
            frozen = case.frozen_layers(depth)
            say_progress(f"{model}: {frozen} of {len(graph.layers())} layers frozen ({depth} %)")
            figures = bench_train.measure_depth(case, load, frozen, sides)
            rows.append(bench_report.depth_row(depth, frozen, load.batch, figures))
        found: dict[str, object] = {"model": Path(model).stem, "layers": len(graph.layers()), "depths": rows}
        if linearity:
            say_progress(f"{model}: time against samples and layers")
            found["linearity"] = bench_train.measure_linearity(case, load, sides[0])
    return found


def freeze(options: argparse.Namespace) -> int:
    """Work, memory and held-out accuracy by freeze depth, beside the article's figures."""
    from service import bench_freeze, bench_report  # noqa: PLC0415 - need the numeric stack

    check_bounds(options)
    if not 0 < options.learning_rate <= 1:
        raise SpecError(f"{options.learning_rate} is outside 0..1", where="--learning-rate")
    study = bench_freeze.Study(
        model=options.model,
        seeds=tuple(numbers(options.seeds, 0, MAX_SEED, "--seeds")),
        batch=options.batch,
        size=options.size,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        threads=options.threads,
    )
    report = {"bench": "freeze", "machine": machine(), **bench_freeze.measure(study, options.data, say_progress)}
    if options.chart:
        write_chart(options.chart, bench_report.freeze_chart(report))
    if options.json:
        say_json(report)
    else:
        bench_report.show_freeze(report)
    return 0


def seal(options: argparse.Namespace) -> int:
    """Sealing and unsealing beside the primitives they are made of."""
    from service import bench_seal  # noqa: PLC0415 - loads the primitives

    check_bounds(options)
    found = bench_seal.measure(options.mib, say_progress, openssl=bench_seal.find_openssl())
    report = {"bench": "seal", "machine": machine(), **found}
    if options.json:
        say_json(report)
    else:
        bench_seal.show(report)
    return 0


def govern(options: argparse.Namespace) -> int:
    """One job under the kernel alone, the fixed rules and prediction, on simulated boards."""
    from agent.board.physics import CONSTANTS  # noqa: PLC0415 - no other bench needs boards
    from agent.images import load  # noqa: PLC0415 - need the numeric stack
    from service import bench_govern, bench_govern_report, demo_setup  # noqa: PLC0415 - same
    from service.bench_govern_learning import Course  # noqa: PLC0415 - same

    check_bounds(options)
    if not 0 < options.learning_rate <= 1:
        raise SpecError(f"{options.learning_rate} is outside 0..1", where="--learning-rate")
    plans = numbers(options.depths, 0, DEEPEST, "--depths")
    off = [depth for depth in plans if depth not in DEPTH_LADDER]
    if off or not plans:
        raise SpecError(f"depths are some of {', '.join(map(str, DEPTH_LADDER))}", where=f"--depths {options.depths}")
    boards = names(options.boards, tuple(CONSTANTS), "--boards") or list(CONSTANTS)
    seeds = tuple(numbers(options.seeds, 0, MAX_SEED, "--seeds"))
    course = Course(options.model, options.size, options.batch, options.epochs, options.learning_rate, seeds[0])
    study = bench_govern.Study(
        course, seeds, tuple(plans), tuple(boards), learnt=_folder(options.learnt) if options.learnt else None
    )
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as folder:
        data = options.data or str(demo_setup.scanned_digits(Path(folder), *bench_govern.DIGITS)[0])
        images = load(data, options.size, bench_govern.HELD_OUT, seeds[0], bench_govern.MOST_SAMPLES)
    report: dict[str, object] = {
        "bench": "govern",
        "machine": machine(),
        "data": Path(options.data).name if options.data else "scanned digits",
        **bench_govern.measure(study, images, say_progress),
    }
    if options.chart:
        write_chart(options.chart, bench_govern_report.chart(report))
    if options.json:
        say_json(report)
    else:
        bench_govern_report.show(report)
    return 0


def board(options: argparse.Namespace) -> int:
    """What a reading of the board costs."""
    from service import bench_board  # noqa: PLC0415 - the other benches need no sensors

    check_bounds(options)
    if len(options.tree) > MAX_LIST:
        raise SpecError(f"{len(options.tree)} are more than {MAX_LIST}", where="--tree")
    found = bench_board.measure(options.readings, [Path(tree) for tree in options.tree], say_progress)
    report = {"bench": "board", "machine": machine(), **found}
    if options.json:
        say_json(report)
    else:
        bench_board.show(report)
    return 0


def _folder(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        raise SpecError("no such folder", where=f"--learnt {path}")
    return folder


def check_bounds(options: argparse.Namespace) -> None:
    """Refuse numbers outside `BOUNDS` and lists longer than `MAX_LIST`.

    Raises:
        SpecError: names the option and its bounds.
    """
    for key, (low, high) in BOUNDS.items():
        value = getattr(options, key, low)
        if not low <= value <= high:
            raise SpecError(f"{value} is outside {low}..{high}", where=f"--{key}")
    for key in ("model", "data"):
        value = getattr(options, key, ())
        if isinstance(value, list) and len(value) > MAX_LIST:
            raise SpecError(f"{len(value)} are more than {MAX_LIST}", where=f"--{key}")


def numbers(text: str, low: int, high: int, where: str) -> list[int]:
    """A list such as `0,50,75`, in its order and without repetitions.

    Raises:
        SpecError: not numbers, outside the bounds, none or too many.
    """
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",", MAX_LIST)))
    except ValueError as error:
        raise SpecError("not a list of at most 12 numbers with commas", where=f"{where} {text[:100]}") from error
    if len(found) > MAX_LIST or not all(low <= value <= high for value in found):
        raise SpecError(f"give at most {MAX_LIST} numbers in {low}..{high}", where=f"{where} {text[:100]}")
    return found


def names(text: str, allowed: Sequence[str], where: str) -> list[str]:
    """A list such as `torch,ort-training`; empty text is the empty list.

    Raises:
        SpecError: a name that is not allowed.
    """
    found = list(dict.fromkeys(part for part in text.split(",") if part))
    unknown = [name for name in found if name not in allowed]
    if unknown:
        raise SpecError(f"{unknown[0][:100]!r} is none of {', '.join(allowed)}", where=where)
    return found


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    return {
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            key, _, value = text.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return "unknown"


def say_progress(text: str) -> None:
    """One line of progress, apart from the report."""
    print(text, file=sys.stderr, flush=True)


def write_chart(path: str, svg: str) -> None:
    """Write the picture.

    Raises:
        BoardError: it cannot be written.
    """
    try:
        Path(path).write_text(svg, "utf-8")
    except OSError as error:
        raise BoardError("the chart cannot be written", where=f"{path}: {error.strerror}") from error
