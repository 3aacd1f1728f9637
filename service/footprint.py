"""What a daemon that idles for weeks need not load, and need not keep."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

_WEB_CLIENT = "urllib.request"


@contextmanager
def without_web_client() -> Iterator[None]:
    """Keep paho from loading `urllib.request`, and with it http and email: 1.1 MB that the daemon never uses.

    paho asks it for the system's proxies, and only where the package PySocks is installed: there it is loaded. Only
    imports within the block are affected: who imports it later gets the real one.
    """
    if find_spec("socks") is not None:
        yield
        return
    with _stood_in(_WEB_CLIENT):
        yield


@contextmanager
def without_pickle() -> Iterator[None]:
    """The same for structlog, which refuses to pickle some loggers with an error of `pickle`: 0.3 MB."""
    with _stood_in("pickle", PicklingError=TypeError):
        yield


@contextmanager
def _stood_in(name: str, **members: object) -> Iterator[None]:
    """Within the block, a module that was not loaded before is one with these members only."""
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)
    vars(stand_in).update(members)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        del sys.modules[name]


def give_back() -> None:
    """Return memory that is free inside this process to the system: what imports, or a job, left behind.

    It takes some tens of milliseconds, so it is called at the start and after a job, never in between. Without glibc
    only garbage is collected: musl gives back by itself.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3)
    if trim is not None:
        trim(0)
