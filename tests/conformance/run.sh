#!/bin/sh
# Runs conformance suites against a mounted CairnFS, or any other directory.
#
#   run.sh SUITE...             on a cluster of its own, mounted for the occasion and deleted afterwards
#   run.sh -d DIR SUITE...      in DIR, which may lie on any file system (then nothing is started)
#
# A suite is the name of a script beside this one, without .sh; `all` is every one of them. Each takes the directory to
# test in as its argument, leaves it as it found it, and names what it needs at its top. Exit code: 0 if all passed.
#
# Needs: root (suites switch users), /dev/fuse, and a built `cairn` (CAIRN, else target/release, else target/debug).
set -u

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

usage() {
    echo "usage: run.sh [-d DIR] SUITE...   suites: all$(suites | sed 's/^/ /' | tr -d '\n')" >&2
    exit 2
}

suites() {
    for script in "$here"/*.sh; do
        name=$(basename "$script" .sh)
        [ "$name" = run ] || echo "$name"
    done
}

find_cairn() {
    for candidate in "${CAIRN:-}" "${CARGO_TARGET_DIR:-$root/target}/release/cairn" \
        "${CARGO_TARGET_DIR:-$root/target}/debug/cairn"; do
        [ -x "$candidate" ] && echo "$candidate" && return
    done
    echo "run.sh: no cairn found: build it, or say where it is with CAIRN" >&2
    exit 2
}

directory=
while getopts d:h option; do
    case $option in
    d) directory=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage
[ "$*" = all ] && set -- $(suites)
for suite in "$@"; do
    [ "$suite" != run ] && [ -f "$here/$suite.sh" ] || { echo "run.sh: no suite $suite" >&2; usage; }
done

if [ -z "$directory" ]; then
    CAIRN=$(find_cairn) || exit 2
    export CAIRN
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/cairn.XXXXXX") || exit 2
    export XDG_STATE_HOME="$scratch/state" CAIRN_CONFIG="$scratch/cluster/cairn.toml"
    unset CAIRN_NAMENODES
    # What is still mounted must not be deleted through: the mount point has to go first.
    trap '"$CAIRN" cluster rm --dir "$scratch/cluster" >&2 && rmdir "$scratch/m" && rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
    # Suites act as other users, who have to get there. Sockets want a short path.
    chmod 755 "$scratch"
    directory=$scratch/m
    mkdir "$directory"
    "$CAIRN" cluster up --namenodes 3 --datanodes 3 --dir "$scratch/cluster" --mount "$directory" >/dev/null || exit 2
fi
[ -d "$directory" ] || { echo "run.sh: $directory is not a directory" >&2; exit 2; }

failed=
for suite in "$@"; do
    echo "== $suite"
    place=$(mktemp -d "$directory/t.XXXXXX") && chmod 755 "$place" || exit 2
    if sh "$here/$suite.sh" "$place"; then
        echo "== $suite: passed"
    else
        echo "== $suite: FAILED"
        failed="$failed $suite"
    fi
    rm -rf "$place"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
