#!/usr/bin/env bash
# Lets this machine run programs of another architecture: registers qemu-user-static with the kernel.
#
#     packaging/binfmt.sh arm64|amd64
#
# Root; qemu-user-static. A registration that is there is left as it is.
set -euo pipefail
case ${1:?which architecture: arm64 or amd64} in
arm64) cpu=aarch64 machine='\xb7\x00' ;;
amd64) cpu=x86_64 machine='\x3e\x00' ;;
*) echo "binfmt.sh: no architecture of ours: $1 (arm64, amd64)" >&2; exit 2 ;;
esac
formats=/proc/sys/fs/binfmt_misc
mountpoint -q "$formats" || mount -t binfmt_misc binfmt_misc "$formats"
[ -e "$formats/qemu-$cpu" ] && exit
magic="\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00$machine"
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
# Flags: O opens the program for the interpreter, C takes the program's own credentials, F keeps the interpreter at hand
# in every root file system.
printf '%s' ":qemu-$cpu:M::$magic:$mask:/usr/bin/qemu-$cpu-static:OCF" >"$formats/register"
