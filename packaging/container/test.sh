#!/bin/bash
# Builds the container image from a plain Debian root file system and runs it, without a container engine.
#
#     sudo packaging/container/test.sh
#
# Needs root on Debian 12 or newer (any architecture), 3 GB in TMPDIR and a way to Debian's and Python's packages: a
# mirror of this machine's apt and pip settings serves too. buildah and mmdebstrap are installed where missing.
# Nothing of the build is kept.
set -euo pipefail
set -m

here=$(cd "$(dirname "$0")/../.." && pwd)
RUNTIME_USER=10001:10001
CONTAINER_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

passed() { printf 'ok   %-70s %4ss\n' "$1" "$SECONDS"; }
failed() {
    printf 'FAIL %s\n' "$1"
    if [ -e "$work/log" ]; then tail -n 40 "$work/log"; fi
    exit 1
}
expect() { # WHAT EXPECTED FOUND
    [ "$2" = "$3" ] || failed "$1: expected '$2', found '$3'"
    passed "$1"
}

[ "$(id -u)" = 0 ] || { echo "test.sh: run it as root: it makes a root file system and mounts in it" >&2; exit 2; }
work=$(mktemp -d)
daemon=
clean() {
    if [ -n "$daemon" ]; then kill -KILL -- "-$daemon" 2>/dev/null || true; fi # its process group: `set -m`
    if [ -d "$work/storage" ]; then engine rm --all >/dev/null 2>&1 || true; fi
    rm -rf --one-file-system "$work"
}
trap clean EXIT
engine() { buildah --root "$work/storage" --runroot "$work/runroot" --storage-driver vfs "$@"; }
in_container() { engine run --isolation chroot --network host --volume "$work/state:/var/lib/temperd" "$@"; }

# --- the tools and the base image ------------------------------------------------------------------------------------

missing=()
for tool in buildah mmdebstrap python3; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

mmdebstrap --quiet --mode=root --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/base"
base=$(engine from scratch)
engine add --quiet "$base" "$work/base" / >/dev/null
engine commit --quiet --rm "$base" localhost/base:latest >/dev/null
rm -rf --one-file-system "$work/base"
passed "base image: Debian 12 with python3"

# --- the build -------------------------------------------------------------------------------------------------------

# pip's settings of this machine as one file, and the local files and folders they name; the image gets none of it.
settings() { (python3 -m pip config list || pip config list) 2>/dev/null || true; }
mounts=(--volume /etc/resolv.conf:/etc/resolv.conf:ro)
while IFS= read -r found; do
    # The pages of an index in a folder `simple` point to files beside that folder.
    if [ "$(basename "$found")" = simple ]; then found=$(dirname "$found"); fi
    if [ -e "$found" ]; then mounts+=(--volume "$found:$found:ro"); fi
done < <(settings | grep -oE "(file://)?/[^' \\\\]*" | grep -vE '^//|^/$' | sed 's#^file://##' | sort -u)
umask_before=$(umask)
umask 077
{
    echo "[global]"
    settings | sed -nE "s/^(:env:|global)\.([a-z-]+)='(.*)'\$/\2 = \3/p" | sed 's/\\n/ /g' | sort -u -t= -k1,1
} >"$work/pip.conf"
umask "$umask_before"
if [ "$(wc -l <"$work/pip.conf")" -gt 1 ]; then mounts+=(--volume "$work/pip.conf:/etc/pip.conf:ro"); fi

# HEALTHCHECK is a word of Docker's image format.
engine bud --isolation chroot --pull-never --network host --format docker --quiet "${mounts[@]}" \
    --build-arg BASE_IMAGE=localhost/base:latest --tag localhost/temperd:latest "$here" >"$work/log" 2>&1 \
    || failed "build"
: >"$work/log"
passed "image builds"

about() { engine inspect --type image --format "$1" localhost/temperd:latest; }
expect "entry point" "[temperd]" "$(about '{{.Docker.Config.Entrypoint}}')"
expect "command" "[run]" "$(about '{{.Docker.Config.Cmd}}')"
expect "user" "$RUNTIME_USER" "$(about '{{.Docker.Config.User}}')"
expect "volume" "map[/var/lib/temperd:{}]" "$(about '{{.Docker.Config.Volumes}}')"
expect "health check" "[CMD temperd status]" "$(about '{{.Docker.Config.Healthcheck.Test}}')"

install -d -o 10001 -g 10001 -m 0700 "$work/state"
c=$(engine from --pull-never localhost/temperd:latest)
root=$(engine mount "$c")
# The build leaves an empty file where pip's settings were mounted.
expect "no pip settings in the image" "" "$(find "$root/etc/pip.conf" "$root/root" -name '*pip*' -size +0 2>/dev/null)"
expect "no pip in the image's environment" "" "$(find "$root/opt/temperd" -maxdepth 4 -name 'pip*')"
echo "     $(du -sm "$root" | cut -f1) MB unpacked, of it temperd's environment $(du -sm "$root/opt/temperd" | cut -f1) MB"
du -sm "$root"/opt/temperd/lib/python3*/site-packages/* | sort -rn | sed -n 1,6p | sed -E 's#\t.*/#\t#; s/^/     /'

# --- running ---------------------------------------------------------------------------------------------------------

status() { in_container "$c" -- temperd status "$@"; }
wait_until_alive() { # WHAT
    for _ in $(seq 60); do
        if "$1" >/dev/null 2>&1; then return; fi
        kill -0 "$daemon" 2>/dev/null || failed "the daemon ended early"
        sleep 1
    done
    failed "the daemon is not alive after a minute"
}
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)'"$1"')'; }
fingerprint() { in_container "$c" -- temperd keys show --json | field '["fingerprint"]'; }
start() {
    in_container --env TEMPERD_DEVICE=shelf-7 "$c" -- temperd run >"$work/log" 2>&1 &
    daemon=$!
    wait_until_alive status
}

if status >/dev/null 2>&1; then failed "healthy before the start"; fi
passed "not healthy before the start"
start
passed "healthy without a broker"
view=$(status --json)
expect "name from the environment" shelf-7 "$(field '["device"]' <<<"$view")"
expect "no broker" False "$(field '["connected"]' <<<"$view")"
pid=$(field '["pid"]' <<<"$view")
expect "runs as the fixed user" 10001 "$(stat -c %u "/proc/$pid")"
echo "     idle daemon: $(sed -n 's/^VmRSS:[[:space:]]*//p' "/proc/$pid/status") resident"
printf '%s\n' "$view" | sed 's/^/     /' | sed -n 1,24p
first=$(fingerprint)
expect "the device document is in the volume" shelf-7 "$(field '["device"]' <"$work/state/shelf-7.device.json")"
in_container "$c" -- /opt/temperd/bin/python -c '
import onnxruntime, time
print("     onnxruntime", onnxruntime.__version__)
time.sleep(1)' || failed "onnxruntime does not load"
passed "onnxruntime loads"
expect "and keeps no book for its maker" "" "$(find "$work/state" -path '*Microsoft*')"

family=$(pgrep -d , -P "$pid")
kill -TERM "$pid"
code=0; wait "$daemon" || code=$?; daemon=
expect "SIGTERM ends it cleanly" 0 "$code"
expect "no process of it is left" "" "$(ps -o pid= -p "$pid,$family" || true)"
for _ in $(seq 20); do status >/dev/null 2>&1 || break; sleep 1; done
code=0; status >"$work/log" 2>&1 || code=$?
[ "$code" -ne 0 ] || failed "healthy although it is stopped"
passed "not healthy after the stop: exit $code, $(grep -o 'temperd: .*' "$work/log")"
start
expect "the second start keeps the identity" "$first" "$(fingerprint)"
kill -TERM "$(status --json | field '["pid"]')"; wait "$daemon" || failed "second stop"; daemon=

refused() { # WHAT WORD-IN-THE-ANSWER VARIABLE=VALUE...
    local what=$1 word=$2 code=0 variables=()
    shift 2
    for variable; do variables+=(--env "$variable"); done
    in_container "${variables[@]}" "$c" -- temperd run >"$work/log" 2>&1 || code=$?
    expect "$what is refused: $(grep -o 'temperd: .*' "$work/log" | cut -c 1-120)" 78 "$code"
    expect "  and named: $word" yes "$(grep -q -- "$word" "$work/log" && echo yes || echo no)"
}
refused "a wrong name" device.name "TEMPERD_DEVICE=My Board"
refused "a wrong port" mqtt.port "TEMPERD_MQTT_PORT=99999"
refused "a port that adds a key" mqtt.port $'TEMPERD_MQTT_PORT=1883\nusername = "x"'
refused "a host that adds a key" "neither a host name" $'TEMPERD_MQTT_HOST=x"\nport = 1 #'
refused "an unknown board" no-such-board "TEMPERD_DEVICE=shelf-7" "TEMPERD_EMULATED=no-such-board"

# --- as process 1, with nothing it does not need ----------------------------------------------------------------------

# What `docker run --read-only --tmpfs /run/temperd --cap-drop ALL --security-opt no-new-privileges` makes.
cage="
set -e
mount --make-rprivate /
mount --bind '$root' '$root'
mount -o remount,bind,ro '$root'
mount --bind '$work/state' '$root/var/lib/temperd'
mount -t tmpfs -o mode=\$(stat -c %a '$root/run/temperd') tmpfs '$root/run/temperd'
mount -t proc proc '$root/proc'
mount --rbind /dev '$root/dev'
cd '$root'
exec chroot . setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env -i PATH=$CONTAINER_PATH RUNTIME_DIRECTORY=/run/temperd sh -c 'cd /var/lib/temperd && exec temperd run'
"
find "$work/state" -mindepth 1 -delete
unshare --mount --pid --fork --kill-child sh -c "$cage" >"$work/log" 2>&1 &
daemon=$!
caged() {
    inner=$(pgrep -P "$daemon" | head -n 1)
    nsenter --target "$inner" --mount --pid --root="/proc/$inner/root" --wd="/proc/$inner/root" \
        env -i PATH=$CONTAINER_PATH RUNTIME_DIRECTORY=/run/temperd \
        setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs "$@"
}
caged_status() { caged temperd status --json; }
wait_until_alive caged_status
expect "process 1 on a read-only root" 1 "$(caged_status | field '["pid"]')"
code=0; caged touch /usr/local/bin/x 2>/dev/null || code=$?
expect "the root is read-only" 1 "$code"
expect "no capability" 0000000000000000 "$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$inner/status")"
kill -TERM "$inner"
code=0; wait "$daemon" || code=$?; daemon=
expect "SIGTERM ends process 1 cleanly" 0 "$code"
