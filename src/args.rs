//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::{bench, ca, cluster, demo, doctor, manual, roles, top, verbs};

/// CairnFS: a replicated file system. Files in, files out, and it heals itself.
#[derive(Parser)]
#[command(name = "cairn", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Where the cluster is.
    #[command(flatten)]
    pub connection: Connection,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Where the cluster is and what to log; taken before or after the command's name.
#[derive(Args, Clone, Debug, Default)]
pub struct Connection {
    /// Addresses of the namenodes (else CAIRN_NAMENODES, else the configuration file)
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    pub namenodes: Vec<String>,
    /// Configuration file in TOML (else CAIRN_CONFIG)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory with a certificate, which turns on TLS (else CAIRN_TLS, else the configuration file)
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// How long an operation waits while the cluster does not answer (else 60)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// What to log to stderr, such as info or cairn_client=debug (else RUST_LOG)
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl Connection {
    /// What was said after the command's name goes before what was said ahead of it.
    pub fn merged(self, before: &Connection) -> Connection {
        Connection {
            namenodes: if self.namenodes.is_empty() { before.namenodes.clone() } else { self.namenodes },
            config: self.config.or_else(|| before.config.clone()),
            tls: self.tls.or_else(|| before.tls.clone()),
            timeout: self.timeout.or(before.timeout),
            log: self.log.or_else(|| before.log.clone()),
        }
    }
}

/// Reads a span of time in seconds, such as 3 or 0.5.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("seconds are expected, as 3 or 0.5, a day at most".into()),
    }
}

/// A command's own arguments and its cluster.
#[derive(Args)]
pub struct On<A: Args> {
    /// The command's own.
    #[command(flatten)]
    pub args: A,
    /// Where the cluster is.
    #[command(flatten)]
    pub connection: Connection,
}

/// Every command.
#[derive(Subcommand)]
pub enum Command {
    /// List files
    #[command(disable_help_flag = true)]
    Ls(On<verbs::ls::Ls>),
    /// Copy files and directories into the cluster
    Put(On<verbs::put::Put>),
    /// Copy files and directories out of the cluster
    Get(On<verbs::get::Get>),
    /// Print files
    Cat(On<verbs::cat::Cat>),
    /// Print the beginning of a file
    Head(On<verbs::cat::Head>),
    /// Print the end of a file
    Tail(On<verbs::tail::Tail>),
    /// Show what is known about a file
    Stat(On<verbs::stat::Stat>),
    /// Make directories
    Mkdir(On<verbs::mkdir::Mkdir>),
    /// Remove files and directories
    Rm(On<verbs::rm::Rm>),
    /// Rename or move files and directories
    Mv(On<verbs::mv::Mv>),
    /// Copy files and directories within the cluster
    Cp(On<verbs::cp::Cp>),
    /// Show how much space files take
    #[command(disable_help_flag = true)]
    Du(On<verbs::du::Du>),
    /// Look into the trash, take things out of it, empty it, and say how long it keeps them
    #[command(subcommand)]
    Trash(verbs::trash::Trash),
    /// Keep directories as they are, look at what changed since, and put things back
    #[command(subcommand)]
    Snapshot(verbs::snapshot::Snapshot),
    /// Limit what may lie below directories, and show what does
    #[command(subcommand)]
    Quota(verbs::quota::Quota),
    /// Show how much space the cluster has
    #[command(disable_help_flag = true)]
    Df(On<verbs::df::Df>),
    /// Make files or set their times to now
    Touch(On<verbs::touch::Touch>),
    /// Change permissions
    Chmod(On<verbs::chmod::Chmod>),
    /// Change owner and group
    Chown(On<verbs::chown::Chown>),
    /// Make hard or symbolic links
    Ln(On<verbs::ln::Ln>),
    /// Set the size of files
    Truncate(On<verbs::truncate::Truncate>),
    /// Append local files to a file
    Append(On<verbs::append::Append>),
    /// Digest the content of files (BLAKE3)
    Checksum(On<verbs::checksum::Checksum>),
    /// Set how many replicas files have
    Setrep(On<verbs::setrep::Setrep>),
    /// Show where a file's bytes are
    Chunks(On<verbs::chunks::Chunks>),
    /// Check files, chunks and replicas, and say what is wrong
    Fsck(On<verbs::fsck::Fsck>),
    /// Show the cluster's health (exit code 0 healthy, 1 degraded, 2 data missing or unreachable)
    Status(On<verbs::status::Status>),
    /// Watch the cluster work, as top(1) shows a machine
    Top(On<top::Top>),
    /// Check this machine's set-up and the cluster's health (exit code 0 nothing is wrong, 1 warnings, 2 failures)
    Doctor(On<doctor::Doctor>),
    /// Show the cluster as `hdfs dfsadmin -report` would
    Report(On<verbs::report::Report>),
    /// Move replicas from full datanodes to empty ones until all are filled about evenly
    Balance(On<verbs::balance::Balance>),
    /// Keep a copy of all metadata in a file, from which a lost group of namenodes can be restored
    SnapshotMetadata(On<verbs::metadata::SnapshotMetadata>),
    /// Make the directory of a namenode from such a copy, to begin anew when the group is lost
    RestoreMetadata(verbs::metadata::RestoreMetadata),
    /// Look after the cluster: change the namenode group, have data verified
    #[command(subcommand)]
    Admin(verbs::admin::Admin),
    /// Mount the cluster on a directory
    Mount(On<roles::mount::Mount>),
    /// Unmount it
    Umount(roles::mount::Umount),
    /// Make certificates for nodes and users, which TLS takes
    #[command(subcommand)]
    Ca(ca::Verb),
    /// Run a namenode
    Namenode(On<roles::namenode::Namenode>),
    /// Run a datanode
    Datanode(On<roles::datanode::Datanode>),
    /// Run a whole cluster on this machine
    #[command(subcommand)]
    Cluster(cluster::Verb),
    /// Watch a cluster survive: start one, fill it, kill parts of it, verify every byte
    Demo(demo::Demo),
    /// Measure how fast the cluster is
    Bench(On<bench::Bench>),
    /// Take datanodes out of service, and back in
    #[command(subcommand)]
    Node(verbs::node::Node),
    /// Print what makes a shell complete command lines (see docs/operating.md)
    Completions(manual::Completions),
    /// Write the manual pages into a directory
    Man(manual::Man),
}

/// When a cluster's namenodes lose patience, and with whom.
#[derive(clap::Args)]
pub struct Timing {
    /// How long a datanode is silent before it is dead
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub dead_after: Option<Duration>,
    /// How long a client is silent before its session, with its locks, is over (at least 1)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub session_lease: Option<Duration>,
    /// How long a chunk is kept that no file names any more (at least a session's lease)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub garbage_grace: Option<Duration>,
    /// How long a chunk stays unchanged before it is compacted
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub compact_after: Option<Duration>,
}

impl Timing {
    /// Sets what was given.
    pub fn apply(&self, config: &mut cairn_namenode::Config) {
        if let Some(silence) = self.dead_after {
            config.dead_after_ms = millis(silence);
            config.suspect_after_ms = config.suspect_after_ms.min(config.dead_after_ms);
        }
        config.session_lease_ms = self.session_lease.map_or(config.session_lease_ms, millis);
        config.garbage_grace_ms = self.garbage_grace.map_or(config.garbage_grace_ms, millis);
        config.compaction_after_ms = self.compact_after.map_or(config.compaction_after_ms, millis);
    }
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_cluster_is_named_before_or_after_the_command() {
        let cli = Cli::try_parse_from(["cairn", "--namenodes", "a:1,b:2", "ls", "/"]).unwrap();
        let Command::Ls(on) = cli.command else { panic!("not ls") };
        assert_eq!(on.connection.merged(&cli.connection).namenodes, ["a:1", "b:2"]);
        let cli = Cli::try_parse_from(["cairn", "--namenodes", "a:1", "ls", "--namenodes", "c:3"]).unwrap();
        let Command::Ls(on) = cli.command else { panic!("not ls") };
        assert_eq!(on.connection.merged(&cli.connection).namenodes, ["c:3"]);
    }
}
