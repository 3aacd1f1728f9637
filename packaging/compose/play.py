"""Plays a compose file where there is no container engine: as root, on this machine's kernel, from unpacked images.

It takes the file as `docker compose config --format json` prints it, and does what the file says: order and conditions,
volumes that take over owner and content of the image's folder, a read-only root, memory-backed folders, user, dropped
capabilities, no new privileges, memory and process limits, health checks, restarts. Each service has its own process
numbers and mounts. All share one network, so a service's name is an address of the machine itself; play it in a network
namespace of its own. A key of the file that is not known here ends it: nothing is left out in silence.
"""

# ruff: noqa: INP001 - beside the file that it plays, in no package

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

GENEROUS_S = 180.0  # for a machine that does other things too
POLL_S = 0.5
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LIMITS = (("memory", "memory.limit_in_bytes", "mem_limit"), ("pids", "pids.max", "pids_limit"))
CGROUPS = Path("/sys/fs/cgroup")
# build: the images are there; networks: one for all; the times of health checks: asked more often here.
LEFT_OUT = {"build", "networks", "stop_grace_period", "profiles", "image"}
OBEYED = {
    "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "mem_limit", "pids_limit", "ports",
    "read_only", "restart", "security_opt", "tmpfs", "user", "volumes", "working_dir",
}  # fmt: skip


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image and what it says of itself.

    Attributes:
        root: its root file system; nothing is written there but missing mount points.
        config: `Entrypoint`, `Cmd`, `User`, `Env`, `WorkingDir`, `Healthcheck` of Docker's image format.
    """

    root: Path
    config: Mapping[str, Any]


@dataclass(slots=True)
class Service:
    """One service of the file, and its container while it runs."""

    name: str
    said: Mapping[str, Any]
    image: Image
    log: Path
    child: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    starts: int = 0
    codes: list[int] = field(default_factory=list)

    @property
    def user(self) -> str:
        """UID:GID."""
        user = str(self.said.get("user") or self.image.config.get("User") or "0:0")
        return user if ":" in user else f"{user}:{user}"

    @property
    def command(self) -> list[str]:
        """What runs: an entry point of the file leaves the image's command out."""
        entry, command = self.said.get("entrypoint"), self.said.get("command")
        if entry is None:
            entry = self.image.config.get("Entrypoint") or []
            command = command if command is not None else self.image.config.get("Cmd")
        return [_plain(word) for word in [*entry, *(command or [])]]

    @property
    def environment(self) -> dict[str, str]:
        """The image's variables and the file's."""
        found = dict(pair.split("=", 1) for pair in self.image.config.get("Env") or [])
        asked = self.said.get("environment") or {}
        return {"PATH": PATH, **found, **{name: _plain(value) for name, value in asked.items()}}

    def pid(self) -> int:
        """Its process 1, as this machine numbers it."""
        assert self.child is not None, f"{self.name} was never started"
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text(encoding="ascii").split()
        assert children, f"{self.name} does not run"
        return int(children[0])


class Fleet:
    """The services of one file.

    Args:
        said: the file as JSON.
        images: by the name that the file gives them.
        folder: of volumes, logs and mounts.
    """

    def __init__(self, said: Mapping[str, Any], images: Mapping[str, Image], folder: Path) -> None:
        self._folder = folder
        self._volumes = folder / "volumes"
        self._volumes.mkdir(parents=True)
        (folder / "logs").mkdir()
        self._hosts = folder / "hosts"
        names = " ".join(said["services"])
        self._hosts.write_text(f"127.0.0.1 localhost {names}\n", encoding="ascii")
        self.services: dict[str, Service] = {}
        for name, service in said["services"].items():
            check(name, service)
            self.services[name] = Service(name, service, images[service["image"]], folder / "logs" / name)

    # --- up and down -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start every service without a profile in the order that the file asks for, as its conditions come true."""
        waiting = [name for name, service in self.services.items() if not service.said.get("profiles")]
        while waiting:
            ready = [
                name for name in waiting if not set(self.services[name].said.get("depends_on") or {}) & set(waiting)
            ]
            assert ready, f"these wait for each other: {waiting}"
            for name in ready:
                for other, how in (self.services[name].said.get("depends_on") or {}).items():
                    self._await(other, how["condition"])
                self.start(name)
                waiting.remove(name)

    def _await(self, name: str, condition: str) -> None:
        if condition == "service_completed_successfully":
            self.wait(f"{name} ends", lambda: self.services[name].codes)
            assert self.services[name].codes[-1] == 0, f"{name} failed\n{self.log(name)}"
        elif condition == "service_healthy":
            self.wait(f"{name} is healthy", lambda: self.healthy(name))
        else:
            raise AssertionError(f"{name}: unknown condition {condition}")

    def start(self, name: str) -> None:
        """Start a service, and again when it ends, as its `restart` says."""
        threading.Thread(target=self._keep, args=(self.services[name],), daemon=True).start()
        self.wait(f"{name} starts", lambda: self.services[name].starts)

    def _keep(self, service: Service) -> None:
        while True:
            with service.log.open("ab") as log:
                command = self._container(service, service.command)
                service.child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)  # noqa: S603
            service.starts += 1
            service.codes.append(service.child.wait())
            if service.stopping or service.said.get("restart", "no") == "no":
                return
            time.sleep(POLL_S)

    def run(self, name: str, *command: str, seconds: float = GENEROUS_S) -> subprocess.CompletedProcess[str]:
        """`docker compose run --rm NAME COMMAND...`."""
        service = self.services[name]
        entry = service.said.get("entrypoint") or service.image.config.get("Entrypoint") or []
        words = self._container(service, [*map(_plain, entry), *command])
        return subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603

    def exec(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """`docker compose exec NAME COMMAND...`."""
        service = self.services[name]
        pid = service.pid()
        enter = ["nsenter", f"--target={pid}", "--mount", "--pid", f"--root=/proc/{pid}/root", f"--wd=/proc/{pid}/cwd"]
        words = [*enter, *_become(service), *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=GENEROUS_S, check=False)  # noqa: S603

    def healthy(self, name: str) -> bool:
        """Whether its health check says so now."""
        check = self.services[name].said.get("healthcheck") or self.services[name].image.config.get("Healthcheck") or {}
        words = [_plain(word) for word in check.get("test") or check.get("Test") or []]
        assert words[:1] == ["CMD"], f"{name}: a health check of another kind: {words}"
        try:
            return self.exec(name, *words[1:]).returncode == 0
        except (AssertionError, OSError):
            return False

    def down(self) -> dict[str, int]:
        """SIGTERM to process 1 of each, as `docker compose stop` does; exit codes of what had to be stopped."""
        running = [s for s in self.services.values() if s.child is not None and s.child.poll() is None]
        for service in running:
            service.stopping = True
            with contextlib.suppress(AssertionError, OSError):
                os.kill(service.pid(), signal.SIGTERM)
        for service in running:
            assert service.child is not None
            try:
                service.child.wait(GENEROUS_S)
            except subprocess.TimeoutExpired as error:
                raise AssertionError(f"{service.name} does not end\n{self.log(service.name)}") from error
        return {service.name: service.child.returncode for service in running if service.child is not None}

    def kill(self) -> None:
        """End whatever is left."""
        for service in self.services.values():
            service.stopping = True
            if service.child is not None:
                service.child.kill()
                service.child.wait()
        for group, _file, _key in LIMITS:
            for name in self.services:
                _remove_group(CGROUPS / group / self._group(name))

    def wait(self, what: str, true: Callable[[], T], seconds: float = GENEROUS_S) -> T:
        """Poll until `true()` is truthy."""
        end = time.monotonic() + seconds
        while not (found := true()):
            if time.monotonic() > end:
                logs = "\n".join(f"--- {name}\n{self.log(name)}" for name in self.services)
                raise AssertionError(f"waited {seconds:g} s in vain: {what}\n{logs}")
            time.sleep(POLL_S)
        return found

    def log(self, name: str) -> str:
        """The last lines of a service."""
        path = self.services[name].log
        return "\n".join(path.read_text(errors="replace").splitlines()[-20:]) if path.exists() else ""

    def volume(self, name: str) -> Path:
        """The folder of a named volume."""
        return self._volumes / name

    def most_memory(self, name: str) -> int | None:
        """The most that its processes and files in memory had together, in bytes, where this kernel counts it."""
        path = CGROUPS / "memory" / self._group(name) / "memory.max_usage_in_bytes"
        return int(path.read_text(encoding="ascii")) if path.exists() else None

    # --- one container -----------------------------------------------------------------------------------------------

    def _group(self, name: str) -> str:
        return f"temperd-play-{os.getpid()}-{name}"

    def _container(self, service: Service, command: Sequence[str]) -> list[str]:
        """The command that makes the container; the service is its process 1."""
        steps = ["set -e", *self._limits(service), "mount --make-rprivate /", *self._mounts(service)]
        shell = "\n".join([*steps, f"cd {_quoted(self._root(service))}", 'exec chroot . "$@"'])
        folder = str(service.said.get("working_dir") or service.image.config.get("WorkingDir") or "/")
        inner = ["sh", "-c", 'cd "$0" && exec "$@"', folder, *_become(service), *command]
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", shell, "sh", *inner]

    def _limits(self, service: Service) -> Iterator[str]:
        for group, file, key in LIMITS:
            asked = service.said.get(key)
            if asked and (CGROUPS / group).is_dir():
                folder = CGROUPS / group / self._group(service.name)
                folder.mkdir(exist_ok=True)
                (folder / file).write_text(str(asked), encoding="ascii")
                yield f"echo 0 >{_quoted(folder / 'cgroup.procs')}"

    def _root(self, service: Service) -> Path:
        root = self._folder / "roots" / service.name
        root.mkdir(parents=True, exist_ok=True)
        return root

    def _mounts(self, service: Service) -> Iterator[str]:
        root, image = self._root(service), service.image.root
        places = [
            (Path(volume["target"]), self._source(service, volume)) for volume in service.said.get("volumes") or []
        ]
        places += [(Path("/etc/hosts"), self._hosts)]
        for place, source in places:
            _mount_point(image / place.relative_to("/"), folder=source.is_dir())
        yield f"mount --bind {_quoted(image)} {_quoted(root)}"
        yield f"mount -o remount,bind,ro {_quoted(root)}"
        read_only = {Path(v["target"]) for v in service.said.get("volumes") or [] if v.get("read_only")} | {
            Path("/etc/hosts")
        }
        for place, source in places:
            target = _quoted(root / place.relative_to("/"))
            yield f"mount --bind {_quoted(source)} {target}"
            if place in read_only:
                yield f"mount -o remount,bind,ro {target}"
        for name in service.said.get("tmpfs") or []:
            _mount_point(image / str(name).lstrip("/"), folder=True)
            yield f"mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs {_quoted(root / str(name).lstrip('/'))}"
        yield f"mount -t proc proc {_quoted(root / 'proc')}"
        yield f"mount --rbind /dev {_quoted(root / 'dev')}"
        yield f"mount -t sysfs -o ro sysfs {_quoted(root / 'sys')}"

    def _source(self, service: Service, volume: Mapping[str, Any]) -> Path:
        """The folder or file behind a mount; a new volume takes over what the image has at the place."""
        if volume["type"] == "bind":
            return Path(volume["source"])
        source = self.volume(volume["source"])
        if not source.exists():
            template = service.image.root / str(volume["target"]).lstrip("/")
            if template.is_dir():
                shutil.copytree(template, source, symlinks=True)
                found = template.stat()
                os.chown(source, found.st_uid, found.st_gid)
                source.chmod(found.st_mode & 0o7777)
            else:
                source.mkdir()
        return source


def check(name: str, said: Mapping[str, Any]) -> None:
    """Refuse what would not be played as it is written."""
    unknown = set(said) - OBEYED - LEFT_OUT
    assert not unknown, f"{name}: play.py does not know {sorted(unknown)}"
    assert said.get("read_only") is True, f"{name}: images are shared here, so a root must be read-only"
    assert said.get("cap_drop") == ["ALL"], f"{name}: keeps capabilities"
    assert said.get("security_opt") == ["no-new-privileges:true"], f"{name}: may gain privileges"
    assert said.get("restart", "no") in {"no", "unless-stopped"}, f"{name}: restart {said['restart']}"
    for port in said.get("ports") or []:
        assert str(port["published"]) == str(port["target"]), f"{name}: a published port is the same inside here"


def _become(service: Service) -> list[str]:
    uid, gid = service.user.split(":")
    # To end with us was asked of the process before; what becomes another user forgets it.
    drop = [
        "--pdeathsig=KILL",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--ambient-caps=-all",
    ]
    variables = [f"{key}={value}" for key, value in service.environment.items()]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *drop, "env", "-i", *variables]


def _remove_group(folder: Path) -> None:
    """Remove a control group once the kernel has buried what was in it."""
    for _ in range(60):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(POLL_S)


def _mount_point(path: Path, *, folder: bool) -> None:
    if folder:
        path.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _plain(word: object) -> str:
    """A word of the file: there, two dollars are one."""
    return re.sub(r"\$\$", "$", str(word))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def read(path: Path) -> dict[str, Any]:
    """A file that `docker compose config --format json` printed."""
    return dict(json.loads(path.read_text(encoding="utf-8")))
