"""A real PostgreSQL in a folder of its own, on a unix socket. By hand: python tests/simulators/postgres.py."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from itertools import count
from pathlib import Path

import psycopg

START_S = 60.0
_numbers = count()
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/local/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin")


def find_postgres() -> Path | None:
    """The folder of `initdb` and `postgres`: Debian keeps it out of PATH."""
    named = shutil.which("initdb")
    found = [Path(named).resolve().parent] if named else []
    found += [path for place in PLACES for path in sorted(Path("/").glob(place[1:]))]
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


class Postgres:
    """The server; started by root it runs as somebody else, as it must."""

    def __init__(self, folder: Path) -> None:
        programs = find_postgres()
        assert programs is not None, "PostgreSQL is not installed"
        self._programs, self._folder = programs, folder
        self._user = None if os.geteuid() else next(u for u in ("postgres", "nobody") if _exists(u))
        if self._user:
            shutil.chown(folder, self._user)
            folder.chmod(0o755)
        self._log = folder / "postgres.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "--no-sync", "--auth=trust", "--username=temperd", "--locale=C", "-E", "UTF8")

    @property
    def url(self) -> str:
        """Of the database that is there from the start."""
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://temperd@/{name}?host={self._folder}"

    def start(self) -> None:
        options = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._folder / "data"), *options],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._folder,
            )
        end = time.monotonic() + START_S
        while subprocess.run(
            [str(self._programs / "pg_isready"), "-h", str(self._folder), "-q"], check=False
        ).returncode:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, "PostgreSQL does not listen"
            time.sleep(0.05)

    def kill(self) -> None:
        """As a power cut, as far as one process goes."""
        if self._process is not None:
            subprocess.run(["pkill", "-KILL", "-P", str(self._process.pid)], check=False)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)  # "fast": connections are ended
            self._process.wait()
            self._process = None

    def _run(self, name: str, *arguments: str) -> None:
        program = [str(self._programs / name), "-D", str(self._folder / "data"), *arguments]
        done = subprocess.run(
            program, capture_output=True, text=True, user=self._user, cwd=self._folder, check=False, timeout=START_S
        )
        assert done.returncode == 0, done.stderr


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def empty_database(server: Postgres) -> str:
    """The URL of a new database."""
    name = f"t{next(_numbers)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.database(name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        server = Postgres(Path(place))
        server.start()
        print(f"{server.url}, Enter to stop")  # noqa: T201 - run by hand
        input()
        server.stop()
