#!/bin/sh
# namespace.sh ROOT QEMU COMMAND...: runs a command where arm64 programs start by themselves and ROOT is a phone.
# To be called as: unshare -Urmpf --kill-child sh namespace.sh ...   Needs no root, changes nothing on the machine
# (each user namespace has had binfmt_misc of its own since Linux 6.7).
set -e
root=$1 qemu=$2
shift 2
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
# F: the emulator is opened now, so that it is found inside ROOT too
printf '%s' ":qemu-aarch64:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:$qemu:F" >/proc/sys/fs/binfmt_misc/register
for device in null zero urandom random full; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t proc proc "$root/proc"
mount --bind "$root/state/cpuinfo" "$root/proc/cpuinfo" # ONNX Runtime reads it, and crashes on that of an x86 machine
"$@" & # not exec: this shell is the first process here and reaps orphans, as init does on a phone
wait $!
