//! Names of everything that can be wrong with a cluster or a machine of it, for scripts, alerts and looking up.
//!
//! A name never changes its meaning. Each has a section in `docs/health.md`.

/// Defines the codes with their names and remedies.
macro_rules! codes {
    ($($(#[$about:meta])* $code:ident => $name:literal, $remedy:literal;)+) => {
        /// Something that can be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[$about])* $code,)+ }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$code),+];

            /// The name that never changes.
            pub fn name(self) -> &'static str {
                match self { $(Code::$code => $name),+ }
            }

            /// What to do about it, in a sentence or two.
            pub fn remedy(self) -> &'static str {
                match self { $(Code::$code => $remedy),+ }
            }
        }
    };
}

codes! {
    // Of a cluster.
    /// Chunks have no replica on a datanode that lives.
    ChunksMissing => "CHUNKS_MISSING",
        "Bring back the datanodes that hold them; `cairn fsck` names the files.";
    /// Chunks have fewer replicas than they want.
    ChunksUnderReplicated => "CHUNKS_UNDER_REPLICATED",
        "Wait: repair copies them. If the number does not fall, add space or datanodes.";
    /// The leader has not read all chunks yet.
    ChunksCounting => "CHUNKS_COUNTING",
        "Wait: the leader is new, or datanodes came or went, and it reads the records of chunks.";
    /// Datanodes were silent for long.
    DatanodesDead => "DATANODES_DEAD",
        "Start them again, or `cairn node decommission` those that will not come back.";
    /// Datanodes were silent for a while.
    DatanodesSuspect => "DATANODES_SUSPECT",
        "Look at the machine and its network; after `dead_after_ms` its replicas are made up for.";
    /// Disks of datanodes failed.
    DirectoriesFailed => "DIRECTORIES_FAILED",
        "Mend or replace the disk, or take the directory out of the datanode's `dirs`, and start the datanode again.";
    /// Two datanodes say that they are the same one.
    DatanodeIdentityTwice => "DATANODE_IDENTITY_TWICE",
        "Stop one of them: a copy of a data directory must not run beside the original.";
    /// Namenodes are not heard.
    NamenodesUnreachable => "NAMENODES_UNREACHABLE",
        "Start them again; with a majority gone, nothing can be changed.";
    /// Fewer datanodes than replicas.
    DatanodesTooFew => "DATANODES_TOO_FEW",
        "Add datanodes, or start those that do not run.";
    /// The datanodes are nearly full.
    SpaceLow => "SPACE_LOW",
        "Delete files, or add disks or datanodes.";
    // Of the way to a cluster.
    /// Nothing says where the cluster is.
    NamenodesNotConfigured => "NAMENODES_NOT_CONFIGURED",
        "Write `namenodes` into section [client], or give --namenodes HOST:PORT,...";
    /// A namenode cannot be reached from this machine.
    NamenodeSilent => "NAMENODE_SILENT",
        "Check that it runs there, that the address is right, and that no firewall is between.";
    /// Namenodes answer, but nobody leads; or nobody answers.
    ClusterUnreachable => "CLUSTER_UNREACHABLE",
        "Start namenodes until a majority runs; their logs say what they wait for.";
    /// The addresses lead to namenodes of different clusters.
    ClustersMixed => "CLUSTERS_MIXED",
        "Name only namenodes of one cluster.";
    /// Clocks differ.
    ClocksApart => "CLOCKS_APART",
        "Have chrony or systemd-timesyncd run on every machine.";
    // Of a machine.
    /// The configuration file cannot be used.
    ConfigInvalid => "CONFIG_INVALID",
        "Correct the file; docs/configuration.md has every key.";
    /// A certificate, or the authority's, is over soon.
    CertificateEnds => "CERTIFICATE_ENDS",
        "Make a new one with `cairn ca` (--force) and put it in the old one's place; what runs reads it within seconds.";
    /// A certificate cannot be used.
    CertificateUnusable => "CERTIFICATE_UNUSABLE",
        "Make a new one with `cairn ca`, and let whoever runs the service read its key.";
    /// A directory cannot be used.
    DirectoryUnusable => "DIRECTORY_UNUSABLE",
        "Create it, and give it to the user that the service runs as (`chown cairn:cairn DIR`).";
    /// A directory's disk has little room.
    DirectoryFull => "DIRECTORY_FULL",
        "Free some space, or add a disk.";
    /// Directories of one datanode are on the same disk.
    DirectoriesShareDisk => "DIRECTORIES_SHARE_DISK",
        "Keep one directory a disk; check that every disk is mounted.";
    /// A directory is in memory.
    DirectoryInMemory => "DIRECTORY_IN_MEMORY",
        "Use a directory on a disk: this one is empty after a reboot.";
    /// A directory cannot make data durable.
    SyncFails => "SYNC_FAILS",
        "Do not use this disk before its kernel log (`dmesg`) is clean.";
    /// Making data durable takes long.
    SyncSlow => "SYNC_SLOW",
        "Use a faster disk, or one that nobody else keeps busy.";
    /// Something else listens where a role wants to.
    PortTaken => "PORT_TAKEN",
        "Stop the other program, or choose another port.";
    /// A role wants to listen where it cannot.
    AddressUnusable => "ADDRESS_UNUSABLE",
        "Listen on an address of this machine, or on 0.0.0.0, at a port of 1024 or more.";
    /// Others cannot use the advertised address.
    AdvertiseUnusable => "ADVERTISE_UNUSABLE",
        "Advertise a name or address under which the other machines reach this one.";
    /// Few files and connections may be open.
    OpenFilesLow => "OPEN_FILES_LOW",
        "Raise the limit: LimitNOFILE= of a systemd unit, or /etc/security/limits.conf.";
    /// FUSE cannot be used.
    FuseAbsent => "FUSE_ABSENT",
        "Load the kernel's module (`modprobe fuse`), or give the container /dev/fuse.";
    /// Users cannot mount.
    FuseHelperAbsent => "FUSE_HELPER_ABSENT",
        "Install the package fuse3, or mount as root.";
    /// Users cannot let others into their mounts.
    FuseAllowOtherOff => "FUSE_ALLOW_OTHER_OFF",
        "Put a line `user_allow_other` into /etc/fuse.conf, or mount as root.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../docs/health.md");

    #[test]
    fn every_code_has_its_section_and_no_section_is_of_no_code() {
        let sections: BTreeSet<&str> = PAGE.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len(), "a name twice");
        assert_eq!(sections, names);
    }

    #[test]
    fn every_section_says_cause_meaning_and_remedy() {
        for section in PAGE.split("\n### ").skip(1) {
            let name = section.lines().next().unwrap_or_default();
            for part in ["**Cause.**", "**Data.**", "**Remedy.**"] {
                assert!(section.contains(part), "{name} lacks {part}");
            }
        }
    }
}
