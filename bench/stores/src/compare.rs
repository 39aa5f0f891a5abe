//! Runs the steps in turn over every engine and prints the table.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::engine::Engine;
use crate::measure::Figures;
use crate::step::{Step, Work};
use crate::{Failure, Settings};

/// How long a writer floods the store before it is killed.
const FLOOD: Duration = Duration::from_secs(5);

/// Compares the engines of the settings.
pub fn compare(settings: &Settings) -> Result<(), Failure> {
    let base = match &settings.dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let mut table = Table::default();
    for round in 0..settings.rounds {
        let works: Vec<Work> =
            settings.engines.iter().map(|&engine| work(settings, base.path(), engine)).collect();
        for step in [Step::Fill, Step::Open, Step::Read, Step::Single, Step::Snapshot, Step::Flood] {
            for turn in 0..works.len() {
                // Another engine goes first in each round.
                let work = &works[(turn + round) % works.len()];
                let figures = measure(step, work)?;
                eprintln!("round {} {:9} {}", round + 1, work.engine.name(), line(&figures));
                table.add(work.engine, &figures);
            }
        }
        for work in &works {
            std::fs::remove_dir_all(&work.dir)?;
        }
    }
    table.print(&settings.engines);
    Ok(())
}

/// The work of one engine below `base`.
pub fn work(settings: &Settings, base: &Path, engine: Engine) -> Work {
    Work { engine, dir: base.join(engine.name()), files: settings.files, cache_mib: settings.cache_mib }
}

/// The command that runs one step in a process of its own.
pub fn step_command(step: &str, work: &Work) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["step", step, "--engine", work.engine.name(), "--dir"]).arg(&work.dir);
    command.args(["--files", &work.files.to_string(), "--cache-mib", &work.cache_mib.to_string()]);
    Ok(command)
}

/// Runs one step in a process of its own and returns its figures.
pub fn run_step(step: &str, work: &Work) -> Result<Figures, Failure> {
    let output = step_command(step, work)?.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(Failure::Wrong(format!("{}: step {step}: {}", work.engine.name(), output.status)));
    }
    Ok(Figures::parse(&String::from_utf8_lossy(&output.stdout)))
}

fn measure(step: Step, work: &Work) -> Result<Figures, Failure> {
    match step {
        Step::Fill => run_step("fill", work),
        Step::Open => Ok(only_open("open after a clean stop, ms", &run_step("open", work)?)),
        Step::Read => run_step("read", work),
        Step::Single => run_step("single", work),
        Step::Snapshot => run_step("snapshot", work),
        _ => {
            let mut child = step_command("flood", work)?.stdout(Stdio::piped()).spawn()?;
            let mut started = String::new();
            if let Some(out) = child.stdout.take() {
                BufReader::new(out).read_line(&mut started)?;
            }
            std::thread::sleep(FLOOD);
            child.kill()?;
            child.wait()?;
            Ok(only_open("open after kill -9, ms", &run_step("open", work)?))
        }
    }
}

fn only_open(name: &str, figures: &Figures) -> Figures {
    let mut renamed = Figures::default();
    for (_, value) in figures.0.iter().filter(|(figure, _)| figure == "open ms") {
        renamed.add(name, *value);
    }
    renamed
}

fn line(figures: &Figures) -> String {
    figures.0.iter().map(|(name, value)| format!("{name} {}", shown(*value))).collect::<Vec<_>>().join("; ")
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// All figures of all rounds.
#[derive(Default)]
struct Table {
    order: Vec<String>,
    values: BTreeMap<(String, &'static str), Vec<f64>>,
}

impl Table {
    fn add(&mut self, engine: Engine, figures: &Figures) {
        for (name, value) in &figures.0 {
            if !self.order.contains(name) {
                self.order.push(name.clone());
            }
            self.values.entry((name.clone(), engine.name())).or_default().push(*value);
        }
    }

    fn print(mut self, engines: &[Engine]) {
        let heads: Vec<&str> = engines.iter().map(|engine| engine.name()).collect();
        println!("| | {} |", heads.join(" | "));
        println!("|---|{}", "---|".repeat(heads.len()));
        for name in &self.order {
            let cells: Vec<String> = heads
                .iter()
                .map(|&engine| {
                    self.values.get_mut(&(name.clone(), engine)).map_or("-".into(), |all| shown(median(all)))
                })
                .collect();
            println!("| {name} | {} |", cells.join(" | "));
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
