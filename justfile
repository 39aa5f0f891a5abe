# The read-only gate: everything that must hold before a change lands.
verify:
    cargo fmt --all -- --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
    cargo test --workspace

# Rewrite what a tool can rewrite.
fix:
    cargo fmt --all

# Writes docs/configuration.md out of the definitions in the code.
reference:
    CAIRN_WRITE_REFERENCE=1 cargo test --bin cairn the_page_is_up_to_date

# A Debian package in target/debian/; needs cargo-deb.
deb:
    deploy/debian/build.sh

# Random operations, checked content and file stressors on a directory of a mount. Needs fsx, fio and stress-ng.
torture directory:
    tests/conformance/fsx.sh {{directory}}
    tests/conformance/fio.sh {{directory}}
    tests/conformance/stress.sh {{directory}}

# A real cluster under random faults for so many seconds, then checked (tests/chaos/). Needs root, /dev/fuse and iproute2.
# CAIRN_CHAOS_SEED=N repeats the faults of a run.
soak SECONDS='7200':
    CAIRN_CHAOS_SECONDS={{SECONDS}} cargo test --test chaos whatever_breaks -- --nocapture

# Other people's test suites against a mounted cluster: `just conformance pjdfstest`, or `all`.
conformance *SUITES='all':
    cargo build --bin cairn
    tests/conformance/run.sh {{SUITES}}

# A whole cluster in one thread, once for each seed: `just sim 0..100000`.
sim SEEDS='0..1000' JOBS='1':
    cargo run --release -p cairn-sim -- --seeds {{SEEDS}} --jobs {{JOBS}} --keep-going

# Whether the simulation finds mistakes: takes safeguards away, one at a time, and runs seeds until one fails.
mutations *NAMES:
    sim/mutations/check.sh {{NAMES}}
