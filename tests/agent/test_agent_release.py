"""A release of temperd: the same wheels give the same file, it holds nothing but plain files, and who may have it."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from agent import agent_archive
from agent.agent_archive import entries, is_path, write_archive
from agent.agent_release import AgentRelease, Here, choose, parse_release
from agent.agent_slots import RELEASE
from agent.build_release import Built, Recipe, build_release, pins_here, read_pins, read_wheel
from agent.errors import ArtifactError, SpecError, TemperdError, TrustError
from agent.publish_release import read_archive
from tests.simulators.wheels import own_wheel, wheel

pytestmark = pytest.mark.once

DIGEST = "ab" * 32
HERE = Here("0.2.0", "", "aarch64", "3.11", {"numpy": "2.1.0", "tuf": "6.0.0"})


def release(version: str = "0.3.0", **changes: object) -> AgentRelease:
    facts = {"arch": "aarch64", "python": "3.11", "files_sha256": DIGEST, "unpacked_length": 9, **changes}
    return AgentRelease(version=version, **facts)  # type: ignore[arg-type]


def tiny(folder: Path, version: str = "0.3.0", requires: tuple[str, ...] = (), tags: str = "py3-none-any") -> Path:
    files = {"agent/__init__.py": f'"""."""\n__version__ = "{version}"\n'.encode(), "policies/a.toml": b"a = 1\n"}
    return wheel(folder, "temperd", version, files, requires=requires, tags=tags)


def built(folder: Path, *others: Path, arch: str = "", **environment: str) -> Built:
    return build_release(Recipe((tiny(folder), *others), "3.11", environment, arch))


def archive_of(contents: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    write_archive(out, contents)
    return out.getvalue()


def refusal(code: str, call: object, *args: object, **named: object) -> str:
    with pytest.raises(TemperdError) as caught:
        call(*args, **named)  # type: ignore[operator]
    assert caught.value.code == code
    return str(caught.value)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_same_wheels_give_the_same_bytes_and_are_read_back(tmp_path: Path) -> None:
    one, two = (built(tmp_path / name, numpy="2.1.0") for name in ("a", "b"))
    data = archive_of(dict(one.contents))
    assert data == archive_of(dict(two.contents))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames()[0] == RELEASE
    listed, digest = read_archive(entries(io.BytesIO(data)))
    assert digest == one.release.files_sha256 == hashlib.sha256(one.contents[RELEASE]).hexdigest()
    assert listed.needs == {"numpy": "2.1.0"}
    assert listed.bundled == {"temperd": "0.3.0"}
    assert set(listed.files) == set(one.contents) - {RELEASE}
    assert one.release.path == "agent/0.3.0/temperd-0.3.0-py3.11-any.tar.gz"
    assert parse_release({**one.release.to_table(), "later": 1}, one.release.path, len(data)) == one.release


def entry(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo(name)
        member.type, member.size, member.linkname = kind, len(data), "/etc/passwd" if kind != tarfile.REGTYPE else ""
        tar.addfile(member, io.BytesIO(data))
    return gzip.compress(out.getvalue())


def walk(data: bytes) -> list[str]:
    return [found.path for found in entries(io.BytesIO(data)) if found.whole(1 << 20) is not None]


@pytest.mark.parametrize(
    "name", ["../site/a", "/site/a", "site/../a", "site/a/../../b", "other/a", "site//a", "site/a b", "site/./a"]
)
def test_a_file_that_would_lie_elsewhere_is_refused(name: str) -> None:
    assert walk(entry("site/a")) == ["site/a"]
    assert not is_path(name)
    refusal("release-broken", walk, entry(name))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_plain_file_is_refused(kind: bytes) -> None:
    refusal("release-broken", walk, entry("site/a", kind))


def test_an_archive_that_is_cut_off_or_longer_is_refused() -> None:
    whole = entry("site/a", data=b"x" * 3000)
    assert walk(whole) == ["site/a"]
    for data in (*(whole[:cut] for cut in (0, 5, 40, len(whole) - 1)), whole + b"\0", whole + whole, b"no gzip"):
        refusal("release-broken", walk, data)
    plain = bytearray(gzip.decompress(whole))
    plain[-1] = 1
    refusal("release-broken", walk, gzip.compress(plain))
    plain[-1], plain[512 + 3001] = 0, 1
    refusal("release-broken", walk, gzip.compress(plain))


def test_a_bomb_ends_at_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_archive, "MAX_FILE_BYTES", 1000)
    assert walk(entry("site/a", data=bytes(1000)))
    refusal("release-broken", walk, entry("site/a", data=bytes(1001)))
    monkeypatch.setattr(agent_archive, "MAX_SITE_BYTES", 999)
    refusal("release-broken", walk, entry("site/a", data=bytes(1000)))


def test_a_file_that_is_not_as_listed_is_noticed(tmp_path: Path) -> None:
    contents = dict(built(tmp_path).contents)
    for wrong in (
        {**contents, "site/policies/a.toml": b"a = 2\n"},
        {**contents, "site/more.py": b""},
        {path: data for path, data in contents.items() if path != "site/policies/a.toml"},
        {path: data for path, data in contents.items() if path != RELEASE},
    ):
        refusal("release-broken", read_archive, entries(io.BytesIO(archive_of(wrong))))


# --- building --------------------------------------------------------------------------------------------------------


def test_this_tree_builds_and_needs_what_it_does_not_bring(tmp_path: Path) -> None:
    own = own_wheel(tmp_path, "0.9.0")
    here = pins_here(read_wheel(own, "3.11").requires)
    assert {"numpy", "tuf", "paho-mqtt", "cffi"} <= here.keys()
    assert not {"pytest", "temperd"} & here.keys()
    found = build_release(Recipe((own,), "3.11", here))
    assert found.release.arch == "any"
    assert not found.has_kernels
    assert found.release.needs == here
    assert {"site/service/cli.py", "site/agent/engine/native/__init__.py", "site/service/example.toml"} <= set(
        found.contents
    )


def test_a_wheel_for_another_python_or_machine_is_refused(tmp_path: Path) -> None:
    def named(tags: str) -> Path:
        return wheel(tmp_path / tags, "extra", "1.0", {"extra.py": b""}, tags=tags)

    assert built(tmp_path, named("cp311-cp311-manylinux2014_aarch64")).release.arch == "aarch64"
    assert built(tmp_path, named("cp39-abi3-linux_x86_64")).release.arch == "x86_64"
    for tags in (
        "cp312-cp312-linux_aarch64",
        "py2-none-any",
        "cp311-cp311-win_amd64",
        "cp311-cp311-musllinux_1_1_x86_64",
    ):
        refusal("bad-spec", built, tmp_path, named(tags))
    two = (named("cp311-cp311-manylinux2014_aarch64"), named("cp39-abi3-linux_x86_64"))
    refusal("bad-spec", built, tmp_path, *two)
    refusal("bad-spec", built, tmp_path, two[0], arch="x86_64")


def test_a_release_without_what_it_requires_is_not_built(tmp_path: Path) -> None:
    lines = ("NumPy>=2", "cbor2", "extra; extra == 'demo'", "win; sys_platform == 'win32'")
    recipe = Recipe((tiny(tmp_path, requires=lines),), "3.11", {"numpy": "2.1.0"})
    assert "cbor2" in refusal("bad-spec", build_release, recipe)
    brought = wheel(
        tmp_path, "cbor2", "5.7.0", {"cbor2.py": b"", "cbor2-5.7.0.data/scripts/x": b"", "t.so": b"\x7fELF"}
    )
    recipe = dataclasses.replace(recipe, wheels=(*recipe.wheels, brought))
    done = build_release(recipe)
    assert done.release.bundled == {"temperd": "0.3.0", "cbor2": "5.7.0"}
    assert not any("scripts" in path for path in done.contents)
    assert "site/t.so" in done.contents
    plain = build_release(dataclasses.replace(recipe, arch="any"))
    assert "site/t.so" not in plain.contents


def test_what_is_no_wheel_of_temperd_is_refused(tmp_path: Path) -> None:
    other = wheel(tmp_path, "extra", "1.0", {"extra.py": b""})
    refusal("bad-spec", build_release, Recipe((other,), "3.11", {}))
    lying = wheel(tmp_path, "temperd", "0.4.0", {"agent/__init__.py": b'__version__ = "0.3.0"\n'})
    assert "0.3.0" in refusal("bad-spec", build_release, Recipe((lying,), "3.11", {}))
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"PK nothing")
    refusal("bad-spec", built, tmp_path, tmp_path / "broken-1.0-py3-none-any.whl")
    refusal("bad-spec", built, tmp_path, wheel(tmp_path, "twin", "1.0", {"policies/a.toml": b""}))


def test_pins_are_read_from_a_list_with_hashes(tmp_path: Path) -> None:
    path = tmp_path / "pins.txt"
    path.write_text("# made\nPaho_MQTT==2.2.0 --hash=sha256:00\nnumpy==2.1.0 ; python_version < '3.12'\n")
    assert read_pins(path) == {"paho-mqtt": "2.2.0", "numpy": "2.1.0"}
    path.write_text("numpy>=2\n")
    refusal("bad-spec", read_pins, path)
    refusal("bad-spec", read_pins, tmp_path / "none")


# --- what fits a board -----------------------------------------------------------------------------------------------


def test_the_latest_for_this_board_is_taken() -> None:
    found = [
        release("0.9.0", arch="x86_64"),
        release("0.8.0", python="3.13"),
        release("0.3.0", arch="any"),
        release("0.3.0"),
        release("0.2.5"),
    ]
    assert choose(found, "latest", HERE) == release("0.3.0")
    assert choose(found, "0.3.0", HERE) == release("0.3.0")
    assert choose(found, "0.2.5", HERE) == release("0.2.5")
    assert choose([release("0.3.0", arch="any")], "latest", HERE) == release("0.3.0", arch="any")


def test_what_runs_already_is_no_update() -> None:
    assert choose([release("0.2.0")], "0.2.0", HERE) is None
    assert choose([release("0.2.0")], "latest", HERE) is None
    assert choose([release("0.1.0")], "latest", HERE) is None
    in_slot = dataclasses.replace(HERE, digest="cd" * 32)
    assert choose([release("0.2.0")], "0.2.0", in_slot) == release("0.2.0")


def test_each_refusal_has_its_code_and_names_what_is_wrong() -> None:
    def no(code: str, found: list[AgentRelease], wanted: str = "0.3.0", here: Here = HERE, **named: bool) -> str:
        return refusal(code, choose, found, wanted, here, **named)

    no("no-release", [])
    assert "0.4.0" in no("unknown-version", [release("0.4.0")])
    assert "x86_64" in no("other-arch", [release(arch="x86_64")])
    assert "3.13" in no("other-python", [release(python="3.13")])
    assert "--for-python 3.11" in no("other-python", [release(python="3.13")], "latest")
    assert "0.2.0" in no("older-version", [release("0.1.0")], "0.1.0")
    assert choose([release("0.1.0")], "0.1.0", HERE, allow_downgrade=True) == release("0.1.0")
    withdrawn = [release("0.1.0"), release("0.4.0", security_floor=1)]
    no("below-security-floor", withdrawn, "0.1.0", allow_downgrade=True)
    other = [release("0.3.0"), release("0.2.5", arch="x86_64", security_floor=2)]
    no("below-security-floor", other)  # a floor counts for every machine
    no("release-refused", [release()], here=dataclasses.replace(HERE, refused=frozenset({DIGEST})))
    needs = {"numpy": "2.2.0", "cbor2": "5.7.0", "tuf": "6.0.0"}
    told = no("needs-unmet", [release(needs=needs)])
    assert "cbor2 5.7.0 (here: none)" in told
    assert "numpy 2.2.0 (here: 2.1.0)" in told
    assert "tuf" not in told


def test_facts_that_cannot_be_are_refused() -> None:
    good = release()
    assert parse_release(good.to_table(), good.path, 10) == good
    for change in (
        {"version": "1.0-beta"}, {"arch": "armv6l"}, {"python": "2.7"}, {"files_sha256": "x"}, {"unpacked_length": 0},
        {"needs": {"Not Normal": "1"}}, {"needs": {"a": ""}}, {"bundled": {f"p{i}": "1" for i in range(101)}},
        {"kind": "system"}, {"security_floor": -1},
    ):  # fmt: skip
        with pytest.raises(TrustError):
            parse_release({**good.to_table(), **change}, good.path, 10)
    for table, path, length in (
        (None, good.path, 10),
        (good.to_table(), "agent/x", 10),
        (good.to_table(), good.path, 0),
    ):
        with pytest.raises(TrustError):
            parse_release(table, path, length)


def test_a_name_that_no_archive_may_hold_is_not_written() -> None:
    for path in ("site/a b", "x", f"site/{'d/' * 12}a"):
        with pytest.raises(SpecError):
            write_archive(io.BytesIO(), {path: b""})
    with pytest.raises(ArtifactError):
        list(entries(io.BytesIO(b"")))
