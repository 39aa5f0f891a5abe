//! What befalls the machines of a run, and how it is mended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_datanode::store::format::{HEADER, Header, Kind};
use cairn_host::disk::simulated::{Operation, SimulatedDisk};

use super::{CHECKER, Cluster, FIRST_DATANODE, Role, nanos};
use crate::event;
use crate::machine::{Id, now};
use crate::network::Pace;
use crate::nodes::{datanode, namenode};
use crate::plan::Fault;

/// Something that is well again at some time.
#[derive(Debug, Clone)]
pub(super) enum Mend {
    Link(Id, Id),
    Pace(Id, Id),
    Jitter,
    Disk(Id),
    FailingDisk(Id),
    SlowDisk(Id),
    /// The power that failed in the middle of a write.
    Torn(Id),
}

impl Cluster {
    pub(super) fn befall(&mut self, fault: Fault) {
        let everybody: Vec<Id> = self.nodes.keys().copied().collect();
        let servers: Vec<Id> = self.namenodes().into_iter().chain(self.datanodes()).collect();
        let harmed = FIRST_DATANODE + self.plan.harmed as Id;
        let victim = match fault {
            Fault::NamenodePower
            | Fault::NamenodeKill
            | Fault::NamenodeTorn
            | Fault::NamenodeSync
            | Fault::NamenodeFull
            | Fault::NamenodeFlip
            | Fault::NamenodeWipe => self.up(self.namenodes()),
            Fault::DatanodePower | Fault::DatanodeKill | Fault::DatanodeTorn | Fault::SlowDisk => {
                self.up(self.datanodes())
            }
            Fault::ClientCrash => self.up(self.clients()),
            Fault::Freeze | Fault::Isolate | Fault::OneWay | Fault::Skew => self.up(everybody.clone()),
            Fault::DatanodeDisk | Fault::FullDisk | Fault::Flip | Fault::DatanodeWipe => {
                self.up(vec![harmed])
            }
            Fault::CutPair | Fault::SlowLink | Fault::Resets | Fault::Jitter | Fault::Blackout => {
                self.up(servers.clone())
            }
        };
        let Some(id) = victim else { return };
        if matches!(fault, Fault::Flip | Fault::DatanodeWipe) && self.holds_an_only_copy(id) {
            return;
        }
        let name = self.nodes[&id].name.clone();
        event!("fault: {fault:?} at {name}");
        let back = Some(self.random.millis(100, 5_000));
        match fault {
            Fault::NamenodePower | Fault::DatanodePower => self.take_down(id, true, back),
            Fault::NamenodeKill | Fault::DatanodeKill | Fault::ClientCrash => self.take_down(id, false, back),
            Fault::NamenodeTorn | Fault::DatanodeTorn => {
                self.history.losses.fetch_add(1, Ordering::Relaxed);
                self.disks[&id].cut_after(self.random.between(1, 25));
                self.later(50, 900, Mend::Torn(id));
            }
            Fault::Freeze => {
                let time = self.random.millis(100, 8_000);
                self.machines.freeze(id, time);
            }
            Fault::Isolate | Fault::OneWay => {
                let (hears, speaks) = match fault {
                    Fault::Isolate => (false, false),
                    _ if self.random.chance(50) => (true, false),
                    _ => (false, true),
                };
                let until = now() + nanos(self.random.millis(300, 8_000));
                for other in everybody.into_iter().chain([CHECKER]).filter(|other| *other != id) {
                    if !speaks {
                        self.cut(id, other, until);
                    }
                    if !hears {
                        self.cut(other, id, until);
                    }
                }
            }
            Fault::CutPair => {
                let others: Vec<Id> = everybody.into_iter().filter(|other| *other != id).collect();
                let other = *self.random.pick(&others);
                let until = now() + nanos(self.random.millis(300, 8_000));
                self.cut(id, other, until);
                self.cut(other, id, until);
            }
            Fault::SlowLink => {
                let others: Vec<Id> = everybody.into_iter().filter(|other| *other != id).collect();
                let other = *self.random.pick(&others);
                let pace = Pace {
                    least: 20_000_000,
                    most: self.random.between(50, 900) * 1_000_000,
                    byte: self.random.between(0, 20_000),
                };
                self.net.set_link(id, other, Some(pace));
                self.later(300, 6_000, Mend::Pace(id, other));
            }
            Fault::Jitter => {
                let most = self.random.between(20, 300) * 1_000_000;
                self.net.set_pace(Pace { least: 0, most, byte: 0 });
                self.later(300, 5_000, Mend::Jitter);
            }
            Fault::Resets => {
                for other in everybody.into_iter().filter(|other| *other != id) {
                    self.net.reset(id, other, 60);
                }
            }
            Fault::Skew => {
                let by = self.random.below(20_000_000_000) as i64 - 10_000_000_000;
                self.nodes[&id].clock.skew(by);
            }
            Fault::SlowDisk => {
                self.nodes[&id].slow_ms.store(self.random.between(5, 600), Ordering::Relaxed);
                self.later(300, 5_000, Mend::SlowDisk(id));
            }
            Fault::NamenodeSync => {
                self.disks[&id].fail(namenode::directory(), Operation::Sync, libc::EIO, Some(1));
            }
            Fault::NamenodeFull => {
                self.disks[&id].limit(namenode::directory(), self.random.between(0, 3 << 20));
                self.later(300, 4_000, Mend::Disk(id));
            }
            Fault::DatanodeDisk => {
                self.history.losses.fetch_add(1, Ordering::Relaxed);
                let directory = self.random.pick(&datanode::directories()).clone();
                let operation = *self.random.pick(&[Operation::Read, Operation::Write, Operation::Sync]);
                let errno = if operation == Operation::Write && self.random.chance(50) {
                    libc::EROFS
                } else {
                    libc::EIO
                };
                let times = [None, Some(1), Some(3)];
                self.disks[&id].fail(directory, operation, errno, *self.random.pick(&times));
                self.later(500, 5_000, Mend::FailingDisk(id));
            }
            Fault::FullDisk => {
                self.history.full.store(true, Ordering::Relaxed);
                self.disks[&id].limit("/data", self.random.between(0, 200 << 10));
                self.later(500, 5_000, Mend::Disk(id));
            }
            Fault::Flip => {
                self.history.losses.fetch_add(1, Ordering::Relaxed);
                for _ in 0..self.random.between(1, 3) {
                    let flipped = self.disks[&id]
                        .flip_somewhere(self.random.pick(&datanode::directories()).join("chunks"));
                    event!("flipped {flipped:?}");
                }
            }
            Fault::NamenodeFlip => {
                if *self.spoilt.get_or_insert(id) == id {
                    let flipped = self.disks[&id].flip_somewhere(namenode::directory().join("store.redb"));
                    event!("flipped {flipped:?}");
                    self.flipped = true;
                }
            }
            Fault::NamenodeWipe => {
                if self.spoilt.is_none() {
                    self.take_down(id, true, back);
                    self.empty(id);
                }
            }
            Fault::DatanodeWipe => {
                self.take_down(id, true, back);
                self.disks.insert(id, new_disk(self.random.any()));
            }
            Fault::Blackout => {
                for id in servers {
                    let back = Some(self.random.millis(100, 2_500));
                    if self.machines.is_up(id) {
                        self.take_down(id, true, back);
                    }
                }
            }
        }
    }

    fn later(&mut self, least: u64, most: u64, mend: Mend) {
        let at = now() + nanos(self.random.millis(least, most));
        self.mending.push((at, mend));
    }

    fn cut(&mut self, from: Id, to: Id, until: u64) {
        self.net.cut(from, to);
        self.mending.push((until, Mend::Link(from, to)));
    }

    pub(super) fn mend_due(&mut self) {
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mending).into_iter().partition(|(at, _)| *at <= now());
        self.mending = rest;
        due.into_iter().for_each(|(_, mend)| self.mend(mend));
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Link(from, to) => {
                // Another cut of the same link may last longer.
                let again =
                    |(_, other): &(u64, Mend)| matches!(other, Mend::Link(f, t) if (*f, *t) == (from, to));
                if !self.mending.iter().any(again) {
                    self.net.mend(from, to);
                }
            }
            Mend::Pace(from, to) => self.net.set_link(from, to, None),
            Mend::Jitter => self.net.set_pace(Pace::default()),
            Mend::FailingDisk(id) => {
                // What was written while it failed may be lost, too.
                self.history.losses.fetch_add(1, Ordering::Relaxed);
                self.mend(Mend::Disk(id));
            }
            Mend::Disk(id) => {
                self.disks[&id].mend("/");
                make_room(&self.disks[&id]);
            }
            Mend::SlowDisk(id) => self.nodes[&id].slow_ms.store(0, Ordering::Relaxed),
            Mend::Torn(id) => {
                let back = Some(self.random.millis(100, 3_000));
                self.take_down(id, true, back);
            }
        }
    }

    /// Nothing goes wrong any more.
    pub(super) fn heal(&mut self) {
        event!("faults end");
        self.calm = true;
        self.history.stop.store(true, Ordering::Relaxed);
        for (_, mend) in std::mem::take(&mut self.mending) {
            self.mend(mend);
        }
        self.net.mend_all();
        self.machines.thaw();
        let soon = now() + 300_000_000;
        for (id, node) in &mut self.nodes {
            node.slow_ms.store(0, Ordering::Relaxed);
            if let Some(disk) = self.disks.get(id) {
                disk.mend("/");
            }
            match node.role {
                Role::Client(_) => node.back_at = None,
                _ => node.back_at = node.back_at.map(|at| at.min(soon)),
            }
        }
        // A datanode lets go of a disk that failed until it is started again.
        let harmed = FIRST_DATANODE + self.plan.harmed as Id;
        if self.machines.is_up(harmed) && self.plan.faults.contains(&Fault::DatanodeDisk) {
            self.take_down(harmed, false, Some(Duration::from_millis(300)));
        }
    }

    /// Whether a chunk, or the end of a sealed one, is on no other datanode's disk, as when it was written while all others
    /// were down, or when they lost what was not synced with their power, or are about to: with its loss nobody promises
    /// anything.
    fn holds_an_only_copy(&self, id: Id) -> bool {
        let others: Vec<_> = self.datanodes().into_iter().filter(|other| *other != id).collect();
        let others: Vec<_> = others.iter().map(|other| replicas(&self.disks[other])).collect();
        // What is being appended to is on its way to the others. What is sealed is synced.
        let stands_in = |own: &Replica, other: &Replica| {
            !own.is_sealed || (other.is_sealed && other.length >= own.length)
        };
        replicas(&self.disks[&id]).iter().any(|(chunk, own)| {
            !others.iter().any(|held| held.get(chunk).is_some_and(|other| stands_in(own, other)))
        })
    }
}

/// A disk with file systems of their own for what is kept. They are there from the start: another one in their place is a
/// fault.
pub(super) fn new_disk(seed: u64) -> SimulatedDisk {
    let disk = SimulatedDisk::new(seed);
    make_room(&disk);
    disk
}

/// Nothing there is full.
fn make_room(disk: &SimulatedDisk) {
    for directory in [PathBuf::from("/data"), namenode::directory()] {
        disk.limit(directory, 1 << 40);
    }
}

/// What one disk has of a chunk.
struct Replica {
    length: u64,
    is_sealed: bool,
}

/// What lies on a datanode's disk, by chunk: of two in its directories, the longer one.
fn replicas(disk: &SimulatedDisk) -> BTreeMap<u64, Replica> {
    let files = datanode::directories().into_iter().flat_map(|dir| disk.files(dir.join("chunks")));
    let mut all: Vec<_> = files.filter_map(|sums| replica(disk, &sums)).collect();
    all.sort_by_key(|(chunk, replica)| (*chunk, replica.length));
    all.into_iter().collect()
}

/// The replica that a checksum file belongs to.
fn replica(disk: &SimulatedDisk, sums: &Path) -> Option<(u64, Replica)> {
    sums.extension().filter(|suffix| *suffix == "crc")?;
    let chunk = u64::from_str_radix(sums.file_stem()?.to_str()?, 16).ok()?;
    let length = disk.content(sums.with_extension("data"))?.len() as u64;
    let header = disk.content(sums)?.first_chunk::<HEADER>().map(|bytes| Header::decode(bytes, chunk));
    let is_sealed = matches!(header, Some(Ok(Header { kind: Kind::Sealed, .. })));
    Some((chunk, Replica { length, is_sealed }))
}
