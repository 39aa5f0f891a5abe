//! Runs seeds, each in a process of its own, several at a time.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::time::Instant;

use crate::{entropy, machine, run, trace};

/// How long one seed may take on the clock of this machine before it counts as hanging, in seconds.
const PATIENCE: u32 = 600;

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The first seed.
    pub from: u64,
    /// One after the last.
    pub to: u64,
    /// Seeds that run at the same time.
    pub jobs: usize,
    /// Runs every seed twice and compares the traces.
    pub twice: bool,
    /// Goes on after a violation.
    pub keep_going: bool,
    /// Prints every event, and what the cluster logs.
    pub trace: bool,
}

impl Batch {
    /// Runs it, says what came of it, and returns how many seeds failed.
    ///
    /// The process must have one thread.
    pub fn run(&self) -> u64 {
        let begun = Instant::now();
        prepare();
        let (mut failed, mut next, mut done) = (0, self.from, 0);
        let mut running: VecDeque<(u64, Child)> = VecDeque::new();
        loop {
            while next < self.to && running.len() < self.jobs.max(1) && (failed == 0 || self.keep_going) {
                running.push_back((next, spawn(next, self.trace)));
                next += 1;
            }
            let Some((seed, child)) = running.pop_front() else { break };
            done += 1;
            let verdict = self.verdict(seed, child.wait());
            if !verdict.starts_with("ok ") {
                failed += 1;
                println!("seed {seed}: {verdict}");
                println!("replay: cargo run --release -p cairn-sim -- --seed {seed} --trace");
            } else if self.to - self.from == 1 {
                println!("seed {seed}: {verdict}");
            }
            if done % 1000 == 0 {
                println!("{done} seeds, {failed} failed, {:.0} s", begun.elapsed().as_secs_f64());
            }
        }
        println!(
            "seeds {}..{}: {done} run, {failed} failed, {:.1} s",
            self.from,
            self.from + done,
            begun.elapsed().as_secs_f64()
        );
        failed
    }

    fn verdict(&self, seed: u64, output: String) -> String {
        if !self.twice {
            return output;
        }
        let again = spawn(seed, false).wait();
        if digest_of(&again) == digest_of(&output) {
            return output;
        }
        format!("FAILED two runs differ: {:?} {:?}", digest_of(&output), digest_of(&again))
    }
}

/// The part of an output that two runs of a seed share.
fn digest_of(output: &str) -> Option<&str> {
    output.split_whitespace().find(|word| word.starts_with("digest="))
}

/// Makes what is costly to make and of no consequence, once for all children: the table of the histograms that Raft keeps
/// its statistics in took a twentieth of a run.
fn prepare() {
    base2histogram::Histogram::<()>::new();
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
