"""What the demo needs before it starts: a folder, images, keys, a published model, a configuration."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from agent import publish as publishing
from agent.card import Target
from agent.durable import disk_errors, only_holder, write_atomic
from agent.errors import SpecError
from agent.keys import create_console_key, create_identity
from agent.repository import Publisher, utc_now
from service.broker import LOOPBACK

DEVICE, CONSOLE = "demo-board", "demo-console"
MARKER = ".temperd-demo"  # a folder without it is somebody's
MADE_FOLDERS = ("state", "repository", "publisher-keys", "console", "trusted", "console-state")
MADE_FILES = (
    "root.json",
    "temperd.toml",
    "digits.npz",
    "digit-*.png",
    "job.svg",
    "result.json",
    "*.log",
    "mosquitto.conf",
    "*.sqlite*",
)
DIGITS_TRAIN, DIGITS_HELD_OUT = 600, 300  # enough for 95 % and above within the demo's three minutes
SAMPLES_SEEN = 7200  # default number of epochs: about so many training samples; the board is heated and cools meanwhile
PROFILE, SPEED = "raspberry-pi-4", 8.0  # thermal time runs eight times faster, so that heat shows within a minute


@dataclass(frozen=True, slots=True)
class Scene:
    """Where the demo plays.

    Attributes:
        folder: everything is kept here.
        config: the board's configuration file.
        console_key: the console's private key file.
        data: what the board learns from.
        sample: one held-out image.
        target: the published model.
    """

    folder: Path
    config: Path
    console_key: Path
    data: Path
    sample: Path
    target: Target


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without writing to the terminal."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


class QuietServer(http.server.ThreadingHTTPServer):
    """A client that went away in the middle is no news either."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


def serve_folder(folder: Path) -> QuietServer:
    """A static web server on a free loopback port, running on a thread of its own; `shutdown()` ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = QuietServer((LOOPBACK, 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def check_inputs(folder: Path, model: str, images: str | None) -> None:
    """Refuse what cannot work before anything is touched.

    Raises:
        SpecError: the images or the model are missing, or lie where the demo cleans up.
    """
    if images is not None:
        if Path(images).resolve().is_relative_to(folder.resolve()):
            raise SpecError("the images lie in the demo's own folder", where=images, fix="Choose another: --out")
        _any_image(Path(images))
    if model != publishing.EFFICIENTNET_LITE0 and not Path(model).is_file():
        raise SpecError("no such model", where=model, fix="Give an ONNX file, or efficientnet-lite0")


@contextmanager
def fresh_folder(folder: Path, made: Sequence[str] = (*MADE_FOLDERS, *MADE_FILES)) -> Iterator[None]:
    """Hold a folder for one demo; what an earlier demo made there is removed, and nothing else.

    Args:
        folder: made when missing.
        made: what an earlier demo made, as patterns.

    Raises:
        SpecError: the folder is not empty and not a demo's, or a demo runs in it.
        BoardError: the disk fails.
    """
    marker = folder / MARKER
    with disk_errors(folder):
        if folder.exists() and any(folder.iterdir()) and not marker.exists():
            raise SpecError(
                "the folder is not empty and no demo made it", where=str(folder), fix="Choose another: --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
    running = SpecError("a demo is running in this folder", where=str(folder), fix="Choose another: --out")
    with only_holder(marker, running):
        with disk_errors(folder):
            for name in made:
                for path in folder.glob(name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield


def prepare(folder: Path, model: str, images: str | None, broker_port: int, repository_port: int) -> Scene:
    """Play publisher, board owner and operator: publish a model, make and trust keys, write the configuration.

    Raises:
        TemperdError: the model or the images cannot be used.
    """
    identity = create_identity(folder / "state" / "keys", DEVICE)
    public = create_console_key(folder / "console", CONSOLE)
    trusted = folder / "trusted"
    trusted.mkdir()
    shutil.copy(public, trusted)
    publisher = Publisher.create(folder / "repository", folder / "publisher-keys", utc_now)
    about = publishing.Description(name=_model_name(model), version="1.0")
    target = publishing.publish(publisher, model, about, [identity.public])
    shutil.copy(publisher.root_path, folder / "root.json")
    data, sample = (Path(images).absolute(), _any_image(Path(images))) if images else scanned_digits(folder)
    config = folder / "temperd.toml"
    text = configuration(DEVICE, PROFILE, SPEED, broker_port, repository_port)
    write_atomic(config, text.encode(), 0o644)
    key = folder / "console" / f"{CONSOLE}.key"
    return Scene(folder, config, key, data, sample, target)


def _model_name(model: str) -> str:
    return Path(model).stem.lower().replace("_", "-")


def configuration(
    name: str, profile: str, speed: float, broker_port: int, repository_port: int, *, root: str = "", policy: str = ""
) -> str:
    """The configuration of an emulated board of a demo.

    Args:
        name: of the board.
        profile: of the emulated board.
        speed: of its thermal time.
        broker_port: of the broker on loopback.
        repository_port: of the model repository on loopback.
        root: the demo's folder as seen from the board's, with a slash at its end; empty: the same.
        policy: file of a policy of its own, or empty.
    """
    own = f'[policy]\nfile = "{policy}"\n\n' if policy else ""
    return f"""\
# Written by a demo of temperd.
[device]
name = "{name}"
state_dir = "state"

[mqtt]
host = "{LOOPBACK}"
port = {broker_port}

[repository]
url = "http://{LOOPBACK}:{repository_port}"
root = "{root}root.json"

[board]
emulated = "{profile}"
emulated_speed = {speed}

{own}[commands]
trusted_consoles = "{root}trusted"

[log]
format = "text"
"""


def _any_image(folder: Path) -> Path:
    from agent.images import SUFFIXES  # noqa: PLC0415 - numeric stack

    found = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES), None)
    if found is None:
        raise SpecError("no images below this folder", where=str(folder), fix="One folder a class: DIR/CLASS/IMAGE.jpg")
    return found.absolute()


def scanned_digits(
    folder: Path, train_samples: int = DIGITS_TRAIN, held_out: int = DIGITS_HELD_OUT
) -> tuple[Path, Path]:
    """Scanned handwritten digits of scikit-learn (8 x 8, BSD-3) as .npz, and one held-out digit as PNG.

    Raises:
        SpecError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - extra `demo`
    except ImportError as error:
        raise SpecError("scikit-learn is not installed", fix='pip install "temperd[demo]", or give --images') from error
    import numpy as np  # noqa: PLC0415 - numeric stack
    from PIL import Image  # noqa: PLC0415 - same

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels = (digits.images[order] * (255 / 16)).astype(np.uint8)
    labels = digits.target[order].astype(np.int64)
    train, test = slice(0, train_samples), slice(train_samples, train_samples + held_out)
    path = folder / "digits.npz"
    np.savez(
        path,
        x_train=pixels[train],
        y_train=labels[train],
        x_test=pixels[test],
        y_test=labels[test],
        classes=np.asarray([str(digit) for digit in range(10)]),
    )
    sample = folder / f"digit-{labels[test][0]}.png"
    Image.fromarray(pixels[test][0]).save(sample)
    return path, sample


def default_epochs(data: Path, config_epochs: int) -> int:
    """Epochs asked for, or as many as see about `SAMPLES_SEEN` samples."""
    if config_epochs > 0:
        return config_epochs
    if data.is_dir():
        samples = sum(1 for path in data.rglob("*") if path.is_file())
        return min(8, max(1, round(SAMPLES_SEEN / max(1, samples))))
    return SAMPLES_SEEN // DIGITS_TRAIN
