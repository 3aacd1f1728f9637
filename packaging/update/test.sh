#!/usr/bin/env bash
# temperd's Debian package in a Debian's own root file system updates itself: packaging/update/drive.py.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/update/test.sh [bookworm|trixie]
#
# Root on x86-64 Debian with mosquitto. No systemd is booted: packaging/systemd/test.sh has the unit. About four minutes.
set -euo pipefail
suite=${1:-bookworm}
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
stop() {
    echo "test.sh: $1" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || stop "run it as root: it enters a root file system"
[ "$(uname -m)" = x86_64 ] || stop "it runs on x86-64"
python=$(command -v "${PYTHON:-python3}") || stop "there is no ${PYTHON:-python3}"
command -v mosquitto >/dev/null || stop "mosquitto is missing: apt install mosquitto"
work=$(mktemp -d /tmp/temperd-update-test.XXXXXX)
root=$work/root
cleanup() {
    for folder in proc dev; do
        mountpoint -q "$root/$folder" && umount -l "$root/$folder"
    done
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT

deb=$("$project/packaging/deb/build.sh" "$suite" amd64 "$work/debs")
mkdir "$root"
tar -C "$root" -xf "$("$project/packaging/rootfs.sh" "$suite" amd64)"
dpkg-deb -x "$deb" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --make-rslave "$root/dev"
PYTHONPATH=$project "$python" "$here/drive.py" "$root" "$project/packaging/deb/requirements-$suite-amd64.txt"
echo "     ok   $suite ($SECONDS s)"
