#!/bin/sh
# POSIX system calls, one property a test: pjdfstest (the Rust rewrite).
#
#   pjdfstest.sh DIR [PATTERN]
#
# Needs: root; pjdfstest 0.2 (PJDFSTEST, else on the PATH; `cargo install pjdfstest`, which wants libacl1-dev); the users
# nobody and daemon. With REFERENCE=DIR, runs there as well (on ext4, say) and shows what differs. With REMOUNT=1, also
# what needs the mount to be made read-only, for which /sbin/mount.fuse.cairn must be there (docs/mounting.md).
#
# What ext4 passes must pass here. Skipped on both: the 13 tests that remount, unless REMOUNT=1. Skipped here only: link_count_max,
# because the C library knows the largest count of links for a few file systems by name and not for FUSE.
set -u

directory=${1:?usage: pjdfstest.sh DIR [PATTERN]}
pattern=${2:-}
program=${PJDFSTEST:-pjdfstest}
command -v "$program" >/dev/null || { echo "pjdfstest.sh: $program is not installed" >&2; exit 2; }

scratch=$(mktemp -d) || exit 2
other=$(mktemp -d -p /dev/shm) || exit 2
trap 'rm -rf "$scratch" "$other"' EXIT
group=$(id -gn nobody) || exit 2
remount=false
[ -z "${REMOUNT:-}" ] || remount=true

cat >"$scratch/settings.toml" <<SETTINGS
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = $remount
[dummy_auth]
entries = [["nobody", "$group"], ["daemon", "daemon"]]
SETTINGS

# Prints "name result" a line, sorted; the full output stays in FILE.
run() {
    "$program" -c "$scratch/settings.toml" -p "$1" -s "$other" ${pattern:+"$pattern"} >"$2" 2>&1
    grep -E '^[a-z_0-9]+::.* +(ok|FAILED|skipped)$' "$2" | sed -E 's/ +/ /' | sort
}

run "$directory" "$scratch/output" >"$scratch/results"
grep '^Summary' "$scratch/output" || { cat "$scratch/output" >&2; exit 1; }
status=0
if grep -q 'FAILED$' "$scratch/results"; then
    grep -A2 -E '^[a-z_0-9]+::.*FAILED$' "$scratch/output"
    status=1
fi
skipped=$(grep -v 'erofs' "$scratch/results" | grep 'skipped$' | grep -v '^link::link_count_max ')
if [ -n "$skipped" ]; then
    echo "skipped, and should not be:" "$skipped"
    status=1
fi
if [ -n "${REFERENCE:-}" ]; then
    run "$REFERENCE" "$scratch/reference-output" >"$scratch/reference"
    echo "differences from $REFERENCE (< there, > here):"
    diff "$scratch/reference" "$scratch/results"
fi
exit $status
