"""Another policy on a running board: over the wire, over a power cut, from its own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.simulators.fleet import World, world


def live(fleet: World) -> dict[str, Any]:
    """What this daemon, not one before it, shows of its policy; once it is connected."""
    path = fleet.state / "run/live.json"
    view: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    mine = view.get("pid") == fleet.daemon.pid and view.get("connected")
    return view["policy"] if mine else {"name": "", "source": ""}


def test_a_policy_is_set_from_a_console_survives_a_power_cut_and_is_taken_back(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\n')
    with world(tmp_path, policy=str(mine)) as fleet:
        wrong = fleet.send("set-policy", {"text": "[thermal.slow]\nduty = 5.0"})
        assert (wrong["status"], wrong["reason_code"]) == ("rejected", "bad-policy")
        assert "thermal.slow.duty" in wrong["reason"]
        fleet.wait(lambda: live(fleet)["name"] == "mine")
        assert (fleet.state / "policy.toml").read_text() == 'name = "mine"\n'

        done = fleet.send("set-policy", {"text": 'name = "theirs"\n[battery]\nlow_charge = 0.3\n'})
        assert done["status"] == "succeeded"
        assert done["result"]["changed"]["battery.low_charge"] == {"from": 0.2, "to": 0.3}
        fleet.kill()
        assert (fleet.state / "policy.toml").read_text().startswith('name = "theirs"')
        fleet.start()
        fleet.wait(lambda: live(fleet)["source"] == "command")
        births = [seen.body["policy"] for seen in fleet.seen(2.0) if seen.kind == "birth"]
        assert births[-1]["name"] == "theirs"

        back = fleet.send("set-policy", {"reset": True})
        assert back["result"]["changed"]["name"] == {"from": "theirs", "to": "mine"}
        mine.write_text('name = "mine, later"\n')
        fleet.wait(lambda: live(fleet)["name"] == "mine, later", 10)
        said = fleet.cli("policy", "show")
        assert (said.returncode, said.stderr) == (0, "")
        assert f"policy 'mine, later', from file: {mine}" in said.stdout
