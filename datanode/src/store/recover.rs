//! What a start makes of the files it finds.
//!
//! The checksum file is a replica's claim to exist: a data file without one holds nothing that was ever
//! acknowledged as durable, and is removed. Sealed chunks are taken at their word (they were synced before
//! they were sealed). Open chunks are taken at their word after a clean stop; after any other they are
//! *unchecked* until the longest prefix that its records vouch for has been found.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use cairn_host::disk::{Access, DiskFile, Found, Handle};
use cairn_proto::checksum::{crc32c, crc32c_append};
use cairn_proto::limits::BLOCK_SIZE;
use cairn_proto::{ErrorCode, Result};

use super::directory::Directory;
use super::format::{HEADER, Header, Kind, RECORD, Record, Refused, SEAL, Seal, encode_file};
use super::replica::{OpenLog, Replica, Sealed, State};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// A log is rewritten long before it is this long; a longer file is none of ours.
const MAX_LOG: u64 = 16 << 20;

/// Every replica in a directory. `clean`: it was stopped cleanly.
pub(super) fn load(dir: &Arc<Directory>, clean: bool) -> Result<Vec<Arc<Replica>>> {
    clear(&dir.path().join("tmp"), dir)?;
    let mut found = Vec::new();
    for shelf in 0..=255u64 {
        let shelf = dir.shelf(shelf);
        let mut data = Vec::new();
        let mut sums = Vec::new();
        if !clean {
            // The last process may have ended before the names it made were on the disk.
            dir.sync_names(&shelf)?;
        }
        for path in dir.list(&shelf)? {
            let name = path.file_name().unwrap_or_default();
            match parse_name(&name.to_string_lossy()) {
                Some((chunk, "data")) => data.push(chunk),
                Some((chunk, "crc")) => sums.push(chunk),
                _ => tracing::warn!(directory = %shelf.display(), ?name, "not a file of ours; left alone"),
            }
        }
        sums.sort_unstable();
        for &chunk in data.iter().filter(|chunk| sums.binary_search(chunk).is_err()) {
            tracing::info!(chunk, "a data file without checksums is removed");
            dir.remove(&dir.data_path(chunk))?;
        }
        for chunk in sums {
            if let Some(replica) = adopt(dir, chunk, clean)? {
                dir.gained(replica.length());
                found.push(Arc::new(replica));
            }
        }
    }
    Ok(found)
}

fn clear(tmp: &Path, dir: &Directory) -> Result<()> {
    dir.list(tmp)?.iter().try_for_each(|path| dir.remove(path))
}

/// The chunk and the suffix in a file's name.
fn parse_name(name: &str) -> Option<(u64, &str)> {
    let (stem, suffix) = name.split_once('.')?;
    (stem.len() == 16).then_some(())?;
    Some((u64::from_str_radix(stem, 16).ok()?, suffix))
}

/// One replica as its files say; `None` if there never was anything in it.
fn adopt(dir: &Arc<Directory>, chunk: u64, clean: bool) -> Result<Option<Replica>> {
    let replica = |state, claimed| Ok(Some(Replica::new(chunk, dir.clone(), state, claimed)));
    let damaged = |reason: String| {
        tracing::error!(chunk, reason, "damaged replica");
        replica(State::Damaged(reason), 0)
    };
    let head = dir.read_from(Head::read(dir, chunk), "its checksum file");
    let length = dir.read_from(dir.disk().look(&dir.data_path(chunk)), "its data file");
    let (head, data_size) = match head.and_then(|head| Ok((head, length?))) {
        // Of this replica alone: the directory is in use.
        Err(error) if error.code == ErrorCode::DiskFailed && !dir.is_fenced() => {
            return damaged(error.detail);
        }
        read => read?,
    };
    let Head { sums, size, bytes: head, headed } = head;
    let header = if headed < HEADER {
        // Nothing follows a header that is not whole: the chunk was just being made.
        Err(Refused::Damaged("the header is cut off"))
    } else {
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(&head[..HEADER]);
        Header::decode(&bytes, chunk)
    };
    let kind = match &header {
        Ok(header) => header.kind,
        // Deleting or replacing it would be a guess about data that a later version wrote.
        Err(Refused::Newer(version)) => {
            let path = dir.sums_path(chunk);
            return Err(
                ErrorCode::Version.because(format!("{}: checksum file version {version}", path.display()))
            );
        }
        // A seal says itself whose it is; with one, this was a sealed replica.
        Err(Refused::Damaged(_)) if seal_in(&head, headed, chunk).is_some() => Kind::Sealed,
        Err(Refused::Damaged(reason)) => return damaged(format!("checksum file: {reason}")),
    };
    let Some(Found::File { length: data_size }) = data_size else {
        return damaged("its data file is missing".into());
    };
    if kind == Kind::Sealed {
        let (seal, mut flaw) = match (seal_in(&head, headed, chunk), header.is_err()) {
            (Some(seal), false) => (seal, None),
            (Some(seal), true) => (seal, Some("checksum file: its header does not hold")),
            (None, _) => match seal_by_records(&*sums, size, chunk) {
                Some(seal) => (seal, Some("checksum file: the seal does not hold")),
                None => return damaged("checksum file: neither a seal nor records hold".into()),
            },
        };
        if size != (HEADER + SEAL) as u64 + seal.blocks() * RECORD as u64 {
            flaw = flaw.or(Some("checksum file: another size than its seal says"));
        }
        if data_size < seal.length {
            flaw = flaw.or(Some("its data file is shorter than its seal says"));
        }
        if flaw.is_none() && data_size > seal.length {
            let file = dir.open_writable(&dir.data_path(chunk))?;
            dir.truncate(&*file, seal.length)?;
        }
        let sealed = Sealed { flaw: flaw.map(str::to_owned), ..Sealed::whole(seal) };
        return replica(State::Sealed(sealed), seal.length);
    }
    let log = match read_log(&*sums, size, chunk) {
        Ok(log) => log,
        Err(reason) => return damaged(reason),
    };
    let (claimed, crcs) = log.claim();
    if clean && log.torn == 0 && data_size >= claimed {
        let data = dir.open_writable(&dir.data_path(chunk))?;
        let sums = dir.open_writable(&dir.sums_path(chunk))?;
        dir.truncate(&*data, claimed)?;
        return replica(State::Open(OpenLog::known(data, sums, claimed, crcs, log.slots)), claimed);
    }
    replica(State::Unchecked, claimed.min(data_size))
}

/// The beginning of a checksum file: its header, and a seal if there is one.
struct Head {
    sums: Handle,
    size: u64,
    bytes: [u8; HEADER + SEAL],
    /// How many of them the file has.
    headed: usize,
}

impl Head {
    fn read(dir: &Directory, chunk: u64) -> std::io::Result<Head> {
        let sums = dir.disk().open(&dir.sums_path(chunk), Access::Read)?;
        let size = sums.length()?;
        let mut bytes = [0; HEADER + SEAL];
        let headed = (size as usize).min(bytes.len());
        sums.read_exact_at(&mut bytes[..headed], 0)?;
        Ok(Head { sums, size, bytes, headed })
    }
}

/// The seal behind a header, if it holds.
fn seal_in(head: &[u8; HEADER + SEAL], headed: usize, chunk: u64) -> Option<Seal> {
    let mut bytes = [0; SEAL];
    bytes.copy_from_slice(&head[HEADER..]);
    (headed == head.len()).then(|| Seal::decode(&bytes, chunk)).flatten()
}

/// What the records of a sealed chunk whose seal is damaged say of its length. The digest stays unknown.
fn seal_by_records(sums: &dyn DiskFile, size: u64, chunk: u64) -> Option<Seal> {
    let start = (HEADER + SEAL) as u64;
    if size > MAX_LOG {
        return None;
    }
    let mut bytes = vec![0; size.checked_sub(start)? as usize];
    sums.read_exact_at(&mut bytes, start).ok()?;
    let ends = (0u64..).zip(bytes.chunks_exact(RECORD)).filter_map(|(place, slot)| {
        let record = Record::decode(slot.try_into().ok()?, chunk)?;
        (u64::from(record.block) == place).then_some(place * BLOCK + u64::from(record.length))
    });
    ends.max().map(|length| Seal { length, blake3: [0; 32] })
}

/// The valid records of an open chunk's checksum file.
struct Log {
    /// By block: `(length, crc)` in order of the file.
    blocks: BTreeMap<u32, Vec<(u32, u32)>>,
    /// Places for records, valid or not.
    slots: u64,
    /// Places that hold no valid record.
    torn: u64,
}

fn read_log(sums: &dyn DiskFile, size: u64, chunk: u64) -> Result<Log, String> {
    if size > MAX_LOG {
        return Err(format!("checksum file: {size} bytes are more than a log has"));
    }
    let mut bytes = vec![0; (size as usize).saturating_sub(HEADER)];
    sums.read_exact_at(&mut bytes, HEADER as u64).map_err(|error| format!("checksum file: {error}"))?;
    let mut log = Log { blocks: BTreeMap::new(), slots: 0, torn: 0 };
    for slot in bytes.chunks(RECORD) {
        log.slots += 1;
        match slot.try_into().ok().and_then(|slot| Record::decode(slot, chunk)) {
            Some(record) => log.blocks.entry(record.block).or_default().push((record.length, record.crc)),
            None => log.torn += 1,
        }
    }
    Ok(log)
}

impl Log {
    /// The length and the CRCs that the records claim: the last record of each block, up to the first block
    /// that is not full.
    fn claim(&self) -> (u64, Vec<u32>) {
        let (mut length, mut crcs) = (0, Vec::new());
        for (expected, (&block, records)) in (0..).zip(&self.blocks) {
            let Some(&(held, crc)) = records.last().filter(|_| block == expected) else { break };
            length += u64::from(held);
            crcs.push(crc);
            if u64::from(held) < BLOCK {
                break;
            }
        }
        (length, crcs)
    }

    /// The longest prefix of the data that the records vouch for.
    fn verify(&self, data: &dyn DiskFile) -> std::io::Result<(u64, Vec<u32>)> {
        let (mut length, mut crcs) = (0, Vec::new());
        let mut buffer = vec![0; BLOCK_SIZE];
        for (expected, (&block, records)) in (0..).zip(&self.blocks) {
            if block != expected {
                break;
            }
            let held = read_up_to(data, &mut buffer, u64::from(block) * BLOCK)?;
            let Some((good, crc)) = longest(records, &buffer[..held]) else { break };
            length += u64::from(good);
            crcs.push(crc);
            if u64::from(good) < BLOCK {
                break;
            }
        }
        Ok((length, crcs))
    }
}

/// The longest record of one block that its bytes bear out.
fn longest(records: &[(u32, u32)], block: &[u8]) -> Option<(u32, u32)> {
    let mut records = records.to_vec();
    records.sort_unstable();
    let (mut at, mut crc, mut best) = (0, 0, None);
    for (length, recorded) in records {
        let Some(more) = block.get(at..length as usize) else { break };
        crc = if at == 0 { crc32c(more) } else { crc32c_append(crc, more) };
        at = length as usize;
        if crc == recorded {
            best = Some((length, crc));
        }
    }
    best
}

fn read_up_to(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match file.read_at(&mut buffer[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

/// Verifies an unchecked replica, cuts what nothing vouches for, and opens it.
pub(super) fn check(replica: &Replica) -> Result<()> {
    if !matches!(*replica.lock(), State::Unchecked) {
        return Ok(());
    }
    let (chunk, dir) = (replica.chunk(), replica.dir());
    let claimed = replica.length();
    let open = |path: &Path| dir.read_from(dir.disk().open(path, Access::Write), "open");
    let (data, sums) = (open(&dir.data_path(chunk))?, open(&dir.sums_path(chunk))?);
    // What an earlier process failed to write is not to be believed, though it may still be cached.
    dir.read_from(data.reread().and_then(|()| sums.reread()), "fsync")?;
    let size = dir.read_from(sums.length(), "stat")?;
    let log = read_log(&*sums, size, chunk).map_err(|reason| ErrorCode::Corrupt.because(reason))?;
    let (length, crcs) = dir.read_from(log.verify(&*data), "read")?;
    // A new log: records may not be added behind torn ones, nor records be left that a later append
    // would make true by accident.
    dir.truncate(&*data, length)?;
    dir.sync_file(&*data)?;
    let content = encode_file(chunk, length, &crcs, None);
    let sums = dir.replace(&dir.sums_path(chunk), &content)?;
    let records = crcs.len() as u64;
    if length < claimed {
        tracing::warn!(chunk, claimed, length, "an unclean stop cost this replica its tail");
        dir.lost(claimed - length);
    } else {
        dir.gained(length - claimed);
    }
    let mut state = replica.lock();
    replica.enter(&mut state, State::Open(OpenLog::known(data, sums, length, crcs, records)));
    Ok(())
}
