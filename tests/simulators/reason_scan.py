"""Reason codes as they stand in the sources of what runs on a board: daemon, worker and scrub worker."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ("service.daemon", "agent.worker", "agent.scrub_worker", "agent.release_worker", "agent.system_worker")
ROOMS = ("agent", "policies", "service")
PLACES = {"move": 2, "publish_plain": 3, "Failed": 0, "Why": 0, "_reject": 1, "_end": 1, "refuse": 0, "put_aside": 0}
"""Calls that take a code, and at which place."""
KEYWORDS = ("reason", "code", "reason_code")
CODE = re.compile(r"[a-z]+([.-][a-z]+)*")


@functools.cache
def _trees() -> dict[str, ast.Module]:
    """Every module that the programs import, also later on."""
    found: dict[str, ast.Module] = {}
    waiting = list(PROGRAMS)
    while waiting:
        name = waiting.pop()
        base = ROOT / name.replace(".", "/")
        path = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.exists()), None)
        if name in found or path is None:
            continue
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(found[name]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS:
                waiting += [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
    return found


def literals() -> set[str]:
    """Every text in these sources."""
    return {
        node.value
        for tree in _trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def codes() -> set[str]:
    """What is handed on as a reason code."""
    trees = _trees()
    constants = {name: value for tree in trees.values() for name, value in _constants(tree)}
    found = {text for tree in trees.values() for node in _values(tree) for text in _texts(node, constants)}
    return {text for text in found if CODE.fullmatch(text)}


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
            names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            for name, value in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield name.id, value.value


def _values(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            place = PLACES.get(name)
            if place is not None and len(node.args) > place:
                yield node.args[place]
            if not name.startswith(("info", "warning", "error", "debug", "said")):  # a line of the log has reasons too
                yield from (item.value for item in node.keywords if item.arg in KEYWORDS)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in KEYWORDS:
                yield node.value


def _texts(node: ast.expr, constants: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Name) and node.id in constants:
        yield constants[node.id]
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, constants)
        yield from _texts(node.orelse, constants)
