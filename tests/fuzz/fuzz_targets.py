"""What reads bytes from outside, each as a function of bytes: it returns, or raises an error of ours.

`refuses` targets hold an authenticated original: what they take must be that original, unchanged.
Anything else is a crash: another exception, or an altered original that is taken.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from agent.agent_archive import entries, write_archive
from agent.agent_release import AgentRelease, parse_release
from agent.card import ModelCard, Preprocess
from agent.card import parse as parse_card
from agent.dataset import read_arrays
from agent.engine.ir import parse as parse_onnx
from agent.errors import TemperdError
from agent.keys import DeviceIdentity, create_identity, keyid, make_grant, open_grant, parse_public_document
from agent.keys_consoles import TrustedConsole
from agent.keys_root import parse_root
from agent.messages import Go, decode, encode
from agent.parity import read_header, write_parity
from agent.pull_release import unpack
from agent.sealed import Binding, seal, unseal
from agent.slots import Status, read_manifest, read_status, write_status
from agent.spec import FineTuneSpec, parse_spec, spec_table
from agent.store import Store
from agent.strict_json import canonical, loads
from policies.policy import PolicyError, parse_policy
from service.commands import CANCEL, Request, open_command, sign_command

MAX_JSON_BYTES = 1 << 16
KEY = bytes(range(32))
DATA = b"frozen layers stay cool" * 9
ROOT = Path(__file__).parents[2]
NOW = 1_800_000_000


class Accepted(AssertionError):  # noqa: N818 - it is the finding, not an error of the program
    """An altered original was taken."""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: for the table and the folder of inputs.
        seed: a valid input.
        read: takes bytes; whatever it returns counts as taken.
        expected: what it may raise.
        authenticated: nothing but the seed may be taken.
    """

    name: str
    seed: bytes
    read: Callable[[bytes], object]
    expected: tuple[type[Exception], ...] = (TemperdError,)
    authenticated: bool = False

    def run(self, data: bytes) -> bool:
        """Whether it was taken; raises on a crash."""
        try:
            self.read(data)
        except self.expected:
            return False
        if self.authenticated and data != self.seed:
            raise Accepted(self.name)
        return True


@cache
def folder() -> Path:
    """Lives as long as the process; tmpfs where there is one."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    keep = tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)
    _KEPT.append(keep)
    return Path(keep.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def file_with(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def sealed_target() -> Target:
    binding = Binding("model", "1.0", hashlib.sha256(DATA).hexdigest())
    target = io.BytesIO()
    seal(io.BytesIO(DATA), target, KEY, binding)
    return Target(
        "sealed", target.getvalue(), lambda data: unseal(io.BytesIO(data), KEY, binding, 1 << 22), authenticated=True
    )


def status_target() -> Target:
    state = folder() / "status"
    Store(state, KEY)
    path = state / "slots" / "status.json"
    original = Status(active="a", previous="b", rolled_back="é")
    write_status(state, original)
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if read_status(state) != original and not whole(data):
            raise Accepted("status")

    def whole(data: bytes) -> bool:
        table = json.loads(data)
        checksum = table.pop("checksum")
        return bool(checksum == hashlib.sha256(canonical(table)).hexdigest())

    return Target("status", seed, read)


def manifest_target() -> Target:
    state = folder() / "slot"
    store = Store(state, KEY)
    store.stage(DATA, {"card": {"labels": ["a", "é"]}, "metrics": {"accuracy": 0.5}})
    path = state / "slots" / "a" / "manifest.json"
    seed = path.read_bytes()
    core = asdict(read_manifest(state, "a").core)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if store.verifies("a") and canonical(asdict(read_manifest(state, "a").core)) != canonical(core):
            raise Accepted("manifest")

    return Target("manifest", seed, read)


def checkpoint_target() -> Target:
    state = folder() / "checkpoint"
    store = Store(state, KEY)
    store.seal_checkpoint("job", DATA)
    path = state / "checkpoints" / "job.sealed"
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        store.open_checkpoint("job")

    return Target("checkpoint", seed, read, authenticated=True)


def identity() -> DeviceIdentity:
    return create_identity(folder() / "identity", "board-1")


def grant_target(device: DeviceIdentity) -> Target:
    digest = "ab" * 32
    seed = make_grant(device.public, KEY, digest)
    table = json.loads(seed)

    def read(data: bytes) -> None:
        open_grant(device, data, digest)
        # Spaces, escapes, the case of digits and a dash for an underscore may vary; what is said may not.
        told = {name.replace("-", "_"): value for name, value in json.loads(data).items()}
        if {**told, "ciphertext": bytes.fromhex(told["ciphertext"]).hex()} != table:
            raise Accepted("grant")

    return Target("grant", seed, read)


def json_document(name: str, table: dict[str, object], parse: Callable[[object], object]) -> Target:
    return Target(name, canonical(table), lambda data: parse(loads(data, what=name, max_bytes=MAX_JSON_BYTES)))


def read_card(table: object) -> None:
    if isinstance(table, dict):
        card = parse_card(table)
        if parse_card(card.to_table()) != card:
            raise Accepted("card is another one when read again")


def read_strict(data: bytes) -> None:
    value = loads(data, what="text", max_bytes=MAX_JSON_BYTES)
    if loads(canonical(value), what="text", max_bytes=16 * MAX_JSON_BYTES) != value:
        raise Accepted("canonical form says something else")


def read_policy(data: bytes) -> None:
    parse_policy(data.decode(errors="surrogateescape"))


def command_target() -> Target:
    key = Ed25519PrivateKey.from_private_bytes(KEY)
    ids = "01890a5d-ac96-774b-bcce-b302099a8057"
    job = "01890a5d-ac96-774b-bcce-b302099a8058"
    request = Request(ids, "board-1", CANCEL, NOW, NOW + 60, {"job": job})
    seed = sign_command(request, key)
    name = keyid(key.public_key())
    trusted = {name: TrustedConsole("fuzz", name, key.public_key().public_bytes_raw(), Path("fuzz.json"))}

    def read(data: bytes) -> None:
        command = open_command(
            data,
            topic_type=CANCEL,
            topic_id=ids,
            trusted=trusted,
            device="board-1",
            now=NOW + 1.0,
            clock_synchronised=True,
        )
        if (command.args, command.id, command.not_after) != ({"job": job}, ids, NOW + 60):
            raise Accepted("command")

    return Target("command", seed, read)


def parity_target() -> Target:
    path = file_with("data.sealed", DATA)
    parity = folder() / "data.parity"
    write_parity(path, parity, hashlib.sha256(DATA).hexdigest(), lambda: None)
    seed = parity.read_bytes()

    def read(data: bytes) -> None:
        parity.write_bytes(data)
        if read_header(parity).sha256 != hashlib.sha256(DATA).hexdigest():
            raise Accepted("parity")

    return Target("parity", seed, read)


def small_model() -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.5] * 8)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"], name="r")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert isinstance(model, onnx.ModelProto)
    return model.SerializeToString()


def npz_target() -> Target:
    out = io.BytesIO()
    np.savez(out, x_train=np.zeros((2, 3), np.uint8), y_train=np.arange(2))
    return Target("npz", out.getvalue(), lambda data: read_arrays(file_with("d.npz", data), ("x_train", "y_train")))


def root_bytes() -> bytes:
    from datetime import UTC, datetime  # noqa: PLC0415 - only here
    from importlib import import_module  # noqa: PLC0415

    publisher = import_module("agent.repository").Publisher
    made = publisher.create(folder() / "repo", folder() / "repo-keys", lambda: datetime.now(UTC))
    return Path(made.root_path).read_bytes()


def release_targets() -> list[Target]:
    """The archive as it comes, and what is inside its compression; its facts."""
    text = b"site/a/b.py: stay cool\n" * 40
    listed = {"site/a/b.py": {"length": len(text), "sha256": hashlib.sha256(text).hexdigest()}}
    facts: dict[str, object] = {
        "kind": "agent", "version": "1.0", "arch": "any", "python": "3.11", "security_floor": 0,
        "needs": {"numpy": "2.1.0"}, "bundled": {"temperd": "1.0"}, "unpacked_length": len(text),
    }  # fmt: skip
    about = canonical({**facts, "files": listed})
    release = AgentRelease(**facts, files_sha256=hashlib.sha256(about).hexdigest())  # type: ignore[arg-type]
    out = io.BytesIO()
    write_archive(out, {"release.json": about, "site/a/b.py": text})
    stage = folder() / "stage"

    def read(data: bytes) -> None:
        try:
            unpack(entries(io.BytesIO(data)), stage, release)
            found = {
                path.relative_to(stage).as_posix(): path.read_bytes() for path in stage.rglob("*") if path.is_file()
            }
            if found != {"release.json": about, "site/a/b.py": text}:
                raise Accepted("release")
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def read_facts(table: object) -> None:
        if parse_release(table, release.path, 9).path != release.path:
            raise Accepted("facts of another release")

    return [
        Target("release", out.getvalue(), read),
        Target("release-inside", gzip.decompress(out.getvalue()), lambda data: read(gzip.compress(data, 1))),
        json_document("release-facts", release.to_table(), read_facts),
    ]


@cache
def targets() -> dict[str, Target]:
    """All of them, by name."""
    device = identity()
    picture = ModelCard(
        name="m",
        version="1.0",
        security_floor=0,
        task="image-classification",
        preprocess=Preprocess(0.1, -1.0),
        input_shape=(3, 8, 8),
        plaintext_sha256="0" * 64,
        plaintext_length=9,
        labels=("a", "b"),
        signature_of_source_features=(0.25,),
    )
    spec = spec_table(FineTuneSpec("m", "/data"))
    made = [
        sealed_target(),
        status_target(),
        manifest_target(),
        checkpoint_target(),
        grant_target(device),
        json_document("card", picture.to_table(), read_card),
        json_document("device", dict(device.public.to_table()), parse_public_document),
        json_document("spec", spec, lambda table: parse_spec(table) if isinstance(table, dict) else None),
        Target("strict-json", b'{"a":[1,2.5,"\\u00e9\\ud83d\\ude00",null,true]}', read_strict),
        command_target(),
        Target("tuf-root", root_bytes(), lambda data: parse_root(data, "fuzz")),
        parity_target(),
        Target("onnx", small_model(), parse_onnx),
        npz_target(),
        Target("policy", (ROOT / "policies" / "default.toml").read_bytes(), read_policy, (PolicyError,)),
        Target("worker-line", encode(Go("TRAINING")), decode),
        *release_targets(),
    ]
    return {target.name: target for target in made}
