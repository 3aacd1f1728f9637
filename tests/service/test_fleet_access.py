from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import ConfigError, SpecError
from service.cli import _parser
from service.fleet.access import Access, find_access, split_broker
from service.fleet.state import state_path


def access(*words: str, **environ: str) -> Access:
    return find_access(_parser().parse_args(["fleet", "list", *words]), {"HOME": "/nowhere", **environ})


def test_options_come_before_the_environment_and_that_before_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "fleet.toml"
    profile.write_text(
        'tenant = "plant"\nkey = "alice.key"\n'
        '[mqtt]\nhost = "one"\nport = 2001\nusername = "me"\npassword_file = "pass"\n'
    )
    found = access("--profile", str(profile))
    assert (found.mqtt.host, found.mqtt.port, found.tenant) == ("one", 2001, "plant")
    assert (found.key, found.mqtt.password_file) == (str(tmp_path / "alice.key"), str(tmp_path / "pass"))
    found = access(TEMPERD_PROFILE=str(profile), TEMPERD_BROKER="two")
    assert (found.mqtt.host, found.mqtt.port, found.mqtt.username) == ("two", 1883, "me")
    found = access("--broker", "three:3", "--tenant", "other", TEMPERD_PROFILE=str(profile), TEMPERD_BROKER="two")
    assert (found.mqtt.host, found.mqtt.port, found.tenant) == ("three", 3, "other")
    (tmp_path / "temperd").mkdir()
    profile.rename(tmp_path / "temperd" / "fleet.toml")
    assert access(XDG_CONFIG_HOME=str(tmp_path)).mqtt.host == "one"
    assert access().mqtt.host == "localhost"


def test_the_port_is_the_usual_one_of_the_transport() -> None:
    assert access().mqtt.port == 1883
    assert access("--tls").mqtt.port == 8883
    assert access("--ca", "ca.pem").mqtt.port == 8883
    assert access("--websockets").mqtt.port == 80
    assert access("--websockets", "--tls").mqtt.port == 443
    assert access("--tls", "--broker", "host:1").mqtt.port == 1


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("a", "a", None), ("a:1", "a", 1), ("[::1]:2", "::1", 2), ("[::1]", "::1", None), ("fe80::1", "fe80::1", None)],
)
def test_addresses_of_both_families_are_read(text: str, host: str, port: int | None) -> None:
    assert split_broker(text) == {"host": host, **({"port": port} if port else {})}


@pytest.mark.parametrize(
    "words",
    [
        ("--broker", "a:port"),
        ("--broker", "a:٣"),
        ("--broker", "a:70000"),
        ("--broker", "a b"),
        ("--cert", "cert.pem"),
        ("--password-file", "secret"),
        ("--tenant", "+"),
    ],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SpecError):
        access(*words)


@pytest.mark.parametrize(
    "text", ["tenant = 3", "mqtt = 3", "colour = 'red'", "[mqtt\n", "\xff", "x = '" + "y" * 20_000 + "'"]
)
def test_a_profile_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    profile = tmp_path / "fleet.toml"
    profile.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as refused:
        access("--profile", str(profile))
    assert refused.value.where == str(profile)
    with pytest.raises(ConfigError):
        access("--profile", str(tmp_path / "missing.toml"))


def test_the_state_lies_where_the_system_keeps_state() -> None:
    assert state_path("", {"HOME": "/h"}) == Path("/h/.local/state/temperd/fleet.sqlite")
    assert state_path("", {"HOME": "/h", "XDG_STATE_HOME": "/s"}) == Path("/s/temperd/fleet.sqlite")
    assert state_path("mine", {"HOME": "/h"}) == Path("mine")
