#!/usr/bin/env bash
# Builds the images with buildah, without a container engine and without a registry.
#
#     sudo packaging/container/build.sh STORE [bookworm|trixie] [amd64|arm64] [TARGET...]
#
# STORE is a folder for buildah's storage: afterwards it holds localhost/temperd and localhost/temperd-rehearsal, and
# localhost/debian, a whole Debian that has mosquitto too. Root on Debian 12 or newer, a way to Debian's and Python's
# packages: a mirror of this machine's apt and pip settings serves too. buildah is installed where missing.
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
store=${1:?a folder for the storage} suite=${2:-bookworm} arch=${3:-amd64}
targets=("${@:4}")
if [ "${#targets[@]}" = 0 ]; then targets=(temperd rehearsal); fi
[ "$(id -u)" = 0 ] || { echo "build.sh: run it as root: it makes a root file system" >&2; exit 2; }
if ! command -v buildah >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah; } >&2
fi
mkdir -p "$store"
engine() { "$here/packaging/container/engine.sh" "$store" "$@"; }
settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT

native=$(dpkg --print-architecture)
[ "$arch" = "$native" ] || "$here/packaging/binfmt.sh" "$arch"
whole_debian() { # NAME ARCHITECTURE
    local tarball made
    tarball=$("$here/packaging/rootfs.sh" "$suite" "$2")
    made=$(engine from --arch "$2" scratch)
    engine add --quiet "$made" "$tarball" / >/dev/null
    engine config --arch "$2" "$made"
    engine commit --quiet --rm "$made" "localhost/$1:latest" >/dev/null
}
whole_debian debian "$arch"

# As debian:SUITE-slim, of which the file system is a larger kind: packages beyond it go, and what is left out there. Where
# it is emulated Python stays: most of the time to install it again would go into its bytecode.
BEYOND=(systemd systemd-sysv udev dbus mosquitto mosquitto-clients python3-venv libgomp1 iproute2)
if [ "$arch" = "$native" ]; then BEYOND+=(python3 ca-certificates); fi
made=$(engine from --arch "$arch" --pull-never localhost/debian:latest)
engine run --isolation chroot "$made" -- apt-get purge -y -qq --autoremove --allow-remove-essential "${BEYOND[@]}" >/dev/null 2>&1
# shellcheck disable=SC2016 # expanded in there
engine run --isolation chroot "$made" -- sh -c '
    find /usr/share/doc -type f ! -name copyright -delete
    rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/* /usr/share/lintian /var/cache/apt/* /var/lib/apt/lists/*'
engine commit --quiet --rm "$made" localhost/base:latest >/dev/null
builds=localhost/base
if [ "$arch" != "$native" ]; then
    builds=localhost/debian-$native
    whole_debian "debian-$native" "$native"
fi

# pip's settings of this machine as one file, and the local files and folders they name; the image gets none of it.
found_settings() { (python3 -m pip config list || pip config list) 2>/dev/null || true; }
mounts=(--volume /etc/resolv.conf:/etc/resolv.conf:ro)
renamed=(-e '')
while IFS= read -r found; do
    # The pages of an index in a folder `simple` point to files beside that folder.
    if [ "$(basename "$found")" = simple ]; then found=$(dirname "$found"); fi
    if [ -d "$found" ]; then
        mounts+=(--volume "$found:$found:ro")
    elif [ -f "$found" ]; then # elsewhere: a package of the build may bring a file of this name
        mounts+=(--volume "$found:/mnt/pip/$(basename "$found"):ro")
        renamed+=(-e "s#$found#/mnt/pip/$(basename "$found")#")
    fi
done < <(found_settings | grep -oE "(file://)?/[^' \\\\]*" | grep -vE '^//|^/$' | sed 's#^file://##' | sort -u)
(
    umask 077
    {
        echo "[global]"
        found_settings | sed -nE "s/^(:env:|global)\.([a-z-]+)='(.*)'\$/\2 = \3/p" | sed 's/\\n/ /g' | sort -u -t= -k1,1
    } | sed "${renamed[@]}" >"$settings/pip.conf"
)
if [ "$(wc -l <"$settings/pip.conf")" -gt 1 ]; then mounts+=(--volume "$settings/pip.conf:/etc/pip.conf:ro"); fi

# buildah names the target's platform to a build, but not its own.
# HEALTHCHECK is a word of Docker's image format. Layers: the second image is built upon the first one's.
for target in "${targets[@]}"; do
    name=temperd
    if [ "$target" != temperd ]; then name=temperd-$target; fi
    engine bud --layers --platform "linux/$arch" --isolation chroot --pull-never --network host --format docker --quiet "${mounts[@]}" \
        --build-arg BASE_IMAGE=localhost/base:latest --build-arg BUILD_IMAGE="$builds:latest" \
        --build-arg BUILDPLATFORM="linux/$native" --build-arg BUILDARCH="$native" --target "$target" --tag "localhost/$name:latest" "$here"
done
