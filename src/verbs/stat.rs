//! `cairn stat`.

use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use serde_json::{Value, json};

use crate::client::Client;
use crate::mode;
use crate::output::{self, Names};
use crate::paths::ClusterPath;

/// Arguments of `cairn stat`.
#[derive(Args)]
pub struct Stat {
    /// What to show
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<ClusterPath>,
    /// Show what a symbolic link points to
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Print this instead: %n name, %s size, %F kind, %a %A mode, %u %U owner, %g %G group, %i inode,
    /// %h links, %b bytes allocated, %r replication, %v version, %X %Y %Z access, change of content and change of
    /// attributes in seconds, %y change of content in words
    #[arg(short = 'c', long, value_name = "FORMAT")]
    format: Option<String>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows attributes.
pub async fn run(client: Arc<Client>, args: Stat) -> Result<()> {
    let mut out = output::stdout();
    let mut names = Names::default();
    let mut objects = Vec::new();
    for path in &args.paths {
        let attr = match client.stat(path, args.dereference || path.directory_meant()).await {
            Ok(attr) => attr,
            Err(error) => {
                client.report.failed(error);
                continue;
            }
        };
        if args.json {
            objects.push(as_json(path, &attr));
        } else if let Some(format) = &args.format {
            writeln!(out, "{}", formatted(format, path, &attr, &mut names))?;
        } else {
            write_long(&mut out, path, &attr, &mut names)?;
        }
    }
    out.flush()?;
    if args.json {
        output::print_json(&Value::Array(objects))?;
    }
    Ok(())
}

/// Attributes as programs read them.
pub fn as_json(path: &ClusterPath, attr: &fs::Attr) -> Value {
    json!({
        "path": path.to_string(),
        "kind": mode::kind_name(attr.kind()),
        "inode": attr.inode,
        "mode": format!("{:04o}", attr.mode),
        "uid": attr.uid,
        "gid": attr.gid,
        "links": attr.nlink,
        "size": attr.size,
        "allocated": attr.allocated,
        "replication": attr.replication,
        "version": attr.version,
        "acl": attr.acl,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
    })
}

fn write_long(out: &mut impl Write, path: &ClusterPath, attr: &fs::Attr, names: &mut Names) -> Result<()> {
    let kind = mode::kind_name(attr.kind());
    writeln!(out, "  File: {path}")?;
    writeln!(out, "  Size: {:<14} Allocated: {:<14} {kind}", attr.size, attr.allocated)?;
    writeln!(out, " Inode: {:<14} Links: {:<4} Replication: {}", attr.inode, attr.nlink, attr.replication)?;
    let (user, group) = (names.user(attr.uid).to_string(), names.group(attr.gid).to_string());
    let shown = mode::shown(attr.kind(), attr.mode);
    writeln!(
        out,
        "  Mode: {:04o}/{shown}  Uid: {} ({user})  Gid: {} ({group})",
        attr.mode, attr.uid, attr.gid
    )?;
    for (label, ns) in [("Access", attr.atime_ns), ("Modify", attr.mtime_ns), ("Change", attr.ctime_ns)] {
        writeln!(out, "{label}: {}", output::local_time(ns, true))?;
    }
    Ok(())
}

fn formatted(format: &str, path: &ClusterPath, attr: &fs::Attr, names: &mut Names) -> String {
    let seconds = |ns: i64| ns.div_euclid(1_000_000_000).to_string();
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => text.push_str(&path.to_string()),
            Some('s') => text.push_str(&attr.size.to_string()),
            Some('F') => text.push_str(mode::kind_name(attr.kind())),
            Some('a') => text.push_str(&format!("{:o}", attr.mode)),
            Some('A') => text.push_str(&mode::shown(attr.kind(), attr.mode)),
            Some('u') => text.push_str(&attr.uid.to_string()),
            Some('U') => text.push_str(names.user(attr.uid)),
            Some('g') => text.push_str(&attr.gid.to_string()),
            Some('G') => text.push_str(names.group(attr.gid)),
            Some('i') => text.push_str(&attr.inode.to_string()),
            Some('h') => text.push_str(&attr.nlink.to_string()),
            Some('b') => text.push_str(&attr.allocated.to_string()),
            Some('r') => text.push_str(&attr.replication.to_string()),
            Some('v') => text.push_str(&attr.version.to_string()),
            Some('X') => text.push_str(&seconds(attr.atime_ns)),
            Some('Y') => text.push_str(&seconds(attr.mtime_ns)),
            Some('Z') => text.push_str(&seconds(attr.ctime_ns)),
            Some('y') => text.push_str(&output::local_time(attr.mtime_ns, true)),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_filled_in() {
        let attr = fs::Attr { size: 5, mode: 0o644, kind: fs::FileKind::File as i32, ..Default::default() };
        let path = ClusterPath::new(b"/a");
        let text = formatted("%n %s %a %A 100%% %q %", &path, &attr, &mut Names::default());
        assert_eq!(text, "/a 5 644 -rw-r--r-- 100% %q %");
    }
}
