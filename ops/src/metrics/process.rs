//! What the process takes of its machine, under the names that Prometheus' own libraries use.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Page;

/// Writes memory, processor time, open files and the time of start. What cannot be read is left out.
pub fn process(page: &mut Page<'_>) {
    // SAFETY: sysconf only reads.
    let (ticks, page_size) = unsafe { (libc::sysconf(libc::_SC_CLK_TCK), libc::sysconf(libc::_SC_PAGESIZE)) };
    let (ticks, page_size) = (ticks.max(1) as f64, page_size.max(1) as f64);
    if let Some(stat) = Stat::read() {
        let seconds = (stat.user + stat.system) as f64 / ticks;
        page.counter_f64("process_cpu_seconds", "Processor time used, in seconds", seconds);
        let resident = stat.resident_pages as f64 * page_size;
        page.gauge("process_resident_memory_bytes", "Memory in use, in bytes", resident);
        page.gauge("process_threads", "Threads", stat.threads as f64);
        if let Some(booted) = booted() {
            let started = booted.as_secs_f64() + stat.started as f64 / ticks;
            page.gauge("process_start_time_seconds", "When it started, in seconds since 1970", started);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open files and connections", open.count() as f64);
    }
    if let Some(limit) = descriptor_limit() {
        page.gauge("process_max_fds", "Files and connections that may be open", limit as f64);
    }
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.info("cairn_build", "The program's version", &version);
}

struct Stat {
    user: u64,
    system: u64,
    threads: u64,
    started: u64,
    resident_pages: u64,
}

impl Stat {
    fn read() -> Option<Stat> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The command's name may hold anything, but nothing after its closing parenthesis does.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |index: usize| fields.get(index)?.parse().ok();
        Some(Stat {
            user: field(11)?,
            system: field(12)?,
            threads: field(17)?,
            started: field(19)?,
            resident_pages: field(21)?,
        })
    }
}

/// When the machine started, since 1970.
fn booted() -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    now.checked_sub(Duration::try_from_secs_f64(seconds).ok()?)
}

fn descriptor_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct it is given and nowhere else.
    (unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0).then_some(limit.rlim_cur)
}
