"""Wheels without a build: small ones with any content, and temperd's own from this tree under another number."""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".pyc", ".so", ".c", ".h", ".inc"}


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, bytes],
    *,
    requires: Iterable[str] = (),
    tags: str = "py3-none-any",
) -> Path:
    """A wheel with these files in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tags}.whl"
    about = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, data in files.items():
            archive.writestr(place, data)
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "Metadata-Version: 2.1\n" + "\n".join(about) + "\n")
    return path


def own_wheel(folder: Path, version: str, changes: Mapping[str, bytes] | None = None) -> Path:
    """temperd from this tree as `version`, with some files changed; without compiled code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [ROOT / name.replace(".", "/") for name in project["tool"]["setuptools"]["packages"]]
    files = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for package in packages
        for path in sorted(package.iterdir())
        if path.is_file() and path.suffix not in LEFT_OUT
    }
    said = f'__version__ = "{project["project"]["version"]}"'.encode()
    assert said in files["agent/__init__.py"]
    files["agent/__init__.py"] = files["agent/__init__.py"].replace(said, f'__version__ = "{version}"'.encode())
    return wheel(folder, "temperd", version, {**files, **(changes or {})}, requires=project["project"]["dependencies"])
