#!/usr/bin/env bash
# Boots a whole arm64 machine by emulation, with Debian's kernel and systemd, installs temperd's .deb in it and gives it
# work: packaging/machine/drive.py. docs/arm64.md tells more.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/machine/test.sh [bookworm|trixie]
#
# Root on x86-64 Debian; a Python that has temperd. What is missing is installed by apt; what is fetched and built is
# kept in TEMPERD_CACHE (~/.cache/temperd). TEMPERD_DEB=FILE takes a package that is there instead of building one.
set -euo pipefail
suite=${1:-bookworm}
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
cache=${TEMPERD_CACHE:-${HOME:-/root}/.cache/temperd}
python=$(command -v "${PYTHON:-python3}") || python=${PYTHON:-python3}
case $python in /*) ;; */*) python=$PWD/$python ;; esac

passed() { printf 'ok   %-80s %4ss\n' "$1" "$SECONDS"; }
stop() {
    echo "test.sh: $1" >&2
    exit 2
}
[ "$(id -u)" = 0 ] || stop "run it as root: it makes a root file system"
"$python" -c 'import service.cli, onnxruntime' 2>/dev/null || stop "$python lacks temperd: set PYTHON, or use 'make machine-test'"
work=$(mktemp -d /tmp/temperd-machine.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT

# --- the tools -------------------------------------------------------------------------------------------------------

declare -A tools=(
    [qemu-system-aarch64]=qemu-system-arm [mke2fs]=e2fsprogs [cpio]=cpio [depmod]=kmod [mosquitto]=mosquitto
)
missing=()
for tool in "${!tools[@]}"; do command -v "$tool" >/dev/null || missing+=("${tools[$tool]}"); done
if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
passed "tools"

# --- the package -----------------------------------------------------------------------------------------------------

if [ -n "${TEMPERD_DEB:-}" ]; then
    package=$TEMPERD_DEB
else
    package=$(PYTHON=$python "$project/packaging/deb/build.sh" "$suite" arm64 "$work/packages" 2>"$work/build.log") \
        || { cat "$work/build.log" >&2; stop "the package does not build"; }
fi
passed "package: $(basename "$package"), $(du -m "$package" | cut -f1) MB"

# --- the kernel ------------------------------------------------------------------------------------------------------

# Debian's kernel for virtual arm64 machines and a static busybox, by this machine's apt under another architecture and
# with lists of its own.
kernels=$cache/kernel-arm64
if [ ! -e "$kernels/vmlinuz" ]; then
    apt=$work/apt
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,unpacked}
    touch "$apt/status"
    options=(
        -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
        -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
    )
    apt-get "${options[@]}" update
    kernel=$(apt-cache "${options[@]}" depends linux-image-cloud-arm64 | sed -n 's/.*Depends: //p')
    [ -n "$kernel" ] || stop "apt knows no linux-image-cloud-arm64"
    (cd "$apt" && apt-get "${options[@]}" download "$kernel" busybox-static)
    for deb in "$apt"/*.deb; do dpkg-deb --extract "$deb" "$apt/unpacked"; done
    rm -rf "$kernels.part"
    mkdir -p "$kernels.part/usr/lib"
    cp "$apt"/unpacked/boot/vmlinuz-* "$kernels.part/vmlinuz"
    cp "$apt/unpacked/bin/busybox" "$kernels.part/busybox"
    cp -r "$apt/unpacked/lib/modules" "$kernels.part/usr/lib/modules"
    ln -s usr/lib "$kernels.part/lib" # depmod looks in lib
    depmod -b "$kernels.part" "$(basename "$kernels.part"/usr/lib/modules/*)"
    rm -rf "$kernels"
    mv "$kernels.part" "$kernels"
fi
release=$(basename "$kernels"/usr/lib/modules/*)
modules=$kernels/usr/lib/modules/$release

first=$work/initramfs
mkdir -p "$first"/{bin,modules,dev}
cp "$kernels/busybox" "$first/bin/busybox"
install -m 755 "$here/init" "$first/init"
# What the disk needs, each after what it depends on.
for module in virtio_pci virtio_blk; do
    line=$(grep "/$module.ko:" "$modules/modules.dep")
    for file in $(tr ' ' '\n' <<<"${line#*:}" | tac) "${line%%:*}"; do
        name=$(basename "$file")
        [ -e "$first/modules/$name" ] && continue
        cp "$modules/$file" "$first/modules/$name"
        echo "$name" >>"$first/modules/order"
    done
done
(cd "$first" && find . | cpio --quiet --create --format=newc | gzip -1 >"$work/initramfs.gz")
passed "kernel: $release"

# --- the disk --------------------------------------------------------------------------------------------------------

debian=$("$project/packaging/rootfs.sh" "$suite" arm64)
root=$work/root
mkdir "$root"
tar -C "$root" --xattrs --xattrs-include='*' -xf "$debian"
cp -r "$modules" "$root/usr/lib/modules.new"
mkdir -p "$root/usr/lib/modules" "$root/usr/local/lib/temperd-test"
mv "$root/usr/lib/modules.new" "$root/usr/lib/modules/$release"
install -m 644 "$here/guest.py" "$root/usr/local/lib/temperd-test/"
install -m 644 "$here/guest.service" "$root/etc/systemd/system/temperd-test.service"
mkdir "$root/etc/systemd/system/temperd.service.d"
install -m 644 "$here/slow.conf" "$project/packaging/systemd/examples/emulated.conf" "$root/etc/systemd/system/temperd.service.d/"
install -m 644 "$here/guest.network" "$root/etc/systemd/network/10-test.network"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/var/log/journal"
for unit in /etc/systemd/system/temperd-test.service /lib/systemd/system/systemd-networkd.service; do
    ln -sf "$unit" "$root/etc/systemd/system/multi-user.target.wants/"
done
echo "/dev/vda / ext4 defaults 0 1" >"$root/etc/fstab"
echo arm64-board >"$root/etc/hostname"
# There is no kmod in it: what needs it would only be counted as failed.
for unit in kmod-static-nodes.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount; do
    ln -s /dev/null "$root/etc/systemd/system/$unit"
done
cp "$package" "$root/root/temperd.deb"
mke2fs -q -t ext4 -d "$root" "$work/disk" 3G >/dev/null
rm -rf --one-file-system "$root"
passed "disk: $(du -m "$work/disk" | cut -f1) MB of 3 GB"

# --- the story -------------------------------------------------------------------------------------------------------

cd "$project"
"$python" packaging/machine/drive.py "$work" "$kernels/vmlinuz"
passed "all"
