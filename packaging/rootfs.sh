#!/usr/bin/env bash
# Prints the path of a Debian root file system with systemd as a tar file; it is made once and kept.
#
#     packaging/rootfs.sh bookworm|trixie amd64|arm64
#
# Root on Debian with its apt set up; mmdebstrap and, for another architecture, qemu-user-static are installed where
# missing. Kept in TEMPERD_CACHE (~/.cache/temperd): remove rootfs/ there to have it made anew. 40 s; by emulation 4 min.
set -euo pipefail
suite=${1:?which suite: bookworm or trixie} arch=${2:?which architecture: amd64 or arm64}
case $suite in bookworm | trixie) ;; *) echo "rootfs.sh: no suite of ours: $suite (bookworm, trixie)" >&2; exit 2 ;; esac
case $arch in amd64 | arm64) ;; *) echo "rootfs.sh: no architecture of ours: $arch (amd64, arm64)" >&2; exit 2 ;; esac
[ "$(id -u)" = 0 ] || { echo "rootfs.sh: run it as root: it makes a root file system" >&2; exit 2; }
packages=systemd,systemd-sysv,udev,dbus,python3,python3-venv,libgomp1,ca-certificates,iproute2,mosquitto,mosquitto-clients
cache=${TEMPERD_CACHE:-${HOME:-/root}/.cache/temperd}/rootfs
kept=$cache/$suite-$arch-$(printf %s "$packages" | sha256sum | cut -c 1-8).tar

mkdir -p "$cache"
exec 9>"$cache/$suite-$arch.lock"
flock 9
if [ ! -e "$kept" ]; then
    missing=()
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    native=$(dpkg --print-architecture)
    [ "$arch" = "$native" ] || command -v "qemu-$([ "$arch" = arm64 ] && echo aarch64 || echo x86_64)-static" >/dev/null || missing+=(qemu-user-static arch-test)
    if [ "${#missing[@]}" -gt 0 ]; then
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2
    fi
    if [ "$arch" != "$native" ]; then "$(dirname "$0")/binfmt.sh" "$arch" >&2; fi
    # A newer suite than this machine's is believed by the keys of the archive that this machine has.
    mmdebstrap --quiet --mode=root --format=tar --variant=minbase --architectures="$arch" --include="$packages" \
        --aptopt='APT::Install-Recommends "false"' "$suite" "$kept.part" >&2
    mv "$kept.part" "$kept"
fi
echo "$kept"
