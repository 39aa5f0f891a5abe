#!/bin/sh
# Random operations on one file, every read compared with what must be there.
#
# Usage: fsx.sh DIRECTORY [SEEDS] [OPERATIONS]    (3 seeds for each mix, 100000 operations each)
# Needs: fsx of the Rust crate `fsx` 0.3 (`cargo install fsx`), found through $FSX or the path.
set -eu

directory=${1:?usage: fsx.sh DIRECTORY [SEEDS] [OPERATIONS]}
seeds=${2:-3}
operations=${3:-100000}
fsx=${FSX:-fsx}
command -v "$fsx" >/dev/null || { echo "fsx.sh: no $fsx: install it, or name it in FSX" >&2; exit 2; }

scratch=$(mktemp -d)
work=$(mktemp -d "$directory/fsx.XXXXXX")
trap 'rm -rf "$scratch" "$work"' EXIT

# mix NAME MAPREAD MAPWRITE FALLOCATE PUNCH COPY NOMSYNC
mix() {
    cat >"$scratch/$1.toml" <<END
flen = 1048576
nomsyncafterwrite = $7
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
truncate = 3
fsync = 0.2
fdatasync = 0.2
sendfile = 2
invalidate = 0
mapread = $2
mapwrite = $3
posix_fallocate = $4
punch_hole = $5
copy_file_range = $6
END
}
mix plain 0 0 0 0 0 true
mix mapped 10 10 0 0 0 false
mix ranges 0 0 2 5 5 true
mix all 10 10 2 5 5 true

failed=0
for name in plain mapped ranges all; do
    seed=1
    while [ "$seed" -le "$seeds" ]; do
        set -- "$fsx" -q -f "$scratch/$name.toml" -S "$seed" -N "$operations" -P "$scratch" "$work/$name.$seed"
        echo "+ $*"
        if ! "$@"; then
            echo "fsx.sh: FAILED: mix $name, seed $seed" >&2
            failed=$((failed + 1))
        fi
        rm -f "$work/$name.$seed"
        seed=$((seed + 1))
    done
done
[ "$failed" -eq 0 ] || { echo "fsx.sh: $failed runs failed" >&2; exit 1; }
echo "fsx.sh: all runs passed"
