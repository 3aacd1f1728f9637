"""Kills a store operation before each of its file operations; run as a program by test_store.py.

    python crash_steps.py FOLDER OPERATION [OPERATION ...]

All operations but the last make FOLDER/before. Then, for n = 1, 2, ..., a copy FOLDER/<n> is made and a child that runs
the last operation on it ends itself just before its n-th file operation, until one comes through: FOLDER/after.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.store import Store
from agent.switch import stage, switch_back, switch_on

KEY = bytes(range(32))
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
KILLED = 9

OPERATIONS: dict[str, Callable[[Store], object]] = {
    "stage 1": lambda store: store.stage(b"model one", {"n": 1}),
    "stage 2": lambda store: store.stage(b"model two" * 1000, {"n": 2}),
    "stage 3": lambda store: store.stage(b"model three", {"n": 3}),
    "activate a": lambda store: store.activate("a"),
    "activate b": lambda store: store.activate("b"),
    "mark good": lambda store: store.mark_good(),
    "roll back": lambda store: store.roll_back("worse"),
    "keep b": lambda store: stage(store._folder, "b"),
    "back to a": lambda store: switch_back(store._folder, "a", "wanted"),
    "back to b": lambda store: switch_back(store._folder, "b", "wanted"),
    "back to the base": lambda store: switch_back(store._folder, "", "wanted"),
    "on to b": lambda store: switch_on(store._folder, "b"),
    "recover": lambda store: store.recover(),
    "spoil": lambda store: [path.write_bytes(b"{}") for path in (store._folder / "slots").glob("status*.json")],
    "checkpoint 1": lambda store: store.seal_checkpoint("job", b"step one"),
    "checkpoint 2": lambda store: store.seal_checkpoint("job", b"step two"),
}


def kill_before(folder: Path, number: int) -> None:
    """End this process just before its `number`-th file operation below `folder`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os._exit(KILLED)

    sys.addaudithook(hook)


def main(folder: Path, operations: list[str]) -> None:
    before = folder / "before"
    store = Store(before, KEY)
    for name in operations[:-1]:
        OPERATIONS[name](store)
    number, code = 0, KILLED
    while code == KILLED:
        number += 1
        copy = folder / str(number)
        shutil.copytree(before, copy)
        child = os.fork()
        if child == 0:
            kill_before(copy, number)
            OPERATIONS[operations[-1]](Store(copy, KEY))
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise SystemExit(f"the operation failed at step {number}")
    copy.rename(folder / "after")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
