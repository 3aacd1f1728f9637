"""What the repository signs of a release of temperd itself, and what of it fits a board. Values in, values out.

A release holds temperd's own packages and those dependencies that differ from what boards have: a board fetches 1 MB
instead of an environment of 250. What it does not hold it needs, in exactly the version that it was made with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.agent_archive import MAX_ARCHIVE_BYTES
from agent.agent_slots import MAX_SITE_BYTES
from agent.card import LATEST, VERSION, version_key
from agent.errors import ArtifactError, SpecError, TrustError
from policies.strict import TableError, build_known, limits

KIND = "agent"
FOLDER = "agent"  # of the targets
AARCH64, X86_64, ANY = "aarch64", "x86_64", "any"
ARCHES = (AARCH64, X86_64, ANY)
MAX_PACKAGES = 100  # temperd's whole environment has 30
MAX_TEXT = 64
MAX_TOLD = 5  # packages or versions named in one sentence
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PYTHON = re.compile(r"3\.[1-9][0-9]?")
_PACKAGE = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_PACKAGE_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!_-]{0,63}")


@dataclass(frozen=True, slots=True)
class AgentRelease:
    """The signed facts.

    Attributes:
        version: of temperd.
        arch: machine as the kernel names it, or `any`: without compiled code.
        python: version of the interpreter, `3.11`.
        files_sha256: of the archive's `release.json`, which lists every file: what the release is known by.
        unpacked_length: bytes of all files.
        security_floor: releases with a lower one are withdrawn.
        needs: packages that must be installed on the board in exactly this version.
        bundled: packages that the release brings, temperd among them.
    """

    version: str = field(metadata=limits(longest=MAX_TEXT))
    arch: str = field(metadata=limits(choices=ARCHES))
    python: str = field(metadata=limits(longest=MAX_TEXT))
    files_sha256: str = field(metadata=limits(longest=MAX_TEXT))
    unpacked_length: int = field(metadata=limits(1, MAX_SITE_BYTES))
    security_floor: int = field(default=0, metadata=limits(0, 1_000_000))
    needs: dict[str, str] = field(default_factory=dict)
    bundled: dict[str, str] = field(default_factory=dict)
    kind: str = field(default=KIND, metadata=limits(choices=(KIND,)))

    def __post_init__(self) -> None:
        """Refuse names that are none."""
        for key, pattern in (("version", VERSION), ("python", _PYTHON), ("files_sha256", _SHA256)):
            if not pattern.fullmatch(getattr(self, key)):
                raise TableError(key, f"{getattr(self, key)[:MAX_TEXT]!r} is none")
        for key in ("needs", "bundled"):
            packages: dict[str, str] = getattr(self, key)
            if len(packages) > MAX_PACKAGES:
                raise TableError(key, f"names {len(packages)} packages, at most {MAX_PACKAGES}")
            for name, version in packages.items():
                if not _PACKAGE.fullmatch(name) or not _PACKAGE_VERSION.fullmatch(version):
                    raise TableError(f"{key}.{name[:MAX_TEXT]}", "is no package with its version")

    @property
    def path(self) -> str:
        """Among the repository's targets."""
        return release_path(self.version, self.python, self.arch)

    def to_table(self) -> dict[str, object]:
        """As JSON values."""
        return dataclasses.asdict(self)


def release_path(version: str, python: str, arch: str) -> str:
    """Path of a release among the targets. One version has a file for each Python and machine."""
    return f"{FOLDER}/{version}/temperd-{version}-py{python}-{arch}.tar.gz"


def package_name(name: str) -> str:
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse_release(table: object, path: str, length: int) -> AgentRelease:
    """What is signed of the target at `path` with `length` bytes; what a later temperd adds is not looked at.

    Raises:
        TrustError: it is no release of the agent, or that of another path.
    """
    if not isinstance(table, Mapping):
        raise TrustError("a release without facts", where=path)
    try:
        release = build_known(AgentRelease, table)
    except TableError as error:
        raise TrustError(f"facts of a release: {error}", where=path) from error
    if release.path != path:
        raise TrustError(f"facts of {release.path} under another path", where=path)
    if not 0 < length <= MAX_ARCHIVE_BYTES:
        raise TrustError(f"has {length} bytes, at most {MAX_ARCHIVE_BYTES} are taken", where=path, reason="too-long")
    return release


def most_bytes(table: object, path: str, length: int) -> int:
    """How many bytes are read of the release at `path`; raises like `parse_release`."""
    parse_release(table, path, length)
    return MAX_ARCHIVE_BYTES


@dataclass(frozen=True, slots=True)
class Here:
    """The board, as far as a release has to fit it.

    Attributes:
        version: of temperd that runs.
        digest: of the release that runs; empty: the installed one.
        arch: machine as the kernel names it.
        python: version of the interpreter, `3.11`.
        installed: packages of the installed environment with their versions.
        refused: digests of releases that failed here.
    """

    version: str
    digest: str
    arch: str
    python: str
    installed: Mapping[str, str]
    refused: frozenset[str] = frozenset()


def choose(
    releases: Iterable[AgentRelease], wanted: str, here: Here, *, allow_downgrade: bool = False
) -> AgentRelease | None:
    """The release to change to; `None`: it runs already, or nothing newer than what runs is there.

    Args:
        releases: all that are published.
        wanted: a version, or `latest`: the highest for this machine and Python.
        here: see `Here`.
        allow_downgrade: the owner wants an older one; one that is withdrawn is refused all the same.

    Raises:
        SpecError: `no-release`, `unknown-version`, `other-arch`, `other-python`, `needs-unmet`.
        TrustError: `below-security-floor`.
        ArtifactError: `older-version`, `release-refused`.
    """
    everything = tuple(releases)
    floor = max((one.security_floor for one in everything), default=0)
    fitting = _fitting(_named(everything, wanted), here)
    if wanted == LATEST:
        fitting = [one for one in fitting if one.security_floor >= floor]
        newest = max((version_key(one.version) for one in fitting), default=())
        fitting = [one for one in fitting if version_key(one.version) == newest]
        if version_key(here.version) >= newest:
            return None
    release = max(fitting, key=lambda one: one.arch != ANY)
    if release.security_floor < floor:
        what = f"{release.version} is withdrawn: its security floor is below {floor}"
        raise TrustError(what, fix="Use a newer version", reason="below-security-floor")
    if release.version == here.version and here.digest in ("", release.files_sha256):
        return None
    _check_age(release, here, allow_downgrade=allow_downgrade)
    if release.files_sha256 in here.refused:
        what = f"{release.version} failed on this board before and is not tried again"
        raise ArtifactError(what, fix="Publish a release that mends it", reason="release-refused")
    _check_needs(release, here)
    return release


def _named(releases: tuple[AgentRelease, ...], wanted: str) -> list[AgentRelease]:
    if not releases:
        fix = "Publish one: temperd release publish"
        raise SpecError("the repository has no release of temperd", fix=fix, reason="no-release")
    if wanted == LATEST:
        return list(releases)
    found = [one for one in releases if one.version == wanted]
    if not found:
        versions = sorted({one.version for one in releases}, key=version_key, reverse=True)
        there = ", ".join(versions[:MAX_TOLD])
        raise SpecError(f"the repository has no temperd {wanted}; there is {there}", reason="unknown-version")
    return found


def _fitting(releases: list[AgentRelease], here: Here) -> list[AgentRelease]:
    """Those for this machine and Python."""
    arched = [one for one in releases if one.arch in (here.arch, ANY)]
    if not arched:
        there = ", ".join(sorted({one.arch for one in releases}))
        raise SpecError(f"{_which(releases)} is for {there}, this board is {here.arch}", reason="other-arch")
    fitting = [one for one in arched if one.python == here.python]
    if not fitting:
        there = ", ".join(sorted({one.python for one in arched}))
        what = f"{_which(arched)} is for Python {there}, this board has {here.python}"
        raise SpecError(what, fix=f"Build it with --for-python {here.python}", reason="other-python")
    return fitting


def _which(releases: list[AgentRelease]) -> str:
    versions = {one.version for one in releases}
    return f"temperd {min(versions)}" if len(versions) == 1 else "every release"


def _check_age(release: AgentRelease, here: Here, *, allow_downgrade: bool) -> None:
    if version_key(release.version) < version_key(here.version) and not allow_downgrade:
        raise ArtifactError(
            f"{release.version} is older than {here.version}, which runs",
            fix="If that is wanted, say so: allow_downgrade",
            reason="older-version",
        )


def _check_needs(release: AgentRelease, here: Here) -> None:
    """Every package that the release does not bring is there as it was when the release was made."""
    unmet = [
        f"{name} {version} (here: {here.installed.get(name, 'none')})"
        for name, version in sorted(release.needs.items())
        if here.installed.get(name) != version
    ]
    if unmet:
        more = f" and {len(unmet) - MAX_TOLD} more" if len(unmet) > MAX_TOLD else ""
        raise SpecError(
            f"{release.version} needs {', '.join(unmet[:MAX_TOLD])}{more}",
            fix="Bundle them in the release, or install the package of temperd that has them",
            reason="needs-unmet",
        )
