//! A CairnFS datanode: keeps replicas of chunks on disk, takes appends down chains of datanodes, serves
//! verified reads, and does what the leading namenode orders.
//!
//! Start at [`run`]. [`store`] is the only module that touches files; [`server`] and what hangs on it is the
//! data plane, a thread a connection; [`attend`] is the control plane, on the runtime.

pub mod attend;
mod chain;
mod config;
mod connection;
mod copy;
pub mod counters;
mod door;
mod drain;
mod gather;
mod link;
pub mod orders;
mod pace;
mod peer;
pub mod scrub;
pub mod server;
pub mod settings;
mod site;
pub mod socket;
pub mod store;
#[cfg(test)]
mod tests;
pub mod trust;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cairn_host::tls::peer::Kind;
use cairn_host::tls::{self, Tls};
use cairn_host::{Host, descriptors, notify};
use cairn_ops::http::{self, Names};
use cairn_proto::{ErrorCode, Result};
use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

pub use config::Config;

use attend::{Attendance, stopped};
use door::Door;
use drain::Drainer;
pub use link::{recognize, recognize_cluster};
use orders::{Executor, Fetch};
use scrub::Scrubber;
use server::Server;
use settings::Settings;
use site::Site;
use store::Store;
use trust::Trust;

/// How long a stop lets connections finish.
const GRACE: Duration = Duration::from_secs(2);
/// How long a stop waits for what reads and writes the disks: longer than it takes to notice that one hangs.
const STOP: Duration = Duration::from_secs(40);
/// Between two attempts to verify what could not be verified after an unclean stop, and to remove second replicas.
pub const CHECK_AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at whether the disks answer.
const LOOK: Duration = Duration::from_secs(1);
/// How often that wait looks whether the datanode stops.
const CHECK_STOP: Duration = Duration::from_millis(100);

/// Runs a datanode until `shutdown` turns true, or until it turns out that it must not run: wrong settings,
/// directories of another cluster, an address that is taken. Namenodes need not be up.
pub async fn run(config: Config, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    config.check()?;
    let tls = certificate(&config)?;
    descriptors::raise_limit();
    // The port first: a second start of the same datanode says so before it waits for its directories.
    let listener = server::bind(config.listen)?;
    let store_config = config.store();
    let store = spawn_blocking(move || Store::open(&store_config))
        .await
        .map_err(|error| ErrorCode::Io.because(format!("opening the store: {error}")))??;
    let store = Arc::new(store);
    store.set_draining(&config.drain);
    let trust = Arc::new(Trust::new(tls.clone()));
    let settings = Settings { trust: trust.clone(), ..config.settings() };
    let server = Server::start(listener, store.clone(), settings)?;
    let door = if config.short_circuit { open_door(&config, &server) } else { None };
    let advertise = config.advertised(server.local_addr());
    let drainer = match config.drain.is_empty() {
        true => None,
        false => Some(Drainer::start(store.clone(), config.drain_mib_per_second.saturating_mul(1 << 20))?),
    };
    let scrubber = Arc::new(Scrubber::start(store.clone(), config.scrub())?);
    let executor =
        Executor::new(store.clone(), Arc::new(Fetch(server.shared().settings.clone())), config.copies)
            .with_scrubber(&scrubber);
    let attendance = Attendance {
        store: store.clone(),
        node: server.shared().numbered().clone(),
        counters: server.shared().counters.clone(),
        executor: executor.clone(),
        trust,
        network: Host::secured(tls.clone()).network,
        namenodes: config.namenodes.clone(),
        advertise: advertise.clone(),
        rack: config.rack.clone(),
        host: config.host_name(),
        measuring: Arc::new(Semaphore::new(1)),
    };
    let _http = match config.http {
        Some(address) => {
            let names = config.http_names.iter().chain([&advertise]).map(String::as_str);
            let site = Site { shared: server.shared().clone(), scrubber: scrubber.clone() };
            let serving = http::start(address, Names::new(names), tls, Arc::new(site)).await;
            Some(serving.map_err(|error| ErrorCode::Unavailable.because(error))?)
        }
        None => None,
    };
    tracing::info!(
        listen = %server.local_addr(), %advertise, uuid = store.uuid(), replicas = store.space().replicas,
        "datanode ready"
    );
    notify::ready();
    let looked_at = store.clone();
    let stopping = Arc::new(AtomicBool::new(false));
    let checker = {
        let (store, stopping) = (store.clone(), stopping.clone());
        spawn_blocking(move || check(&store, &|| stopping.load(Ordering::Acquire)))
    };
    let ended = tokio::select! {
        ended = attendance.run(shutdown.clone()) => ended,
        () = stopped(&mut shutdown) => Ok(()),
        never = look_at_disks(&store) => match never {},
    };
    stopping.store(true, Ordering::Release);
    executor.stop();
    let stop = async {
        let background = async {
            let scrubbing = spawn_blocking(move || scrubber.stop());
            let draining = spawn_blocking(move || drop(drainer));
            // A check that panicked has left its replica unchecked, which the close respects.
            let _ = tokio::join!(checker, scrubbing, draining);
        };
        in_time(background).await;
        let closing = spawn_blocking(move || {
            drop(door);
            server.stop(GRACE);
            store.close();
        });
        in_time(closing).await;
    };
    // Those that hang meanwhile are left out, and do not cost the others their marks of a clean stop.
    tokio::select! {
        () = stop => {}
        never = look_at_disks(&looked_at) => match never {},
    }
    tracing::info!("datanode stopped");
    ended
}

/// Waits for a part of the stop, which may wait for a disk that hangs.
async fn in_time(part: impl Future) {
    if timeout(STOP, part).await.is_err() {
        tracing::warn!(
            "a disk does not answer: what waits for it is left, and the next start checks what it holds"
        );
    }
}

/// Verifies what an unclean stop left, and removes second replicas, again and again.
fn check(store: &Store, stop: &dyn Fn() -> bool) {
    let mut is_checked = store.check_further(false, stop);
    while pause(stop) {
        is_checked = store.check_further(is_checked, stop);
    }
}

/// Waits until it is time to check again; false if the datanode stops before.
fn pause(stop: &dyn Fn() -> bool) -> bool {
    let again = Instant::now() + CHECK_AGAIN;
    while Instant::now() < again {
        if stop() {
            return false;
        }
        std::thread::sleep(CHECK_STOP);
    }
    true
}

/// Looks again and again whether all disks answer.
async fn look_at_disks(store: &Store) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        store.look_at_disks();
    }
}

/// Clients on this host read by themselves if they can; without it, everything is as before and slower.
fn open_door(config: &Config, server: &Server) -> Option<Door> {
    match Door::open(config.dirs.first()?, server.shared()) {
        Ok(door) => Some(door),
        Err(error) => {
            tracing::warn!(%error, "clients on this host cannot read replicas by themselves");
            None
        }
    }
}

/// This datanode's certificate, if TLS is on.
fn certificate(config: &Config) -> Result<Option<Tls>> {
    let Some(dir) = &config.tls else {
        tls::warn_insecure();
        return Ok(None);
    };
    let tls = Tls::load(dir).map_err(|error| ErrorCode::Invalid.because(error.to_string()))?;
    let own = tls.own();
    if !matches!(&own.kind, Kind::Node(roles) if roles.datanode) {
        let detail = format!("{}: the certificate of {own} is not a datanode's", dir.display());
        return Err(ErrorCode::Invalid.because(detail));
    }
    Ok(Some(tls))
}
