#!/usr/bin/env bash
# Boots a Debian with temperd's package in it and tries the units by what they do: packaging/systemd/drive_daemon.py.
#
#     packaging/systemd/booted.sh [bookworm] [trixie]
#
# Root on Debian, x86-64; PYTHON is an environment with temperd and its runtime (make gives it). systemd-container is
# installed where missing. 2 GB in TMPDIR; nothing of it is kept. TEMPERD_DEB names a package that is there already.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "booted.sh: run it as root: it boots a root file system" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
python=$(command -v "${PYTHON:-$project/.venv-ort/bin/python}") || { echo "booted.sh: set PYTHON" >&2; exit 2; }
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
[ $# -gt 0 ] || set -- bookworm
command -v systemd-nspawn >/dev/null ||
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends systemd-container; } >&2

scratch=
driver=
finish() {
    # The driver ends its machine; it is waited for, as the machine's files are removed next.
    [ -z "$driver" ] || { kill "$driver" 2>/dev/null && wait "$driver" || true; }
    [ -z "$scratch" ] || rm -rf --one-file-system "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM
for suite in "$@"; do
    tar=$("$project/packaging/rootfs.sh" "$suite" amd64)
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/temperd-booted.XXXXXX")
    mkdir "$scratch/root" "$scratch/world"
    package=${TEMPERD_DEB:-}
    [ -n "$package" ] || package=$(PYTHON=$python "$project/packaging/deb/build.sh" "$suite" amd64 "$scratch" | tail -n 1)
    tar -xf "$tar" -C "$scratch/root"
    echo "$suite, $(basename "$package")"
    PYTHONPATH=$project "$python" "$here/drive_daemon.py" "$scratch/root" "$package" "$scratch/world" &
    driver=$!
    wait "$driver"
    driver=
    rm -rf --one-file-system "$scratch"
done
