#!/usr/bin/env bash
# Boots a systemd of its own in fresh namespaces, with the units of this folder and levers made of plain files, and
# drives them: packaging/systemd/drive.py. Root; systemd, util-linux, python3 with venv; cgroup v2 mounted somewhere.
# Nothing of the machine's own /sys, /run, /opt and /etc is touched.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d /tmp/temperd-systemd.XXXXXX)
cgroup=$(findmnt -nr -t cgroup2 -o TARGET | head -n 1)/temperd-test-$$
init=
finish() {
    [ -z "$init" ] || kill -9 "$init" 2>/dev/null || true
    sleep 1
    find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT

mkdir "$cgroup" "$scratch/units"
cp "$here"/temperd-powerd.{socket,service} "$scratch/units"
printf '[Unit]\nDefaultDependencies=no\nWants=temperd-powerd.socket\n' >"$scratch/units/start.target"
for unit in sysinit basic sockets shutdown; do
    printf '[Unit]\nDefaultDependencies=no\n' >"$scratch/units/$unit.target"
done
cp /etc/group "$scratch/group"
getent group temperd >/dev/null || echo 'temperd:x:64990:' >>"$scratch/group"

cat >"$scratch/boot" <<END
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --bind "$scratch/group" /etc/group
for folder in /run /opt /sys/devices/system/cpu/cpufreq /sys/devices/virtual /sys/class/thermal; do
    mount -t tmpfs tmpfs \$folder
done
cap=/sys/devices/system/cpu/cpufreq/policy0 fan=/sys/devices/virtual/thermal/cooling_device0
mkdir -p \$cap \$fan
echo 600000 1000000 1800000 >\$cap/scaling_available_frequencies
echo 1800000 >\$cap/scaling_max_freq
echo 4 >\$fan/max_state
echo 1 >\$fan/cur_state
ln -s ../../devices/virtual/thermal/cooling_device0 /sys/class/thermal/cooling_device0
/usr/bin/python3 -m venv --without-pip /opt/temperd
for folder in /opt/temperd/lib/python3.*/site-packages; do echo "$here/../.." >\$folder/temperd.pth; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /
exec env -i PATH="\$PATH" container=test SYSTEMD_UNIT_PATH="$scratch/units" \
    /lib/systemd/systemd --system --unit=start.target --show-status=no
END
(
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    exec unshare --pid --fork --kill-child --mount --cgroup --ipc --uts bash "$scratch/boot"
) >"$scratch/log" 2>&1 &
outer=$!
for _ in $(seq 100); do
    init=$(pgrep -P "$outer" -x systemd || true)
    [ -n "$init" ] && nsenter -t "$init" -a test -S /run/temperd-powerd.sock 2>/dev/null && break
    sleep 0.2
done
[ -n "$init" ] || { cat "$scratch/log" >&2; exit 1; }
nsenter -t "$init" -a /opt/temperd/bin/python "$here/drive.py"
