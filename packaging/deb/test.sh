#!/usr/bin/env bash
# Builds temperd's Debian packages, judges their content, and installs, upgrades, breaks, removes and purges them in a
# Debian that is booted under its own systemd, without a network: packaging/deb/drive.py.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/deb/test.sh [bookworm] [trixie]
#
# Root on x86-64 Debian; what is missing is installed by apt. Nothing of this machine's own folders is touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suites=("$@")
[ "$#" -gt 0 ] || suites=(bookworm trixie)
MOST_MB=120

passed() { printf '     ok   %s (%s s)\n' "$1" "$SECONDS"; }
stop() {
    echo "test.sh: $1" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || stop "run it as root: it makes and boots a root file system"
missing=()
command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
command -v lintian >/dev/null || missing+=(lintian)
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
python=$(command -v "${PYTHON:-python3}") || stop "there is no ${PYTHON:-python3}"
case $python in /*) ;; *) python=$PWD/$python ;; esac
export PYTHON=$python
work=$(mktemp -d /tmp/temperd-deb-test.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH # one for all: others may commit meanwhile

for suite in "${suites[@]}"; do
    echo "$suite"
    debs=$work/$suite
    first=$("$here/build.sh" "$suite" amd64 "$debs")
    second=$(TEMPERD_DEB_REVISION=2 "$here/build.sh" "$suite" amd64 "$debs")
    arm=$("$here/build.sh" "$suite" arm64 "$debs")
    again=$("$here/build.sh" "$suite" arm64 "$work/again")
    cmp "$arm" "$again" || stop "built twice, the bytes differ"
    passed "built; the same input gives the same bytes"
    dpkg --compare-versions "$(dpkg-deb -f "$first" Version)" lt "$(dpkg-deb -f "$second" Version)" || stop "versions out of order"
    for deb in "$first" "$arm"; do
        mb=$(($(stat -c %s "$deb") / 1000000))
        [ "$mb" -le $MOST_MB ] || stop "$deb has $mb MB; asked are at most $MOST_MB"
        lintian --fail-on error --tag-display-limit 0 "$deb" || stop "lintian finds errors in $deb"
        rm -rf "$work/content" && dpkg-deb -x "$deb" "$work/content"
        "$python" "$here/check.py" "$work/content" "$suite" "$(dpkg-deb -f "$deb" Architecture)"
        passed "$(basename "$deb"): $mb MB, $(dpkg-deb -f "$deb" Installed-Size) KB installed, content and lintian"
    done
    foreign=("$(basename "$arm")")
    if [ "$suite" = bookworm ]; then
        newer=$("$here/build.sh" trixie amd64 "$debs")
        foreign+=("$(basename "$newer")")
    fi
    root=$work/root-$suite
    mkdir "$root"
    tar -C "$root" -xf "$("$here/../rootfs.sh" "$suite" amd64)"
    cp -r "$debs" "$root/debs"
    "$python" "$here/drive.py" "$suite" "$root" "$(basename "$first")" "$(basename "$second")" "${foreign[@]}"
    rm -rf --one-file-system "$root"
done
passed "${suites[*]}"
