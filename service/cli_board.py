"""`temperd run`, `fine-tune`, `status` and `predict`: the verbs of a board."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ArtifactError, BoardError, ConfigError
from agent.keys_stored import find_identity
from agent.private_memory import keep_memory_private
from service.cli import config_path, say_json
from service.config import Config, example_text, load_config

if TYPE_CHECKING:
    from service.journal import JobRecord


def run(options: argparse.Namespace) -> int:
    """The daemon."""
    if options.example:
        print(example_text(), end="")
        return 0
    config = load_config(config_path(options))
    daemon = _daemon(config)
    if asyncio.run(daemon.serve()):
        from service.launch import relaunch  # noqa: PLC0415 - once in a release's life

        relaunch(sys.argv[1:])
    return 0


def fine_tune(options: argparse.Namespace) -> int:
    """One job, now."""
    from agent.spec import parse_spec  # noqa: PLC0415 - see `_daemon`
    from service.cli_fleet import read_spec  # noqa: PLC0415 - same

    spec = parse_spec(read_spec(Path(options.spec)))
    record = asyncio.run(_daemon(load_config(config_path(options))).one_job(spec))
    if options.json:
        say_json(record.status(ts=record.updated, clock=""))
    else:
        _print_record(record)
    if record.standing.state == "SUCCEEDED":
        return 0
    code = (record.result or {}).get("exit_code", 1)
    return code if isinstance(code, int) else 1


def status(options: argparse.Namespace) -> int:
    """The live view of the running daemon."""
    from service.live import live_folder, read_live  # noqa: PLC0415 - see `_daemon`
    from service.status_lines import status_lines  # noqa: PLC0415 - the daemon does without

    folder = live_folder(Path(load_config(config_path(options)).device.state_dir))
    if not options.watch:
        view = read_live(folder, time.monotonic())
        if options.json:
            say_json(view)
        else:
            print("\n".join(status_lines(view)))
        return 0
    from rich.live import Live  # noqa: PLC0415 - only here
    from rich.text import Text  # noqa: PLC0415 - same

    with Live(refresh_per_second=4) as live:
        while True:
            live.update(Text("\n".join(status_lines(read_live(folder, time.monotonic())))))
            time.sleep(1.0)


def predict(options: argparse.Namespace) -> int:
    """Answers of the active model."""
    from agent.finetune import identity_folder, open_store  # noqa: PLC0415 - needs the numeric stack
    from agent.keys import load_identity  # noqa: PLC0415 - same
    from agent.predict import Finding, Prediction, Reading  # noqa: PLC0415 - same
    from agent.predict import predict as ask  # noqa: PLC0415 - same

    state = Path(load_config(config_path(options)).device.state_dir)
    store = open_store(state, load_identity(identity_folder(state)))
    reading = Reading(tuple(options.columns), options.missing)
    found, manifest = ask(store, [Path(name) for name in options.files], os.cpu_count() or 1, reading)
    if options.json:
        predictions = [dataclasses.asdict(item) for item in found]
        say_json({"model": manifest["name"], "model_sha256": manifest["model_sha256"], "predictions": predictions})
        return 0
    for item in found:
        if isinstance(item, Prediction):
            print(f"{item.path}: {item.label} ({item.probability:.1%})")
        elif isinstance(item, Finding):
            answer = "ANOMALY" if item.anomaly else "normal"
            print(f"{item.path} rows {item.first_row}-{item.last_row}: {answer} (error {item.error:.4g})")
        else:
            values = ", ".join(f"{value:.4g}" for value in item.values)
            print(f"{item.path} after row {item.last_row}: {item.target} {values}")
    return 0


def _daemon(config: Config):  # type: ignore[no-untyped-def]  # noqa: ANN202 - the class is imported late
    """Logs are set up before anything else is imported: the daemon must not pull in `rich`."""
    from service import logs  # noqa: PLC0415

    logs.configure(config.log.level, config.log.format)
    keep_memory_private()
    from service.daemon import Daemon  # noqa: PLC0415

    _check_identity(config)
    return Daemon(config)


def _check_identity(config: Config) -> None:
    """The identity must be there and carry the configured name: grants and commands are bound to it.

    Raises:
        ConfigError: it is missing, open to others, broken or somebody else's.
    """
    try:
        found = find_identity(Path(config.device.state_dir, "keys"))
    except (BoardError, ArtifactError) as error:
        raise ConfigError(error.what, where=error.where, fix=error.fix, reason=error.code) from error
    name = found.stored.device
    if name != config.device.name:
        raise ConfigError(
            f"the identity is that of {name!r}, the configuration names {config.device.name!r}",
            where=str(found.path),
            fix="Set device.name to the identity's, or make a new identity",
        )


def _print_record(record: JobRecord) -> None:
    from service.status_lines import deadline_line, energy_line, table  # noqa: PLC0415 - see `status`

    standing = record.standing
    result = record.result or {}
    print(f"{standing.state.lower()} {standing.reason_code} {standing.reason}".rstrip())
    metric = result.get("metric")
    shown = ("samples_per_s", "dropped_steps", "depth_percent", "depth_changes", "model_sha256")
    for key in (f"{metric}_before", f"{metric}_after", *shown):
        if result.get(key) is not None:
            value = result[key]
            print(f"  {key:16} {value:.4g}" if isinstance(value, float) else f"  {key:16} {value}")
    for name, value in table(result.get("baselines")).items():
        print(f"  {name:16} {value:.4g} ({metric} without a model)")
    if energy := table(result.get("energy")):
        print(f"  {energy_line(energy)}")
    if deadline := table(result.get("deadline")):
        print(f"  {deadline_line(deadline, ended=True)}")
