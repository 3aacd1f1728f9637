#!/usr/bin/env python3
"""The whole way of `update-system` with the real RAUC: bundle, repository, command, daemon, slots, trial, way back.

    sudo PYTHONPATH=. .venv-ort/bin/python packaging/rauc/drive.py      or: make rauc-test

Root on Debian with rauc, squashfs-tools, openssl, dbus and mosquitto. Real are RAUC's service with signed bundles on a
bus of its own, the daemon on an emulated board, the repository and the broker. Stand-ins are the boot loader (a
script), logind (it counts restarts) and the restart itself (another boot id for the daemon). A minute.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from agent.publish_system import publish_system
from agent.repository import Publisher, utc_now
from agent.system_card import SystemCard
from service.commands import sign_command
from service.rauc import LOGIND
from tests.simulators.fleet import World, as_json
from tests.simulators.rauc import COMPATIBLE, RealRauc, Slots, StandInRauc, lacks_rauc, private_bus

WINDOW_S, HEATING_S = 10.0, 120.0  # a die needs its time to become hot
SECOND, BACK = 2, 3  # restarts: into the second image, and back from it
BOOT = "tests/simulators/another_boot.py"


class Drive:
    """One board with two slots."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.began_s = folder, time.monotonic()
        slots = Slots(folder / "slots")
        self.rauc, self.logind = RealRauc(address, slots, folder), StandInRauc(address, slots, (LOGIND,))
        self.world = World(folder / "world")
        self.world.broker.start()
        self.world.publish()
        self.boot_id = folder / "boot_id"
        self.start()

    def passed(self, what: str) -> None:
        """Tell a step that went well."""
        print(f"ok   {what:70} {time.monotonic() - self.began_s:4.0f}s", flush=True)  # noqa: T201 - a script's report

    def start(self) -> None:
        """The daemon of another boot."""
        self.boot_id.write_text(f"{uuid.uuid4()}\n")
        self.world.start((BOOT, str(self.boot_id), "run"))

    def restart(self) -> str:
        """The board goes down and comes up again; the slot that its boot loader chose."""
        assert self.world.stop() == 0
        slot = self.rauc.boot()
        self.start()
        return slot

    def publish(self, version: str, compatible: str = COMPATIBLE) -> None:
        """A bundle that RAUC's own tool makes and signs."""
        bundle = self.rauc.bundle(version, f"system {version}".encode() * 1000, compatible)
        publisher = Publisher.open(self.folder / "world/repository", self.folder / "world/publisher-keys", utc_now)
        publish_system(publisher, bundle, SystemCard("plant-image", version, COMPATIBLE))

    def send(self, version: str, window_s: float = WINDOW_S) -> str:
        """A signed command; its id once it was accepted."""
        request = self.world.request("update-system", {"name": "plant-image", "version": version, "window_s": window_s})
        envelope = sign_command(request, self.world.console_key)
        self.world.send_envelope("update-system", request.id, envelope, until=("accepted", "running", "rejected"))
        return request.id

    def status(self, command_id: str) -> dict[str, Any]:
        """As told last."""
        assert self.world.tap is not None
        said = [heard.payload for heard in self.world.tap.heard if heard.topic.endswith(f"/{command_id}/sts")]
        found: dict[str, Any] = as_json(said[-1].decode()) if said else {}
        return found

    def until(self, command_id: str, status: str, step: str = "") -> dict[str, Any]:
        """Wait for a status."""
        found: dict[str, Any] = self.world.wait(
            lambda: (now := self.status(command_id)).get("status") == status and now["step"] == step and now
        )
        return found

    def run(self) -> None:
        """All of it."""
        self.publish("2.0")
        command = self.send("2.0")
        self.world.wait(lambda: self.logind.reboots == 1)
        assert self.rauc.slots.primary == "B"
        self.passed("the bundle was fetched, verified twice, and written to slot B by RAUC")
        assert self.restart() == "B"
        self.until(command, "running", "trial")
        done = self.until(command, "succeeded")
        assert self.rauc.slots.state("B") == "good", "RAUC marked it"
        assert done["result"]["downtime_s"] is not None
        self.passed(
            f"B was on trial for {done['result']['trial_s']} s and is good; down for {done['result']['downtime_s']} s"
        )
        self.heat()
        self.foreign()

    def heat(self) -> None:
        """The third system heats the board: it is left, once."""
        self.publish("3.0")
        command = self.send("3.0", HEATING_S)
        self.world.wait(lambda: self.logind.reboots == SECOND)
        assert self.restart() == "A"
        self.until(command, "running", "trial")
        inject = self.world.state / "run/board/inject.json"
        inject.write_text('{"heat_watts": 30}')
        self.world.wait(lambda: self.logind.reboots == BACK, 2 * HEATING_S)
        assert self.rauc.slots.state("A") == "bad", "RAUC marked it"
        inject.unlink()
        assert self.restart() == "B"
        done = self.until(command, "rolled_back")
        assert (done["reason_code"], self.logind.reboots) == ("trial-heat", BACK)
        self.passed(f"3.0 made the board hot and was left once: {done['reason']}")

    def foreign(self) -> None:
        """The repository vouches for a bundle that RAUC does not take."""
        self.publish("4.0", compatible="another-board")
        done = self.until(self.send("4.0"), "failed")
        assert done["reason_code"] == "rauc-failed", done
        assert self.rauc.slots.booted == "B"
        self.passed(f"a bundle for other boards: {done['reason'][:60]}")

    def close(self) -> None:
        """End everything."""
        self.world.close()
        self.logind.close()
        self.rauc.close()


def main() -> int:
    """Entry point."""
    if why := lacks_rauc():
        print(f"drive.py: {why}", file=sys.stderr)  # noqa: T201 - a script
        return 2
    with tempfile.TemporaryDirectory(prefix="temperd-rauc-") as folder, private_bus(Path(folder)) as address:
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = address
        (Path(folder) / "world").mkdir()
        drive = Drive(Path(folder), address)
        try:
            drive.run()
        finally:
            drive.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
