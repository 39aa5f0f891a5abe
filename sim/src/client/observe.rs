//! What is to be seen of a directory.

use bytes::Bytes;
use cairn_client::{Cluster, Result};

use super::{SIZE, at, root};
use crate::event;
use crate::history::History;
use crate::model::{Content, State};

/// A file as it was found.
struct Seen {
    inode: u64,
    size: u64,
    content: Result<Bytes>,
}

/// Says where content is not what it must be.
pub fn difference(name: &str, content: &Content, found: &[u8]) -> String {
    let whole = content.whole();
    let first = whole.iter().zip(found).position(|(one, other)| one != other);
    format!(
        "{name} is {} bytes, {} (with {} edits in doubt) were due; they differ at {first:?}",
        found.len(),
        content.base.len(),
        content.maybe.len()
    )
}

/// Looks which of the states a directory is in, and returns it with what was in doubt cleared up. Unreadable content
/// that may be lost counts as right.
pub async fn observe(
    cluster: &Cluster,
    directory: &str,
    states: &[&State],
    history: &History,
) -> Result<Option<State>> {
    let listing = cluster.list(&root(), at(directory), Bytes::new(), 1000).await?;
    let mut found = std::collections::BTreeMap::new();
    for entry in listing.entries {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let attr = cluster.stat(&root(), at(&format!("{directory}/{name}")), false).await?;
        let content = cluster.open(&root(), attr).read_at(0, SIZE as usize * 4).await;
        found.insert(name, Seen { inode: attr.inode, size: attr.size, content });
    }
    let mut unreadable = None;
    'states: for state in states {
        if !state.names.keys().eq(found.keys()) {
            continue;
        }
        let mut known = (*state).clone();
        let losses = history.losses();
        for (name, file) in &state.names {
            let Some(content) = known.files.get_mut(file) else { continue 'states };
            match &found[name].content {
                Ok(bytes) if content.allows(bytes) => {
                    content.base = bytes.to_vec();
                    content.maybe.clear();
                }
                Ok(bytes) => {
                    event!("{}", difference(name, content, bytes));
                    continue 'states;
                }
                // Not to be read just now is not yet lost: the size tells whose content it is.
                Err(_) if content.may_be_lost(losses) && content.may_have_size(found[name].size as usize) => {
                }
                Err(error) => {
                    // Another state may allow it: what was written over bytes that were safe may be lost.
                    unreadable = Some(error.clone());
                    continue 'states;
                }
            }
        }
        for (one, file) in &state.names {
            for (other, another) in &state.names {
                if (file == another) != (found[one].inode == found[other].inode) {
                    event!("{one} and {other} are not the same file, or should not be");
                    continue 'states;
                }
            }
        }
        return Ok(Some(known));
    }
    event!("found {:?}", found.keys());
    unreadable.map_or(Ok(None), Err)
}
