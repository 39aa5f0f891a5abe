//! Every kept input of the fuzz targets, and a round of mutations of them.

use std::fs;
use std::path::Path;

use cairn_formats::{TARGETS, mutated};

/// Mutations tried of each target's inputs.
const ROUNDS: u64 = 100;

#[test]
fn no_target_falls_over_its_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for target in TARGETS {
        let mut seeds: Vec<(String, Vec<u8>)> = fs::read_dir(root.join(target.name))
            .unwrap_or_else(|error| panic!("corpus of {}: {error}", target.name))
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
            .collect();
        assert!(!seeds.is_empty(), "no inputs for {}", target.name);
        seeds.sort();
        for (name, input) in &seeds {
            println!("{name}");
            (target.run)(input);
        }
        let inputs: Vec<Vec<u8>> = seeds.into_iter().map(|(_, input)| input).collect();
        for number in 0..ROUNDS {
            println!("{} {number}", target.name);
            (target.run)(&mutated(&inputs, number));
        }
    }
}
