#!/usr/bin/env bash
# Does the simulation find mistakes? Each patch in this directory takes a safeguard away; this applies them one after the
# other to a tree of their own, builds, and runs seeds until one fails. A mutation that none finds makes it fail.
#
#   sim/mutations/check.sh [NAME...]     SEEDS=2000: most seeds for each    JOBS=2: seeds at once
set -euo pipefail

root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
here=$root/sim/mutations
seeds=${SEEDS:-2000} jobs=${JOBS:-$(nproc)}
# Always the same place: so what a mutation does not touch is built once.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/mutations}
tree=$CARGO_TARGET_DIR/tree

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for patch in "$here"/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

mkdir -p "$CARGO_TARGET_DIR"
git -C "$root" worktree prune
if [ -d "$tree" ]; then
    git -C "$tree" reset -q --hard
    git -C "$tree" checkout -q --detach "$(git -C "$root" rev-parse HEAD)"
else
    git -C "$root" worktree add -q --detach "$tree" HEAD
fi

# What is built anew for every mutation is built quickly; what it is built on is as fast as ever.
quick=()
for crate in host metadata namenode datanode client sim; do
    quick+=(--config "profile.release.package.cairn-$crate.opt-level=0")
done

survived=0
echo "| mutation | what it does | first failing seed | what it said |"
echo "|---|---|---|---|"
for name in "${names[@]}"; do
    git -C "$tree" reset -q --hard
    git -C "$tree" apply --recount "$here/$name.patch"
    (cd "$tree" && CARGO_INCREMENTAL=1 cargo build -q --release -p cairn-sim "${quick[@]}")
    said=$("$CARGO_TARGET_DIR/release/cairn-sim" --seeds "1..$((seeds + 1))" --jobs "$jobs" || true)
    seed=$(sed -n 's/^seed \([0-9]*\): FAILED.*/\1/p' <<<"$said" | head -n 1)
    what=$(head -n 1 "$here/$name.patch")
    if [ -z "$seed" ]; then
        survived=$((survived + 1))
        echo "| \`$name\` | $what | none of $seeds | |"
    else
        violation=$(grep -m 1 '^  ' <<<"$said" | sed 's/^ *//; s/|/\\|/g' | cut -c 1-160)
        echo "| \`$name\` | $what | $seed | $violation |"
    fi
done
git -C "$tree" reset -q --hard
if [ "$survived" -gt 0 ]; then
    echo "$survived mutations were not found" >&2
    exit 1
fi
