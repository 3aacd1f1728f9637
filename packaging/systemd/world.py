"""What an installed board needs to work, laid into its root: repository, identity, console, images."""
# ruff: noqa: INP001 - beside the units that it serves, in no package

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from agent import publish as publishing
from agent.engine.ir import serialize
from agent.keys import create_console_key, create_identity
from agent.repository import Publisher, utc_now
from tests.simulators.small_models import SIZE, colour_images, mobile_block_net

DEVICE, PORT = "board-1", 8000
CREDENTIAL = "etc/credstore/temperd-identity"
KEY, SPEC, LONG_SPEC = "/root/alice.key", "/root/job.toml", "/root/long.toml"
HARDWARE, EMULATED = 'profile = "raspberry-pi-4"', 'emulated = "raspberry-pi-4"'
CONFIG = f"""\
[device]
name = "{DEVICE}"
[mqtt]
host = "127.0.0.1"
keepalive_s = 5
[repository]
url = "http://127.0.0.1:{PORT}"
root = "root.json"
[board]
{HARDWARE}
emulated_speed = 20.0
[policy]
file = "policy.toml"
[worker]
threads = 1
nice = 10
"""
# A job that is run again must not lose by a hair of loss against its own model: the governor's depths vary.
JOB = f"""\
model = "colours"
data = "/srv/images"
image_size = {SIZE}
epochs = 400
learning_rate = 0.02
depth = "0"
batch = 8
least_gain = -0.05
"""


def lay_down(root: Path, scratch: Path, policy: str) -> None:
    """Fill the root file system of an installed board.

    Args:
        root: of the board, the package installed.
        scratch: a folder for what stays with the publisher.
        policy: text of the board's policy file.
    """
    identity = create_identity(scratch / "identity", DEVICE)
    secret(root / CREDENTIAL, (scratch / "identity/identity.json").read_bytes())
    model = scratch / "colours.onnx"
    model.write_bytes(serialize(mobile_block_net(classes=5)))
    publisher = Publisher.create(root / "srv/repository", scratch / "publisher-keys", utc_now)
    publishing.publish(publisher, str(model), publishing.Description("colours", "1.0"), [identity.public])
    public = create_console_key(scratch / "console", "alice")
    secret(root / KEY.lstrip("/"), (scratch / "console/alice.key").read_bytes())
    etc = root / "etc/temperd"
    (etc / "consoles").mkdir(exist_ok=True)
    for path, data in {
        etc / "temperd.toml": CONFIG.encode(),
        etc / "policy.toml": policy.encode(),
        etc / "root.json": publisher.root_path.read_bytes(),
        etc / "consoles" / public.name: public.read_bytes(),
        root / SPEC.lstrip("/"): JOB.encode(),
        root / LONG_SPEC.lstrip("/"): JOB.replace("epochs = 400", "epochs = 1000")
        .replace("batch = 8", "batch = 1")
        .encode(),
    }.items():
        path.write_bytes(data)
    for path in (etc, *etc.rglob("*")):
        shutil.chown(path, 0, etc.stat().st_gid)
        path.chmod(0o750 if path.is_dir() else 0o640)
    images(root / "srv/images")
    for name in ("home/anna/diary", "root/secret"):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("nothing of the daemon's\n")
        path.chmod(0o644)


def secret(path: Path, data: bytes) -> None:
    """A file that root alone may read."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)


def images(folder: Path) -> None:
    """Images of three colours, a folder each, readable by everybody."""
    pixels, labels = colour_images(240, seed=5)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        place = folder / ("red", "green", "blue")[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03}.png")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
