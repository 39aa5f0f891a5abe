#!/bin/sh
# Builds the Debian package: the program, then what is written about it out of itself, then the package.
# PROFILE=dev takes a quick build instead of an optimised one. Needs cargo-deb (`cargo install cargo-deb`).
set -eu
cd "$(dirname "$0")/../.."
profile=${PROFILE:-release}
target=${CARGO_TARGET_DIR:-target}
cargo build --profile "$profile" --bin cairn
case $profile in dev) built=$target/debug ;; *) built=$target/$profile ;; esac

# Cargo.toml names these files as parts of the package.
made=target/package
rm -rf "$made"
mkdir -p "$made/completions" "$made/bin" "$made/sbin"
# mount(8) finds its helpers under these names.
ln -s "$(realpath "$built/cairn")" "$made/bin/cairn"
ln -s ../bin/cairn "$made/sbin/mount.cairn"
ln -s ../bin/cairn "$made/sbin/mount.fuse.cairn"
"$built/cairn" man "$made/man"
gzip -9n "$made"/man/man1/*.1 "$made"/man/man5/*.5
for shell in bash zsh fish; do
    "$built/cairn" completions "$shell" > "$made/completions/$shell"
done
cargo deb --profile "$profile" --no-build "$@"
