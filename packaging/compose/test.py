#!/usr/bin/env python3
"""Plays the compose file and tries what docs/container.md says of it; started by packaging/container/test.sh.

test.py FILE.json FOLDER NAME=ROOT=IMAGE.json...

FILE.json is the file as `docker compose config --format json` prints it; each image is given with its unpacked root and
what `buildah inspect --type image` prints. Run it as root in a network namespace of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from play import Fleet, Image, read

BOARDS = {"board-pi4": "raspberry-pi-4", "board-pi5": "raspberry-pi-5", "board-orin": "jetson-orin-nano"}
MIB = 1 << 20
REFUSED = 3  # the exit code of a console whose command was rejected
BEGAN = time.monotonic()
JOB_S = 900.0  # a fine-tune on a machine that has other work


def main(arguments: list[str]) -> None:
    """Everything in order; an assertion ends it."""
    file, folder = Path(arguments[0]), Path(arguments[1])
    images = {}
    for argument in arguments[2:]:
        name, root, config = argument.split("=", 2)
        about = json.loads(Path(config).read_text(encoding="utf-8"))
        images[name] = Image(Path(root), about["Docker"]["config"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607 - a tool of this machine
    fleet = Fleet(read(file), images, folder)
    try:
        fleet.up()
        passed("up: broker, three boards, set-up, repository")
        confined(fleet)
        listed(fleet)
        learns(fleet)
        worker_killed(fleet)
        is_no_slot(fleet)
        comes_back(fleet)
        again(fleet)
        ended = fleet.down()
        # Python's web server knows no end but that of the signal.
        assert ended.pop("repository") == 128 + signal.SIGTERM
        assert set(BOARDS) < set(ended)
        assert not any(ended.values()), f"SIGTERM does not end all of them cleanly: {ended}"
        assert "Error" not in fleet.log("broker"), fleet.log("broker")
        passed("down: every service ends, boards and broker with 0")
    finally:
        fleet.kill()


def passed(what: str) -> None:
    """One line for people."""
    sys.stdout.write(f"ok   {what:<90} {time.monotonic() - BEGAN:4.0f}s\n")
    sys.stdout.flush()


def boards(fleet: Fleet) -> dict[str, dict[str, object]]:
    """What `fleet list` shows, by board."""
    done = fleet.run("console", "fleet", "list", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads(done.stdout)
    return {str(line["board"]): line for line in (lines["boards"] if isinstance(lines, dict) else lines)}


def confined(fleet: Fleet) -> None:
    """What the file asks for holds in a board's container."""
    refused = fleet.exec("board-pi4", "sh", "-c", "echo x >/usr/local/bin/x")
    assert "Read-only" in refused.stderr, refused
    refused = fleet.exec("board-pi4", "sh", "-c", "echo x >/data/x")
    assert "Read-only" in refused.stderr, refused
    status = fleet.exec("board-pi4", "cat", "/proc/1/status").stdout
    assert "CapEff:\t0000000000000000" in status, status
    assert "NoNewPrivs:\t1" in status, status
    assert fleet.exec("board-pi4", "cat", "/proc/1/comm").stdout.strip() == "tini"
    passed("read-only roots and data, no capability, no new privileges, tini as process 1")


def listed(fleet: Fleet) -> None:
    """Three boards of three profiles, all online."""
    fleet.wait("three boards are online", lambda: all_online(boards(fleet)))
    found = boards(fleet)
    assert {name: line["profile"] for name, line in found.items()} == BOARDS, found
    assert len(set(BOARDS.values())) == len(BOARDS)
    shown = fleet.run("console", "fleet", "list").stdout
    sys.stdout.write("".join(f"     {line}\n" for line in shown.splitlines()))
    passed("fleet list: three boards of three kinds, online")


def all_online(found: dict[str, dict[str, object]]) -> bool:
    """Whether the three are there."""
    return set(found) == set(BOARDS) and all(line["online"] for line in found.values())


def learns(fleet: Fleet) -> None:
    """A real fine-tune by a signed command."""
    began = time.monotonic()
    done = fleet.run("console", "fleet", "send", "board-pi5", "fine-tune", "job.toml", "--watch", seconds=JOB_S)
    assert done.returncode == 0, done.stdout + done.stderr + fleet.log("board-pi5")
    sys.stdout.write("".join(f"     {line}\n" for line in done.stdout.splitlines()[-4:]))
    fleet.wait("the new model is active", lambda: boards(fleet)["board-pi5"]["model_sha256"])
    assert boards(fleet)["board-pi5"]["model"] == "efficientnet-lite0"
    passed(f"fine-tune of EfficientNet-Lite0 on board-pi5: succeeded in {time.monotonic() - began:.0f} s")
    for name in ("board-pi5", "board-pi4"):
        most, limit = fleet.most_memory(name), int(fleet.services[name].said["mem_limit"])
        if most is not None:
            assert most < limit
            sys.stdout.write(f"     {name}: at most {most / MIB:.0f} of {limit / MIB:.0f} MiB\n")


def worker_killed(fleet: Fleet) -> None:
    """SIGKILL of the training process leaves the daemon, and the job goes on."""
    name = "board-pi4"
    sent = fleet.run("console", "fleet", "send", name, "fine-tune", "job.toml", "--json")
    assert sent.returncode == 0, sent.stdout + sent.stderr
    killed = fleet.wait("a worker trains", lambda: training(fleet, name))
    assert killed is not None
    daemon, starts = fleet.services[name].pid(), fleet.services[name].starts
    os.kill(killed, signal.SIGKILL)
    log = fleet.services[name].log
    fleet.wait("another worker goes on", lambda: '"attempt": 2, "event": "worker started"' in log.read_text("utf-8"))
    assert fleet.services[name].pid() == daemon
    assert fleet.services[name].starts == starts
    fleet.wait("the job succeeds", lambda: (job(fleet, name) or {}).get("status") == "succeeded", JOB_S)
    passed("a worker killed with SIGKILL leaves the daemon; its job goes on and succeeds")


def training(fleet: Fleet, name: str) -> int | None:
    """The worker of a board, once the job trains."""
    line = job(fleet, name)
    if not line or line.get("step") != "training":
        return None
    return worker(fleet.services[name].pid())


def job(fleet: Fleet, name: str) -> dict[str, object] | None:
    """The job that `fleet list` shows of a board."""
    found = boards(fleet)[name]["job"]
    return found if isinstance(found, dict) else None


def worker(pid: int) -> int | None:
    """The descendant of a process that is temperd's worker."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        if b"agent.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
        if found := worker(int(child)):
            return found
    return None


def is_no_slot(fleet: Fleet) -> None:
    """The image is what is updated: a release for the slots of a board is refused."""
    done = fleet.run("console", "fleet", "send", "board-orin", "update-agent", "--watch", "--json")
    assert done.returncode == REFUSED, done.stdout + done.stderr
    assert "not-updatable" in done.stdout, done.stdout
    passed("update-agent is refused: not-updatable")


def comes_back(fleet: Fleet) -> None:
    """A board whose process 1 is killed is started again, as its `restart` says, and is who it was."""
    name = "board-pi5"
    before, starts = boards(fleet)[name], fleet.services[name].starts
    os.kill(fleet.services[name].pid(), signal.SIGKILL)
    fleet.wait("it is started again", lambda: fleet.services[name].starts > starts)
    fleet.wait("it is healthy again", lambda: fleet.healthy(name))
    fleet.wait("it is online again", lambda: boards(fleet)[name]["online"])
    assert boards(fleet)[name]["model_sha256"] == before["model_sha256"]
    passed("a board killed with SIGKILL is started again, with its tuned model")


def again(fleet: Fleet) -> None:
    """Set-up may run again: `docker compose up` does so."""
    done = fleet.run("set-up", *fleet.services["set-up"].said["command"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert all_online(boards(fleet))
    passed("set-up runs again and changes nothing that is there")


if __name__ == "__main__":
    main(sys.argv[1:])
