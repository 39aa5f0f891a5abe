//! What people and programs read on stdout: sizes, times, tables, JSON.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io::{BufWriter, Stdout, Write};
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::unistd::{Gid, Group, Uid, User};

/// Buffered stdout. Writing fails instead of panicking when the reader is gone.
pub fn stdout() -> BufWriter<Stdout> {
    BufWriter::new(std::io::stdout())
}

/// Prints a value as indented JSON and a newline.
pub fn print_json(value: &serde_json::Value) -> Result<()> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

fn scaled(bytes: u64) -> (f64, usize) {
    let (mut value, mut unit) = (bytes as f64, 0);
    // 1023.95 KiB would be shown as 1024.0 KiB.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    (value, unit)
}

/// `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    match scaled(bytes) {
        (_, 0) => format!("{bytes} B"),
        (value, unit) => format!("{value:.1} {}", UNITS[unit]),
    }
}

/// `1.5G`, as `ls -h` says it.
pub fn short_size(bytes: u64) -> String {
    match scaled(bytes) {
        (_, 0) => bytes.to_string(),
        (value, unit) => format!("{value:.1}{}", &UNITS[unit][..1]),
    }
}

/// Bytes, as asked for: exact or short.
pub fn bytes(count: u64, human: bool) -> String {
    if human { short_size(count) } else { count.to_string() }
}

/// Reads `4096`, `64K`, `1.5GiB`, `10MB`; units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let power = match unit.trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => bail!("{text}: not a size (as in 4096, 64M or 1.5GiB)"),
    };
    let factor = 1u64 << (10 * power);
    let value = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => match number.parse::<f64>() {
            Ok(value) if value * (factor as f64) < u64::MAX as f64 => Some((value * factor as f64) as u64),
            _ => None,
        },
    };
    match value {
        Some(value) => Ok(value),
        None => bail!("{text}: not a size (as in 4096, 64M or 1.5GiB)"),
    }
}

/// Reads `30s`, `90m`, `2h`, `1d`.
pub fn parse_span(text: &str) -> std::result::Result<Duration, String> {
    let expected = || format!("{text}: not a time (as in 30s, 90m, 2h or 1d)");
    let split = text.len().saturating_sub(1);
    let (number, unit) = text.split_at_checked(split).ok_or_else(expected)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number.checked_mul(seconds).filter(|seconds| *seconds > 0).map(Duration::from_secs).ok_or_else(expected)
}

/// A span in words: `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..10_000 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..60_000 => format!("{} s", ms / 1000),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// Local time as `ls` shows it: `2025-11-21 14:56`; with seconds and zone if `full`.
pub fn local_time(ns: i64, full: bool) -> String {
    let seconds = ns.div_euclid(1_000_000_000) as libc::time_t;
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    let format: &CStr = if full { c"%Y-%m-%d %H:%M:%S %z" } else { c"%Y-%m-%d %H:%M" };
    let mut text = [0u8; 64];
    // SAFETY: `parts` and `text` live across the calls and are as large as said; the format is NUL-terminated;
    // localtime_r fills `parts` completely when it returns non-null.
    let length = unsafe {
        if libc::localtime_r(&seconds, parts.as_mut_ptr()).is_null() {
            return seconds.to_string();
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), format.as_ptr(), parts.as_ptr())
    };
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// Names of users and groups, each looked up once.
#[derive(Default)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// The user's name, or its number.
    pub fn user(&mut self, uid: u32) -> &str {
        self.users.entry(uid).or_insert_with(|| match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => user.name,
            _ => uid.to_string(),
        })
    }

    /// The group's name, or its number.
    pub fn group(&mut self, gid: u32) -> &str {
        self.groups.entry(gid).or_insert_with(|| match Group::from_gid(Gid::from_raw(gid)) {
            Ok(Some(group)) => group.name,
            _ => gid.to_string(),
        })
    }
}

/// Rows aligned in columns; columns whose header begins with `>` are aligned to the right.
pub struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headers.
    pub fn new(headers: &[&str]) -> Table {
        let right = headers.iter().map(|header| header.starts_with('>')).collect();
        let first = headers.iter().map(|header| header.trim_start_matches('>').to_string()).collect();
        Table { right, rows: vec![first] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines, each indented by `indent` spaces.
    pub fn render(&self, indent: usize) -> String {
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                if right {
                    line.push_str(&format!("{cell:>width$}  "));
                } else {
                    line.push_str(&format!("{cell:<width$}  "));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        assert_eq!(parse_size("4096").unwrap(), 4096);
        assert_eq!(parse_size("64K").unwrap(), 64 << 10);
        assert_eq!(parse_size("1.5GiB").unwrap(), 3 << 29);
        assert_eq!(parse_size("10mb").unwrap(), 10 << 20);
        for text in ["", "x", "1Q", "-1", "99999999999999999999", "1..5", "17179869185G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size((1 << 20) - 1), "1.0 MiB");
        assert_eq!(short_size(3 << 29), "1.5G");
        assert_eq!(short_size(u64::MAX), "16.0E");
    }

    #[test]
    fn spans_are_in_words() {
        assert_eq!(span(850), "850 ms");
        assert_eq!(span(1500), "1.5 s");
        assert_eq!(span(200_000), "3 min 20 s");
    }

    #[test]
    fn tables_align() {
        let mut table = Table::new(&["name", ">size"]);
        table.row(vec!["a".into(), "10".into()]);
        table.row(vec!["long".into(), "5".into()]);
        assert_eq!(table.render(1), " name  size\n a       10\n long     5\n");
    }
}
