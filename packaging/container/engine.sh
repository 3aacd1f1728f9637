#!/usr/bin/env bash
# buildah with a storage of its own: engine.sh STORE ARGUMENTS...
set -euo pipefail
driver=vfs
if grep -qw overlay /proc/filesystems; then driver=overlay; fi
exec buildah --root "$1/storage" --runroot "$1/runroot" --storage-driver "$driver" "${@:2}"
