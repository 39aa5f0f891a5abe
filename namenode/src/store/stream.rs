//! A whole store as one stream of bytes: how a namenode that lags too far behind gets the namespace.
//!
//! ```text
//! "CRNSNAP1" | block | block | ... | end block
//! block      = u32 length (> 0) | u32 CRC-32C of the body | body
//! body       = pairs, none of them split: u8 table | u32 key length | u32 value length | key | value
//! end block  = u32 0 | u32 0 | u64 number of pairs | 32 bytes BLAKE3 of everything before the end block
//! ```
//!
//! Numbers are little-endian. A stream without its end block, or with another digest, is refused as a whole.

use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;

use cairn_metadata::store::{Durability, Store, StoreError, Table, View};
use cairn_proto::checksum::crc32c;

use crate::log::version::later_version;

const MAGIC: &[u8; 8] = b"CRNSNAP1";
/// A block is closed when its body has reached this many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// Largest body a reader accepts: one block and the largest pair.
const MAX_BODY: usize = 64 << 20;
/// Bytes written into the fresh store between two commits.
const COMMIT_BYTES: usize = 16 << 20;
const PAIR_HEAD: usize = 9;

fn failed(error: std::io::Error) -> StoreError {
    StoreError::Engine(format!("snapshot stream: {error}"))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged(format!("snapshot stream: {what}"))
}

/// Writes every pair of every table of `view`.
pub fn write(view: &dyn View, out: impl Write) -> Result<(), StoreError> {
    let mut blocks = Blocks { out, digest: blake3::Hasher::new(), body: Vec::new(), pairs: 0 };
    blocks.emit(MAGIC)?;
    for table in Table::ALL {
        let mut result = Ok(());
        view.scan(table, &[], &[], &mut |key, value| {
            result = blocks.pair(table, key, value);
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
    }
    blocks.finish()
}

struct Blocks<W> {
    out: W,
    digest: blake3::Hasher,
    body: Vec<u8>,
    pairs: u64,
}

impl<W: Write> Blocks<W> {
    fn emit(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.digest.update(bytes);
        self.out.write_all(bytes).map_err(failed)
    }

    fn pair(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| damaged("a pair is too large"));
        self.body.push(table as u8);
        self.body.extend_from_slice(&length(key)?.to_le_bytes());
        self.body.extend_from_slice(&length(value)?.to_le_bytes());
        self.body.extend_from_slice(key);
        self.body.extend_from_slice(value);
        self.pairs += 1;
        if self.body.len() >= BLOCK_BYTES { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> Result<(), StoreError> {
        if self.body.is_empty() {
            return Ok(());
        }
        if self.body.len() > MAX_BODY {
            return Err(damaged("a pair is too large"));
        }
        let body = std::mem::take(&mut self.body);
        self.emit(&(body.len() as u32).to_le_bytes())?;
        self.emit(&crc32c(&body).to_le_bytes())?;
        self.emit(&body)?;
        self.body = body;
        self.body.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<(), StoreError> {
        self.close_block()?;
        let digest = self.digest.finalize();
        self.out.write_all(&[0; 8]).map_err(failed)?;
        self.out.write_all(&self.pairs.to_le_bytes()).map_err(failed)?;
        self.out.write_all(digest.as_bytes()).map_err(failed)?;
        self.out.flush().map_err(failed)
    }
}

/// Reads a stream into an empty `store`. On an error the store's content is undefined: throw it away.
pub fn load(store: &dyn Store, input: impl Read) -> Result<(), StoreError> {
    read(input, |blocks| store_blocks(store, blocks))
}

/// Reads a stream only to see that it is whole.
pub fn verify(input: impl Read) -> Result<(), StoreError> {
    read(input, |blocks| {
        let mut pairs = 0;
        for body in blocks {
            pairs += each_pair(body, |_, _, _| Ok(()))?;
        }
        Ok(pairs)
    })
}

/// Reads a whole stream, giving blocks to `take`, which says how many pairs they hold.
fn read(
    mut input: impl Read,
    mut take: impl FnMut(&[Vec<u8>]) -> Result<u64, StoreError>,
) -> Result<(), StoreError> {
    let mut digest = blake3::Hasher::new();
    let mut magic = [0; 8];
    read_exact(&mut input, &mut magic)?;
    if let Some(version) = later_version(&magic, MAGIC, 7) {
        return Err(damaged(&format!("format version {version}, this program knows version 1; upgrade it")));
    }
    if &magic != MAGIC {
        return Err(damaged("not a snapshot, or of an unknown version"));
    }
    digest.update(&magic);
    let mut pairs = 0;
    let mut pending: Vec<Vec<u8>> = Vec::new();
    let mut pending_bytes = 0;
    while let Some(body) = read_block(&mut input, &mut digest)? {
        pending_bytes += body.len();
        pending.push(body);
        if pending_bytes >= COMMIT_BYTES {
            pairs += take(&pending)?;
            pending.clear();
            pending_bytes = 0;
        }
    }
    pairs += take(&pending)?;
    let (mut count, mut wanted) = ([0; 8], [0; 32]);
    read_exact(&mut input, &mut count)?;
    read_exact(&mut input, &mut wanted)?;
    if u64::from_le_bytes(count) != pairs || digest.finalize() != wanted {
        return Err(damaged("the content does not match its digest"));
    }
    Ok(())
}

fn read_exact(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), StoreError> {
    input.read_exact(buffer).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => damaged("it ends too early"),
        _ => failed(error),
    })
}

/// The next block's body, or nothing at the end block.
fn read_block(input: &mut impl Read, digest: &mut blake3::Hasher) -> Result<Option<Vec<u8>>, StoreError> {
    let mut head = [0; 8];
    read_exact(input, &mut head)?;
    let [a, b, c, d, e, f, g, h] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > MAX_BODY {
        return Err(damaged("a block is too large"));
    }
    let mut body = vec![0; length];
    read_exact(input, &mut body)?;
    if crc32c(&body) != u32::from_le_bytes([e, f, g, h]) {
        return Err(damaged("a block does not match its checksum"));
    }
    digest.update(&head);
    digest.update(&body);
    Ok(Some(body))
}

fn store_blocks(store: &dyn Store, blocks: &[Vec<u8>]) -> Result<u64, StoreError> {
    let mut pairs = 0;
    // Durable, so that the engine need not keep what it wrote so far in memory.
    store.write(Durability::Durable, &mut |txn| {
        for body in blocks {
            pairs += each_pair(body, |table, key, value| txn.put(table, key, value))?;
        }
        Ok(())
    })?;
    Ok(pairs)
}

fn each_pair(
    body: &[u8],
    mut visit: impl FnMut(Table, &[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let mut rest = body;
    let mut pairs = 0;
    while !rest.is_empty() {
        let (table, key, value, after) = split_pair(rest).ok_or_else(|| damaged("a pair is cut off"))?;
        visit(table, key, value)?;
        rest = after;
        pairs += 1;
    }
    Ok(pairs)
}

/// Table, key and value of the first pair, and what comes after it.
type Split<'a> = (Table, &'a [u8], &'a [u8], &'a [u8]);

fn split_pair(bytes: &[u8]) -> Option<Split<'_>> {
    let (head, rest) = bytes.split_at_checked(PAIR_HEAD)?;
    let table = Table::from_number(head[0])?;
    let key_length = u32::from_le_bytes(head[1..5].try_into().ok()?) as usize;
    let value_length = u32::from_le_bytes(head[5..9].try_into().ok()?) as usize;
    let (key, rest) = rest.split_at_checked(key_length)?;
    let (value, rest) = rest.split_at_checked(value_length)?;
    Some((table, key, value, rest))
}

#[cfg(test)]
mod tests {
    use cairn_metadata::memory::MemoryStore;

    use super::*;
    use crate::store::RedbStore;

    fn filled() -> MemoryStore {
        let store = MemoryStore::default();
        store
            .write(Durability::Applied, &mut |txn| {
                for n in 0..5_000u64 {
                    txn.put(Table::Inode, &n.to_be_bytes(), &vec![n as u8; (n % 300) as usize])?;
                    txn.put(Table::Dentry, &(n * 7).to_be_bytes(), b"")?;
                }
                txn.put(Table::Raft, b"applied", b"x")
            })
            .unwrap();
        store
    }

    fn bytes_of(store: &dyn Store) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&*store.snapshot().unwrap(), &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_store_arrives_as_it_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = bytes_of(&filled());
        let target = RedbStore::open(&dir.path().join("s"), 1 << 20, cairn_host::disk::real()).unwrap();
        verify(bytes.as_slice()).unwrap();
        load(&target, bytes.as_slice()).unwrap();
        assert_eq!(bytes_of(&target), bytes);
        let empty = bytes_of(&MemoryStore::default());
        load(&MemoryStore::default(), empty.as_slice()).unwrap();
    }

    #[test]
    fn a_cut_or_changed_stream_is_refused() {
        let bytes = bytes_of(&filled());
        for cut in [0, 7, 8, 12, bytes.len() / 2, bytes.len() - 33, bytes.len() - 1] {
            assert!(load(&MemoryStore::default(), &bytes[..cut]).is_err(), "cut at {cut}");
            assert!(verify(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in [0, 9, 13, 20, bytes.len() / 2, bytes.len() - 36, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(load(&MemoryStore::default(), changed.as_slice()).is_err(), "changed at {at}");
        }
    }
}
