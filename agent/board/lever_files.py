"""The kernel files that are ever written, as names below the sysfs root."""

from __future__ import annotations

import re
from pathlib import Path

from agent.board.files import read_text

FREQUENCIES = "devices/system/cpu/cpufreq"
MAX_NUMBER = 9999  # of a cpufreq policy or a cooling device; kernels number them from 0, one a core or a fan
MAX_VALUE = 100_000_000  # 100 GHz in kHz
MAX_MARK = 64  # characters; a cooling device's type has at most 20 (THERMAL_NAME_LENGTH)
_CAP = re.compile(rf"{FREQUENCIES}/policy(0|[1-9][0-9]{{0,3}})/scaling_max_freq")
_COOLING = re.compile(r"class/thermal/cooling_device(0|[1-9][0-9]{0,3})/cur_state")


def cap_file(policy: int) -> str:
    """The clock cap of a cpufreq policy, kHz."""
    return f"{FREQUENCIES}/policy{policy}/scaling_max_freq"


def cooling_file(device: int) -> str:
    """The level of a cooling device."""
    return f"class/thermal/cooling_device{device}/cur_state"


def capped_policy(key: str) -> int | None:
    """The number of the cpufreq policy whose cap `key` is; `None`: it is none."""
    found = _CAP.fullmatch(key)
    return int(found[1]) if found else None


def cooled_device(key: str) -> int | None:
    """The number of the cooling device whose level `key` is; `None`: it is none."""
    found = _COOLING.fullmatch(key)
    return int(found[1]) if found else None


def is_lever(key: str) -> bool:
    """Whether `key` may be written at all, whatever a file or a peer says."""
    return capped_policy(key) is not None or cooled_device(key) is not None


def device_mark(sys_root: Path, key: str) -> str:
    """What the device behind `key` says it is: a cooling device's type, the cores of a cpufreq policy.

    Numbers are given as drivers load: a value found in one device must not be written into another. Empty where the
    device says nothing.
    """
    name = "related_cpus" if capped_policy(key) is not None else "type"
    return (read_text((sys_root / key).parent / name) or "")[:MAX_MARK]


def is_another(sys_root: Path, key: str, mark: str) -> bool:
    """Whether `key` is by now that of another device than the one that said `mark`; not told where either is empty."""
    now = device_mark(sys_root, key) if mark else ""
    return bool(now) and now != mark


def strictest(key: str, value: int, before: int | None) -> int:
    """The stricter of two values of the file `key`."""
    return value if before is None or is_stricter(key, value, before) else before


def is_stricter(key: str, value: int, than: int) -> bool:
    """Whether `value` in the file `key` keeps the board slower or cooler than `than` does."""
    return value < than if capped_policy(key) is not None else value > than
