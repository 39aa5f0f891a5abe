//! File modes as `chmod` takes them and `ls -l` shows them.

use anyhow::{Result, bail};
use cairn_client::fs::FileKind;

/// A change of permission bits: octal, or clauses such as `u+x,go-w`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits exactly.
    Exact(u32),
    /// Clauses, applied in order.
    Clauses(Vec<Clause>),
}

/// One `who op what` of a symbolic mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Mask of the classes meant: bits of 0700, 0070, 0007.
    who: u32,
    /// No class was named, so the umask holds bits back.
    masked: bool,
    op: Op,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Set,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// Permissions in all three classes, execute only if sensible, set-id bits, sticky bit.
    Bits { permissions: u32, execute_if_any: bool, set_id: bool, sticky: bool },
    /// The permissions of another class: shift of its bits.
    CopyOf(u32),
}

impl ModeChange {
    /// Reads an octal or symbolic mode.
    pub fn parse(text: &str) -> Result<ModeChange> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let Ok(mode) = u32::from_str_radix(text, 8) else { bail!("{text}: not an octal mode") };
            if mode > 0o7777 {
                bail!("{text}: a mode is at most 7777");
            }
            return Ok(ModeChange::Exact(mode));
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            parse_part(part, &mut clauses)
                .map_err(|why| anyhow::anyhow!("{text}: not a mode: {why} (as in 644 or u+rwx,go-w)"))?;
        }
        Ok(ModeChange::Clauses(clauses))
    }

    /// The mode of a file that had `mode`.
    pub fn apply(&self, mode: u32, directory: bool, umask: u32) -> u32 {
        match self {
            ModeChange::Exact(exact) => *exact,
            ModeChange::Clauses(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, directory, umask))
            }
        }
    }
}

fn parse_part(part: &str, clauses: &mut Vec<Clause>) -> Result<()> {
    let mut letters = part.chars().peekable();
    let mut who = 0;
    while let Some(class) = letters.peek().and_then(|&letter| class_mask(letter)) {
        who |= class;
        letters.next();
    }
    let masked = who == 0;
    let who = if masked { 0o777 } else { who };
    if letters.peek().is_none() {
        bail!("an operation (+, - or =) is missing");
    }
    while let Some(letter) = letters.next() {
        let op = match letter {
            '+' => Op::Add,
            '-' => Op::Remove,
            '=' => Op::Set,
            other => bail!("'{other}' where +, - or = is expected"),
        };
        let what = match letters.peek() {
            Some('u') => What::CopyOf(6),
            Some('g') => What::CopyOf(3),
            Some('o') => What::CopyOf(0),
            _ => What::Bits { permissions: 0, execute_if_any: false, set_id: false, sticky: false },
        };
        let what = if let What::CopyOf(_) = what {
            letters.next();
            what
        } else {
            let (mut permissions, mut execute_if_any, mut set_id, mut sticky) = (0, false, false, false);
            while let Some(&letter) = letters.peek() {
                match letter {
                    'r' => permissions |= 0o444,
                    'w' => permissions |= 0o222,
                    'x' => permissions |= 0o111,
                    'X' => execute_if_any = true,
                    's' => set_id = true,
                    't' => sticky = true,
                    _ => break,
                }
                letters.next();
            }
            What::Bits { permissions, execute_if_any, set_id, sticky }
        };
        clauses.push(Clause { who, masked, op, what });
    }
    Ok(())
}

fn class_mask(letter: char) -> Option<u32> {
    match letter {
        'u' => Some(0o700),
        'g' => Some(0o070),
        'o' => Some(0o007),
        'a' => Some(0o777),
        _ => None,
    }
}

impl Clause {
    fn apply(&self, mode: u32, directory: bool, umask: u32) -> u32 {
        let mut bits = match self.what {
            What::CopyOf(shift) => ((mode >> shift) & 0o7) * 0o111,
            What::Bits { permissions, execute_if_any, .. } => {
                let execute = execute_if_any && (directory || mode & 0o111 != 0);
                permissions | if execute { 0o111 } else { 0 }
            }
        } & self.who;
        if self.masked {
            bits &= !umask;
        }
        if let What::Bits { set_id, sticky, .. } = self.what {
            if set_id && self.who & 0o700 != 0 {
                bits |= 0o4000;
            }
            if set_id && self.who & 0o070 != 0 {
                bits |= 0o2000;
            }
            if sticky {
                bits |= 0o1000;
            }
        }
        match self.op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            Op::Set => {
                // As GNU chmod: `=` on a directory leaves its set-id bits alone unless they are named.
                let special = if directory { 0 } else { 0o6000 };
                let mut cleared = self.who;
                if self.who & 0o700 != 0 {
                    cleared |= special & 0o4000;
                }
                if self.who & 0o070 != 0 {
                    cleared |= special & 0o2000;
                }
                (mode & !cleared) | bits
            }
        }
    }
}

/// What a copy keeps of the mode of its original, by the owner and group of both: nobody is to run with the rights of whoever
/// copied what another one wrote.
pub fn kept(mode: u32, original: (u32, u32), copy: (u32, u32)) -> u32 {
    let user = if original.0 == copy.0 { 0o4000 } else { 0 };
    let group = if original.1 == copy.1 { 0o2000 } else { 0 };
    mode & (0o1777 | user | group)
}

/// The letter of a file kind, as in the first column of `ls -l`.
pub fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::File => '-',
        FileKind::Unspecified => '?',
    }
}

/// The kind in words.
pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::Symlink => "symbolic link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::File => "regular file",
        FileKind::Unspecified => "unknown",
    }
}

/// `drwxr-xr-x`.
pub fn shown(kind: FileKind, mode: u32) -> String {
    let mut text = String::with_capacity(10);
    text.push(kind_letter(kind));
    for (shift, special, lower, upper) in
        [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')]
    {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => lower,
            (false, true) => upper,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, mode: u32) -> u32 {
        ModeChange::parse(text).unwrap().apply(mode, false, 0o022)
    }

    #[test]
    fn octal_modes_are_exact() {
        assert_eq!(changed("644", 0o777), 0o644);
        assert_eq!(changed("4755", 0), 0o4755);
        assert!(ModeChange::parse("10000").is_err());
        assert!(ModeChange::parse("888").is_err());
    }

    #[test]
    fn symbolic_modes_change_only_what_they_name() {
        assert_eq!(changed("u+x", 0o644), 0o744);
        assert_eq!(changed("go-w", 0o666), 0o644);
        assert_eq!(changed("u=rw,go=r", 0o777), 0o644);
        assert_eq!(changed("a=", 0o777), 0);
        assert_eq!(changed("g=u", 0o700), 0o770);
        assert_eq!(changed("u+rw-x", 0o500), 0o600);
        assert_eq!(changed("u+s,+t", 0o755), 0o5755);
    }

    #[test]
    fn without_a_class_the_umask_holds_bits_back() {
        assert_eq!(changed("+w", 0o444), 0o644);
        assert_eq!(changed("a+w", 0o444), 0o666);
    }

    #[test]
    fn capital_x_is_for_directories_and_programs() {
        let change = ModeChange::parse("a+X").unwrap();
        assert_eq!(change.apply(0o644, false, 0), 0o644);
        assert_eq!(change.apply(0o744, false, 0), 0o755);
        assert_eq!(change.apply(0o644, true, 0), 0o755);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "u", "u?x", "rwx", "u+q", "u+x,,"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn set_id_bits_are_kept_with_the_same_owner_and_group_only() {
        assert_eq!(kept(0o107755, (1, 2), (1, 2)), 0o7755);
        assert_eq!(kept(0o7755, (1, 2), (3, 2)), 0o3755);
        assert_eq!(kept(0o7755, (1, 2), (1, 3)), 0o5755);
        assert_eq!(kept(0o6711, (0, 0), (3, 4)), 0o711);
    }

    #[test]
    fn modes_are_shown_as_ls_shows_them() {
        assert_eq!(shown(FileKind::Directory, 0o1777), "drwxrwxrwt");
        assert_eq!(shown(FileKind::File, 0o4640), "-rwSr-----");
        assert_eq!(shown(FileKind::Symlink, 0o777), "lrwxrwxrwx");
    }
}
