"""No secret leaves its file: not into a log, an answer, an argument, an environment, a message or another file."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent.keys_identity import load_identity
from service.commands import sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink
from service.device_link import Address
from tests.simulators.fleet import DEVICE, World
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.wiretap import Wiretap

pytestmark = pytest.mark.e2e
PASSWORD = "correct-horse-battery-staple"


class GuardedWorld(World):
    """A world whose broker wants a password, and whose daemon says all it can."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        users = folder / "users"
        self.broker = Mosquitto(folder, f"password_file {users}", anonymous=False)
        _hash_password(users)
        password = folder / "password"
        password.write_text(f"{PASSWORD}\n")
        password.chmod(0o600)
        lines = self.config.read_text().replace("[log]\n", '[log]\nlevel = "debug"\n')
        head, _, rest = lines.partition("[mqtt]\n")
        settings = f'[mqtt]\nusername = "pi"\npassword_file = "password"\nport = {self.broker.port}\n'
        kept = "\n".join(line for line in rest.splitlines() if not line.startswith("port"))
        self.config.write_text(head + settings + kept + "\n")

    def console(self) -> ConsoleLink:
        settings = Mqtt(
            host="127.0.0.1", port=self.broker.port, username="pi", password_file=str(self.folder / "password")
        )
        return ConsoleLink(settings, Address("default", DEVICE), f"test-{os.urandom(4).hex()}")

    def wiretap(self) -> Wiretap:
        return Wiretap(self.broker.port, "pi", PASSWORD)


def _hash_password(users: Path) -> None:
    users.write_text(f"pi:{PASSWORD}\n")
    users.chmod(0o600)
    subprocess.run(["mosquitto_passwd", "-U", str(users)], capture_output=True, check=True)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedWorld]:
    made = GuardedWorld(tmp_path)
    try:
        made.broker.start()
        made.publish()
        yield made
    finally:
        made.close()


def forms(secret: bytes) -> list[bytes]:
    """A secret as it may be written: raw, in hexadecimal, in base64 at any alignment, as Python shows bytes."""
    shifted = [base64.b64encode(b"\0" * shift + secret)[4 * (shift > 0) : -4] for shift in range(3)]
    web = [text.replace(b"+", b"-").replace(b"/", b"_") for text in shifted]
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *shifted, *web, repr(secret)[2:-1].encode()]


def secrets_of(fleet: World) -> dict[str, bytes]:
    """Everything that must not be seen, by what it is."""
    found = {"password": PASSWORD.encode()}
    for age, keys in enumerate(json.loads((fleet.state / "keys" / "identity.json").read_bytes())["keys"]):
        found |= {f"identity {age} {kind}": bytes.fromhex(value) for kind, value in keys.items()}
    found["console"] = bytes.fromhex((fleet.folder / "console" / "alice.key").read_text().strip())
    for path in (fleet.folder / "publisher-keys").rglob("*"):
        if path.suffix == ".key":
            found[f"data key {path.name}"] = bytes.fromhex(path.read_text().strip())
        elif path.suffix == ".pem":
            key = load_pem_private_key(path.read_bytes(), None)
            found[f"publisher {path.name}"] = key.private_bytes_raw()  # type: ignore[union-attr]
    return found


def seen_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [name for name, secret in secrets.items() if any(form in data for form in forms(secret))]


def process_text(pid: int) -> bytes:
    """What other processes see of one: everybody its arguments, root its environment."""
    names = ("cmdline", "environ") if os.geteuid() == 0 else ("cmdline",)
    return b"".join((Path("/proc") / str(pid) / name).read_bytes() for name in names)


def core_limit(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core")).split()[4:6]


def test_no_secret_is_seen_anywhere(guarded: GuardedWorld) -> None:
    fleet = guarded
    fleet.cli("keys", "rotate")  # two live sets of keys: twice as much to lose
    (fleet.folder / f"{DEVICE}.device.json").unlink()
    fleet.identity = load_identity(fleet.state / "keys", {})
    fleet.publish("1.1")
    secrets = secrets_of(fleet)
    kept = {name for name in secrets if name.startswith("identity")}
    assert len(kept) == 6
    assert set(seen_in((fleet.state / "keys" / "identity.json").read_bytes(), secrets)) == kept, "the search finds them"

    fleet.start()
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=400))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    worker = fleet.wait(fleet.worker_pid)
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    alive = process_text(fleet.daemon.pid) + process_text(worker)
    assert core_limit(fleet.daemon.pid) == core_limit(worker) == ["0", "0"]
    fleet.send("pause", {"job": request.id})  # a checkpoint is on the disk now
    answers = [seen.body for seen in fleet.seen(1.5)]
    assert answers
    fleet.send("resume", {"job": request.id})
    assert fleet.ended(request.id).standing.state == "SUCCEEDED"
    failing = [
        fleet.send("fine-tune", {**fleet.job("/none"), "model": "unknown"}),
        fleet.send("fine-tune", fleet.job("/no/such/folder")),
    ]
    assert [status["status"] for status in failing] == ["failed", "failed"]
    image = next((fleet.folder / "images" / "red").iterdir())
    told = [
        fleet.cli(*verb.split())
        for verb in (
            f"predict {image}",
            "status --json",
            "keys",
            "keys show --json",
            "run",
            "keys retire",
            "predict /x",
        )
    ]
    (fleet.state / "keys" / "identity.json").chmod(0o644)
    told += [fleet.cli("predict", str(image)), fleet.cli("keys")]
    assert [done.returncode for done in told] == [0, 0, 0, 0, 1, 1, 2, 1, 1], told
    (fleet.state / "keys" / "identity.json").chmod(0o600)
    fleet.stop()

    outputs = b"".join(done.stdout.encode() + done.stderr.encode() for done in told)
    places = {
        "processes": alive,
        "log": fleet.log(),
        "answers": json.dumps([answers, failing]).encode(),
        "cli": outputs,
    }
    own = {fleet.state / "keys" / "identity.json", fleet.folder / "password"}
    for path in (*fleet.state.rglob("*"), *(fleet.folder / "repository").rglob("*"), fleet.folder / "mosquitto.log"):
        if path.is_file() and path not in own:
            places[str(path)] = path.read_bytes()
    assert any(place.endswith("journal.sqlite") for place in places)
    assert any(place.endswith("model.sealed") for place in places)
    assert b"job ended" in places["log"]
    assert {place: found for place, data in places.items() if (found := seen_in(data, secrets))} == {}
