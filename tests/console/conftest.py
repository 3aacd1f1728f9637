"""A console in this process: its parts on a temporary folder, a user of each role, and a client logged in as each.

No broker is there: the hub is made and not entered, so it has what a test folds into it. Tests that need a broker use
`service.console.serve.open_room`, or `tests.simulators.console.ConsoleProcess`.
"""

from __future__ import annotations

import asyncio
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.keys_consoles import Role, create_console_key
from service.config import Mqtt
from service.console.accounts import Accounts
from service.console.app import build_app
from service.console.audit import Audit
from service.console.hub import Hub
from service.console.passwords import Cost
from service.console.reads import Reads
from service.console.roll_outs import RollOuts
from service.console.room import Room, Settings
from service.console.signer import Signer

with warnings.catch_warnings():  # it would rather have httpx2, and works with httpx
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

PASSWORD = "a long and quiet river"
CHEAP = Cost(memory_kib=64, passes=1, lanes=1)  # what is tried here is not how long a guess takes
URL = "http://localhost"
WAIT_S = 60.0
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


class Clock:
    """A wall clock that starts at the real time and is moved by hand; the monotonic one goes with it."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


class Client(TestClient):
    """Somebody's browser: follows no redirects, has the CSRF token of its session at hand."""

    csrf: str = ""

    def submit(self, path: str, **fields: str):  # type: ignore[no-untyped-def] # noqa: ANN201
        """Post a form as the page would."""
        return self.post(path, data={"csrf": self.csrf, **fields})

    def show(self, path: str) -> str:
        """A page that must be there; its text. The token is read anew."""
        answer = self.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[:2000])
        found = _CSRF.search(answer.text)
        self.csrf = found[1] if found else self.csrf
        return answer.text


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def console_key(tmp_path: Path) -> Path:
    """A plain console key; its public file lies beside it."""
    create_console_key(tmp_path / "console-key", "alice")
    return tmp_path / "console-key" / "alice.key"


@pytest.fixture
def make_room(tmp_path: Path, clock: Clock, console_key: Path) -> Iterator[Callable[..., Room]]:
    """Makes rooms: `make_room(secure=True)` changes settings."""
    made: list[Room] = []

    def make(**changed: object) -> Room:
        folder = tmp_path / f"room{len(made)}"
        chosen = {
            "mqtt": Mqtt(host="127.0.0.1", port=1),
            "tenant": "default",
            "store": str(folder / "store.sqlite"),
            "state": folder / "state",
            "fleet_state": folder / "fleet.sqlite",
            "key": str(console_key),
            "consume": False,
        }
        settings = Settings(**{**chosen, **changed})  # type: ignore[arg-type]
        signer = Signer(Path(settings.key) if settings.key else None)
        reads = Reads(settings.store)
        hub = Hub(settings, reads, now=clock, monotonic=clock)
        room = Room(
            settings=settings,
            now=clock,
            monotonic=clock,
            hub=hub,
            reads=reads,
            accounts=Accounts(settings.state, clock, CHEAP),
            audit=Audit(settings.state, clock),
            signer=signer,
            roll_outs=RollOuts(settings, hub, signer, now=clock),
        )
        made.append(room)
        for role in Role:
            asyncio.run(room.accounts.add(str(role), role, PASSWORD))
        return room

    yield make
    for room in made:
        for session in room.roll_outs._sessions.values():  # the loop of its pages is gone, and it would listen for ever
            session.cancel()
            session._thread.join(WAIT_S)
            assert not session._thread.is_alive()
        room.accounts.close()
        room.audit.close()
        room.reads.close()


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    """The console's parts, with the users viewer, operator and owner."""
    return make_room()


def visit(room: Room, base_url: str = URL) -> Client:
    """Somebody who has not logged in."""
    return Client(build_app(room), base_url=base_url, follow_redirects=False)


def log_in(client: Client, name: str, password: str = PASSWORD) -> Client:
    """By the form, as a browser does."""
    client.show("/login")
    answer = client.submit("/login", name=name, password=password)
    assert answer.status_code == 303, answer.text[:2000]
    client.show("/account")
    return client


@pytest.fixture
def stranger(room: Room) -> Client:
    return visit(room)


@pytest.fixture
def viewer(room: Room) -> Client:
    return log_in(visit(room), "viewer")


@pytest.fixture
def operator(room: Room) -> Client:
    return log_in(visit(room), "operator")


@pytest.fixture
def owner(room: Room) -> Client:
    return log_in(visit(room), "owner")
