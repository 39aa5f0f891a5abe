//! What the pages of the dashboard ask, and what the leader answers, as JSON.

use std::collections::BTreeMap;

use cairn_metadata::store::StoreError;
use cairn_ops::health::liveness_name;
use cairn_ops::metrics::{Histogram, Operations};
use cairn_ops::status::as_json;
use cairn_proto::fs::{
    Answer, ChunkInfo, ChunkState, Cred, Error, FileKind, GetLayout, Layout, ListDirectory, NodeRef, Query,
    ReplicaInfo, answer, query,
};
use cairn_proto::{ErrorCode, ROOT_INODE};
use serde_json::{Value, json};

use super::metrics::status;
use crate::attend::Tally;
use crate::member::Member;

/// Entries of a directory in one answer.
const ENTRIES: u32 = 500;

/// An answer: a status of HTTP and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Of HTTP.
    pub status: u32,
    /// The text.
    pub json: String,
}

impl Look {
    /// What went wrong, in words for people.
    pub fn refusal(status: u32, error: impl Into<String>) -> Look {
        Look { status, json: json!({ "error": error.into() }).to_string() }
    }

    fn of(value: Value) -> Look {
        Look { status: 200, json: value.to_string() }
    }
}

/// The page's question, with its parameters decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Everything that changes while one looks.
    Sample,
    /// A directory, from the name after `after` on.
    List {
        /// Its path, from the root.
        path: Vec<u8>,
        /// The last name that is known already.
        after: Vec<u8>,
    },
    /// A file's chunks, from `offset` on.
    File {
        /// Its path, from the root.
        path: Vec<u8>,
        /// Bytes that are known already.
        offset: u64,
    },
}

/// Answers on the leader.
pub fn answer(member: &Member, question: &Question) -> Look {
    match question {
        Question::Sample => sample(member),
        Question::List { path, after } => {
            let ask = ListDirectory { at: at(path), after: after.clone().into(), limit: ENTRIES };
            look(member, query::Op::List(ask))
        }
        Question::File { path, offset } => {
            let ask = GetLayout {
                at: at(path),
                follow: true,
                offset: *offset,
                length: u64::MAX - offset,
                limit: 0,
            };
            look(member, query::Op::Layout(ask))
        }
    }
}

fn at(path: &[u8]) -> Option<NodeRef> {
    let below = path.iter().position(|byte| *byte != b'/').map_or(&[][..], |start| &path[start..]);
    Some(NodeRef { inode: ROOT_INODE, path: below.to_vec().into() })
}

fn sample(member: &Member) -> Look {
    let Some(status) = status(member) else {
        return Look::refusal(503, "the status cannot be read");
    };
    let counters = &member.counters;
    let (stretches, width) = member.datanodes.map().unwrap_or_default();
    Look::of(json!({
        "status": as_json(&status),
        "last_log": member.group.last_log(),
        "chunks": { "width": width, "stretches": stretches.iter().map(tally).collect::<Vec<_>>() },
        "work": {
            "mutations": operations(&counters.mutations),
            "queries": operations(&counters.queries),
            "commits": histogram(&counters.commits),
        },
    }))
}

/// In the order of the page's legend, the worst first.
fn tally(tally: &Tally) -> Value {
    json!([tally.missing, tally.last, tally.few, tally.whole, tally.many, tally.open])
}

fn operations(operations: &Operations) -> Value {
    let (count, seconds) = operations.totals();
    json!({ "count": count, "seconds": seconds })
}

fn histogram(histogram: &Histogram) -> Value {
    json!({ "count": histogram.count(), "seconds": histogram.seconds() })
}

/// Asks the namespace as root: whoever reaches the port sees every name, as whoever reaches the others does.
fn look(member: &Member, op: query::Op) -> Look {
    let query = Query { op: Some(op) };
    let found = member
        .view(|view| Ok::<_, StoreError>(Some(cairn_metadata::answer(view, &Cred::default(), &query)?)));
    let mut answer = match found {
        Ok(Some(answer)) => answer,
        _ => Answer::default(),
    };
    member.decorate(&mut answer);
    match answer.result {
        Some(answer::Result::Listing(listing)) => Look::of(json!({
            "end": listing.end,
            "next": listing.entries.last().map(|entry| encoded(&entry.name)),
            "entries": listing.entries.iter().map(|entry| {
                let attr = entry.attr.unwrap_or_default();
                json!({
                    "name": String::from_utf8_lossy(&entry.name), "path": encoded(&entry.name),
                    "kind": kind(attr.kind()), "size": attr.size, "mode": attr.mode, "uid": attr.uid,
                    "gid": attr.gid, "mtime_ms": attr.mtime_ns / 1_000_000, "replication": attr.replication,
                })
            }).collect::<Vec<_>>(),
        })),
        Some(answer::Result::Layout(layout)) => file(&layout),
        Some(answer::Result::Error(error)) => refused(error),
        _ => Look::refusal(503, "the namespace cannot be read"),
    }
}

fn refused(error: Error) -> Look {
    let error = cairn_proto::Error::from(error);
    let status = match error.code {
        ErrorCode::NotFound => 404,
        _ => 400,
    };
    Look::refusal(status, error.to_string())
}

/// A file's chunks: where their bytes are in the file, as offset and length, and who holds them.
fn file(layout: &Layout) -> Look {
    let mut pieces: BTreeMap<u64, Vec<[u64; 2]>> = BTreeMap::new();
    for extent in &layout.extents {
        pieces.entry(extent.chunk).or_default().push([extent.file_offset, extent.length]);
    }
    let replica = |replica: &ReplicaInfo| {
        json!({
            "node": replica.node, "address": replica.address, "host": replica.host, "rack": replica.rack,
            "bad": replica.bad, "liveness": liveness_name(replica.liveness()),
        })
    };
    let chunk = |chunk: &ChunkInfo| {
        json!({
            "chunk": chunk.chunk, "sealed": chunk.state() == ChunkState::Sealed, "length": chunk.length,
            "wanted": chunk.replication, "pieces": pieces.get(&chunk.chunk),
            "replicas": chunk.replicas.iter().map(replica).collect::<Vec<_>>(),
        })
    };
    Look::of(json!({
        "size": layout.attr.as_ref().map(|attr| attr.size), "end": layout.end,
        "replication": layout.attr.as_ref().map(|attr| attr.replication),
        "next": layout.extents.last().map(|extent| extent.file_offset + extent.length),
        "chunks": layout.chunks.iter().map(chunk).collect::<Vec<_>>(),
    }))
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Directory => "directory",
        FileKind::File => "file",
        FileKind::Symlink => "link",
        _ => "special",
    }
}

/// A name as a part of a URL: names are bytes, and JSON has text only.
fn encoded(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_at_the_root() {
        assert_eq!(at(b"//a/b").unwrap().path, "a/b");
        assert!(at(b"/").unwrap().path.is_empty() && at(b"").unwrap().path.is_empty());
    }

    #[test]
    fn names_that_are_no_text_survive_a_url() {
        assert_eq!(encoded(b"a b/\xff"), "a%20b%2F%FF");
    }
}
