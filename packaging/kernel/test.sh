#!/usr/bin/env bash
# Boots Debian's own kernel in a virtual x86-64 machine whose firmware describes a thermal zone, a fan, a battery and
# P-states (board.asl), installs temperd's Debian package in it, and drives sensors and levers from outside: drive.py.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/kernel/test.sh
#
# Needs root on x86-64 Debian 12 or newer and a Python that has temperd and its tests' requirements; no KVM: the machine
# is emulated. What is missing is fetched by apt and kept in TEMPERD_CACHE (~/.cache/temperd); the package is built, unless
# TEMPERD_DEB names one for Bookworm on amd64. Five minutes on two cores.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
cache=${TEMPERD_CACHE:-${HOME:-/root}/.cache/temperd}
python=$(command -v "${PYTHON:-python3}") || python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac
stop() {
    echo "test.sh: $1" >&2
    exit 2
}
passed() { printf 'ok   %-70s %4ss\n' "$1" "$SECONDS"; }

[ "$(id -u)" = 0 ] || stop "run it as root: it makes a root file system"
[ "$(uname -m)" = x86_64 ] || stop "its machine is x86-64"
"$python" -c 'import agent, onnxruntime, jsonschema, PIL' 2>/dev/null || stop "$python lacks temperd[ort,dev]: set PYTHON"
declare -A tools=(
    [qemu-system-x86_64]=qemu-system-x86 [iasl]=acpica-tools [mke2fs]=e2fsprogs [depmod]=kmod [cpio]=cpio
    [dpkg-deb]=dpkg [mosquitto]=mosquitto
)
missing=()
for tool in "${!tools[@]}"; do command -v "$tool" >/dev/null || missing+=("${tools[$tool]}"); done
if [ "${#missing[@]}" -gt 0 ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
fi
work=$(mktemp -d /var/tmp/temperd-kernel.XXXXXX)
finish() {
    umount "$work/root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT

# --- the kernel and what its first minute needs ----------------------------------------------------------------------

kept=$cache/kernel-amd64
mkdir -p "$kept"
if ! ls "$kept"/linux-image-*.deb "$kept"/busybox-static_*.deb >/dev/null 2>&1; then
    kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1)
    (cd "$kept" && apt-get download -qq "$kernel" busybox-static)
fi
dpkg-deb -x "$kept"/linux-image-*.deb "$work/kernel"
dpkg-deb -x "$kept"/busybox-static_*.deb "$work/busybox"
release=$(basename "$work"/kernel/lib/modules/*)
depmod -b "$work/kernel" "$release"
mkdir -p "$work"/first/{bin,modules,dev,proc,sys,root}
cp "$work/busybox/bin/busybox" "$work/first/bin/"
number=100
for module in virtio_blk virtio_pci virtio_net ext4 crc32c_generic; do
    modprobe -d "$work/kernel" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" "$work/first/modules/$number-$(basename "$file")"
    number=$((number + 1))
done
cat >"$work/first/init" <<'END'
#!/bin/busybox sh
for name in proc sysfs:sys devtmpfs:dev; do /bin/busybox mount -t "${name%:*}" none "/${name#*:}"; done
for module in /modules/*; do /bin/busybox insmod "$module"; done
until [ -e /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
END
chmod +x "$work/first/init"
(cd "$work/first" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
cp "$work/kernel/boot/vmlinuz-$release" "$work/vmlinuz"
iasl -p "$work/board" "$here/board.asl" >"$work/iasl.log" 2>&1 || { cat "$work/iasl.log" >&2; exit 1; }
passed "Debian's kernel $release, and firmware tables"

# --- the system in it ------------------------------------------------------------------------------------------------

package=${TEMPERD_DEB:-$(PYTHON=$python "$project/packaging/deb/build.sh" bookworm amd64 "$work")}
mkdir "$work/root"
tar -xf "$("$project/packaging/rootfs.sh" bookworm amd64)" -C "$work/root"
mkdir -p "$work/root/usr/lib/modules"
mv "$work/kernel/lib/modules/$release" "$work/root/usr/lib/modules/"
cp "$package" "$work/root/temperd.deb"
mount -t proc proc "$work/root/proc"
chroot "$work/root" dpkg -i /temperd.deb >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; exit 1; }
umount "$work/root/proc"
rm "$work/root/temperd.deb"
cat >"$work/root/etc/systemd/network/10-machine.network" <<'END'
[Match]
Type=ether
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
LinkLocalAddressing=no
END
ln -sf /usr/lib/systemd/system/systemd-networkd.service "$work/root/etc/systemd/system/multi-user.target.wants/"
# What this machine needs not, and an emulated processor would be busy with for a minute.
for unit in mosquitto getty@tty1 serial-getty@ttyS0 e2scrub_reap systemd-binfmt kmod-static-nodes systemd-pcrphase \
    systemd-pcrphase-sysinit proc-sys-fs-binfmt_misc; do
    case $unit in proc-*) kind=automount ;; *) kind=service ;; esac
    ln -sf /dev/null "$work/root/etc/systemd/system/$unit.$kind"
done
echo acpi-cpufreq >"$work/root/etc/modules-load.d/board.conf"
echo machine >"$work/root/etc/hostname"
printf '[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\n' >>"$work/root/etc/systemd/journald.conf"
passed "Debian with temperd's package $(basename "$package")"

cd "$project"
PYTHONPATH=$project "$python" "$here/drive.py" "$work"
passed "all of it"
