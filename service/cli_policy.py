"""`temperd policy check` and `temperd policy show`: policies for people."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from agent.board.profile import BoardProfile, named_policy_text, named_profile, policy_names
from agent.errors import BoardError, ConfigError
from policies.fits_board import clocks, complaints
from policies.policy import Policy, differences
from service.cli import config_path, say_json
from service.config import load_config
from service.live import live_folder, read_live
from service.policy_file import COPY, parsed_policy, policy_text


def read_policy(name: str) -> tuple[str, Policy]:
    """A policy's text and what it says; `name` is a file, or a policy that ships.

    Raises:
        ConfigError: neither, or no policy.
    """
    path = Path(name)
    if name in policy_names() and not path.exists():
        text = named_policy_text(name)
    else:
        try:
            text = policy_text(path)
        except FileNotFoundError as error:
            fix = f"Give a file, or one of those that ship: {', '.join(policy_names())}"
            raise ConfigError("there is no such policy", where=name, fix=fix) from error
    return text, parsed_policy(text, name)


def check(options: argparse.Namespace) -> int:
    """Whether a file is a policy, and what it comes to on a board."""
    profile = named_profile(options.board) if options.board else None
    _, policy = read_policy(options.policy)
    points = profile.points if profile else ()
    told = complaints(policy, points)
    if options.json:
        found = {clock.key: clock.frequency_hz for clock in clocks(policy, points)}
        say_json({"ok": True, "name": policy.name, "differs": _differs(policy), "clocks_hz": found, "notes": told})
        return 0
    print(f"{options.policy}: ok, a policy named {policy.name!r}")
    print("\n".join(_lines(policy, profile)))
    for sentence in told:
        print(f"note: {sentence}")
    return 0


def show(options: argparse.Namespace) -> int:
    """What is in force on this board, or was when its daemon last ran."""
    state = Path(options.state or load_config(config_path(options)).device.state_dir)
    live = _live(state)
    path = state / COPY
    try:
        text = policy_text(path)
    except FileNotFoundError as error:
        fix = "Start the daemon: temperd run"
        raise BoardError("no policy was ever in force here", where=str(path), fix=fix) from error
    policy = parsed_policy(text, str(path))
    if options.toml:
        print(text, end="" if text.endswith("\n") else "\n")
        return 0
    if options.json:
        values = dataclasses.asdict(policy)
        say_json({"running": live is not None, **(live or {"name": policy.name}), "policy": values})
        return 0
    print(_headline(policy, live))
    if live and live.get("complaint"):
        print(f"  not in force: {live['complaint']}")
    print("\n".join(_lines(policy, None)))
    return 0


def _live(state: Path) -> Mapping[str, object] | None:
    try:
        view = read_live(live_folder(state), time.monotonic())
    except BoardError:
        return None
    found = view.get("policy")
    return found if isinstance(found, dict) else None


def _headline(policy: Policy, live: Mapping[str, object] | None) -> str:
    if live is None:
        return f"policy {policy.name!r}, when the daemon last ran"
    return f"policy {live.get('name')!r}, from {live.get('source')}: {live.get('where')}"


def _differs(policy: Policy) -> dict[str, object]:
    return {key: value for key, (_, value) in differences(Policy(), policy).items() if key != "name"}


def _lines(policy: Policy, profile: BoardProfile | None) -> list[str]:
    told = [f"  {key} = {_toml(value)}" for key, value in _differs(policy).items()]
    lines = ["keys that differ from the default:", *told] if told else ["every key is that of the default policy"]
    if profile is None:
        return lines
    if not profile.points:
        return [*lines, f"{profile.name} has no clock table of its own: the kernel's serves, if it lists one"]
    return [*lines, f"clocks on {profile.name}:", *(f"  {clock}" for clock in clocks(policy, profile.points))]


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else f"{value:g}"
