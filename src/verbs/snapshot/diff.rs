//! `cairn snapshot diff`: what became of a directory between two moments.
//!
//! Both trees are listed and compared by what each name leads to: an inode keeps its number, so one that has another
//! name was renamed, whatever happened to it besides. What lies below a directory that came, went or was renamed is not
//! listed one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use anyhow::Result;
use cairn_client::fs;
use clap::Args;
use serde_json::{Value, json};

use super::{own_number, top};
use crate::client::Client;
use crate::output;
use crate::paths::ClusterPath;
use crate::tree::Walk;

/// Arguments of `cairn snapshot diff`.
#[derive(Args)]
pub struct Diff {
    /// The directory
    #[arg(value_name = "DIR")]
    directory: ClusterPath,
    /// The earlier snapshot
    #[arg(value_name = "FROM")]
    from: String,
    /// The later one (else the present)
    #[arg(value_name = "TO")]
    to: Option<String>,
    /// As a JSON array
    #[arg(long)]
    json: bool,
}

/// Shows what has changed.
pub async fn diff(client: Arc<Client>, args: Diff) -> Result<()> {
    let from = top(&client, &args.directory, &args.from).await?;
    let to = match &args.to {
        Some(name) => top(&client, &args.directory, name).await?,
        None => (args.directory.clone(), client.stat(&args.directory, true).await?),
    };
    let (before, after) = (tree(&client, from).await, tree(&client, to).await);
    if client.report.failures() > 0 {
        // What could not be listed would look as if it were gone.
        return Ok(());
    }
    let changes = compare(&before, &after);
    if args.json {
        return output::print_json(&changes.iter().map(value).collect());
    }
    let mut out = output::stdout();
    for change in &changes {
        writeln!(out, "{}", line(change))?;
    }
    out.flush()?;
    Ok(())
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Modified(Vec<u8>),
    Came(Vec<u8>),
    Went(Vec<u8>),
    Renamed(Vec<u8>, Vec<u8>),
}

/// A name: its directory's inode, and itself.
type Name = (u64, Vec<u8>);

/// A directory at one moment.
#[derive(Default)]
struct Tree {
    /// What each name leads to, and its path.
    names: BTreeMap<Name, (u64, Vec<u8>)>,
    inodes: BTreeMap<u64, fs::Attr>,
}

async fn tree(client: &Arc<Client>, (path, attr): (ClusterPath, fs::Attr)) -> Tree {
    let mut found = Tree::default();
    // The way down to what is being listed, by its depth.
    let mut way: Vec<u64> = Vec::new();
    let start = path.as_bytes().len();
    let mut walk = Walk::new(client.clone(), path.clone(), attr);
    while let Some(entry) = walk.next_listed().await {
        let inode = own_number(&entry.attr);
        way.truncate(entry.depth);
        let name = entry.path.name().unwrap_or_default().to_vec();
        let relative = entry.path.as_bytes()[start..].to_vec();
        let key = way.last().map_or((0, Vec::new()), |parent| (*parent, name));
        found.names.insert(key, (inode, relative));
        found.inodes.insert(inode, entry.attr);
        way.push(inode);
    }
    found
}

/// Whether an inode is another than it was, names aside.
fn is_modified(before: &fs::Attr, after: &fs::Attr, renamed: bool) -> bool {
    let shape = |attr: &fs::Attr| (attr.mode, attr.uid, attr.gid, attr.acl);
    if before.kind() == fs::FileKind::Directory {
        // Its times and version tell of names, which are compared by themselves.
        return shape(before) != shape(after);
    }
    let content = |attr: &fs::Attr| (attr.size, attr.allocated, attr.mtime_ns, attr.replication);
    // A new name, or one less, is a new version as well.
    let same_names = !renamed && before.nlink == after.nlink;
    shape(before) != shape(after)
        || content(before) != content(after)
        || (same_names && before.version != after.version)
}

fn compare(before: &Tree, after: &Tree) -> Vec<Change> {
    let only = |one: &Tree, other: &Tree| {
        let leads_there =
            |name: &Name, inode: u64| other.names.get(name).is_some_and(|(there, _)| *there == inode);
        let differs = one.names.iter().filter(|(name, (inode, _))| !leads_there(name, *inode));
        let mut by_inode: BTreeMap<u64, Vec<(Name, Vec<u8>)>> = BTreeMap::new();
        for (name, (inode, path)) in differs {
            by_inode.entry(*inode).or_default().push((name.clone(), path.clone()));
        }
        by_inode
    };
    let (went, mut came) = (only(before, after), only(after, before));
    let mut found = BTreeSet::new();
    let mut touched = BTreeSet::new();
    let mut renamed = BTreeSet::new();
    for (inode, old) in went {
        let mut new = came.remove(&inode).unwrap_or_default().into_iter();
        for ((parent, _), path) in old {
            touched.insert(parent);
            if let Some(((into, _), now)) = new.next() {
                touched.insert(into);
                renamed.insert(inode);
                found.insert(Change::Renamed(path, now));
            } else if parent == 0 || after.inodes.contains_key(&parent) {
                found.insert(Change::Went(path));
            }
        }
        came.entry(inode).or_default().extend(new);
    }
    for ((parent, _), path) in came.into_values().flatten() {
        touched.insert(parent);
        if parent == 0 || before.inodes.contains_key(&parent) {
            found.insert(Change::Came(path));
        }
    }
    let mut shown = BTreeSet::new();
    for (inode, path) in after.names.values() {
        let (Some(old), Some(new)) = (before.inodes.get(inode), after.inodes.get(inode)) else { continue };
        let is_modified = touched.contains(inode) || is_modified(old, new, renamed.contains(inode));
        if is_modified && shown.insert(*inode) {
            found.insert(Change::Modified(path.clone()));
        }
    }
    let mut found: Vec<Change> = found.into_iter().collect();
    found.sort_by(|a, b| (path_of(a), a).cmp(&(path_of(b), b)));
    found
}

fn path_of(change: &Change) -> &[u8] {
    match change {
        Change::Modified(path) | Change::Came(path) | Change::Went(path) | Change::Renamed(path, _) => path,
    }
}

/// A path below the directory, as `hdfs snapshotDiff` has it.
fn shown(path: &[u8]) -> String {
    format!(
        ".{}{}",
        if path.is_empty() || path.starts_with(b"/") { "" } else { "/" },
        String::from_utf8_lossy(path)
    )
}

fn line(change: &Change) -> String {
    match change {
        Change::Modified(path) => format!("M {}", shown(path)),
        Change::Came(path) => format!("+ {}", shown(path)),
        Change::Went(path) => format!("- {}", shown(path)),
        Change::Renamed(old, new) => format!("R {} -> {}", shown(old), shown(new)),
    }
}

fn value(change: &Change) -> Value {
    match change {
        Change::Modified(path) => json!({ "change": "M", "path": shown(path) }),
        Change::Came(path) => json!({ "change": "+", "path": shown(path) }),
        Change::Went(path) => json!({ "change": "-", "path": shown(path) }),
        Change::Renamed(old, new) => json!({ "change": "R", "path": shown(old), "to": shown(new) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parent, name, inode, version; a directory if the name ends with a slash.
    fn tree(names: &[(u64, &str, u64, u64)]) -> Tree {
        let mut tree = Tree::default();
        let mut paths = BTreeMap::from([(0, String::new()), (1, String::new())]);
        for (parent, name, inode, version) in names {
            let plain = name.trim_end_matches('/');
            let path = if *parent == 0 { String::new() } else { format!("{}/{plain}", paths[parent]) };
            let kind =
                if *name != plain || *parent == 0 { fs::FileKind::Directory } else { fs::FileKind::File };
            let attr =
                fs::Attr { inode: *inode, version: *version, kind: kind.into(), ..fs::Attr::default() };
            tree.names.insert((*parent, plain.as_bytes().to_vec()), (*inode, path.clone().into_bytes()));
            tree.inodes.insert(*inode, attr);
            paths.insert(*inode, path);
        }
        tree
    }

    fn lines(before: &Tree, after: &Tree) -> Vec<String> {
        compare(before, after).iter().map(line).collect()
    }

    #[test]
    fn what_came_went_moved_and_changed_is_told() {
        let before = tree(&[
            (0, "", 1, 1),
            (1, "d/", 2, 1),
            (2, "kept", 3, 1),
            (2, "changed", 4, 1),
            (1, "old/", 5, 1),
            (5, "inside", 6, 1),
            (1, "gone/", 7, 1),
            (7, "with", 8, 1),
        ]);
        assert!(lines(&before, &before).is_empty());
        let after = tree(&[
            (0, "", 1, 9),
            (1, "d/", 2, 1),
            (2, "kept", 3, 1),
            (2, "changed", 4, 2),
            (1, "new/", 5, 3),
            (5, "inside", 6, 1),
            (1, "fresh/", 10, 1),
            (10, "file", 11, 1),
        ]);
        assert_eq!(
            lines(&before, &after),
            ["M .", "M ./d/changed", "+ ./fresh", "- ./gone", "R ./old -> ./new"]
        );
    }

    #[test]
    fn a_file_that_replaces_another_is_renamed_and_the_other_gone() {
        let before = tree(&[(0, "", 1, 1), (1, "a", 2, 1), (1, "b", 3, 1)]);
        let after = tree(&[(0, "", 1, 2), (1, "b", 2, 2)]);
        assert_eq!(lines(&before, &after), ["M .", "R ./a -> ./b", "- ./b"]);
    }

    #[test]
    fn another_name_is_no_change_of_the_file() {
        let before = tree(&[(0, "", 1, 1), (1, "a", 2, 1)]);
        let mut after = tree(&[(0, "", 1, 2), (1, "a", 2, 2), (1, "b", 2, 2)]);
        after.inodes.get_mut(&2).unwrap().nlink = 2;
        assert_eq!(lines(&before, &after), ["M .", "+ ./b"]);
    }
}
