from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reedsolo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import parity as parity_module
from agent.errors import ArtifactError, BoardError
from agent.parity import HEADER_BYTES, Geometry, parity_is_whole, read_header, repair, write_parity

ROOT = Path(__file__).parents[2]
# The number of blocks and their size, not the content, make the cases: one sector each way at every border.
LENGTHS = (1, 511, 512, 513, 1024, 1025, 5120, 5121, 228 * 512 - 1, 228 * 512, 228 * 512 + 1, 300_000)


def breathe() -> None:
    pass


def made(folder: Path, length: int, seed: int = 7) -> tuple[Path, Path, bytes, str]:
    """A file of noise with its parity: path, path of the parity, content, hash."""
    content = hashlib.shake_128(b"%d" % seed).digest(length)
    path, parity, sha256 = folder / "file", folder / "file.parity", hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    write_parity(path, parity, sha256, breathe)
    return path, parity, content, sha256


def code_of(action: object, *arguments: object) -> str:
    with pytest.raises(ArtifactError) as caught:
        action(*arguments)  # type: ignore[operator]
    return caught.value.code


@pytest.mark.parametrize("length", LENGTHS)
def test_geometry_keeps_its_bounds(length: int) -> None:
    geometry = Geometry(length)
    assert geometry.data_blocks * geometry.block_bytes >= length > (geometry.data_blocks - 1) * geometry.block_bytes
    assert geometry.block_bytes % 512 == 0
    assert geometry.data_blocks <= 228
    assert geometry.data_blocks + geometry.parity_blocks <= 252


def test_the_largest_file_still_fits_the_code_and_the_header() -> None:
    geometry = Geometry(parity_module.MAX_FILE_BYTES)
    assert geometry.data_blocks + geometry.parity_blocks <= 255
    assert 48 + 32 * (geometry.data_blocks + geometry.parity_blocks) <= HEADER_BYTES - 32


def test_parity_is_the_librarys_own(tmp_path: Path) -> None:
    _, parity, content, _ = made(tmp_path, 5000)
    geometry = Geometry(5000)
    blocks = content.ljust(geometry.data_blocks * geometry.block_bytes, b"\0")
    column = bytes(blocks[block * geometry.block_bytes + 17] for block in range(geometry.data_blocks))
    expected = bytes(reedsolo.RSCodec(geometry.parity_blocks).encode(column)[geometry.data_blocks :])
    stored = parity.read_bytes()
    assert expected == bytes(
        stored[HEADER_BYTES + row * geometry.block_bytes + 17] for row in range(geometry.parity_blocks)
    )


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(LENGTHS), st.data())
def test_any_damage_within_the_bound_is_mended_and_any_beyond_is_refused(
    tmp_path: Path, length: int, data: st.DataObject
) -> None:
    path, parity, content, sha256 = made(tmp_path, length)
    geometry = Geometry(length)
    blocks = geometry.data_blocks + geometry.parity_blocks
    hit = data.draw(st.sets(st.integers(0, blocks - 1), max_size=geometry.parity_blocks + 1))
    damaged, stored = bytearray(content), bytearray(parity.read_bytes())
    for block in hit:
        inside = data.draw(st.integers(0, geometry.block_bytes - 1))
        flip = data.draw(st.integers(1, 255))
        if block < geometry.data_blocks:
            damaged[min(block * geometry.block_bytes + inside, length - 1)] ^= flip
        else:
            stored[HEADER_BYTES + (block - geometry.data_blocks) * geometry.block_bytes + inside] ^= flip
    path.write_bytes(damaged)
    parity.write_bytes(stored)
    lost = sum(block < geometry.data_blocks for block in hit)
    if lost and len(hit) > geometry.parity_blocks:
        assert code_of(repair, path, parity, sha256, breathe) == "parity-exceeded"
        assert path.read_bytes() == damaged, "a file that cannot be mended is left alone"
    else:
        assert repair(path, parity, sha256, breathe) == lost
        assert path.read_bytes() == content
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "file.parity"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 300_000), st.integers(0, 40_000), st.integers(0, 255))
def test_a_burst_is_mended_or_refused_and_never_mended_wrongly(
    tmp_path: Path, start: int, length: int, filling: int
) -> None:
    path, parity, content, sha256 = made(tmp_path, 300_000)
    damaged = bytearray(content)
    damaged[start : start + length] = bytes([filling]) * len(damaged[start : start + length])
    path.write_bytes(damaged)
    geometry = Geometry(300_000)
    if length <= (geometry.parity_blocks - 1) * geometry.block_bytes:
        repair(path, parity, sha256, breathe)
        assert path.read_bytes() == content
    else:
        try:
            repair(path, parity, sha256, breathe)
        except ArtifactError as error:
            assert error.code == "parity-exceeded"  # noqa: PT017 - both ends are right, by how many blocks were hit
            assert path.read_bytes() == damaged
        else:
            assert path.read_bytes() == content


@pytest.mark.parametrize("change", [-1, -512, -20_000, 1, 512])
def test_another_length_is_damage_too(tmp_path: Path, change: int) -> None:
    path, parity, content, sha256 = made(tmp_path, 300_000)
    path.write_bytes(content[:change] if change < 0 else content + b"\0" * change)
    repair(path, parity, sha256, breathe)
    assert path.read_bytes() == content


def test_a_missing_small_file_comes_back(tmp_path: Path) -> None:
    path, parity, content, sha256 = made(tmp_path, 900)
    path.unlink()
    assert repair(path, parity, sha256, breathe) == 2
    assert path.read_bytes() == content


def test_permissions_stay(tmp_path: Path) -> None:
    path, parity, content, sha256 = made(tmp_path, 900)
    path.write_bytes(b"x" + content[1:])
    path.chmod(0o640)
    repair(path, parity, sha256, breathe)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("copy", [0, -HEADER_BYTES])
@pytest.mark.parametrize("place", [0, 9, 40, 100, HEADER_BYTES - 1])
def test_either_header_is_enough(tmp_path: Path, copy: int, place: int) -> None:
    path, parity, content, sha256 = made(tmp_path, 5000)
    stored = bytearray(parity.read_bytes())
    stored[(copy % len(stored)) + place] ^= 4
    parity.write_bytes(stored)
    assert not parity_is_whole(parity, sha256, breathe), "but it is made again"
    path.write_bytes(b"x" + content[1:])
    assert repair(path, parity, sha256, breathe) == 1
    assert path.read_bytes() == content


@pytest.mark.parametrize("spoil", ["both headers", "empty", "cut off", "longer"])
def test_a_parity_file_that_cannot_be_read_mends_nothing(tmp_path: Path, spoil: str) -> None:
    path, parity, _, sha256 = made(tmp_path, 5000)
    stored = bytearray(parity.read_bytes())
    stored[20] ^= 1
    stored[-HEADER_BYTES + 20] ^= 1
    whole = bytes(parity.read_bytes())
    parity.write_bytes({"both headers": stored, "empty": b"", "cut off": whole[:-1], "longer": whole + b"\0"}[spoil])
    assert code_of(read_header, parity) == "parity-broken"
    assert code_of(repair, path, parity, sha256, breathe) == "parity-broken"
    assert not parity_is_whole(parity, sha256, breathe)


def sealed_header(body: bytes) -> bytes:
    """A header with a checksum that fits, whatever it says."""
    body = body[: HEADER_BYTES - 32].ljust(HEADER_BYTES - 32, b"\0")
    return body + hashlib.sha256(body).digest()


@given(st.binary(max_size=100), st.integers(0, 2**64 - 1), st.integers(0, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_headers_that_say_anything_are_refused_and_cost_nothing(
    tmp_path: Path, noise: bytes, length: int, blocks: int
) -> None:
    header = sealed_header(parity_module.MAGIC + length.to_bytes(8, "big") + noise)
    parity, path = tmp_path / "parity", tmp_path / "file"
    parity.write_bytes(header + bytes(512 * blocks) + header)
    path.write_bytes(b"content")
    sha256 = noise[:32].ljust(32, b"\0").hex()
    with pytest.raises(ArtifactError):
        repair(path, parity, sha256, breathe)
    assert path.read_bytes() == b"content"


def test_forged_parity_gives_nothing_that_is_not_vouched_for(tmp_path: Path) -> None:
    path, parity, content, sha256 = made(tmp_path, 5000)
    (tmp_path / "evil").mkdir()
    _, evil, _, _ = made(tmp_path / "evil", 5000, seed=8)
    forged = bytearray(evil.read_bytes())
    header = sealed_header(bytes(forged[:16]) + bytes.fromhex(sha256) + bytes(forged[48:HEADER_BYTES]))
    parity.write_bytes(header + forged[HEADER_BYTES:-HEADER_BYTES] + header)
    few = b"x" + content[1:]
    path.write_bytes(few)
    assert code_of(repair, path, parity, sha256, breathe) in {"parity-exceeded", "untrusted"}
    assert path.read_bytes() == few


@pytest.mark.parametrize("length", [700, 1000])
def test_forged_parity_of_a_small_file_which_it_could_replace_whole(tmp_path: Path, length: int) -> None:
    path, parity, content, sha256 = made(tmp_path, length)
    (tmp_path / "evil").mkdir()
    _, evil, _, _ = made(tmp_path / "evil", length, seed=8)
    forged = evil.read_bytes()
    header = sealed_header(forged[:16] + bytes.fromhex(sha256) + forged[48:HEADER_BYTES])
    parity.write_bytes(header + forged[HEADER_BYTES:-HEADER_BYTES] + header)
    path.write_bytes(b"x" + content[1:])
    assert code_of(repair, path, parity, sha256, breathe) == "untrusted"
    assert path.read_bytes() == b"x" + content[1:]
    assert not list(tmp_path.glob(".*"))


def test_parity_is_of_one_file_only(tmp_path: Path) -> None:
    path, parity, content, sha256 = made(tmp_path, 5000)
    other = hashlib.sha256(b"other").hexdigest()
    assert code_of(repair, path, parity, other, breathe) == "parity-other"
    assert not parity_is_whole(parity, other, breathe)
    assert parity_is_whole(parity, sha256, breathe)
    assert code_of(repair, path, tmp_path / "none", sha256, breathe) == "parity-broken"
    assert path.read_bytes() == content


def test_no_parity_of_a_file_that_is_not_the_verified_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"changed since")
    sha256 = hashlib.sha256(b"as verified").hexdigest()
    assert code_of(write_parity, path, tmp_path / "p", sha256, breathe) == "changed"
    path.write_bytes(b"")
    assert code_of(write_parity, path, tmp_path / "p", sha256, breathe) == "too-long"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_changes_while_its_parity_is_made_gets_none(tmp_path: Path) -> None:
    path, content = tmp_path / "file", b"a" * 5000
    path.write_bytes(content)
    calls = 0

    def meddle() -> None:
        nonlocal calls
        calls += 1
        if calls == 10:  # after the ten blocks were hashed, before they are read for the parity
            path.write_bytes(b"b" * 5000)

    assert Geometry(5000).data_blocks == 10
    assert code_of(write_parity, path, tmp_path / "p", hashlib.sha256(content).hexdigest(), meddle) == "changed"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_damaged_file_as_it_was(tmp_path: Path) -> None:
    path, parity, content, sha256 = made(tmp_path, 300_000)
    damaged = b"x" + content[1:]
    path.write_bytes(damaged)
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom agent.errors import BoardError\n"
        "from agent.parity import repair, write_parity\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "path, parity, sha256 = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
        "try:\n    repair(path, parity, sha256, lambda: None)\nexcept BoardError as error:\n    print(error.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, parity, sha256], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "no-space"
    assert path.read_bytes() == damaged
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "file.parity"]


def test_the_disk_failing_is_said(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").mkdir()
    else:
        (tmp_path / "file").touch(0)
    with pytest.raises(BoardError):
        write_parity(tmp_path / "file", tmp_path / "p", "0" * 64, breathe)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    program = (
        "import hashlib, os, resource, sys\nfrom pathlib import Path\n"
        "from agent.parity import repair, write_parity\n"
        "path, parity = Path(sys.argv[1], 'f'), Path(sys.argv[1], 'p')\n"
        "def peak():\n    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "def turn(mib):\n"
        "    with path.open('wb') as out:\n"
        "        for i in range(mib):\n            out.write(os.urandom(1 << 20))\n"
        "    with path.open('rb') as stream:\n        sha = hashlib.file_digest(stream, 'sha256').hexdigest()\n"
        "    write_parity(path, parity, sha, lambda: None)\n"
        "    with path.open('r+b') as stream:\n        stream.seek(12345)\n        stream.write(b'spoiled' * 9999)\n"
        "    assert repair(path, parity, sha, lambda: None) >= 1\n"
        "turn(8)\nbefore = peak()\nturn(64)\nprint(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert int(done.stdout) <= 4 << 10, f"{done.stdout} KiB more for 56 MiB more of file"
