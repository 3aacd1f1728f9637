"""How fast sealed files are written and opened, beside the primitives they are made of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cryptography
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash

from agent.errors import BoardError
from agent.memory import peak_resident_bytes, resident_bytes, restart_peak, trim_memory
from agent.pull import hash_and_unseal
from agent.sealed import KEY_BYTES, TAG_BYTES, Binding, seal, unseal, unseal_stream

MIB = 1 << 20
ROUNDS = 3  # all take turns, so that a busy second of the machine hits all
TURN_S = 0.3  # each works at least so long a turn
OPENSSL_TURN_S = 1  # it takes whole seconds
OPENSSL_TIMEOUT_S = 30  # for a turn on a machine that swaps
WORKS = ("seal", "unseal", "unseal into memory", "hash, unseal")
INTO_MEMORY = ("unseal into memory", "hash, unseal")
_KEY = bytes(KEY_BYTES)


class Primitives(NamedTuple):
    """Bytes a second of one thread, and whose."""

    sha256: float
    aes_256_gcm: float
    source: str

    @property
    def bound(self) -> float:
        """Bytes a second when each byte is hashed, then enciphered."""
        return 1 / (1 / self.sha256 + 1 / self.aes_256_gcm)


def measure(mib: int, say: Callable[[str], None], *, openssl: str | None, turn_s: float = TURN_S) -> dict[str, object]:
    """Seal and unseal `mib` MiB, in turns with the primitives.

    Args:
        mib: plaintext; twice as much is needed in the folder for temporary files.
        say: is told the progress.
        openssl: the program; without it the primitives of `cryptography` are measured.
        turn_s: seconds of one turn of each, but of openssl.

    Returns:
        Medians over the rounds, in bytes a second, and the largest peak of memory above what was resident, in MiB.

    Raises:
        BoardError: the disk fails.
    """
    rounds: list[Primitives] = []
    speeds: dict[str, list[float]] = {name: [] for name in WORKS}
    peaks: dict[str, list[float]] = {name: [] for name in WORKS}
    try:
        with tempfile.TemporaryFile() as plain, tempfile.TemporaryFile() as closed, Path(os.devnull).open("wb") as none:
            binding = _fill(plain, mib)
            signed = seal(plain, closed, _KEY, binding).sha256
            closed.flush()
            for turn in range(ROUNDS):
                say(f"round {turn + 1} of {ROUNDS}")
                rounds.append(_primitives(openssl, turn_s))
                for name, work in (
                    ("seal", lambda: _seal(plain, none, binding)),
                    ("unseal", lambda: _unseal(closed, binding)),
                    ("unseal into memory", lambda: _unseal_whole(closed, binding, mib)),
                    ("hash, unseal", lambda: _hash_unseal(closed, signed, binding, mib)),
                ):
                    kept = mib if name in INTO_MEMORY else 0  # the plaintext itself is no extra
                    peaks[name].append(max(0, peak_extra_mib(work) - kept))
                    speeds[name].append(mib * MIB * calls_a_second(work, turn_s))
    except OSError as error:
        raise BoardError("no room or no right to measure with files", where=f"{error.filename}: {error}") from error
    primitives = Primitives(
        statistics.median(one.sha256 for one in rounds),
        statistics.median(one.aes_256_gcm for one in rounds),
        rounds[0].source,
    )
    return {
        "mib": mib,
        "primitives": {**primitives._asdict(), "bound": primitives.bound},
        "rows": [_row(name, statistics.median(speeds[name]), max(peaks[name]), primitives) for name in WORKS],
    }


def _row(name: str, speed: float, peak_extra: float, primitives: Primitives) -> dict[str, object]:
    percent = 100 * speed / primitives.bound
    return {"work": name, "bytes_a_second": speed, "percent_of_bound": percent, "peak_extra_mib": peak_extra}


def _fill(plain: BufferedRandom, mib: int) -> Binding:
    block, digest = os.urandom(MIB), hashlib.sha256()
    for _ in range(mib):
        plain.write(block)
        digest.update(block)
    plain.seek(0)
    return Binding("bench", "1", digest.hexdigest())


def _seal(plain: BufferedRandom, target: BinaryIO, binding: Binding) -> None:
    plain.seek(0)
    seal(plain, target, _KEY, binding)


def _unseal(closed: BufferedRandom, binding: Binding) -> None:
    closed.seek(0)
    for _ in unseal_stream(closed, _KEY, binding):
        pass


def _unseal_whole(closed: BufferedRandom, binding: Binding, mib: int) -> None:
    closed.seek(0)
    unseal(closed, _KEY, binding, mib * MIB)


def _hash_unseal(closed: BufferedRandom, signed: str, binding: Binding, mib: int) -> None:
    """As before a job: the file on disk is compared with its signed hash while it is opened."""
    closed.seek(0)
    hash_and_unseal(closed, signed, _KEY, binding, mib * MIB)


def calls_a_second(work: Callable[[], object], turn_s: float) -> float:
    """How often `work` is done in a second, by the clock on the wall; at least one whole call."""
    began, count = time.perf_counter(), 0
    while True:
        work()
        count += 1
        spent = time.perf_counter() - began
        if spent >= turn_s:
            return count / spent


def peak_extra_mib(work: Callable[[], object]) -> float:
    """The most memory resident while `work` runs, above what was before it.

    Raises:
        OSError: the kernel does not let the peak start again.
    """
    trim_memory()  # else what an earlier work has freed would count as there before
    restart_peak()
    before = resident_bytes()
    work()
    return max(0, peak_resident_bytes() - before) / MIB


def _primitives(openssl: str | None, turn_s: float) -> Primitives:
    if openssl:
        sha256, gcm = openssl_speed(openssl, "sha256"), openssl_speed(openssl, "aes-256-gcm")
        if sha256 and gcm:
            return Primitives(sha256, gcm, "openssl speed")
    block, closed, cipher = os.urandom(MIB), bytearray(MIB + TAG_BYTES), AESGCM(_KEY)
    digest = Hash(SHA256())
    return Primitives(
        MIB * calls_a_second(lambda: digest.update(block), turn_s),
        MIB * calls_a_second(lambda: cipher.encrypt_into(bytes(12), block, None, closed), turn_s),
        f"cryptography {cryptography.__version__}, as openssl speed is not there",
    )


def find_openssl() -> str | None:
    """The program `openssl`, if it is installed."""
    return shutil.which("openssl")


def openssl_speed(program: str, name: str) -> float:
    """Bytes a second by `openssl speed`, one thread, blocks of 1 MiB, wall clock; 0 if this build cannot tell."""
    options = ("-elapsed", "-mr", "-seconds", str(OPENSSL_TURN_S), "-bytes", str(MIB), "-evp", name)
    try:
        done = subprocess.run(  # noqa: S603 - the openssl of PATH
            [program, "speed", *options], capture_output=True, text=True, check=False, timeout=OPENSSL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0.0
    for line in done.stdout.splitlines():
        mark, *fields = line.split(":")  # +F:<number>:<name>:<bytes a second>
        if mark == "+F" and len(fields) == 3 and fields[1].lower() == name:  # noqa: PLR2004 - as the line says
            with contextlib.suppress(ValueError):
                return float(fields[2])
    return 0.0


def show(report: Mapping[str, Any]) -> None:
    """Print the table."""
    where, primitives = report["machine"], report["primitives"]
    print(f"{where['processor']}, {where['cores']} cores; {report['mib']} MiB; medians of {ROUNDS} rounds\n")
    print(f"  {'':<24}{'GB/s':>8}{'of the bound':>15}{'peak extra MiB':>17}")
    for key, name in (("sha256", "SHA-256"), ("aes_256_gcm", "AES-256-GCM"), ("bound", "one, then the other")):
        print(f"  {name:<24}{primitives[key] / 1e9:>8.2f}{'100 %' if key == 'bound' else '':>15}")
    for row in report["rows"]:
        percent, peak = f"{row['percent_of_bound']:.0f} %", row["peak_extra_mib"]
        print(f"  {row['work']:<24}{row['bytes_a_second'] / 1e9:>8.2f}{percent:>15}{peak:>17.1f}")
    print(f"\n  primitives: {primitives['source']}, one thread; sealed files: each hash in a thread of its own")
    print("  hash, unseal: into memory, the stored file against its signed hash meanwhile, as before each job")
