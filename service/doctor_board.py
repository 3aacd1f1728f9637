"""What `temperd doctor` says of the hardware: board, sensors, levers, helper, supply, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.board.edac import memory_errors
from agent.board.inspection import Helper, Lever, ask_helper, firmware_file_bits, levers, since_boot, swaps
from agent.board.proc import available_bytes
from agent.board.profile import BoardProfile, named_policy_text, named_profile, pick_profile
from agent.board.sysfs import SysfsBoard, read_model
from agent.errors import ConfigError
from policies.reading import Health
from service.doctor import Finding, Scene, bad, ok, warn
from service.kernel_clock import believable, kernel_synchronised
from service.policy_file import parsed_policy, policy_text

HOT_CELSIUS = 80.0  # the firmware of a Raspberry Pi slows the board down from here on
LITTLE_MEMORY_BYTES = 256 << 20  # a job takes some 150 MiB, see docs/bench.md, and the rest of the board has its own
LITTLE_DISK_BYTES, NO_DISK_BYTES = 1 << 30, 64 << 20  # a base, two slots, a checkpoint and the outbox; the outbox alone
_STEERED = "temperd holds the board cool by clock and fan; without them by pauses and frozen layers alone"


def _profile(scene: Scene, model: str) -> BoardProfile:
    wanted = scene.config.board.profile
    return pick_profile(model) if wanted == "auto" else named_profile(wanted)


def board(scene: Scene) -> Iterator[Finding]:
    """Which board it is taken for, its sensors and its temperature now."""
    if scene.roots is None:
        yield ok("board", f"emulated {scene.config.board.emulated}; the daemon makes it when it starts")
        return
    model = read_model(scene.roots)
    profile = _profile(scene, model)
    if profile.name == "generic":
        what = f"{model or 'this machine'} is unknown: the profile generic serves"
        why = "the default policy holds, and there is no modelled power; sensors are found by their names"
        yield warn("board", what, why, "docs/own-board.md says how a board gets a profile")
    else:
        yield ok("board", f"{model or 'a machine without a device tree'}, profile {profile.name}")
    yield from _sensors(SysfsBoard(scene.roots, profile), scene)


def _sensors(seen: SysfsBoard, scene: Scene) -> Iterator[Finding]:
    reading = seen.read(scene.mono_s)
    states = dict(reading.health)
    die = reading.temperature_celsius
    if die is None:
        mend = "docs/boards.md: which zones are read. On a machine that has none: pause_without_sensor = false"
        yield bad("temperature", f"the die's sensor is {states.get('temperature')}", "training pauses", mend)
    elif die >= HOT_CELSIUS:
        mend = "a heat sink, a fan, or less load beside temperd"
        yield warn("temperature", f"{die:.1f} °C", "the board slows down by itself from 80 °C on", mend)
    else:
        yield ok("temperature", f"{die:.1f} °C")
    ill = {name: str(health) for name, health in states.items() if health is not Health.OK and name != "temperature"}
    for name, health in ill.items():
        yield warn("sensors", f"{name} is {health}", "docs/boards.md says what the governor does without it")
    if not ill:
        well = [name for name, health in states.items() if health is Health.OK]
        yield ok("sensors", ", ".join(well) or "no others")
    if reading.undervoltage or reading.throttled:
        words = [
            word for word, now in (("undervoltage", reading.undervoltage), ("throttled", reading.throttled)) if now
        ]
        yield bad("supply", " and ".join(words) + " now", "the board computes slower, or wrongly", _SUPPLY)


_SUPPLY = "a stronger supply and a shorter cable (Raspberry Pi: 5.1 V, 3 A or 5 A); better cooling"


def control(scene: Scene) -> Iterator[Finding]:
    """Whether clock and fan can be set, directly or through the helper, and what the firmware remembers."""
    if scene.roots is None:
        return
    found = levers(scene.roots, _profile(scene, read_model(scene.roots)))
    helper = _helper(scene)
    yield from levers_told(found, helper)
    yield from history_told(firmware_file_bits(scene.roots), helper)


def levers_told(found: Sequence[Lever], helper: Helper | None) -> Iterator[Finding]:
    """Whether the levers can be moved, by us or by the helper (`None`: it is not to be asked)."""
    shut = [lever.key for lever in found if not lever.writable]
    if not found:
        yield warn("levers", "no clock cap and no fan", _STEERED, "docs/boards.md: which files are written")
    elif not shut:
        yield ok("levers", f"{len(found)}, written directly")
    elif helper is not None and not helper.complaint:
        yield ok("levers", f"{len(found)}, {len(shut)} of them through temperd-powerd")
    else:
        why = helper.complaint if helper else "board.powerd is empty"
        mend = "sudo systemctl enable --now temperd-powerd.socket"
        yield warn("levers", f"{shut[0]} cannot be written, and {why}", _STEERED, mend)


def _helper(scene: Scene) -> Helper | None:
    socket = scene.config.board.powerd
    if not socket or scene.emulated or scene.roots is None:
        return None
    return ask_helper(Path(socket), scene.roots)


def history_told(bits: int | None, helper: Helper | None) -> Iterator[Finding]:
    """What the firmware of a Raspberry Pi remembers: from its file, else from the helper."""
    if bits is None:
        bits = helper.bits if helper else None
    if bits is None:
        return
    seen = since_boot(bits)
    if seen:
        yield warn("history", f"since the start of the board: {', '.join(seen)}", "jobs were slowed down", _SUPPLY)
    else:
        yield ok("history", "no undervoltage and no throttling since the start of the board")


def memory(scene: Scene) -> Iterator[Finding]:
    """Free memory, errors of the memory, and swap that secrets could reach."""
    if scene.roots is None:
        return
    free = available_bytes(scene.roots.proc)
    if free is not None and free < LITTLE_MEMORY_BYTES:
        what = f"{free >> 20} MiB are free"
        yield warn("memory", what, "jobs get a smaller micro-batch, or wait", "end other programs")
    elif free is not None:
        yield ok("memory", f"{free >> 20} MiB free")
    errors = memory_errors(scene.roots)
    if errors is not None and errors.uncorrected:
        yield bad("edac", f"{errors.uncorrected} uncorrected errors", "weights may be wrong", "replace the memory")
    elif errors is not None:
        yield ok("edac", f"{errors.corrected} corrected, none uncorrected")
    disks = swaps(scene.roots)
    if disks and scene.unit.get("MemorySwapMax", "infinity") != "0":
        mend = "MemorySwapMax=0 in the unit (sudo systemctl edit temperd), or sudo swapoff -a"
        yield warn("swap", f"{disks[0]} may take the daemon's memory", "keys and weights could reach the disk", mend)
    else:
        yield ok("swap", "the daemon's memory does not reach a disk" if disks else "none on a disk")


def disk(scene: Scene) -> Iterator[Finding]:
    """Room below the state folder."""
    place = next(path for path in (scene.state, *scene.state.parents) if path.exists())
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    told = f"{free >> 20} MiB free below {place}"
    if free < NO_DISK_BYTES or (found.f_files and not found.f_favail):
        yield bad(
            "disk", told, "a command that cannot be journaled is not obeyed", f"free space: du -xh {place} | sort -h"
        )
    elif free < LITTLE_DISK_BYTES:
        yield warn(
            "disk", told, "a base model, two slots and a checkpoint want about 1 GiB", "free space, or a larger disk"
        )
    else:
        yield ok("disk", told)


def clock(scene: Scene) -> Iterator[Finding]:
    """Whether the time can be believed: commands and metadata have dates."""
    synchronised = kernel_synchronised()
    why = "only pause, cancel and collect-report are obeyed, and metadata cannot be judged"
    if not believable(scene.now, 0.0, kernel_synchronised):
        yield bad("clock", "it was never set", why, "sudo timedatectl set-ntp true")
    elif not synchronised:
        what, mend = "set, and no time service has confirmed it", "sudo timedatectl set-ntp true"
        yield warn("clock", what, "a clock that drifts refuses commands (not-yet, expired)", mend)
    else:
        yield ok("clock", "synchronised")


def policy(scene: Scene) -> Iterator[Finding]:
    """Whether the configured policy is one; what is in force, where the daemon runs."""
    name = scene.config.policy.file
    if name:
        try:
            parsed_policy(policy_text(Path(name)), name)
        except FileNotFoundError:
            yield bad(
                "policy", f"{name} is not there", "the daemon does not start", f"policy.file in {scene.config_path}"
            )
            return
        except ConfigError as error:
            yield bad("policy", str(error), "the policy before stays in force", f"temperd policy check {name}")
            return
    live = (scene.live or {}).get("policy")
    if isinstance(live, dict):
        yield ok("policy", f"{live.get('name')} in force, from {live.get('source')}")
        return
    emulated = scene.config.board.emulated
    shipped = "emulated" if emulated else _shipped(scene)
    yield ok("policy", name or f"{shipped}, that of the board's profile")


def _shipped(scene: Scene) -> str:
    if scene.roots is None:
        return "default"
    name = _profile(scene, read_model(scene.roots)).policy_name
    named_policy_text(name)
    return name
