//! What a client's own directory may hold, given what it was told.
//!
//! A directory has one writer, so its content follows from the answers that writer got. An operation that was answered
//! with "nobody knows" leaves two states possible until the writer looks; written bytes that were not committed for
//! sure leave, byte by byte, the old or the new.

use std::collections::BTreeMap;

/// A change of a file that may or may not have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Bytes at an offset.
    Write(usize, Vec<u8>),
    /// A new size.
    Size(usize),
}

impl Edit {
    /// Makes the change.
    pub fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Edit::Write(offset, bytes) => {
                if content.len() < offset + bytes.len() {
                    content.resize(offset + bytes.len(), 0);
                }
                content[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Edit::Size(size) => content.resize(*size, 0),
        }
    }
}

/// A file's content as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// What is committed for sure.
    pub base: Vec<u8>,
    /// What may be on top of it.
    pub maybe: Vec<Edit>,
    /// Nothing: it is on the disks of all replicas. Otherwise how many losses of unsynced data there had been in the
    /// cluster when it was written: after further ones it may be unreadable.
    pub volatile_since: Option<u64>,
}

impl Content {
    /// Content that was written for sure.
    pub fn sure(base: Vec<u8>, volatile_since: Option<u64>) -> Content {
        Content { base, maybe: Vec::new(), volatile_since }
    }

    /// The content with all edits made.
    pub fn whole(&self) -> Vec<u8> {
        let mut content = self.base.clone();
        self.maybe.iter().for_each(|edit| edit.apply(&mut content));
        content
    }

    /// Whether `found` can be what is there.
    pub fn allows(&self, found: &[u8]) -> bool {
        if self.maybe.is_empty() {
            return found == self.base;
        }
        if !self.may_have_size(found.len()) {
            return false;
        }
        found.iter().enumerate().all(|(at, byte)| {
            // A hole, where the file was made longer.
            let old = self.base.get(at).copied();
            old.unwrap_or(0) == *byte
                || self.maybe.iter().any(|edit| match edit {
                    Edit::Write(offset, bytes) => {
                        at.checked_sub(*offset).and_then(|at| bytes.get(at)) == Some(byte)
                    }
                    Edit::Size(size) => at >= *size && *byte == 0,
                })
        })
    }

    /// Whether it may be so many bytes.
    pub fn may_have_size(&self, size: usize) -> bool {
        let ends = self.maybe.iter().map(|edit| match edit {
            Edit::Write(offset, bytes) => offset + bytes.len(),
            Edit::Size(size) => *size,
        });
        ends.chain([self.base.len()]).any(|end| end == size)
    }

    /// Whether it may be unreadable for good, now that there were `losses`.
    pub fn may_be_lost(&self, losses: u64) -> bool {
        self.volatile_since.is_some_and(|since| losses > since)
    }
}

/// A directory at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Files by name; two names of one file have the same number.
    pub names: BTreeMap<String, u64>,
    /// Their content.
    pub files: BTreeMap<u64, Content>,
}

impl State {
    /// The file of a name.
    pub fn file(&self, name: &str) -> Option<&Content> {
        self.files.get(self.names.get(name)?)
    }

    /// The file of a name, to be changed.
    pub fn file_mut(&mut self, name: &str) -> Option<&mut Content> {
        self.files.get_mut(self.names.get(name)?)
    }

    /// Forgets files without a name.
    pub fn tidy(&mut self) {
        let names = &self.names;
        self.files.retain(|file, _| names.values().any(|named| named == file));
    }
}

/// A snapshot of a client's directory.
#[derive(Debug, Clone)]
pub struct Kept {
    /// What the directory was when it was made.
    pub state: State,
    /// It is there. Otherwise it may be: it is being made or given up.
    pub is_sure: bool,
}

/// All that is known of one client's directory.
#[derive(Debug, Clone)]
pub struct Model {
    /// States that are possible; one, unless an operation is under way or its outcome is not known.
    pub states: Vec<State>,
    /// Whether the directory was made for sure.
    pub made: bool,
    /// Its snapshots, by name.
    pub kept: BTreeMap<String, Kept>,
    next: u64,
}

impl Default for Model {
    /// An empty directory.
    fn default() -> Model {
        Model { states: vec![State::default()], made: false, kept: BTreeMap::new(), next: 1 }
    }
}

impl Model {
    /// A number for a new file.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The state, while there is only one.
    pub fn now(&self) -> State {
        self.states.first().cloned().unwrap_or_default()
    }

    /// An operation begins that may lead to `after`.
    pub fn begin(&mut self, mut after: State) {
        after.tidy();
        self.states.truncate(1);
        self.states.push(after);
    }

    /// It is known what became of it.
    pub fn settle(&mut self, mut state: State) {
        state.tidy();
        self.states = vec![state];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_the_old_one_or_the_new_one() {
        let maybe = vec![Edit::Write(1, vec![7, 8, 9])];
        let content = Content { base: vec![1, 2], maybe, volatile_since: None };
        assert!(content.allows(&[1, 2]));
        assert!(content.allows(&[1, 7, 8, 9]));
        assert!(content.allows(&[1, 2, 8, 9]));
        assert!(!content.allows(&[1, 2, 8]), "no size between the two");
        assert!(!content.allows(&[1, 3, 8, 9]), "nobody wrote this");
        assert_eq!(content.whole(), [1, 7, 8, 9]);
    }

    #[test]
    fn sizes_are_those_before_and_after_each_edit() {
        let maybe = vec![Edit::Write(1, vec![7, 8, 9]), Edit::Size(3)];
        let content = Content { base: vec![1, 2], maybe, volatile_since: None };
        let sizes: Vec<usize> = (0..6).filter(|size| content.may_have_size(*size)).collect();
        assert_eq!(sizes, [2, 3, 4]);
    }

    #[test]
    fn a_file_without_a_name_is_forgotten() {
        let mut model = Model::default();
        let mut state = model.now();
        state.files.insert(2, Content::default());
        model.settle(state);
        assert!(model.now().files.is_empty());
    }
}
