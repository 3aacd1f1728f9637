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

# As debian:SUITE-slim, of which the file system is a larger kind: packages beyond it go, and what is left out there. Where
# it is emulated they stay: to install Python again would take a quarter of an hour.
BEYOND=(systemd systemd-sysv udev dbus mosquitto mosquitto-clients python3 python3-venv libgomp1 iproute2 ca-certificates)
tarball=$("$here/packaging/rootfs.sh" "$suite" "$arch")
[ "$arch" = "$(dpkg --print-architecture)" ] || "$here/packaging/binfmt.sh" "$arch"
made=$(engine from --arch "$arch" scratch)
engine add --quiet "$made" "$tarball" / >/dev/null
engine config --arch "$arch" "$made"
engine commit --quiet "$made" localhost/debian:latest >/dev/null
if [ "$arch" = "$(dpkg --print-architecture)" ]; then
    engine run --isolation chroot "$made" -- apt-get purge -y -qq --autoremove --allow-remove-essential "${BEYOND[@]}" >/dev/null 2>&1
    # shellcheck disable=SC2016 # expanded in there
    engine run --isolation chroot "$made" -- sh -c '
        find /usr/share/doc -type f ! -name copyright -delete
        rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/* /usr/share/lintian /var/cache/apt/* /var/lib/apt/lists/*'
fi
engine commit --quiet --rm "$made" localhost/base:latest >/dev/null

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

# HEALTHCHECK is a word of Docker's image format. Layers: the second image is built upon the first one's.
for target in "${targets[@]}"; do
    name=temperd
    if [ "$target" != temperd ]; then name=temperd-$target; fi
    engine bud --layers --arch "$arch" --isolation chroot --pull-never --network host --format docker --quiet "${mounts[@]}" \
        --build-arg BASE_IMAGE=localhost/base:latest --target "$target" --tag "localhost/$name:latest" "$here"
done
