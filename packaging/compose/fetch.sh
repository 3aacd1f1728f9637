#!/usr/bin/env bash
# Fetches Docker's own `docker compose` from Debian, without installing it: fetch.sh FOLDER, then FOLDER/docker-compose.
#
# Debian 12 has the old one; the program of Debian 13 runs there too. Debian's package is checked by apt's own keys.
set -euo pipefail
folder=${1:?a folder}
mkdir -p "$folder"/{lists,cache/archives,package}
# The place that this machine's apt has its packages from.
mirror=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -m 1 debian | grep -v security || true)
[ -n "$mirror" ] || { echo "fetch.sh: apt knows no place for Debian's packages: apt-get update first" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$folder/sources.list"
apt=(apt-get -qq -o APT::Sandbox::User=root -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder/cache")
"${apt[@]}" update
cd "$folder"
"${apt[@]}" download docker-compose
dpkg -x docker-compose_*.deb package
ln -sf "$(find "$PWD/package" -name docker-compose -type f -perm -u+x | head -n 1)" docker-compose
./docker-compose version
