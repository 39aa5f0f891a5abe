//! The supplementary groups of a process, which the kernel's requests do not carry.

use std::fs;

/// The groups of the process `pid` as it is now. None if it is gone, or in a namespace that cannot be seen from here.
pub(crate) fn of(pid: u32) -> Vec<u32> {
    fs::read_to_string(format!("/proc/{pid}/status")).map(|status| parse(&status)).unwrap_or_default()
}

fn parse(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_status() {
        assert_eq!(parse("Name:\tsh\nGroups:\t4 24 1000 \nNStgid:\t7\n"), [4, 24, 1000]);
        assert!(parse("Name:\tsh\nGroups:\t \n").is_empty() && parse("").is_empty());
        assert!(of(0).is_empty());
    }
}
