//! Mutates the corpus for so many seconds, where no fuzzer is at hand:
//! `cargo run -p cairn-formats --example fuzz_a_while -- SECONDS [TARGET] [FIRST]`. An input that makes a target fall
//! over is left in `fuzz/corpus/TARGET`, where `cargo test` replays it.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs, panic};

use cairn_formats::{TARGETS, mutated};

fn main() {
    let mut args = env::args().skip(1);
    let seconds: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(60);
    let only = args.next().filter(|name| name != "all");
    let first: u64 = args.next().and_then(|text| text.parse().ok()).unwrap_or(1 << 32);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let chosen: Vec<_> =
        TARGETS.iter().filter(|target| only.as_ref().is_none_or(|name| name == target.name)).collect();
    let mut fell = false;
    for target in &chosen {
        let dir = root.join(target.name);
        let mut paths: Vec<_> =
            fs::read_dir(&dir).expect("a corpus").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("an input")).collect();
        let until = Instant::now() + Duration::from_secs(seconds) / chosen.len() as u32;
        let mut number = first;
        while Instant::now() < until {
            let input = mutated(&seeds, number);
            if panic::catch_unwind(|| (target.run)(&input)).is_err() {
                let path = dir.join(format!("fell-{number}"));
                fs::write(&path, &input).expect("the input is kept");
                println!("{}: fell over {}", target.name, path.display());
                fell = true;
                break;
            }
            number += 1;
        }
        println!("{}: {} inputs", target.name, number - first);
    }
    assert!(!fell, "see above");
}
