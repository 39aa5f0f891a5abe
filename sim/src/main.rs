//! Runs seeds: `cairn-sim --seeds 0..1000`, or `cairn-sim --seed 7 --trace` to see one.

use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::time::Instant;

use cairn_sim::{entropy, machine, run, trace};
use clap::Parser;

/// How long one seed may take on the clock of this machine before it counts as hanging, in seconds.
const PATIENCE: u32 = 600;

/// A whole CairnFS cluster in one thread, driven by a seed.
#[derive(Parser)]
struct Arguments {
    /// Seeds to run, `from..to`.
    #[arg(long, value_parser = range, conflicts_with = "seed")]
    seeds: Option<(u64, u64)>,
    /// One seed, in detail.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints every event, and what the cluster logs at the level of `RUST_LOG` or `info`.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Runs every seed twice and compares the traces.
    #[arg(long)]
    twice: bool,
    /// Seeds that run at the same time.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// Goes on after a violation.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("want from..to")?;
    let number = |part: &str| part.parse::<u64>().map_err(|error| format!("{part}: {error}"));
    Ok((number(from)?, number(to)?))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !entropy::is_repeatable() {
        eprintln!("randomness is not under control in this build: runs cannot be repeated");
        return ExitCode::FAILURE;
    }
    let (from, to) = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(seeds)) => seeds,
        (None, None) => (0, 200),
    };
    let begun = Instant::now();
    let (mut failed, mut next, mut done) = (0, from, 0);
    let mut running: Vec<(u64, Child)> = Vec::new();
    while next < to || !running.is_empty() {
        while next < to
            && running.len() < arguments.jobs.max(1) as usize
            && (failed == 0 || arguments.keep_going)
        {
            running.push((next, spawn(next, arguments.trace)));
            next += 1;
        }
        if running.is_empty() {
            break;
        }
        let (seed, child) = running.remove(0);
        let output = child.wait();
        let again = arguments.twice.then(|| spawn(seed, false).wait());
        done += 1;
        let mut verdict = output.clone();
        if let Some(again) = again
            && digest_of(&again) != digest_of(&output)
        {
            verdict = format!("FAILED two runs differ: {:?} {:?}", digest_of(&output), digest_of(&again));
        }
        if !verdict.starts_with("ok ") {
            failed += 1;
            println!("seed {seed}: {verdict}");
            println!("replay: cargo run --release -p cairn-sim -- --seed {seed} --trace");
        } else if arguments.seed.is_some() {
            println!("seed {seed}: {verdict}");
        }
        if done % 1000 == 0 {
            println!("{done} seeds, {failed} failed, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    println!(
        "seeds {from}..{}: {done} run, {failed} failed, {:.1} s",
        from + done,
        begun.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The part of an output that two runs of a seed share.
fn digest_of(output: &str) -> Option<&str> {
    output.split_whitespace().find(|word| word.starts_with("digest="))
}

/// A seed in a process of its own: fresh, and of no consequence to the others whatever it does.
struct Child {
    process: libc::pid_t,
    output: std::fs::File,
}

impl Child {
    /// Waits for its end and says how it went.
    fn wait(mut self) -> String {
        let mut output = String::new();
        let read = self.output.read_to_string(&mut output);
        let mut status = 0;
        // SAFETY: `status` is valid, and the process is a child that nobody else waits for.
        unsafe { libc::waitpid(self.process, &mut status, 0) };
        if read.is_ok() && libc::WIFEXITED(status) && !output.is_empty() {
            return output.trim_end().to_owned();
        }
        let how = match libc::WIFSIGNALED(status) {
            true if libc::WTERMSIG(status) == libc::SIGALRM => {
                format!("it hangs: no end within {PATIENCE} s")
            }
            true => format!("it was ended by signal {}", libc::WTERMSIG(status)),
            false => "it panicked".to_owned(),
        };
        format!("FAILED {how}\n{output}")
    }
}

fn spawn(seed: u64, traced: bool) -> Child {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for two descriptors. This process has one thread, so its child may go on as it likes.
    let (piped, process) = unsafe { (libc::pipe(ends.as_mut_ptr()), libc::fork()) };
    assert!(piped == 0 && process >= 0, "no pipe or no process");
    // SAFETY: the descriptors are fresh and owned by nobody else.
    let (output, mut input) =
        unsafe { (std::fs::File::from_raw_fd(ends[0]), std::fs::File::from_raw_fd(ends[1])) };
    if process > 0 {
        drop(input);
        return Child { process, output };
    }
    drop(output);
    // SAFETY: a child that runs for too long is ended by this signal's default action.
    unsafe { libc::alarm(PATIENCE) };
    if traced {
        // Here, and not in the run's own thread: what it draws must not make a run that is looked at another one.
        log();
    }
    entropy::seed(seed);
    // Generators of the thread that is left may have drawn already.
    let ran = std::thread::Builder::new().stack_size(16 << 20).spawn(move || {
        trace::print(traced);
        run(seed)
    });
    let report = ran.ok().and_then(|thread| thread.join().ok());
    if let Some(report) = report {
        let (begun, unknown) = report.operations;
        let head = if report.violations.is_empty() { "ok " } else { "FAILED " };
        let line = format!(
            "{head}{} s, {begun} operations ({unknown} unknown), {} events, digest={:016x}\n",
            report.seconds, report.events, report.digest
        );
        let violations: String = report.violations.iter().map(|what| format!("  {what}\n")).collect();
        let _ = input.write_all((line + &violations).as_bytes());
    }
    drop(input);
    // SAFETY: nothing needs to be cleaned up in a copy of the process.
    unsafe { libc::_exit(0) }
}

/// What the cluster logs, with the run's time.
fn log() {
    struct Virtual;
    impl tracing_subscriber::fmt::time::FormatTime for Virtual {
        fn format_time(&self, out: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            write!(out, "{:>9.3} {:<4}", machine::now() as f64 / 1e9, machine::current_name())
        }
    }
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_timer(Virtual)
        .with_ansi(false)
        .with_writer(std::io::stdout)
        .init();
}
