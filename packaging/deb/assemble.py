#!/usr/bin/env python3
"""Lays out the files of a Debian package: temperd's environment from wheels, its own packages, units and papers.

    assemble.py SUITE ARCHITECTURE VERSION WHEELS LIBRARY STAGE

WHEELS is a folder of wheels, LIBRARY the kernel library built for ARCHITECTURE, STAGE an empty folder. Nothing of what
is installed is run: the package for one machine is laid out on another. packaging/deb/build.sh calls this.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import sys
import textwrap
import tomllib
import zipfile
from email.utils import formatdate
from pathlib import Path, PurePosixPath
from typing import Any

from targets import SUITES

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
ENVIRONMENT = PurePosixPath("opt/temperd")

# What wheels bring and no program on a board reads.
LEFT_OUT_FOLDERS = (
    re.compile(r"(^|/)tests/"),  # of numpy and jeepney
    re.compile(r"^onnx/backend/test/"),  # test vectors of the standard, 15 MB
    re.compile(r"^numpy/(f2py|distutils)/"),  # build tools for Fortran and C
    re.compile(r"^onnxruntime/(transformers|tools)/"),  # converters of language models, for laptops
    re.compile(r"^numpy/_core/(include|lib)/"),  # what is compiled and linked against
)
LEFT_OUT_ENDINGS = (".pyi", ".h", ".hpp", ".c", ".cc", ".cpp", ".pxd", ".pyx", ".a", ".proto", ".cmake")
LEFT_OUT_NAMES = ("RECORD", "RECORD.jws", "REQUESTED", "direct_url.json")  # dpkg keeps the list of files

STORY = (
    "Models come sealed and signed and are trained on the board's own data; commands are signed and come over MQTT. "
    "The environment with its own onnxruntime lies in /opt/temperd; it is made for Python {}."
)
PROGRAM = """\
#!/opt/temperd/bin/python -I
import sys

from {module} import {function}

sys.exit({function}())
"""


def left_out(path: str) -> bool:
    """Whether a file of a wheel, by its path in site-packages, stays out of the package."""
    name = path.rsplit("/", 1)[-1]
    licence = ".dist-info/" in path and name not in LEFT_OUT_NAMES
    if licence:
        return False
    return (
        name in LEFT_OUT_NAMES
        or name.endswith(LEFT_OUT_ENDINGS)
        or any(folder.search(path) for folder in LEFT_OUT_FOLDERS)
    )


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Put a wheel's modules into `site`; its scripts and headers are not wanted.

    Raises:
        SystemExit: a path in it leads elsewhere.
    """
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts:
                sys.exit(f"assemble.py: {wheel.name} holds a path that leads elsewhere: {member.filename}")
            if path.parts[0].endswith(".data"):
                if path.parts[1] not in ("purelib", "platlib"):
                    continue
                path = PurePosixPath(*path.parts[2:])
            if not left_out(str(path)):
                put(site / path, archive.read(member))


def put(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write one file of the package."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)


def own_packages(project: dict[str, Any], library: Path, site: Path) -> None:
    """Put temperd's own packages into `site`, with the kernel library and what tells pip's readers its version."""
    for package in project["tool"]["setuptools"]["packages"]:
        folder = PROJECT / package.replace(".", "/")
        for source in sorted(folder.iterdir()):
            if source.suffix in (".py", ".toml") and source.is_file():
                put(site / source.relative_to(PROJECT), source.read_bytes())
    put(site / "agent/engine/native/_ops.so", library.read_bytes())
    facts = project["project"]
    info = site / f"temperd-{facts['version']}.dist-info"
    put(info / "METADATA", metadata(facts))
    scripts = [f"{name} = {entry}" for name, entry in facts["scripts"].items()]
    put(info / "entry_points.txt", "\n".join(["[console_scripts]", *scripts, ""]))
    put(info / "INSTALLER", "dpkg\n")
    put(info / "licenses/LICENSE", (PROJECT / "LICENSE").read_bytes())


def metadata(facts: dict[str, Any]) -> str:
    """Core metadata of temperd, as an installer would have written it."""
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {facts['name']}",
        f"Version: {facts['version']}",
        f"Summary: {facts['description']}",
        f"License-Expression: {facts['license']}",
        f"Requires-Python: {facts['requires-python']}",
        *(f"Requires-Dist: {requirement}" for requirement in facts["dependencies"]),
    ]
    for extra, requirements in facts["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f"Requires-Dist: {with_extra(requirement, extra)}" for requirement in requirements]
    return "\n".join([*lines, ""])


def with_extra(requirement: str, extra: str) -> str:
    """The requirement, asked for by an extra alone."""
    name, _, marker = (part.strip() for part in requirement.partition(";"))
    return f'{name}; ({marker}) and extra == "{extra}"' if marker else f'{name}; extra == "{extra}"'


def environment(project: dict[str, Any], suite: str, wheels: Path, library: Path, stage: Path) -> None:
    """Lay out /opt/temperd: a virtual environment of the system's Python, without pip."""
    python = SUITES[suite].python
    root = stage / ENVIRONMENT
    site = root / f"lib/python{python}/site-packages"
    for wheel in sorted(wheels.glob("*.whl")):
        unpack_wheel(wheel, site)
    own_packages(project, library, site)
    put(root / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    binaries = root / "bin"
    binaries.mkdir()
    (binaries / f"python{python}").symlink_to(f"/usr/bin/python{python}")
    for name in ("python", "python3"):
        (binaries / name).symlink_to(f"python{python}")
    for name, entry in project["project"]["scripts"].items():
        module, _, function = entry.partition(":")
        put(binaries / name, PROGRAM.format(module=module, function=function), 0o755)


def system_files(stage: Path) -> None:
    """Put the launcher, the units and what else the system reads at their places."""
    put(stage / "usr/bin/temperd", (HERE / "launcher").read_bytes(), 0o755)
    units = PROJECT / "packaging/systemd"
    put(stage / "usr/lib/sysusers.d/temperd.conf", (units / "temperd.sysusers").read_bytes())
    places = {
        "*.service": "usr/lib/systemd/system",
        "*.socket": "usr/lib/systemd/system",
        "polkit/*.rules": "usr/share/polkit-1/rules.d",
        "examples/*": "usr/share/doc/temperd/examples",
    }
    for pattern, place in places.items():
        for source in sorted(units.glob(pattern)):
            put(stage / place / source.name, source.read_bytes())


def papers(version: str, stage: Path) -> None:
    """Put the licence, the change log and lintian's exceptions at their places."""
    place = stage / "usr/share/doc/temperd"
    put(place / "copyright", (HERE / "copyright").read_bytes())
    when = formatdate(int(os.environ["SOURCE_DATE_EPOCH"]))
    entry = (
        f"temperd ({version}) stable; urgency=medium\n\n  * See CHANGELOG.md of this version.\n\n"
        f" -- {maintainer()}  {when.replace('-0000', '+0000')}\n"
    )
    put(place / "changelog.Debian.gz", gzip.compress(entry.encode(), 9, mtime=0))
    put(place / "changelog.gz", gzip.compress((PROJECT / "CHANGELOG.md").read_bytes(), 9, mtime=0))
    put(stage / "usr/share/lintian/overrides/temperd", (HERE / "lintian-overrides").read_bytes())


def maintainer() -> str:
    """Who answers for the package: Debian's own variables, else nobody with an address."""
    name = os.environ.get("DEBFULLNAME", "temperd packaging")
    return f"{name} <{os.environ.get('DEBEMAIL', 'packaging@temperd.invalid')}>"


def control(project: dict[str, Any], suite: str, architecture: str, version: str) -> str:
    """The control file but for the size, which is known when the bytecode lies there too."""
    depends = [
        f"python{SUITES[suite].python}",  # by its own name: the environment's modules are built for this one
        f"libc6 (>= 2.{SUITES[suite].glibc})",
        "libgcc-s1",
        "libstdc++6",
        "zlib1g",
        "systemd (>= 252)",
    ]
    summary = str(project["project"]["description"])
    return "\n".join([
        "Package: temperd",
        f"Version: {version}",
        f"Architecture: {architecture}",
        f"Maintainer: {maintainer()}",
        f"Depends: {', '.join(depends)}",
        "Suggests: mosquitto, rauc, polkitd",
        "Section: misc",
        "Priority: optional",
        "Description: trains sealed models on small boards, inside their limits",
        *(f" {line}" for line in textwrap.wrap(f"{summary} {STORY.format(SUITES[suite].python)}", 76)),
        "",
    ])  # fmt: skip


def main(words: list[str]) -> int:
    """Lay the package out."""
    suite, architecture, version, wheels, library, stage = words
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
    environment(project, suite, Path(wheels), Path(library), Path(stage))
    system_files(Path(stage))
    papers(version, Path(stage))
    folder = Path(stage, "DEBIAN")
    put(folder / "control", control(project, suite, architecture, version))
    for script in ("postinst", "prerm", "postrm"):
        put(folder / script, (HERE / script).read_bytes(), 0o755)
    shutil.copystat(HERE, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
