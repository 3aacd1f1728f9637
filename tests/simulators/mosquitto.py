"""A real mosquitto on a free loopback port, in a folder of its own. By hand: python tests/simulators/mosquitto.py."""

from __future__ import annotations

import getpass
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from service.broker import Program, cache_folder, installed_mosquitto

START_S = 10.0


def find_mosquitto() -> Program | None:
    """The machine's broker, or the one that `make test` fetched."""
    return installed_mosquitto(cache_folder())


class Mosquitto:
    """The broker; `start` again after `kill` uses the same port. Nothing survives a kill: persistence is off."""

    def __init__(self, folder: Path, extra: str = "", *, anonymous: bool = True) -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        self._log = folder / "mosquitto.log"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous {str(anonymous).lower()}\npersistence false\n"
            f"user {getpass.getuser()}\n{extra}\n"  # started by root, it would become a user who cannot read our files
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None, "mosquitto is not installed"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [program.path, "-c", str(self._config)], stdout=log, stderr=log, env=program.environment
            )
        end = time.monotonic() + START_S
        while not _listens(self.port):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, "the broker does not listen"
            time.sleep(0.02)

    def keep_sessions(self, folder: Path) -> None:
        """From the next start on, keep sessions and messages in `folder` over a `stop`."""
        text = self._config.read_text().replace(
            "persistence false", f"persistence true\npersistence_location {folder}/"
        )
        self._config.write_text(text)

    @property
    def running(self) -> bool:
        """Whether it was started and not ended."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running broker."""
        assert self._process is not None
        return self._process.pid

    def save(self) -> None:
        """With persistence on: write everything to the disk now."""
        database = self._config.with_name("mosquitto.db")
        database.unlink(missing_ok=True)
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        end = time.monotonic() + START_S
        while not database.exists():
            assert time.monotonic() < end, "the broker does not save"
            time.sleep(0.02)

    def kill(self) -> None:
        """As a power cut: kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A loopback port where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        broker = Mosquitto(Path(place))
        broker.start()
        print(f"mosquitto on 127.0.0.1:{broker.port}, Enter to stop")  # noqa: T201 - run by hand
        input()
        broker.stop()
