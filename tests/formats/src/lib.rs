//! What must hold of every format: programs for a fuzzer, and the content of the golden files.
//!
//! `fuzz/` runs [`TARGETS`] under `cargo fuzz`; `tests/corpus.rs` replays what it kept, and a round of mutations of it,
//! in `cargo test`; `examples/fuzz_a_while.rs` mutates it for as long as one likes without a fuzzer.

pub mod golden;
mod targets;

pub use targets::{TARGETS, Target};

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// One of a row of inputs made from `seeds` by flipping, cutting, repeating, splicing and inventing bytes. The same
/// number gives the same input.
pub fn mutated(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(number);
    let mut input = match seeds.len() {
        0 => Vec::new(),
        count => seeds[random.random_range(0..count)].clone(),
    };
    for _ in 0..random.random_range(1..=8) {
        let at = random.random_range(0..=input.len());
        let length = random.random_range(0..=(input.len() - at).min(64));
        match random.random_range(0..7) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => {
                input[at] = *[0, 1, 0x7f, 0x80, 0xff][..].get(random.random_range(0..5)).unwrap_or(&0)
            }
            2 => input.truncate(at),
            3 => drop(input.drain(at..at + length)),
            4 => {
                let piece = input[at..at + length].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let mut invented = vec![0; random.random_range(0..16)];
                random.fill_bytes(&mut invented);
                input.splice(at..at, invented);
            }
            _ if !seeds.is_empty() => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {}
        }
    }
    input.truncate(1 << 20);
    input
}
