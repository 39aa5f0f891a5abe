//! What goes wrong in a run, and when: decided by the seed alone.

use std::time::Duration;

use crate::random::Random;

/// A kind of fault. Each run has a choice of them, so that rare combinations come about too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Fault {
    /// A namenode's machine loses power.
    NamenodePower,
    /// A namenode's process is killed.
    NamenodeKill,
    /// A namenode's machine loses power in the middle of what it writes.
    NamenodeTorn,
    DatanodePower,
    DatanodeKill,
    DatanodeTorn,
    /// A client ends without a word.
    ClientCrash,
    /// A process stands still for a while and goes on.
    Freeze,
    /// A machine is cut off from all others.
    Isolate,
    /// A machine hears others, or is heard by them, but not both.
    OneWay,
    /// Two machines do not reach each other.
    CutPair,
    /// Messages between two machines take long.
    SlowLink,
    /// Messages everywhere take long, in any order among connections.
    Jitter,
    /// Connections break, with what is under way.
    Resets,
    /// A machine's time of day jumps.
    Skew,
    /// A datanode's disk takes its time.
    SlowDisk,
    /// A namenode's fsync fails.
    NamenodeSync,
    /// A namenode's disk is full.
    NamenodeFull,
    /// A datanode's disk refuses to read, write or sync.
    DatanodeDisk,
    /// A datanode's disk is full.
    FullDisk,
    /// A bit of a datanode's disk flips.
    Flip,
    /// A bit of a namenode's store flips. Its log is left alone: a flip in what it acknowledged last looks like a write
    /// that was torn.
    NamenodeFlip,
    /// A namenode comes back with an empty disk.
    NamenodeWipe,
    /// A datanode comes back with an empty disk.
    DatanodeWipe,
    /// Power fails everywhere at once.
    Blackout,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 25] = [
        Fault::NamenodePower,
        Fault::NamenodeKill,
        Fault::NamenodeTorn,
        Fault::DatanodePower,
        Fault::DatanodeKill,
        Fault::DatanodeTorn,
        Fault::ClientCrash,
        Fault::Freeze,
        Fault::Isolate,
        Fault::OneWay,
        Fault::CutPair,
        Fault::SlowLink,
        Fault::Jitter,
        Fault::Resets,
        Fault::Skew,
        Fault::SlowDisk,
        Fault::NamenodeSync,
        Fault::NamenodeFull,
        Fault::DatanodeDisk,
        Fault::FullDisk,
        Fault::Flip,
        Fault::NamenodeFlip,
        Fault::NamenodeWipe,
        Fault::DatanodeWipe,
        Fault::Blackout,
    ];
}

/// The plan of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Clients at work.
    pub clients: u64,
    /// Datanodes.
    pub datanodes: u64,
    /// For how long clients work and things go wrong.
    pub busy: Duration,
    /// What may go wrong.
    pub faults: Vec<Fault>,
    /// Shortest and longest time between two faults, in milliseconds.
    pub every_ms: (u64, u64),
    /// Longest pause between two operations of a client, in milliseconds.
    pub pause_ms: u64,
    /// Bytes of a chunk: small, so that chunks fill up, or several blocks.
    pub chunk_size: u64,
    /// Log entries that namenodes keep for others: few, so that some need a snapshot.
    pub log_keep: u64,
    /// The datanode (from 0) whose disk may be damaged or lost. More than one would be more than replicas make up for.
    pub harmed: u64,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Plan {
        let mut random = Random::new(seed, "plan");
        let percent = *random.pick(&[0, 15, 30, 30, 60, 100]);
        let faults = Fault::ALL.into_iter().filter(|_| random.chance(percent)).collect();
        let shortest = *random.pick(&[150, 400, 1_000]);
        let datanodes = random.between(3, 5);
        Plan {
            seed,
            clients: random.between(1, 4),
            datanodes,
            busy: random.millis(6_000, 16_000),
            faults,
            every_ms: (shortest, shortest * 5),
            pause_ms: *random.pick(&[20, 60, 200]),
            log_keep: *random.pick(&[8, 40, 400]),
            harmed: random.below(datanodes),
            chunk_size: *random.pick(&[24 << 10, 24 << 10, 160 << 10]),
        }
    }
}
