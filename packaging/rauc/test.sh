#!/usr/bin/env bash
# Updates a system by the real RAUC, on a bus of its own: drive.py. What is missing is installed by apt.
#
#     sudo PYTHON=.venv-ort/bin/python packaging/rauc/test.sh
set -euo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
[ "$(id -u)" = 0 ] || { echo "test.sh: run it as root: RAUC mounts bundles" >&2; exit 2; }
declare -A tools=([rauc]=rauc [mksquashfs]=squashfs-tools [openssl]=openssl [dbus-daemon]=dbus-daemon [mosquitto]=mosquitto)
missing=()
for tool in "${!tools[@]}"; do command -v "$tool" >/dev/null || missing+=("${tools[$tool]}"); done
if [ "${#missing[@]}" -gt 0 ]; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
fi
PYTHONPATH=$project exec "${PYTHON:-python3}" "$project/packaging/rauc/drive.py"
