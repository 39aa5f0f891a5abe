//! What a client does in its own directory, where it knows what to expect.

use std::time::Duration;

use bytes::Bytes;
use cairn_client::{ErrorCode, File, Result, fs};

use super::{Client, Done, SIZE, at, difference, is_definite, observe, root};
use crate::event;
use crate::model::{Content, Edit};

impl Client {
    pub(super) async fn put(&mut self) {
        let (name, content, sync) = (self.name(), self.bytes(SIZE), self.random.chance(70));
        let exclusive = self.random.chance(20);
        let mut after = self.now();
        let expected = (exclusive && after.names.contains_key(&name)).then_some(ErrorCode::Exists);
        let file = match after.names.get(&name) {
            Some(file) => *file,
            None => self.new_number(),
        };
        after.names.insert(name.clone(), file);
        // It is on all disks only once that was acknowledged: until then others may have seen it, and it may be lost.
        after.files.insert(file, Content::sure(content.clone(), self.volatile(false)));
        self.begin(after.clone());
        let ask = fs::CreateFile {
            at: Some(at(&self.path(&name))),
            mode: 0o644,
            truncate: !exclusive,
            exclusive,
            ..Default::default()
        };
        let length = content.len();
        let put = self.cluster.put_small(&root(), ask, content.into(), None, sync).await;
        if sync
            && put.is_ok()
            && let Some(content) = after.files.get_mut(&file)
        {
            content.volatile_since = None;
        }
        let what = format!(
            "put {name} of {length}{}{}",
            if sync { " sync" } else { "" },
            if exclusive { " excl" } else { "" }
        );
        self.conclude(&what, put, expected, after).await;
    }

    async fn open(&self, name: &str) -> Result<File> {
        let attr = self.cluster.stat(&root(), at(&self.path(name)), false).await?;
        Ok(self.cluster.open(&root(), attr))
    }

    pub(super) async fn write(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let file = match self.open(&name).await {
            Ok(file) => file,
            Err(error) if is_definite(&error) => {
                return self.violation(format!("{name} is there but not found: {error}"));
            }
            Err(_) => return,
        };
        let mut edits = Vec::new();
        for _ in 0..self.random.between(1, 3) {
            let offset = self.random.below((content.base.len() as u64 + 500).min(SIZE)) as usize;
            edits.push(Edit::Write(offset, self.bytes(8_000)));
            self.operation += 1;
        }
        let sync = self.random.chance(60);
        let mut after = state.clone();
        if let Some(content) = after.file_mut(&name) {
            content.maybe.clone_from(&edits);
            content.volatile_since = content.volatile_since.or(self.volatile(false));
        }
        self.begin(after.clone());
        let written = async {
            for edit in &edits {
                if let Edit::Write(offset, bytes) = edit {
                    file.write_at(*offset as u64, Bytes::copy_from_slice(bytes)).await?;
                }
            }
            if sync { file.sync().await } else { file.flush().await }
        };
        let written = written.await;
        let what = format!("write {name}{}", if sync { " sync" } else { "" });
        match self.done(&what, written) {
            Done::Yes(_) => {
                if let Some(content) = after.file_mut(&name) {
                    *content =
                        Content::sure(content.whole(), if sync { None } else { content.volatile_since });
                }
                self.settle(after);
            }
            Done::No(error) => {
                self.violation(format!("{what}: {error}"));
                self.give_up(&file).await;
                self.find_out(&what, state, after).await;
            }
            Done::Unknown => {
                self.give_up(&file).await;
                self.find_out(&what, state, after).await;
            }
        }
    }

    /// Has the library forget what it could not commit, so that it does not try again by itself.
    async fn give_up(&mut self, file: &File) {
        while !self.history.stopping() {
            file.abandon(ErrorCode::Interrupted.because("given up"));
            let flushed = file.flush().await;
            if file.dirty_bytes() == 0 && flushed.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(super) async fn truncate(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let Ok(file) = self.open(&name).await else { return };
        let size = self.random.below(content.base.len() as u64 + 300) as usize;
        let mut after = state.clone();
        if let Some(content) = after.file_mut(&name) {
            Edit::Size(size).apply(&mut content.base);
        }
        self.begin(after.clone());
        let cut = file.truncate(size as u64).await;
        self.conclude(&format!("truncate {name} to {size}"), cut, None, after).await;
    }

    pub(super) async fn rename(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        let expected = (!state.names.contains_key(&from)).then_some(ErrorCode::NotFound);
        let mut after = state.clone();
        // Two names of one file: POSIX says that nothing happens.
        if state.names.get(&from) != state.names.get(&to)
            && let Some(file) = after.names.remove(&from)
        {
            after.names.insert(to.clone(), file);
        }
        self.begin(after.clone());
        let ask = fs::Rename { from: Some(at(&self.path(&from))), to: Some(at(&self.path(&to))), mode: 0 };
        let renamed = self.cluster.rename(&root(), ask).await;
        self.conclude(&format!("rename {from} to {to}"), renamed, expected, after).await;
    }

    pub(super) async fn link(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        let expected = match (state.names.get(&from), state.names.contains_key(&to)) {
            (None, _) => Some(ErrorCode::NotFound),
            (_, true) => Some(ErrorCode::Exists),
            _ => None,
        };
        let mut after = state.clone();
        if let (None, Some(file)) = (expected, state.names.get(&from)) {
            after.names.insert(to.clone(), *file);
        }
        self.begin(after.clone());
        let ask = fs::Link { from: Some(at(&self.path(&from))), at: Some(at(&self.path(&to))) };
        let linked = self.cluster.link(&root(), ask).await;
        self.conclude(&format!("link {from} as {to}"), linked, expected, after).await;
    }

    pub(super) async fn unlink(&mut self) {
        let state = self.now();
        let name = self.held(&state);
        let expected = (!state.names.contains_key(&name)).then_some(ErrorCode::NotFound);
        let mut after = state.clone();
        after.names.remove(&name);
        self.begin(after.clone());
        let unlinked = self.cluster.unlink(&root(), at(&self.path(&name))).await;
        self.conclude(&format!("unlink {name}"), unlinked, expected, after).await;
    }

    pub(super) async fn clone_file(&mut self) {
        let state = self.now();
        let (from, to) = (self.held(&state), self.name());
        if state.names.get(&from) == state.names.get(&to) {
            return;
        }
        let Some(content) = state.file(&from).cloned() else { return };
        let Ok(source) = self.open(&from).await else { return };
        let mut after = state.clone();
        let file = match state.names.get(&to) {
            Some(file) => *file,
            None => self.new_number(),
        };
        after.names.insert(to.clone(), file);
        after.files.insert(file, content);
        self.begin(after.clone());
        let create = fs::CreateFile {
            at: Some(at(&self.path(&to))),
            mode: 0o644,
            truncate: true,
            ..Default::default()
        };
        let cloned = self.cluster.clone_file(&root(), source.inode(), create, None).await;
        self.conclude(&format!("clone {from} as {to}"), cloned, None, after).await;
    }

    /// Reads a file, or the whole directory.
    pub(super) async fn look(&mut self) {
        let state = self.now();
        if self.random.chance(20) {
            match observe(&self.cluster, &self.directory, &[&state], &self.history).await {
                Ok(Some(_)) => event!("{} looked at everything", self.operation),
                Ok(None) => self.violation("its directory is not what it was told".into()),
                Err(error) => event!("{} cannot look: {:?}", self.operation, error.code),
            }
            return;
        }
        let name = self.held(&state);
        let Some(content) = state.file(&name) else { return };
        let read = async {
            let file = self.open(&name).await?;
            file.read_at(0, SIZE as usize * 4).await
        };
        let read = read.await;
        if let Err(error) = &read
            && error.code == ErrorCode::ChunkUnknown
            && content.may_be_lost(self.history.losses())
        {
            return event!("{} read {name}: it is lost", self.operation);
        }
        match self.done(&format!("read {name}"), read) {
            Done::Yes(found) if content.allows(&found) => {}
            Done::Yes(found) => self.violation(difference(&name, content, &found)),
            Done::No(error) => self.violation(format!("reading {name}: {error}")),
            Done::Unknown => {}
        }
    }
}
