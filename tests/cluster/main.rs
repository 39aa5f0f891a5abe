//! End to end: real `cairn` processes on loopback, real files, real kills, content checked by hash.

mod atime;
mod bad_input;
mod compaction;
mod damage;
mod disks;
mod durability;
mod faulty_disk;
mod fsck;
mod healing;
mod http;
mod identities;
mod locking;
mod membership;
mod memory;
mod metadata_backup;
mod mount_command;
mod mounting;
mod permissions;
mod ranges;
mod service;
mod sharing;
mod strangers;
mod support;
mod two_mounts;
mod verbs;
mod waiting;
