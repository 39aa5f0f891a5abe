//! Nothing but benches: see `benches/`, and run them with `cargo bench`.
