//! A command's connection to its cluster, and who it acts as.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use cairn_client::{Cluster, ErrorCode, fs};
use cairn_host::Host;
use cairn_host::tls::Tls;
use nix::unistd::{getegid, geteuid, getgroups};

use crate::args::Connection;
use crate::config::{Asked, Places};
use crate::exit::{PathError, Report, Usage};
use crate::paths::{ClusterPath, by_inode};

/// Read permission, as the namenode is asked for it.
const READ: u32 = 4;

/// What every command on files works with.
pub struct Client {
    /// The cluster.
    pub cluster: Cluster,
    /// The user and groups of this process.
    pub cred: fs::Cred,
    /// Bits that new files do not get.
    pub umask: u32,
    /// Failures so far.
    pub report: Report,
}

impl Client {
    /// Finds and reaches the cluster.
    pub async fn connect(verb: &'static str, connection: &Connection) -> Result<Client> {
        let cluster = connect(verb, connection, None).await?;
        Ok(Client::over(cluster, verb))
    }

    /// A client of a cluster that is connected already.
    pub fn over(cluster: Cluster, verb: &'static str) -> Client {
        Client { cluster, cred: process_cred(), umask: process_umask(), report: Report::new(verb) }
    }

    /// Whose a copy is that is to keep the owner and group of its original: only root may give files away.
    pub fn owner_of_copy(&self, original: (u32, u32)) -> (u32, u32) {
        if self.cred.uid == 0 { original } else { (self.cred.uid, self.cred.gid) }
    }

    /// Attributes of a path.
    pub async fn stat(&self, path: &ClusterPath, follow: bool) -> Result<fs::Attr, PathError> {
        let attr =
            self.cluster.stat(&self.cred, path.node(), follow).await.map_err(PathError::remote(path))?;
        as_meant(path, attr)
    }

    /// Attributes of a path, or nothing if there is nothing.
    pub async fn look(&self, path: &ClusterPath, follow: bool) -> Result<Option<fs::Attr>, PathError> {
        match self.cluster.stat(&self.cred, path.node(), follow).await {
            Ok(attr) => as_meant(path, attr).map(Some),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(PathError::Remote(path.clone(), error)),
        }
    }

    /// Attributes of a path (through symbolic links), or nothing if a file may be made there.
    pub async fn look_for_file(&self, path: &ClusterPath) -> Result<Option<fs::Attr>, PathError> {
        match self.look(path, true).await? {
            None if path.directory_meant() => {
                Err(PathError::Remote(path.clone(), ErrorCode::NotDirectory.into()))
            }
            found => Ok(found),
        }
    }

    /// Attributes of a regular file that this user may read.
    pub async fn readable(&self, path: &ClusterPath) -> Result<fs::Attr, PathError> {
        let attr = self.stat(path, true).await?;
        match attr.kind() {
            fs::FileKind::File => self.require_read(path, &attr).await.map(|()| attr),
            fs::FileKind::Directory => Err(PathError::Remote(path.clone(), ErrorCode::IsDirectory.into())),
            _ => Err(PathError::Remote(path.clone(), ErrorCode::Invalid.because("not a regular file"))),
        }
    }

    /// Refuses a file that this user may not read. Content is named by inode, so a command checks before it asks for
    /// any.
    pub async fn require_read(&self, path: &ClusterPath, attr: &fs::Attr) -> Result<(), PathError> {
        if attr.acl && self.cred.uid != 0 {
            let at = by_inode(attr.inode);
            let allowed = self.cluster.access(&self.cred, at, false, READ).await;
            return allowed.map(drop).map_err(PathError::remote(path));
        }
        if mode_lets_read(&self.cred, attr) {
            return Ok(());
        }
        Err(PathError::Remote(path.clone(), ErrorCode::PermissionDenied.into()))
    }

    /// Whether a path is a directory (through symbolic links).
    pub async fn is_directory(&self, path: &ClusterPath) -> Result<bool, PathError> {
        Ok(self.look(path, true).await?.is_some_and(|attr| attr.kind() == fs::FileKind::Directory))
    }
}

/// What was written with a trailing slash must be a directory. A symbolic link to one is none to a command that is
/// about the link itself.
fn as_meant(path: &ClusterPath, attr: fs::Attr) -> Result<fs::Attr, PathError> {
    if path.directory_meant() && attr.kind() != fs::FileKind::Directory {
        return Err(PathError::Remote(path.clone(), ErrorCode::NotDirectory.into()));
    }
    Ok(attr)
}

/// Reaches the cluster that flags, environment and files name.
pub async fn connect(verb: &str, connection: &Connection, timeout: Option<Duration>) -> Result<Cluster> {
    reach(settings(verb, connection, timeout)?).await
}

/// What flags, environment and files say of the cluster and the way to it.
pub fn settings(
    verb: &str,
    connection: &Connection,
    timeout: Option<Duration>,
) -> Result<cairn_client::Config> {
    let asked = Asked::with_environment(connection);
    let section = asked.resolve(&Places::from_environment())?;
    let mut config = cairn_client::Config { namenodes: section.namenodes, ..cairn_client::Config::default() };
    config.machine = machine(section.tls.as_deref())?;
    config.host = host_name();
    config.name = format!("cairn-{verb}@{}:{}", config.host, std::process::id());
    if let Some(seconds) = section.operation_timeout_seconds {
        config.operation_timeout = Duration::from_secs(seconds.max(1));
    }
    if let Some(timeout) = connection.timeout.or(timeout) {
        config.operation_timeout = timeout;
    }
    if let Some(lanes) = section.lanes {
        config.lanes = lanes.max(1);
    }
    Ok(config)
}

/// This machine, with the certificate in `tls`, if there is any.
pub fn machine(tls: Option<&Path>) -> Result<Host> {
    let tls = tls.map(Tls::load).transpose().map_err(|error| Usage(format!("TLS: {error}")))?;
    Ok(Host::secured(tls))
}

/// Reaches the cluster that `config` names.
pub async fn reach(config: cairn_client::Config) -> Result<Cluster> {
    let namenodes = config.namenodes.join(", ");
    Cluster::connect(config).await.map_err(|error| anyhow!("{error}")).with_context(|| {
        format!("cannot reach the cluster at {namenodes} (is it running? see `cairn cluster status`)")
    })
}

/// This machine's name.
pub fn host_name() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if !name.trim().is_empty() => name.trim().to_string(),
        _ => "localhost".into(),
    }
}

/// The user, group and supplementary groups of this process.
pub fn process_cred() -> fs::Cred {
    let groups = getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
    fs::Cred { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
}

/// The umask can only be read by setting it, which would race with other threads: the kernel shows it in /proc.
fn process_umask() -> u32 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim().to_string();
            u32::from_str_radix(&line, 8).ok()
        })
        .unwrap_or(0o022)
}

/// Whether the mode lets `cred` read.
fn mode_lets_read(cred: &fs::Cred, attr: &fs::Attr) -> bool {
    let shift = if cred.uid == attr.uid {
        6
    } else if cred.gid == attr.gid || cred.groups.contains(&attr.gid) {
        3
    } else {
        0
    };
    cred.uid == 0 || (attr.mode >> shift) & READ != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides() {
        let attr = fs::Attr { uid: 10, gid: 20, mode: 0o044, ..Default::default() };
        let cred = |uid, gid, groups: &[u32]| fs::Cred { uid, gid, groups: groups.to_vec() };
        assert!(mode_lets_read(&cred(0, 0, &[]), &attr));
        assert!(!mode_lets_read(&cred(10, 20, &[]), &attr));
        assert!(mode_lets_read(&cred(11, 1, &[20]), &attr));
        assert!(mode_lets_read(&cred(11, 1, &[]), &attr));
    }
}
