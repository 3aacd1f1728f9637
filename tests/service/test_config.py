from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from agent.errors import ConfigError
from service import config
from service.config import Config, example_text, load_config

LEAST = '[device]\nname = "pi-7"\n[repository]\nurl = "https://models.example.org/"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "temperd.toml"
    path.write_text(text)
    return path


def test_the_least_configuration_gets_defaults(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, LEAST))
    assert loaded.device.name == "pi-7"
    assert loaded.device.tenant == "default"
    assert loaded.mqtt.port == 1883
    assert loaded.board.sys_root == "/sys"
    assert loaded.policy.file == ""


def test_the_example_loads_and_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = example_text()
    example = load_config(write(tmp_path, text))
    defaults = load_config(write(tmp_path, LEAST.replace("pi-7", "bench-pi")))
    assert example == defaults
    for section in dataclasses.fields(Config):
        block = text.split(f"[{section.name}]\n")[1].split("\n[")[0]
        shown = {line.split(" = ")[0] for line in block.splitlines() if " = " in line}
        assert shown == {key.name for key in dataclasses.fields(getattr(example, section.name))}


@pytest.mark.parametrize("switch", ["tls = true", "ca_file = 'ca'"])
def test_a_client_certificate_goes_with_both_ways_to_tls(tmp_path: Path, switch: str) -> None:
    loaded = load_config(write(tmp_path, LEAST + f"[mqtt]\n{switch}\ncert_file = 'c'\nkey_file = 'k'\n"))
    assert loaded.mqtt.encrypted
    assert not load_config(write(tmp_path, LEAST)).mqtt.encrypted


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, LEAST.replace('"pi-7"', '"pi-7"\nstate_dir = "state"')))
    assert loaded.device.state_dir == str(tmp_path / "state")


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        (LEAST + "[mqtt]\nhots = 'x'\n", "mqtt.hots", "did you mean 'host'"),
        (LEAST + "[mqqt]\nhost = 'x'\n", "mqqt", "did you mean 'mqtt'"),
        (LEAST + "[mqtt]\nport = 0\n", "mqtt.port", "outside 1..65535"),
        (LEAST + "[mqtt]\nport = '1883'\n", "mqtt.port", "a whole number"),
        (LEAST + "[mqtt]\nport = true\n", "mqtt.port", "a whole number"),
        (LEAST + "[mqtt]\nhost = 'a b'\n", "mqtt.host", "neither"),
        (LEAST + f"[mqtt]\nhost = '{'a' * 64}.org'\n", "mqtt.host", "neither"),
        (LEAST + "[mqtt]\nca_file = 'ca'\ncert_file = 'c'\n", "mqtt.key_file", "go together"),
        (LEAST + "[mqtt]\ncert_file = 'c'\nkey_file = 'k'\n", "mqtt.ca_file", "TLS"),
        (LEAST + "[mqtt]\npassword_file = 'p'\n", "mqtt.username", "user name"),
        (LEAST + "[mqtt]\ntransport = 'udp'\n", "mqtt.transport", "not one of"),
        (LEAST + "[mqtt]\nwebsocket_path = 'mqtt'\n", "mqtt.websocket_path", "no path"),
        (LEAST + "[mqtt]\nwebsocket_path = '/a b'\n", "mqtt.websocket_path", "no path"),
        (LEAST + '[mqtt]\nwebsocket_path = "/a\\r\\nHost: b"\n', "mqtt.websocket_path", "no path"),
        (LEAST + "[mqtt]\nsession_expiry_s = 4294967296\n", "mqtt.session_expiry_s", "outside"),
        (LEAST + "[mqtt]\nreceive_maximum = 0\n", "mqtt.receive_maximum", "outside"),
        (LEAST + "[log]\nlevel = 'loud'\n", "log.level", "not one of"),
        (LEAST + "[board]\nemulated = '../x'\n", "board.emulated", "no name"),
        (LEAST + "[board]\nemulated_speed = nan\n", "board.emulated_speed", "finite"),
        (LEAST.replace("pi-7", "Pi"), "device.name", "no name"),
        (LEAST.replace("pi-7", "a/b"), "device.name", "no name"),
        (LEAST.replace("pi-7", "+"), "device.name", "no name"),
        (LEAST.replace("pi-7", "a" * 64), "device.name", "at most 63"),
        (LEAST.replace("https", "file"), "repository.url", "http"),
        (LEAST.replace("https://", "https://me:hidden@"), "repository.url", "user name or password"),
        ("[device]\nname = 'x'\n", "repository", "missing"),
        ("[device]\n[repository]\nurl='http://x'\n", "device.name", "missing"),
        ("device = 3\n", "device", "must be a table"),
    ],
)
def test_refusals_name_file_and_key(tmp_path: Path, text: str, key: str, what: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.where == f"{path}: {key}"
    assert what in caught.value.what
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[device", b"\xff\xfe", b"a = 1\na = 2\n", b"a = " + b"[" * 5000])
def test_what_is_no_toml_is_a_configuration_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "temperd.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a TOML file"):
        load_config(path)


def test_a_missing_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="longer than"):
        load_config(write(tmp_path, "#" * (config.MAX_CONFIG_BYTES + 1)))
