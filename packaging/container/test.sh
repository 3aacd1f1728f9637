#!/usr/bin/env bash
# Builds the container images and runs them, without a container engine: docs/container.md tells what is tried.
#
#     sudo packaging/container/test.sh [bookworm|trixie] [amd64|arm64]
#
# Needs root on Debian 12 or newer, 4 GB in TMPDIR, and what build.sh needs. arm64 on another processor is emulated.
# Nothing of the build is kept but the root file system that packaging/rootfs.sh made.
set -euo pipefail
set -m

here=$(cd "$(dirname "$0")/../.." && pwd)
suite=${1:-bookworm} arch=${2:-amd64}
RUNTIME_USER=10001:10001
CONTAINER_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
MOST_MB=450 # of an image, unpacked
PATIENCE=120 # seconds until something must have happened
PATIENCE_EMULATED=600 # emulation is slow, and more so where the machine is busy

passed() { printf 'ok   %-96s %4ss\n' "$1" "$SECONDS"; }
exec 3>&1 # what is waited for says nothing else
failed() {
    printf 'FAIL %s\n' "$1" >&3
    if [ -e "$work/log" ]; then tail -n 40 "$work/log" >&3; fi
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
    if mountpoint -q "$work/small"; then umount -l "$work/small"; fi
    if [ -d "$work/store" ]; then engine umount --all >/dev/null 2>&1 || true; engine rm --all >/dev/null 2>&1 || true; fi
    rm -rf --one-file-system "$work"
}
trap clean EXIT
engine() { "$here/packaging/container/engine.sh" "$work/store" "$@"; }
native=$(dpkg --print-architecture)
emulated=$([ "$arch" = "$native" ] || echo yes)
if [ -n "$emulated" ]; then PATIENCE=$PATIENCE_EMULATED; fi

# --- the images ------------------------------------------------------------------------------------------------------

targets=(temperd rehearsal)
if [ -n "$emulated" ]; then targets=(temperd); fi # the fleet is played on this machine's processor
"$here/packaging/container/build.sh" "$work/store" "$suite" "$arch" "${targets[@]}" >"$work/log" 2>&1 || failed "build"
: >"$work/log"
passed "images build: $suite, $arch"

about() { engine inspect --type image --format "$1" localhost/temperd:latest; }
label() { about "{{index .Docker.Config.Labels \"org.opencontainers.image.$1\"}}"; }
expect "architecture" "$arch" "$(about '{{.Docker.Architecture}}')"
expect "entry point" "[tini -- temperd]" "$(about '{{.Docker.Config.Entrypoint}}')"
expect "command" "[run]" "$(about '{{.Docker.Config.Cmd}}')"
expect "user" "$RUNTIME_USER" "$(about '{{.Docker.Config.User}}')"
expect "volume" "map[/var/lib/temperd:{}]" "$(about '{{.Docker.Config.Volumes}}')"
expect "health check" "[CMD temperd status]" "$(about '{{.Docker.Config.Healthcheck.Test}}')"
expect "label: version" "$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/pyproject.toml")" "$(label version)"
expect "label: license" Apache-2.0 "$(label licenses)"

c=$(engine from --pull-never --arch "$arch" localhost/temperd:latest)
root=$(engine mount "$c")
# The build leaves an empty file where pip's settings were mounted.
expect "no pip settings in the image" "" "$(find "$root/etc/pip.conf" "$root/root" "$root/mnt" -name '*pip*' -size +0 -type f 2>/dev/null)"
expect "no pip in the image's environment" "" "$(find "$root/opt/temperd" -maxdepth 4 -name 'pip*')"
expect "no compiler in the image" "" "$(find "$root/usr/bin" -name '*gcc*' -o -name 'ld' -o -name 'as')"
size() { du -sm "$1" | cut -f1; }
base=$(engine from --pull-never --arch "$arch" localhost/base:latest)
base_root=$(engine mount "$base")
echo "     $(size "$root") MB unpacked: $(size "$base_root") MB Debian, $(size "$root/opt/temperd") MB temperd's environment$([ -n "$emulated" ] || echo ", the rest Python")"
du -sm "$root"/opt/temperd/lib/python3*/site-packages/* | sort -rn | sed -n 1,8p | sed -E 's#\t.*/#\t#; s/^/     /'
engine rm "$base" >/dev/null
[ "$(size "$root")" -le "$MOST_MB" ] || failed "the image has more than $MOST_MB MB"
passed "at most $MOST_MB MB"

# --- what an engine does with it -------------------------------------------------------------------------------------

# `docker run --read-only --tmpfs /run/temperd --cap-drop ALL --security-opt no-new-privileges -v STATE:/var/lib/temperd`.
# On another processor onnxruntime must not read this machine's: see packaging/arm64.
cage='
set -e
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$state" "$root/var/lib/temperd"
[ -n "$no_tmpfs" ] || mount -t tmpfs -o mode=$(stat -c %a "$root/run/temperd") tmpfs "$root/run/temperd"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind -o ro /sys "$root/sys"
if [ -n "$emulated" ]; then
    mount --bind "$cpuinfo" "$root/proc/cpuinfo"
    mount -t tmpfs tmpfs "$root/sys/devices/system/cpu"
    for list in possible present online; do echo 0-3 >"$root/sys/devices/system/cpu/$list"; done
fi
cd "$root"
exec chroot . sh -c "cd /var/lib/temperd && exec \"\$@\"" sh \
    setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all --pdeathsig KILL \
    env -i PATH="$path" RUNTIME_DIRECTORY=/run/temperd ORT_DISABLE_TELEMETRY=1 "$@" tini -- temperd run
'
state=$work/state
no_tmpfs=
contain() { # VARIABLE=VALUE...: the container in this process's place
    root=$root state=$state emulated=$emulated no_tmpfs=$no_tmpfs path=$CONTAINER_PATH \
        cpuinfo=$here/packaging/arm64/cpuinfo exec unshare --mount --pid --fork --kill-child sh -c "$cage" sh "$@"
}
start() { # VARIABLE=VALUE...
    contain "$@" >"$work/log" 2>&1 &
    daemon=$!
}
inner() { pgrep -P "$daemon" | head -n 1; }
inside() { # COMMAND...: as `docker exec` does
    local first
    first=$(inner) && [ -n "$first" ] || return 1
    nsenter --target "$first" --mount --pid --root="/proc/$first/root" --wd="/proc/$first/root" \
        env -i PATH=$CONTAINER_PATH RUNTIME_DIRECTORY=/run/temperd ORT_DISABLE_TELEMETRY=1 \
        setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs "$@"
}
until_true() { # WHAT COMMAND...
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || failed "$what"
        sleep 0.2
    done
}
gone() { local stat; stat=$(ps -o stat= -p "$daemon") || return 0; [ "${stat:0:1}" = Z ]; }
alive() { if gone; then failed "the container ended early"; fi; inside temperd status; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)'"$1"')'; }
status() { inside temperd status --json | field "$1"; }
ends() { # WHAT EXPECTED-CODES
    local code=0 end=$((SECONDS + PATIENCE))
    until gone; do
        [ "$SECONDS" -lt "$end" ] || failed "$1: it does not end"
        sleep 0.1
    done
    wait "$daemon" || code=$?
    daemon=
    case " $2 " in *" $code "*) passed "$1: exit $code" ;; *) failed "$1: exit $code, not $2" ;; esac
}
stop() { kill -TERM "$(inner)"; ends "${1:-SIGTERM ends it cleanly}" "${2:-0}"; }
fresh_state() { rm -rf --one-file-system "$work/state"; install -d -o 10001 -g 10001 -m 0700 "$work/state"; }

fresh_state
start TEMPERD_DEVICE=shelf-7
began=$(date +%s%N)
until_true "healthy without a broker" alive
passed "healthy without a broker, $((($(date +%s%N) - began) / 1000000)) ms after the first start"
expect "name from the environment" shelf-7 "$(status '["device"]')"
expect "the program says its version" "temperd $(label version)" "$(inside temperd --version)"
expect "the processor" "$([ "$arch" = arm64 ] && echo aarch64 || echo x86_64)" "$(inside /opt/temperd/bin/python -c 'import platform; print(platform.machine())')"
expect "no broker" False "$(status '["connected"]')"
expect "process 1 is tini" tini "$(inside cat /proc/1/comm)"
expect "runs as the fixed user" 10001 "$(stat -c %u "/proc/$(inner)")"
code=0; inside touch /usr/local/bin/x 2>/dev/null || code=$?
expect "the root is read-only" 1 "$code"
expect "no capability" 0000000000000000 "$(sed -n 's/^CapEff:[[:space:]]*//p' "/proc/$(inner)/status")"
echo "     idle daemon: $(inside sed -n 's/^VmRSS:[[:space:]]*//p' "/proc/$(status '["pid"]')/status") resident"
inside temperd status | sed 's/^/     /'
first=$(inside temperd keys show --json | field '["fingerprint"]')
expect "the device document is in the volume" shelf-7 "$(field '["device"]' <"$work/state/shelf-7.device.json")"
inside /opt/temperd/bin/python -c 'import onnxruntime, time; print("     onnxruntime", onnxruntime.__version__); time.sleep(1)' \
    || failed "onnxruntime does not load"
passed "onnxruntime loads"
expect "the kernel library loads" True "$(inside /opt/temperd/bin/python -c 'from agent.engine.native import kernels; print(kernels() is not None)')"
expect "onnxruntime keeps no book for its maker" "" "$(find "$work/state" -path '*Microsoft*')"
inside sh -c '(sleep 0.1 &) ; (true &)'
zombies() { ! inside sh -c 'grep -l "^State:.Z" /proc/[0-9]*/status' | grep -q .; }
until_true "orphans are buried" zombies
passed "orphans are buried"
stop
start TEMPERD_DEVICE=shelf-7
until_true "healthy again" alive
expect "the second start keeps the identity" "$first" "$(inside temperd keys show --json | field '["fingerprint"]')"
stop

# A first start makes an identity, which takes its time: SIGTERM comes at any moment of it, and of the start after it.
fresh_state
for pause in 0 0.02 0.1 0.2 0.4 0.8 1.5; do
    start
    until_true "tini runs" sh -c "grep -qx tini /proc/\$(pgrep -P $daemon | head -n 1)/comm"
    sleep "$pause"
    stop "SIGTERM $pause s after the start is heard" "0 143"
done
start
until_true "healthy after all of that" alive
stop

# --- what is wrong ---------------------------------------------------------------------------------------------------

refused() { # WHAT WORD-IN-THE-ANSWER CODE VARIABLE=VALUE...
    local what=$1 word=$2 wanted=$3
    shift 3
    start "$@"
    ends "$what is refused, and named: $word" "$wanted"
    grep -q -- "$word" "$work/log" || failed "$what: the answer does not name '$word'"
    if grep -q Traceback "$work/log"; then failed "$what: a traceback"; fi
    grep 'temperd: ' "$work/log" | head -n 1 | cut -c 1-180 | sed 's/^/     /'
}
refused "a wrong name" device.name 78 "TEMPERD_DEVICE=My Board"
refused "a wrong port" mqtt.port 78 "TEMPERD_MQTT_PORT=99999"
refused "a port that adds a key" mqtt.port 78 $'TEMPERD_MQTT_PORT=1883\nusername = "x"'
refused "a host that adds a key" "neither a host name" 78 $'TEMPERD_MQTT_HOST=x"\nport = 1 #'
refused "an unknown emulated board" no-such-board 78 "TEMPERD_EMULATED=no-such-board"
refused "another name than the identity's" board-1 78 "TEMPERD_DEVICE=board-2"
chown 0:0 "$work/state"
refused "a volume of another user" "chown -R 10001:10001" 78
chown 10001:10001 "$work/state"
no_tmpfs=yes
refused "a read-only root without a place for the configuration" "cannot write the configuration" 1
no_tmpfs=

mkdir "$work/small"
mount -t tmpfs -o size=2m,mode=0700,uid=10001,gid=10001 tmpfs "$work/small"
cp -a "$work/state/." "$work/small"
dd if=/dev/zero of="$work/small/filler" bs=4k status=none 2>/dev/null || true
state=$work/small
start
settled() { gone || inside temperd status; } # it ends with 1, or works on with an alarm
until_true "a full volume: neither an end nor a daemon" settled
if ! gone; then kill -TERM "$(inner)"; fi
ends "a full volume is told" "0 1"
grep -q 'the volume is full' "$work/log" || failed "a full volume: not said"
if grep -q Traceback "$work/log"; then failed "a full volume: a traceback"; fi
grep 'temperd: ' "$work/log" | head -n 2 | cut -c 1-180 | sed 's/^/     /'
rm "$work/small/filler"
start
until_true "healthy once there is room" alive
passed "healthy once there is room"
stop
umount "$work/small"
state=$work/state

# The machine below as the board: its sensors are read from /sys, read-only as every engine shows it.
start TEMPERD_EMULATED=
until_true "healthy on this machine's sensors" alive
passed "healthy on this machine's own sensors, /sys read-only"
inside temperd status | sed 's/^/     /'
stop
engine umount "$c" >/dev/null

# --- the fleet of the compose file -----------------------------------------------------------------------------------

if [ -n "$emulated" ]; then exit; fi
# Debian's docker-compose is Docker's own program; it checks the file and needs no engine for that.
compose=$(command -v docker-compose || true)
if [ -z "$compose" ] || ! "$compose" version --short | grep -q '^2'; then
    "$here/packaging/compose/fetch.sh" "$work/compose" >"$work/log" 2>&1 || failed "docker compose cannot be fetched"
    compose=$work/compose/docker-compose
fi
"$compose" --file "$here/packaging/compose/compose.yaml" --profile console config --format json >"$work/compose.json" 2>"$work/log" \
    || failed "docker compose refuses the file"
expect "docker compose has nothing to say about the file" "" "$(cat "$work/log")"
images=()
for pair in temperd=localhost/temperd temperd-rehearsal=localhost/temperd-rehearsal eclipse-mosquitto:2.0.22=localhost/debian; do
    image=${pair#*=}
    name=$(engine from --pull-never "$image:latest")
    # The broker's image brings the folder of its volume.
    if [ "$image" = localhost/debian ]; then install -d -o 1883 -g 1883 "$(engine mount "$name")/mosquitto/data"; fi
    engine inspect --type image "$image:latest" >"$work/$(basename "$image").json" \
        || failed "an image cannot be read"
    images+=("${pair%%=*}=$(engine mount "$name")=$work/$(basename "$image").json")
done
unshare --net python3 -B "$here/packaging/compose/test.py" "$work/compose.json" "$work/fleet" "${images[@]}"
