//! Every key of the store, in one place. Numbers are big-endian, so that byte order is numeric order.

/// One number.
pub fn one(a: u64) -> [u8; 8] {
    a.to_be_bytes()
}

/// Two numbers.
pub fn two(a: u64, b: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&a.to_be_bytes());
    key[8..].copy_from_slice(&b.to_be_bytes());
    key
}

/// A number and a name.
pub fn named(a: u64, name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(8 + name.len());
    key.extend_from_slice(&a.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// A datanode's number as a key.
pub fn node(node: u32) -> [u8; 8] {
    one(u64::from(node))
}

/// (node, chunk).
pub fn node_chunk(node: u32, chunk: u64) -> [u8; 16] {
    two(u64::from(node), chunk)
}

/// (chunk, chunk offset, inode, file offset).
pub fn chunk_ref(chunk: u64, chunk_offset: u64, inode: u64, file_offset: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&two(chunk, chunk_offset));
    key[16..].copy_from_slice(&two(inode, file_offset));
    key
}

/// (inode, session, owner, kind).
pub fn lock(inode: u64, session: u64, owner: u64, kind: u64) -> [u8; 32] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&two(inode, session));
    key[16..].copy_from_slice(&two(owner, kind));
    key
}

/// A snapshot's number, so that the greatest comes first: from any on, a scan meets those before it.
pub fn descending(seq: u64) -> [u8; 8] {
    one(!seq)
}

/// (table, key, snapshot). Names have no NUL, and a snapshot's number begins with one: so the order is that of keys.
pub fn old(table: u8, key: &[u8], seq: u64) -> Vec<u8> {
    let mut old = Vec::with_capacity(key.len() + 9);
    old.push(table);
    old.extend_from_slice(key);
    old.extend_from_slice(&seq.to_be_bytes());
    old
}

/// What [`old`] put together.
pub fn parts_of_old(old: &[u8]) -> Option<(u8, &[u8], u64)> {
    let (table, rest) = old.split_first()?;
    let (key, seq) = rest.split_at_checked(rest.len().checked_sub(8)?)?;
    Some((*table, key, number(seq, 0)?))
}

/// The `index`th number of a key, if the key is that long.
pub fn number(key: &[u8], index: usize) -> Option<u64> {
    key.get(index * 8..index * 8 + 8).map(|bytes| u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
}

/// The first key after every key that starts with number `a`.
/// Empty (the table's end) after the largest number.
pub fn after(a: u64) -> Vec<u8> {
    a.checked_add(1).map(|next| next.to_be_bytes().to_vec()).unwrap_or_default()
}
