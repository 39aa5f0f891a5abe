//! kill -9 at random moments: what is left must be sound, and not behind the last durable commit.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::compare::{run_step, step_command, work};
use crate::engine::Engine;
use crate::{Failure, Settings};

/// What a killed writer had said, and what was found afterwards.
#[derive(Debug, Default)]
struct Left {
    durable: f64,
    applied: f64,
    found: f64,
    wrong: f64,
}

/// Kills a writer of every engine as often as the settings say.
pub fn crash_test(settings: &Settings) -> Result<(), Failure> {
    let base = match &settings.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    println!(
        "| engine | kills | unsound | behind the last durable commit | applied batches lost, median and worst |"
    );
    println!("|---|---|---|---|---|");
    for &engine in &settings.engines {
        let (mut unsound, mut behind, mut lost) = (0, 0, Vec::new());
        let mut durable = 0.0;
        for _ in 0..settings.rounds {
            let left = kill_once(settings, base.path(), engine, durable)?;
            durable = left.durable;
            eprintln!("{:9} {left:?}", engine.name());
            unsound += usize::from(left.wrong > 0.0);
            behind += usize::from(left.found < left.durable);
            // A batch moves the time by a thousand.
            lost.push(((left.applied - left.found) / 1e3).max(0.0));
        }
        lost.sort_by(f64::total_cmp);
        let median = lost.get(lost.len() / 2).copied().unwrap_or(0.0);
        let worst = lost.last().copied().unwrap_or(0.0);
        println!("| {} | {} | {unsound} | {behind} | {median}, {worst} |", engine.name(), lost.len());
    }
    Ok(())
}

/// One life of a writer; `durable` is what an earlier one was promised.
fn kill_once(settings: &Settings, base: &Path, engine: Engine, durable: f64) -> Result<Left, Failure> {
    let work = work(settings, base, engine);
    let mut child = step_command("crash", &work)?.stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().ok_or_else(|| Failure::Wrong("the writer has no output".into()))?;
    // The time it lives counts from its first batch, so that even the slowest start is not all there is.
    let mut lines = BufReader::new(out).lines();
    let mut said = lines.next().transpose()?.unwrap_or_default();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(rand::random_range(20..4_500)));
        child.kill().and_then(|()| child.wait())
    });
    let mut left = Left { durable, ..Left::default() };
    loop {
        match said.split_once(' ').map(|(word, time)| (word, time.parse::<f64>())) {
            Some(("durable", Ok(time))) => (left.durable, left.applied) = (time, time),
            Some(("applied", Ok(time))) => left.applied = time,
            // A line cut off by the kill.
            _ => {}
        }
        match lines.next() {
            Some(line) => said = line?,
            None => break,
        }
    }
    killer.join().map_err(|_| Failure::Wrong("the killer panicked".into()))??;
    let figures = run_step("check", &work)?;
    for (name, value) in figures.0 {
        match name.as_str() {
            "wrong" => left.wrong = value,
            "time" => left.found = value,
            _ => {}
        }
    }
    Ok(left)
}
