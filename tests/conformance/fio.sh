#!/bin/sh
# Random and sequential writes whose content fio checks by CRC-32C: buffered, direct and mapped, by several jobs.
#
# Usage: fio.sh DIRECTORY [SIZE]    (SIZE of each job's file, 32m)
# Needs: fio 3.
set -eu

directory=${1:?usage: fio.sh DIRECTORY [SIZE]}
size=${2:-32m}
command -v fio >/dev/null || { echo "fio.sh: no fio: install it" >&2; exit 2; }

work=$(mktemp -d "$directory/fio.XXXXXX")
trap 'rm -rf "$work"' EXIT

failed=0
# check NAME OPTION...
check() {
    name=$1
    shift
    set -- fio --name="$name" --directory="$work" --size="$size" --verify=crc32c --verify_fatal=1 \
        --do_verify=1 --verify_state_save=0 --minimal --output="$work/report" "$@"
    echo "+ $*"
    if ! "$@"; then
        cat "$work/report" >&2
        echo "fio.sh: FAILED: $name" >&2
        failed=$((failed + 1))
    fi
    rm -f "$work"/*
}

check buffered --ioengine=psync --rw=randwrite --bs=4k --numjobs=4
check mixed-sizes --ioengine=psync --rw=randrw --bsrange=512-128k --bs_unaligned=1 --numjobs=4
check overwritten --ioengine=psync --rw=randwrite --bs=8k --norandommap=1 --numjobs=2 --loops=2 --verify_backlog=0
check direct --ioengine=psync --direct=1 --rw=randwrite --bs=16k --numjobs=4
check queued --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bs=16k --numjobs=2
check mapped --ioengine=mmap --rw=randwrite --bs=4k --numjobs=2
check synced --ioengine=psync --rw=randwrite --bs=64k --fsync=32 --numjobs=2
check sequential --ioengine=psync --rw=write --bs=1m --numjobs=2
[ "$failed" -eq 0 ] || { echo "fio.sh: $failed runs failed" >&2; exit 1; }
echo "fio.sh: all runs passed"
