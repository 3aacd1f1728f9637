"""`temperd keys`, as people use it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from agent.keys_consoles import load_trusted_consoles
from agent.keys_identity import load_identity
from agent.repository import Publisher, utc_now
from agent.store import Store
from service.cli import main
from service.cli_keys import ENCRYPT

SYSTEMD_CREDS = shutil.which("systemd-creds")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configured board without an identity; the working folder is its own."""
    (tmp_path / "temperd.toml").write_text(
        '[device]\nname = "press-07"\nstate_dir = "state"\n'
        '[repository]\nurl = "http://127.0.0.1:9/"\nroot = "root.json"\n[commands]\ntrusted_consoles = "consoles"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPERD_CONFIG", str(tmp_path / "temperd.toml"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    return tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a verb, which must succeed; its JSON."""

    def run(*arguments: str) -> Any:
        capsys.readouterr()
        assert main(["keys", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The code with which a verb fails."""
    capsys.readouterr()
    assert main(["keys", *arguments, "--json"]) != 0
    return str(json.loads(capsys.readouterr().out)["error"])


def test_what_root_makes_is_the_owners_of_the_state(board: Path, said: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    owner = 54321
    board.chmod(0o700)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # as /var/lib is; the working folder stays closed to the owner
        state = Path(folder, "state")
        state.mkdir(mode=0o700)
        os.chown(state, owner, owner)
        document = board / said("init", "press-07", "--state", str(state))["document"]
        made = [state / "keys", state / "keys" / "identity.json"]
        assert [(path.stat().st_uid, path.stat().st_gid) for path in made] == [(owner, owner)] * len(made)
    assert (document.stat().st_uid, os.geteuid()) == (0, 0)


def test_everything_trusted_is_shown(board: Path, said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said("init")
    for name in ("alice", "bob"):
        assert main(["keys", "console", name, "--out", "."]) == 0
        said("trust", f"{name}.pub.json")
    root = Publisher.create(board / "repository", board / "publisher", utc_now).root_path
    said("trust-repository", str(root))
    shown = said("show")
    assert shown["read_from"] == {"origin": "file", "path": str(board / "state" / "keys" / "identity.json")}
    assert shown["previous"] is None
    assert [item["name"] for item in shown["consoles"]] == ["alice", "bob"]
    signed = json.loads(root.read_bytes())["signed"]
    assert shown["repository_root"]["keyids"] == sorted(signed["roles"]["root"]["keyids"])
    assert (shown["repository_root"]["version"], shown["repository_root"]["threshold"]) == (
        signed["version"],
        signed["roles"]["root"]["threshold"],
    )
    assert shown["repository_root"]["expires"].startswith(signed["expires"][:10])
    capsys.readouterr()
    assert main(["keys"]) == 0
    text = capsys.readouterr().out
    everything = (shown["fingerprint"], shown["storage_key_id"], shown["repository_root"]["sha256"])
    for digits in (*everything, *(item["keyid"] for item in shown["consoles"])):
        assert " ".join(digits[i : i + 4] for i in range(0, 64, 4)) in text
    assert "console alice, owner" in text


def test_a_console_has_the_role_that_this_board_gave_it_last(
    board: Path, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said("init")
    assert main(["keys", "console", "alice", "--out", "."]) == 0
    document = board / "alice.pub.json"
    document.write_text(json.dumps(json.loads(document.read_bytes()) | {"role": "owner"}))
    assert said("trust", "alice.pub.json", "--role", "viewer")["role"] == "viewer"
    assert [item["role"] for item in said("show")["consoles"]] == ["viewer"], "whatever the file said that came by mail"
    assert main(["keys"]) == 0
    assert "console alice, viewer" in capsys.readouterr().out
    assert said("trust", "alice.pub.json", "--role", "operator")["role"] == "operator"
    assert [item["role"] for item in said("show")["consoles"]] == ["operator"]
    shutil.copy(board / "consoles" / "alice.pub.json", board / "consoles" / "again.json")
    said("trust", "alice.pub.json")
    (role,) = {item.role for item in load_trusted_consoles(board / "consoles").values()}
    assert role == "operator", "of a key that lies there twice the lesser role counts"
    (board / "consoles" / "again.json").write_text(json.dumps(json.loads(document.read_bytes()) | {"role": "king"}))
    assert refusal(capsys, "show") == "untrusted"
    with pytest.raises(SystemExit):
        main(["keys", "trust", "alice.pub.json", "--role", "king"])


def test_a_console_is_distrusted_by_the_beginning_of_its_key(
    board: Path, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    said("init")
    for name in ("alice", "bob"):
        main(["keys", "console", name, "--out", "."])
        said("trust", f"{name}.pub.json")
    (board / "consoles" / "alice-again.json").write_bytes((board / "alice.pub.json").read_bytes())
    keyid = {item["name"]: item["keyid"] for item in said("show")["consoles"]}["alice"]
    assert refusal(capsys, "distrust", keyid[:7]) == "bad-spec"
    assert refusal(capsys, "distrust", "0" * 64) == "no-such-console"
    gone = said("distrust", keyid[:4], keyid[4:8])
    assert sorted(Path(path).name for path in gone["files"]) == ["alice-again.json", "alice.pub.json"]
    assert [path.name for path in (board / "consoles").iterdir()] == ["bob.pub.json"]
    assert [item["name"] for item in said("show")["consoles"]] == ["bob"]


def test_a_pinned_root_is_not_replaced_unasked(board: Path, said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    said("init")
    first, second = (Publisher.create(board / f"r{i}", board / f"k{i}", utc_now).root_path for i in (1, 2))
    said("trust-repository", str(first))
    said("trust-repository", str(first))
    assert refusal(capsys, "trust-repository", str(second)) == "root-pinned"
    assert (board / "root.json").read_bytes() == first.read_bytes()
    said("trust-repository", str(second), "--replace")
    assert (board / "root.json").read_bytes() == second.read_bytes()
    table = json.loads(first.read_bytes())
    table["signed"]["version"] = 2
    (board / "forged.json").write_text(json.dumps(table))
    for data in (b"", b"[]", (board / "forged.json").read_bytes(), (board / "r1/metadata/timestamp.json").read_bytes()):
        (board / "forged.json").write_bytes(data)
        assert refusal(capsys, "trust-repository", "forged.json", "--replace") == "repository-untrusted"
    assert (board / "root.json").read_bytes() == second.read_bytes()
    (board / "root.json").chmod(0o666)
    assert said("show")["repository_root"]["error"] == "key-permissions"


def test_rotation_ends_when_everything_is_sealed_again(
    board: Path, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = said("init")["fingerprint"]
    keys, state = board / "state" / "keys", board / "state"
    before = load_identity(keys, {})
    store = Store(state / "store", *before.storage_keys)
    store.activate(store.stage(b"tuned", {}))
    store.mark_good()
    assert refusal(capsys, "retire") == "no-rotation"
    second = said("rotate")["fingerprint"]
    assert second != first
    assert said("show")["previous"]["fingerprint"] == first
    assert refusal(capsys, "rotate") == "rotation-open"
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert refusal(capsys, "retire", "--offline") == "board"
    assert said("show")["previous"]["fingerprint"] == first
    done = said("retire")
    assert (done["retired"], done["sealed_again"]) == (first, ["slot a"])
    after = load_identity(keys, {})
    assert (after.public.fingerprint, len(after.live)) == (second, 1)
    assert Store(state / "store", *after.storage_keys).load_active()[0] == b"tuned"
    assert before.storage_key.hex() not in (keys / "identity.json").read_text()


def test_an_identity_moves_into_a_credential(
    board: Path, said: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = said("init")["fingerprint"]
    credentials = board / "credentials"
    credentials.mkdir(mode=0o700)
    said("export-credential", str(credentials / "temperd-identity"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert main(["keys"]) == 0
    assert "remove it" in capsys.readouterr().out
    (board / "state" / "keys" / "identity.json").unlink()
    shown = said("show")
    assert (shown["fingerprint"], shown["read_from"]["origin"]) == (made, "credential")
    assert refusal(capsys, "rotate") == "identity-read-only"
    assert not (board / "state" / "keys" / "identity.json").exists()
    fresh = said("rotate", "--credential", str(board / "fresh"))["fingerprint"]
    (board / "fresh").replace(credentials / "temperd-identity")
    assert [said("show")["fingerprint"], said("show")["previous"]["fingerprint"]] == [fresh, made]
    said("retire", "--credential", str(board / "last"))
    (board / "last").replace(credentials / "temperd-identity")
    assert (said("show")["fingerprint"], said("show")["previous"]) == (fresh, None)


def test_no_verb_prints_a_secret(board: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (board / "state").mkdir(mode=0o700)
    for arguments in (
        ("init",), ("init", "--credential", "blob"), (), ("show", "--json"), ("rotate",), ("show",), ("show", "--json"),
        ("export-credential", "all"), ("retire",), ("console", "alice", "--out", "."), ("trust", "alice.pub.json"),
    ):  # fmt: skip
        assert main(["keys", *arguments]) == 0
    text = "".join(capsys.readouterr())
    secrets = [(board / "alice.key").read_text().strip()]
    for name in ("blob", "all", "state/keys/identity.json"):
        secrets += [value for keys in json.loads((board / name).read_bytes())["keys"] for value in keys.values()]
    assert len(set(secrets)) == 1 + 3 + 6
    assert [secret for secret in secrets if secret in text] == []


@pytest.mark.skipif(SYSTEMD_CREDS is None, reason="needs systemd-creds")
def test_systemd_takes_the_credential(board: Path, said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = said("init", "--credential", "plain")["fingerprint"]
    assert not (board / "state").exists()
    encrypt = ENCRYPT.format("plain").replace("/etc/credstore.encrypted/temperd-identity", "sealed").split()
    # The null key needs neither a TPM nor a key of this machine; everything else is as on a board.
    subprocess.run([encrypt[0], "--with-key=tpm2-absent", *encrypt[1:]], check=True, capture_output=True)
    sealed = (board / "sealed").read_bytes()
    assert (board / "plain").read_bytes()[:20] not in sealed
    credentials = board / "credentials"
    credentials.mkdir(mode=0o700)
    decrypt = ["systemd-creds", "--name=temperd-identity", "decrypt", "sealed", str(credentials / "temperd-identity")]
    subprocess.run(decrypt, check=True, capture_output=True)
    (credentials / "temperd-identity").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert said("show")["fingerprint"] == made
