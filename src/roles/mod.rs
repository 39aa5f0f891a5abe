//! The long-running roles: each parses its settings, runs its crate, and stops in order.

pub mod datanode;
pub mod mount;
pub mod namenode;
mod stillness;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, anyhow};
use cairn_host::notify;
use cairn_ops::trace;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::TraceSection;
use crate::exit::{self, Usage};
use crate::hangup::Hangup;

/// Becomes true at the first SIGTERM, SIGINT or SIGHUP; another SIGTERM or SIGINT ends the process at once. A terminal that
/// is closed may send more than one SIGHUP.
fn shutdown() -> Result<watch::Receiver<bool>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = Hangup::listen()?;
    let (send, receive) = watch::channel(false);
    tokio::spawn(async move {
        let mut asked = false;
        loop {
            let by_somebody = tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                () = hangup.come() => false,
            };
            if asked {
                if by_somebody {
                    tracing::warn!("asked again: stopping at once");
                    std::process::exit(i32::from(exit::FAILED));
                }
                continue;
            }
            asked = true;
            tracing::info!("stopping; ask again to stop at once");
            notify::stopping();
            let _ = send.send(true);
        }
    });
    Ok(receive)
}

/// Follows requests as the file says.
fn follow_requests(section: &TraceSection, service: &str, instance: &str) -> Result<()> {
    trace::start(&section.tracing(), service, instance)
        .map_err(|why| anyhow!(Usage(format!("[trace] {why}"))))
}

/// Logs that a role can be reached, once it can.
fn announce(role: &'static str, listen: SocketAddr) {
    let mut reachable = listen;
    if listen.ip().is_unspecified() {
        reachable.set_ip(if listen.is_ipv4() {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        });
    }
    tokio::spawn(async move {
        while TcpStream::connect(reachable).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tracing::info!(%listen, "{role} ready");
        notify::ready();
    });
}
