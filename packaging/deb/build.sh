#!/usr/bin/env bash
# Builds temperd's Debian package and prints its path.
#
#     packaging/deb/build.sh bookworm|trixie amd64|arm64 OUT
#
# Root on x86-64 Debian; PYTHON (3.11 or newer) with pip. Wheels are fetched by version and hash; code for arm64 is
# cross-compiled, none is run. Needs gcc, binutils and dpkg-dev, for arm64 gcc-aarch64-linux-gnu, libc6-dev-arm64-cross:
# what is missing is installed by apt. The same input gives the same bytes: times come from SOURCE_DATE_EPOCH, else from
# the last change of what is packed. TEMPERD_DEB_REVISION (1) is Debian's part of the version. Downloads are kept in
# TEMPERD_CACHE (~/.cache/temperd).
set -euo pipefail
suite=${1:?which suite: bookworm or trixie} arch=${2:?which architecture: amd64 or arm64} out=${3:?which folder to put it in}
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
stop() {
    echo "build.sh: $1" >&2
    exit 2
}
case $suite in
bookworm) version=3.11 release=deb12 ;;
trixie) version=3.13 release=deb13 ;;
*) stop "no suite of ours: $suite (bookworm, trixie)" ;;
esac
case $arch in
amd64) compiler=gcc wants=gcc ;;
arm64) compiler=aarch64-linux-gnu-gcc wants="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
*) stop "no architecture of ours: $arch (amd64, arm64)" ;;
esac
[ "$(id -u)" = 0 ] || stop "run it as root: bytecode is made by that Debian's own Python, in its root file system"
[ "$(uname -m)" = x86_64 ] || stop "it builds on x86-64"
python=$(command -v "${PYTHON:-python3}") || stop "there is no ${PYTHON:-python3}"
case $python in /*) ;; *) python=$PWD/$python ;; esac
"$python" -c 'import pip, tomllib' 2>/dev/null || stop "$python lacks pip, or is older than 3.11: set PYTHON"
revision=${TEMPERD_DEB_REVISION:-1}
[[ $revision =~ ^[0-9][0-9a-z.+]{0,15}$ ]] || stop "TEMPERD_DEB_REVISION=$revision is no revision: digits first"

missing=()
command -v "$compiler" >/dev/null || read -ra missing <<<"$wants"
command -v readelf >/dev/null || missing+=(binutils)
if [ "${#missing[@]}" -gt 0 ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2
fi

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$project" log -1 --format=%ct -- agent policies service packaging/deb packaging/systemd \
        pyproject.toml CHANGELOG.md LICENSE 2>/dev/null || true)
    [ -n "$SOURCE_DATE_EPOCH" ] || stop "outside of a git clone SOURCE_DATE_EPOCH has to be set: seconds since 1970"
fi
export SOURCE_DATE_EPOCH PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 LC_ALL=C TZ=UTC
umask 022

cache=${TEMPERD_CACHE:-${HOME:-/root}/.cache/temperd}
work=$(mktemp -d /tmp/temperd-deb.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
stage=$work/stage
mkdir -p "$out" "$stage"
out=$(cd "$out" && pwd)

# --- the wheels, each by its hash ------------------------------------------------------------------------------------

pins=$here/requirements-$suite-$arch.txt
wheels=$cache/wheels/$suite-$arch-$(sha256sum "$pins" | cut -c 1-12)
mkdir -p "$cache/wheels"
exec 9>"$wheels.lock"
flock 9
if [ ! -d "$wheels" ]; then
    mapfile -t target < <("$python" "$here/targets.py" "$suite" "$arch")
    rm -rf "$wheels.part"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes "${target[@]}" \
        --dest "$wheels.part" --requirement "$pins" >&2
    mv "$wheels.part" "$wheels"
fi
flock -u 9

# --- the kernel library ----------------------------------------------------------------------------------------------

cd "$project"
mapfile -t sources < <("$python" packaging/arm64/project.py sources)
mapfile -t flags < <("$python" packaging/arm64/project.py flags)
"$compiler" -shared -fPIC "${flags[@]}" -Wl,-z,relro,-z,now -s "${sources[@]}" -o "$work/_ops.so" -lm

# --- the files -------------------------------------------------------------------------------------------------------

number=$("$python" -c 'import sys, tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
full=$number-$revision~$release
"$python" "$here/assemble.py" "$suite" "$arch" "$full" "$wheels" "$work/_ops.so" "$stage"
dates() { find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +; }
dates

# Bytecode by that Debian's own interpreter: a board starts without compiling, and nobody can write in /opt there.
root=$work/root
mkdir "$root"
tar -C "$root" -xf "$("$project/packaging/rootfs.sh" "$suite" "$(dpkg --print-architecture)")" \
    --exclude='./dev/*' --exclude='./var/*' --exclude='./usr/share/*' --exclude='./boot/*'
mkdir -p "$root/mnt"
# shellcheck disable=SC2016 # the inner shell's own parameters
unshare --mount sh -ec 'mount --bind "$1" "$2/mnt" && exec chroot "$2" "/usr/bin/python$3" -I -m compileall -q \
    -s /mnt -p / --invalidation-mode timestamp "/mnt/opt/temperd/lib"' sh "$stage" "$root" "$version" >&2
dates

"$python" "$here/check.py" "$stage" "$suite" "$arch"

# --- the package -----------------------------------------------------------------------------------------------------

# As Debian counts: files in whole KiB, all else as one. What a folder takes is the building machine's file system's own.
size=$(find "$stage" -path "$stage/DEBIAN" -prune -o -type f -printf '%s\n' -o -printf '1\n' | awk '{n += int(($1 + 1023) / 1024)} END {print n}')
sed -i "/^Architecture:/a Installed-Size: $size" "$stage/DEBIAN/control"
(cd "$stage" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum) >"$stage/DEBIAN/md5sums"
dates
deb=$out/temperd_${full}_$arch.deb
dpkg-deb --root-owner-group --uniform-compression -Zzstd -z12 --threads-max=1 --build "$stage" "$work/made.deb" >&2
mv "$work/made.deb" "$deb.part" && mv "$deb.part" "$deb"
echo "$deb"
