//! Walks a tree of the cluster, a page of names at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use cairn_client::fs;

use crate::client::Client;
use crate::exit::PathError;
use crate::paths::{ClusterPath, by_inode};

const PAGE: u32 = 1024;

/// A file or directory that was met.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it is, for people.
    pub path: ClusterPath,
    /// The same for the namenode.
    pub at: fs::NodeRef,
    /// As the listing showed it.
    pub attr: fs::Attr,
    /// Directories between it and where the walk began.
    pub depth: usize,
}

impl Entry {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.attr.kind() == fs::FileKind::Directory
    }
}

/// The entries of one directory in the order of their names.
pub struct Pages {
    path: ClusterPath,
    inode: u64,
    depth: usize,
    after: Bytes,
    entries: VecDeque<fs::DirectoryEntry>,
    end: bool,
}

impl Pages {
    /// Of the directory `path`, whose inode is `inode`; its entries lie at `depth`.
    pub fn new(path: ClusterPath, inode: u64, depth: usize) -> Pages {
        Pages { path, inode, depth, after: Bytes::new(), entries: VecDeque::new(), end: false }
    }

    /// The next entry. After an error the directory is over.
    pub async fn next(&mut self, client: &Client) -> Option<Result<Entry, PathError>> {
        while self.entries.is_empty() {
            if self.end {
                return None;
            }
            let at = by_inode(self.inode);
            match client.cluster.list(&client.cred, at, self.after.clone(), PAGE).await {
                Ok(page) => {
                    // A page without entries that is not the last would be asked for again for ever.
                    self.end = page.end || page.entries.is_empty();
                    self.entries = page.entries.into();
                }
                Err(error) => {
                    self.end = true;
                    return Some(Err(PathError::Remote(self.path.clone(), error)));
                }
            }
        }
        let found = self.entries.pop_front()?;
        self.after = found.name.clone();
        Some(Ok(Entry {
            path: self.path.join(&found.name),
            at: fs::NodeRef { inode: self.inode, path: found.name },
            attr: found.attr.unwrap_or_default(),
            depth: self.depth,
        }))
    }
}

/// A walk that shows each directory before what it holds. Symbolic links are shown, never followed.
pub struct Walk {
    client: Arc<Client>,
    root: Option<Entry>,
    levels: Vec<Pages>,
}

impl Walk {
    /// From `root` down.
    pub fn new(client: Arc<Client>, path: ClusterPath, attr: fs::Attr) -> Walk {
        let at = path.node();
        Walk { client, root: Some(Entry { path, at, attr, depth: 0 }), levels: Vec::new() }
    }

    /// The next entry. An error tells of one directory; the walk goes on with the others.
    pub async fn next(&mut self) -> Option<Result<Entry, PathError>> {
        if let Some(root) = self.root.take() {
            self.enter(&root);
            return Some(Ok(root));
        }
        while let Some(level) = self.levels.last_mut() {
            match level.next(&self.client).await {
                Some(Ok(entry)) => {
                    self.enter(&entry);
                    return Some(Ok(entry));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.levels.pop();
                }
            }
        }
        None
    }

    /// The next entry. What cannot be listed is reported, and left out.
    pub async fn next_listed(&mut self) -> Option<Entry> {
        loop {
            match self.next().await? {
                Ok(entry) => return Some(entry),
                Err(error) => self.client.report.failed(error),
            }
        }
    }

    /// Leaves out what lies below the directory that was shown last.
    pub fn skip(&mut self) {
        self.levels.pop();
    }

    fn enter(&mut self, entry: &Entry) {
        if entry.is_directory() {
            self.levels.push(Pages::new(entry.path.clone(), entry.attr.inode, entry.depth + 1));
        }
    }
}
