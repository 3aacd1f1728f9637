"""A private MQTT 5 broker for the demo: mosquitto, found or fetched, on loopback only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import BoardError, NetworkError

PLACES = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")  # where packages put it, often outside a user's PATH
APT_S = 300  # an update and a small install over a slow line
START_S = 10.0
POLL_S = 0.05
LOOPBACK = "127.0.0.1"
_NO_RECOMMENDS = ("-o", "APT::Install-Recommends=false", "-o", "APT::Update::Error-Mode=any")


@dataclass(frozen=True, slots=True)
class Program:
    """How to start mosquitto: the file, and the folders of libraries that came with it."""

    path: str
    libraries: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """The environment to start it in."""
        if not self.libraries:
            return dict(os.environ)
        return os.environ | {"LD_LIBRARY_PATH": ":".join(self.libraries)}


@dataclass(slots=True)
class Broker:
    """A running broker."""

    port: int
    _child: subprocess.Popen[bytes] = field(repr=False)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it is still there."""
        return self._child.poll() is None

    def stop(self) -> None:
        """End it."""
        self._child.terminate()
        self._child.wait(timeout=START_S)


def cache_folder() -> Path:
    """Where fetched packages are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "temperd" / "mosquitto"


def installed_mosquitto(cache: Path) -> Program | None:
    """The machine's mosquitto or the one fetched before; `None` when there is neither."""
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path=":".join(PLACES))
    return Program(path) if path else _unpacked(cache)


def find_mosquitto(cache: Path, say: Callable[[str], None]) -> Program:
    """The machine's mosquitto; else installed by apt as root; else fetched by apt and unpacked below `cache`.

    Raises:
        BoardError: none of the three works here; says how to install it by hand.
    """
    there = installed_mosquitto(cache)
    if there is not None:
        return there
    if shutil.which("apt-get") is None:
        raise BoardError("no MQTT broker on this machine", fix="Install mosquitto with your package manager")
    try:
        if os.geteuid() == 0:
            say("installing mosquitto with apt")
            _apt("update", "-qq")
            _apt("install", "-y", "-qq", *_NO_RECOMMENDS, "mosquitto")
            return Program(shutil.which("mosquitto", path=":".join(PLACES)) or "mosquitto")
        say("fetching mosquitto's packages into a private folder (no root needed)")
        _fetch(cache)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        fix = "Install it by hand: sudo apt install mosquitto"
        raise BoardError(
            "mosquitto could not be installed", where=said.strip().splitlines()[-1][:300], fix=fix
        ) from error
    unpacked = _unpacked(cache)
    if unpacked is None:
        raise BoardError("mosquitto's packages hold no broker", where=str(cache), fix="apt install mosquitto")
    return unpacked


def start_broker(program: Program, folder: Path, more: str = "") -> Broker:
    """Start a broker on a free loopback port; its files stay in `folder`. `more` are further lines of its settings.

    Raises:
        NetworkError: it ended or does not answer.
    """
    port = free_port()
    config = folder / "mosquitto.conf"
    prompt = "set_tcp_nodelay true\n"  # mosquitto's default holds a small packet back for 40 ms after another
    lines = f"listener {port} {LOOPBACK}\nallow_anonymous true\npersistence false\n{prompt}{more}"
    config.write_text(lines, encoding="ascii")
    with (folder / "mosquitto.log").open("wb") as log:
        command = [program.path, "-c", str(config)]
        child = subprocess.Popen(command, stdout=log, stderr=log, env=program.environment, start_new_session=True)  # noqa: S603 - found above
    for _ in range(int(START_S / POLL_S)):
        if child.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return Broker(port, child)
        time.sleep(POLL_S)
    child.kill()
    raise NetworkError("the broker did not start", where=(folder / "mosquitto.log").read_text("utf-8", "replace")[:300])


def free_port() -> int:
    """A TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _unpacked(cache: Path) -> Program | None:
    root = cache / "root"
    path = root / "usr/sbin/mosquitto"
    if not path.exists():
        return None
    libraries = {str(found.parent) for found in root.glob("usr/lib/**/*.so*")} | {
        str(found.parent) for found in root.glob("lib/**/*.so*")
    }
    return Program(str(path), tuple(sorted(libraries)))


def _fetch(cache: Path) -> None:
    """What apt would install, downloaded with lists and archives of our own, and unpacked."""
    for folder in ("lists/partial", "archives/partial", "root"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    private = (
        f"-oDir::State::Lists={cache}/lists",
        f"-oDir::Cache={cache}",
        "-oDebug::NoLocking=true",
        *_NO_RECOMMENDS,
    )
    _apt("update", "-qq", *private)
    listing = _apt("install", "--print-uris", "-qq", "-y", *private, "mosquitto")
    packages = [line.split()[1].partition("_")[0] for line in listing.splitlines() if line.startswith("'")]
    _apt("download", "-qq", *private, *(packages or ["mosquitto"]), cwd=cache / "archives")
    for package in sorted((cache / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(package), str(cache / "root")], check=True, timeout=APT_S)  # noqa: S603, S607 - Debian's own tool


def _apt(*arguments: str, cwd: Path | None = None) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(  # noqa: S603 - a fixed program, arguments from this module
        ["apt-get", *arguments],  # noqa: S607 - wherever Debian has it
        check=True,
        capture_output=True,
        text=True,
        timeout=APT_S,
        cwd=cwd,
        env=environment,
    )
    return done.stdout


def main() -> int:
    """Make sure that there is a broker (`python -m service.broker`); the tests need one."""
    try:
        print(f"mosquitto: {find_mosquitto(cache_folder(), print).path}")
    except BoardError as error:
        print(f"{error}\ntests that need a broker will be skipped, by name", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
