# The read-only gate: everything that must hold before a change lands.
verify:
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo test

# Rewrite what a tool can rewrite.
fix:
    cargo fmt --all
