from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from service import bench_seal
from service.bench_seal import Primitives, calls_a_second, measure, openssl_speed, peak_extra_mib
from service.cli import main

SPEEDS = 'case "$*" in *sha256) echo "+F:25:sha256:{sha}";; *gcm) echo "+F:25:AES-256-GCM:{gcm}";; esac'


def program(folder: Path, body: str) -> str:
    file = folder / "openssl"
    file.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    file.chmod(0o755)
    return str(file)


def test_the_bound_is_one_primitive_after_the_other() -> None:
    assert Primitives(1e9, 1e9, "x").bound == pytest.approx(0.5e9)
    assert Primitives(2e9, 6e9, "x").bound == pytest.approx(1.5e9)


def test_speeds_are_read_from_openssl(tmp_path: Path) -> None:
    openssl = program(tmp_path, "echo +H:1048576\n" + SPEEDS.format(sha="1796348379.80", gcm="6114910040.82"))
    assert openssl_speed(openssl, "sha256") == 1796348379.80
    assert openssl_speed(openssl, "aes-256-gcm") == 6114910040.82


@pytest.mark.parametrize(
    "body", ["exit 1", "echo nothing", "echo +F:25:md5:9.0", "echo +F:25:sha256", "echo +F:25:sha256:fast"]
)
def test_an_openssl_that_cannot_tell_is_not_believed(tmp_path: Path, body: str) -> None:
    assert openssl_speed(program(tmp_path, body), "sha256") == 0
    assert openssl_speed(str(tmp_path / "missing"), "sha256") == 0


def test_shares_are_of_openssl_s_bound(tmp_path: Path) -> None:
    said: list[str] = []
    openssl = program(tmp_path, SPEEDS.format(sha="2000", gcm="6000"))
    report = json.loads(json.dumps(measure(1, said.append, openssl=openssl, turn_s=0)))
    assert report["primitives"] == {"sha256": 2000, "aes_256_gcm": 6000, "source": "openssl speed", "bound": 1500}
    assert [row["work"] for row in report["rows"]] == list(bench_seal.WORKS)
    for row in report["rows"]:
        assert row["percent_of_bound"] == pytest.approx(row["bytes_a_second"] / 15)
    assert said == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_without_openssl_the_source_of_the_bound_is_named() -> None:
    report = measure(1, lambda _: None, openssl=None, turn_s=0)
    primitives = report["primitives"]
    assert isinstance(primitives, dict)
    assert primitives["source"].startswith("cryptography ")
    assert primitives["bound"] < min(primitives["sha256"], primitives["aes_256_gcm"])


def test_a_peak_is_seen_though_it_is_over() -> None:
    assert 31 < peak_extra_mib(lambda: len(bytes(32 << 20).replace(b"\0", b"\1"))) < 80
    assert peak_extra_mib(lambda: None) < 2


def test_memory_does_not_grow_with_the_file() -> None:
    # In a process of its own: what thousands of tests before it left in this one's memory is no part of the measure.
    measured = "measure(48, str, openssl=None, turn_s=0)"
    told = f"import json; from service.bench_seal import measure; print(json.dumps({measured}))"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, timeout=120)
    rows = json.loads(done.stdout)["rows"]
    assert max(row["peak_extra_mib"] for row in rows) <= 8
    assert max(row["peak_extra_mib"] for row in rows) > 0.5  # two segments at least were there


def test_work_is_done_at_least_once() -> None:
    done: list[int] = []
    assert calls_a_second(lambda: done.append(1), 0) > 0
    assert done == [1]


@pytest.mark.parametrize("size", ["0", "4096"])
def test_sizes_out_of_bounds_are_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "seal", "--mib", size]) == 2
    assert "--mib" in capsys.readouterr().err


def test_bench_seal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, SPEEDS.format(sha="2e9", gcm="6e9"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", "seal", "--mib=1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["bench"], report["mib"], report["primitives"]["bound"]) == ("seal", 1, 1.5e9)
    bench_seal.show(report)
    shown = capsys.readouterr().out
    assert "1.50          100 %" in shown
    assert "openssl speed, one thread" in shown
