//! `cairn mount` and `cairn umount`.

mod daemon;
pub mod helper;
mod log;
mod options;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use cairn_fuse::MountOptions;
use cairn_host::notify;
use cairn_host::tls::Tls;
use cairn_host::tls::peer::{Kind, Peer};
use cairn_ops::http::{self, Names};
use clap::Args;

use super::{follow_requests, shutdown};
use crate::args::Connection;
use crate::client;
use crate::config::{File, MountSection, TraceSection};
use crate::exit::Usage;
use options::Asides;

/// Arguments of `cairn mount`; each overrides its key in section `[mount]`.
#[derive(Args)]
pub struct Mount {
    /// The directory to mount on
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Mount options as mount(8) has them, such as ro,noatime (see docs/mounting.md)
    #[arg(short, value_name = "OPTION,...")]
    options: Vec<String>,
    /// Serve in the background; return when the mount can be used
    #[arg(short, long)]
    pub daemon: bool,
    /// Where it logs in the background (else the system's log)
    #[arg(long, value_name = "FILE", requires = "daemon")]
    log_file: Option<PathBuf>,
    /// Refuse all changes
    #[arg(long)]
    read_only: bool,
    /// Let other users in (root does; needs user_allow_other in /etc/fuse.conf otherwise)
    #[arg(long)]
    allow_other: bool,
    /// How long the kernel may believe attributes and names, in milliseconds
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Where it serves metrics over HTTP (else nowhere)
    #[arg(long, value_name = "IP:PORT")]
    http: Option<SocketAddr>,
    /// Threads that answer the kernel
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// Arguments of `cairn umount`.
#[derive(Args)]
pub struct Umount {
    /// The directory that is mounted on
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Take it away although it is in use; it ends when the last user is gone
    #[arg(short, long)]
    lazy: bool,
}

/// What to mount, where, and how.
pub struct Plan {
    connection: Connection,
    options: MountOptions,
    asides: Asides,
    trace: TraceSection,
}

/// Mounts, and serves until it is unmounted or told to stop.
pub async fn run(connection: Connection, args: Mount) -> Result<u8> {
    serve(plan(connection, args)?, || {}).await?;
    Ok(0)
}

/// Mounts in the background.
pub fn run_daemon(connection: Connection, args: Mount) -> Result<u8> {
    let plan = plan(connection, args)?;
    if daemon::is_serving() {
        return Ok(daemon::serve(plan));
    }
    daemon::launch()?;
    Ok(0)
}

fn plan(mut connection: Connection, args: Mount) -> Result<Plan> {
    let File { mount: section, trace, .. } = File::of(&connection)?;
    let list = section.options.iter().chain(&args.options).cloned().collect::<Vec<String>>().join(",");
    let log_file = args.log_file.clone();
    let http = args.http.or(section.http).map(|address| (address, section.http_names.clone()));
    let mut options = options_of(section, args);
    let mut asides = options::apply(&list, false, &mut options, &mut connection)?;
    if asides.remount {
        bail!(Usage("remount is for mount(8): mount -o remount,... DIR".into()));
    }
    asides.http = http;
    asides.log_file = log_file.or(asides.log_file);
    Ok(Plan { connection, options, asides, trace })
}

/// Mounts, calls `ready` when the mount can be used, and serves until it is unmounted or told to stop.
async fn serve(plan: Plan, ready: impl FnOnce()) -> Result<()> {
    let Plan { connection, options, asides, trace } = plan;
    let mut stop = shutdown()?;
    let dir = options.mount_point.clone();
    follow_requests(&trace, "mount", &dir.display().to_string())?;
    let mut config = client::settings("mount", &connection, None)?;
    let tls = config.machine.tls.clone();
    config.delegate = options.delegates() && acts_for_all(tls.as_ref(), &options)?;
    config.short_circuit = options.short_circuit;
    // A user's certificate is none for servers, so what a mount shows of itself stays on its machine.
    if let Some((address, _)) = &asides.http
        && tls.is_some()
        && !address.ip().to_canonical().is_loopback()
    {
        bail!(Usage(format!("http: a mount under TLS shows its metrics on loopback only, not on {address}")));
    }
    let cluster = client::reach(config).await?;
    let runtime = tokio::runtime::Handle::current();
    let served = cluster.clone();
    let mounted = tokio::task::spawn_blocking(move || cairn_fuse::mount(served, runtime, options))
        .await
        .context("mounting")?
        .map_err(|error| anyhow!("{error}"))?;
    let _http = match asides.http {
        Some((address, names)) => {
            let names = Names::new(names.iter().map(String::as_str));
            Some(http::start(address, names, None, mounted.site()).await.map_err(|error| anyhow!(error))?)
        }
        None => None,
    };
    tracing::info!(dir = %dir.display(), "mount ready");
    notify::ready();
    ready();
    let mounted = Arc::new(mounted);
    let ended = {
        let mounted = mounted.clone();
        tokio::task::spawn_blocking(move || mounted.wait())
    };
    tokio::pin!(ended);
    tokio::select! {
        result = &mut ended => {
            result.context("serving the mount")?.map_err(|error| anyhow!("{error}"))?;
        }
        () = asked_to_stop(&mut stop) => {
            let mounted = mounted.clone();
            tokio::task::spawn_blocking(move || leave(&mounted)).await.context("unmounting")??;
            // What is open keeps a detached mount alive; it must not keep us for ever.
            if tokio::time::timeout(Duration::from_secs(20), &mut ended).await.is_err()
                && let Err(error) = cluster.settle().await
            {
                tracing::error!(%error, "what was written last could not be committed");
            }
        }
    }
    cluster.close().await.map_err(|error| anyhow!("{error}"))?;
    tracing::info!(dir = %dir.display(), "unmounted");
    Ok(())
}

/// Whether the mount's certificate is good for whoever uses it. One that is not is no mount for others.
fn acts_for_all(tls: Option<&Tls>, options: &MountOptions) -> Result<bool> {
    match tls.map(Tls::own) {
        Some(Peer { name, kind: Kind::User(user) }) if !user.is_super() => {
            if options.allow_other {
                bail!(Usage(format!(
                    "whatever others do in this mount would be done as {name}, whose certificate it has: mount with \
                     noallow_other, or take a certificate that may act for all (cairn ca user --proxy)"
                )));
            }
            Ok(false)
        }
        Some(Peer { kind: Kind::Node(_), .. }) => {
            bail!(Usage("a mount needs a user's certificate, not a node's".into()))
        }
        _ => Ok(true),
    }
}

async fn asked_to_stop(stop: &mut tokio::sync::watch::Receiver<bool>) {
    // An error means that nobody can ask any more.
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Unmounts in order; if somebody is still in it, takes it out of sight and lets them finish.
fn leave(mounted: &cairn_fuse::Mounted) -> Result<()> {
    if let Err(error) = mounted.unmount() {
        tracing::warn!(%error, "still in use; detaching");
        mounted.detach().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(())
}

fn options_of(section: MountSection, args: Mount) -> MountOptions {
    let mut options = MountOptions::new(args.dir);
    options.read_only = args.read_only || section.read_only.unwrap_or(false);
    // What root mounts is for everybody, as any other file system is: the kernel checks permissions.
    let shared = section.allow_other.unwrap_or_else(|| nix::unistd::geteuid().is_root());
    options.allow_other = args.allow_other || shared;
    if let Some(ms) = args.ttl_ms.or(section.attr_ttl_ms) {
        options.attr_ttl = Duration::from_millis(ms);
    }
    if let Some(ms) = args.ttl_ms.or(section.entry_ttl_ms) {
        options.entry_ttl = Duration::from_millis(ms);
    }
    if let Some(threads) = args.threads.or(section.threads) {
        options.threads = threads.clamp(1, 64);
    }
    if let Some(kib) = section.read_ahead_kib {
        options.read_ahead_kib = kib;
    }
    options
}

/// Unmounts.
pub async fn umount(args: Umount) -> Result<u8> {
    let dir = args.dir.clone();
    tokio::task::spawn_blocking(move || cairn_fuse::unmount(&args.dir, args.lazy))
        .await
        .context("unmounting")?
        .map_err(|error| anyhow!("{error}"))
        .with_context(|| format!("cannot unmount {}", dir.display()))?;
    Ok(0)
}
