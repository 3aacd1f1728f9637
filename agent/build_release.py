"""A release of temperd from wheels, on a laptop or in CI: temperd's own and those that boards are to get with it."""

from __future__ import annotations

import email.parser
import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from agent.agent_release import ANY, ARCHES, AgentRelease, package_name
from agent.agent_slots import MAX_FILES, MAX_RELEASE_BYTES, MAX_SITE_BYTES, RELEASE, SITE
from agent.durable import disk_errors
from agent.errors import SpecError
from agent.strict_json import canonical
from policies.strict import TableError

OWN = "temperd"
NATIVE = "agent/engine/native/_ops"
RUNTIME_EXTRAS = ("ort", "ort-training")  # a board has one of both
MAX_PINS_BYTES = 1 << 20  # a file of thirty pins has 4 KB
_LEFT_OUT = ("scripts", "headers", "data")  # of a wheel: nothing that is imported
_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl"
)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")
_REQUIRED = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_OWN_VERSION = re.compile(rb'^__version__ = "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a release is made of.

    Attributes:
        wheels: temperd's own and those that it brings.
        python: version of the boards' interpreter, `3.11`.
        environment: packages that boards have, with their versions.
        arch: empty: that of the wheels; `any`: compiled code of temperd's own wheel is left out.
        security_floor: withdraws releases with a lower one.
    """

    wheels: tuple[Path, ...]
    python: str
    environment: Mapping[str, str]
    arch: str = ""
    security_floor: int = 0


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package as a wheel has it.

    Attributes:
        files: by path below the environment's folder for packages.
        requires: names of packages without which it does not work, whatever the machine.
    """

    name: str
    version: str
    arch: str
    files: Mapping[str, bytes]
    requires: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Built:
    """A release: what is to be signed, and what the archive holds."""

    release: AgentRelease
    contents: Mapping[str, bytes]

    @property
    def has_kernels(self) -> bool:
        """Whether the compiled kernel library is in it."""
        return any(path.startswith(f"{SITE}/{NATIVE}") and path.endswith(".so") for path in self.contents)

    @property
    def name(self) -> str:
        """Of the file."""
        return self.release.path.rpartition("/")[2]


def build_release(recipe: Recipe) -> Built:
    """Put a release together.

    Raises:
        SpecError: a wheel is none, or for another Python or machine; temperd's own is missing; a package is required
            that boards neither have nor get; or a bound is passed.
        BoardError: the disk fails.
    """
    wheels = [read_wheel(path, recipe.python, plain=recipe.arch == ANY) for path in recipe.wheels]
    own = next((wheel for wheel in wheels if wheel.name == OWN), None)
    if own is None:
        raise SpecError("temperd's own wheel is not among them", where="wheels")
    _check_own_version(own)
    site = _merged(wheels)
    bundled = {wheel.name: wheel.version for wheel in wheels}
    needs = {name: version for name, version in recipe.environment.items() if name not in bundled}
    _check_requires(wheels, {**needs, **bundled})
    try:
        release = AgentRelease(
            version=own.version,
            arch=_arch(wheels, recipe.arch),
            python=recipe.python,
            files_sha256=hashlib.sha256().hexdigest(),
            unpacked_length=sum(map(len, site.values())),
            security_floor=recipe.security_floor,
            needs=needs,
            bundled=bundled,
        )
    except TableError as error:
        raise SpecError(error.what, where=error.key) from error
    return _listed(release, site)


def _listed(release: AgentRelease, site: Mapping[str, bytes]) -> Built:
    """With the list of files, whose hash is the name of the release."""
    files = {
        path: {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in sorted(site.items())
    }
    facts = {key: value for key, value in release.to_table().items() if key != "files_sha256"}
    table = canonical({**facts, "files": files})
    if len(table) > MAX_RELEASE_BYTES:
        raise SpecError(f"the list of files has {len(table)} bytes, at most {MAX_RELEASE_BYTES} are read")
    release = replace(release, files_sha256=hashlib.sha256(table).hexdigest())
    return Built(release, {RELEASE: table, **site})


def read_wheel(path: Path, python: str, *, plain: bool = False) -> Wheel:
    """A wheel's package.

    Args:
        path: the file.
        python: the interpreter that it must be for.
        plain: leave compiled code out.

    Raises:
        SpecError: it is no wheel, or one for another interpreter or machine.
        BoardError: the disk fails.
    """
    name = _WHEEL.fullmatch(path.name)
    if name is None:
        raise SpecError("is no wheel: NAME-VERSION-PYTHON-ABI-PLATFORM.whl", where=str(path))
    _check_python(path, name["python"], name["abi"], python)
    with disk_errors(path):
        try:
            files = _wheel_files(path)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
            raise SpecError(f"the wheel cannot be read: {error}", where=str(path)) from error
    about = next((data for file, data in files.items() if file.endswith(".dist-info/METADATA")), b"")
    parsed = email.parser.BytesParser().parsebytes(about, headersonly=True)
    if not parsed["Name"] or not parsed["Version"]:
        raise SpecError("the wheel does not say what it is", where=str(path))
    if plain:
        files = {file: data for file, data in files.items() if not file.endswith(".so")}
    arch = ANY if plain else _platform(path, name["platform"])
    requires = tuple(found for text in parsed.get_all("Requires-Dist", []) if (found := _required(text)))
    return Wheel(package_name(parsed["Name"]), parsed["Version"], arch, files, requires)


def read_pins(path: Path) -> dict[str, str]:
    """Packages with their versions from a file of `name==version` lines, such as that of temperd's Debian package.

    Raises:
        SpecError: no such file, too long, or nothing in it.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_PINS_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("the list of packages cannot be read", where=str(path)) from error
    if len(text) > MAX_PINS_BYTES:
        raise SpecError(f"the list of packages is longer than {MAX_PINS_BYTES} bytes", where=str(path))
    pins = {package_name(found[1]): found[2] for line in text.splitlines() if (found := _PIN.match(line.strip()))}
    if not pins:
        raise SpecError("no line of the list is NAME==VERSION", where=str(path))
    return pins


def pins_here(requires: Iterable[str] = ()) -> dict[str, str]:
    """Versions of all that temperd requires, as this environment has it.

    Args:
        requires: names of packages that count too: a wheel may ask for more than the temperd that is installed here.
    """
    found: dict[str, str] = {}
    todo = [OWN, *requires]
    while todo:
        name = todo.pop()
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # for other machines or Pythons
            continue
        if name in found:
            continue
        if name != OWN:
            found[name] = package.version
        extras = RUNTIME_EXTRAS if name == OWN else ()
        needed = {_required(text, extras, conditional=True) for text in package.requires or ()} - {"", *found, OWN}
        todo += sorted(needed)
    return found


def _required(text: str, extras: Iterable[str] = (), *, conditional: bool = False) -> str:
    """The name in a line of requirements.

    Args:
        text: the line.
        extras: what is required for these counts too.
        conditional: so does what is required on some machines only.

    Returns:
        Empty where it does not count.
    """
    name, _, condition = text.partition(";")
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", condition)
    counts = extra[1] in extras if extra else conditional or not condition
    found = _REQUIRED.match(name)
    return package_name(found[1]) if found and counts else ""


def _wheel_files(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as wheel:
        infos = [info for info in wheel.infolist() if not info.is_dir()]
        if sum(info.file_size for info in infos) > MAX_SITE_BYTES or len(infos) > MAX_FILES:
            raise SpecError("the wheel is larger than a release may be", where=str(path))
        for info in infos:
            place = _place(info.filename)
            if place:
                files[place] = wheel.read(info)
    return files


def _place(name: str) -> str:
    """Where a wheel's file goes; empty: it is nothing that is imported."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, inner = rest.partition("/")
    return "" if kind in _LEFT_OUT else inner


def _merged(wheels: Iterable[Wheel]) -> dict[str, bytes]:
    site: dict[str, bytes] = {}
    for wheel in wheels:
        placed = {f"{SITE}/{path}": data for path, data in wheel.files.items()}
        if twice := site.keys() & placed.keys():
            raise SpecError("two wheels bring the same file", where=min(twice))
        site.update(placed)
    return site


def _check_own_version(own: Wheel) -> None:
    """What the package says of itself is what the daemon will say."""
    said = _OWN_VERSION.search(own.files.get("agent/__init__.py", b""))
    if said is None or said[1].decode(errors="replace") != own.version:
        told = said[1].decode(errors="replace") if said else "nothing"
        raise SpecError(f"the wheel is {own.version}, its agent/__init__.py says {told}", where="temperd's wheel")


def _check_requires(wheels: Iterable[Wheel], there: Mapping[str, str]) -> None:
    for wheel in wheels:
        missing = [name for name in wheel.requires if name not in there]
        if missing:
            fix = f"Bundle it: --bundle {missing[0]}==VERSION"
            raise SpecError(f"{wheel.name} requires {missing[0]}, which boards do not have", fix=fix)


def _check_python(path: Path, tags: str, abi: str, python: str) -> None:
    major, minor = python.split(".")
    for tag in tags.split("."):
        native = re.fullmatch(rf"cp{major}(\d+)", tag)
        later = native is not None and abi == "abi3" and int(native[1]) <= int(minor)
        if tag in (f"py{major}", f"py{major}{minor}", f"cp{major}{minor}") or later:
            return
    raise SpecError(f"the wheel is not for Python {python}", where=path.name)


def _platform(path: Path, tags: str) -> str:
    machines = {arch for arch in ARCHES for tag in tags.split(".") if tag == arch or tag.endswith(f"_{arch}")}
    if len(machines) != 1 or any("musl" in tag or "macos" in tag for tag in tags.split(".")):
        raise SpecError("the wheel is for no machine that temperd runs on", where=path.name)
    return machines.pop()


def _arch(wheels: Iterable[Wheel], wanted: str) -> str:
    """The one machine of all wheels."""
    machines = {wheel.arch for wheel in wheels} - {ANY}
    if len(machines) > 1 or (wanted and machines and wanted not in machines):
        raise SpecError(f"wheels for {', '.join(sorted(machines))}", where=f"release for {wanted or 'one machine'}")
    return machines.pop() if machines else wanted or ANY
