"""What `bench govern` has trained, kept in a folder: a run that was ended goes on, another trains only what is new."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path

from agent import strict_json
from agent.durable import write_atomic
from agent.errors import ArtifactError, BoardError
from agent.images import Images, fingerprint
from agent.publish import EFFICIENTNET_LITE0
from policies.policy import DEPTH_LADDER
from service.bench_govern_learning import Course, Depths, Learnt

MAX_BYTES = 16 << 20  # some 100,000 sequences


def kept_file(folder: Path, course: Course, images: Images) -> Path:
    """The file for one course on one data set: another model, other data or other settings have another name."""
    model = course.model.encode() if course.model == EFFICIENTNET_LITE0 else Path(course.model).read_bytes()
    settings = sorted((key, value) for key, value in dataclasses.asdict(course).items() if key != "model")
    parts = repr((hashlib.sha256(model).hexdigest(), fingerprint(images), settings))
    return folder / f"learnt-{hashlib.sha256(parts.encode()).hexdigest()[:16]}.json"


def read_kept(file: Path, epochs: int) -> dict[Depths, Learnt]:
    """What an earlier run wrote; nothing where there is no file.

    Raises:
        ArtifactError: the file is none of ours.
        BoardError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BoardError("what was trained before cannot be read", where=f"{file}: {error.strerror}") from error
    body = strict_json.loads(data, what=str(file), max_bytes=MAX_BYTES)
    if not isinstance(body, dict):
        raise _broken(file)
    return dict(_entry(file, key, value, epochs) for key, value in body.items())


def write_kept(file: Path, learnt: dict[Depths, Learnt]) -> None:
    """Keep it, whole or not at all.

    Raises:
        BoardError: the disk refuses.
    """
    table = {",".join(map(str, depths)): [found.loss, found.accuracy] for depths, found in learnt.items()}
    write_atomic(file, strict_json.canonical(table), 0o644)


def _entry(file: Path, key: str, value: object, epochs: int) -> tuple[Depths, Learnt]:
    try:
        depths = tuple(map(int, key.split(",")))
    except ValueError as error:
        raise _broken(file) from error
    if not (1 <= len(depths) <= epochs and all(depth in DEPTH_LADDER for depth in depths)):
        raise _broken(file)
    match value:
        case [int() | float() as loss, int() | float() as accuracy] if math.isfinite(loss) and 0 <= accuracy <= 1:
            return depths, Learnt(float(loss), float(accuracy))
    raise _broken(file)


def _broken(file: Path) -> ArtifactError:
    return ArtifactError("is not what a govern bench kept", where=str(file), fix="Remove it; it is trained anew")
