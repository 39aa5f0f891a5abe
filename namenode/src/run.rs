//! From options to a serving namenode, and back down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_host::Host;
use cairn_host::descriptors;
use cairn_host::disk::{self, DiskLock};
use cairn_host::tls::peer::Kind;
use cairn_host::tls::{self, Tls};
use cairn_ops::http::{self, Names, Serving};
use cairn_proto::control::namenode_server::NamenodeServer;
use cairn_proto::control::raft_server::RaftServer;
use cairn_proto::limits::MAX_MESSAGE;
use cairn_proto::{Error, ErrorCode};
use tokio::sync::watch;
use tonic::transport::Server;

use crate::config::Config;
use crate::door::{Census, Door};
use crate::fatal::Alarm;
use crate::formation;
use crate::identity::{Identity, Phase};
use crate::member::Member;
use crate::patience;
use crate::raft::{MESSAGE_LIMIT, RaftService};
use crate::seat::Seat;
use crate::service::NamenodeService;
use crate::site::Site;

/// One process at a time holds this file of the directory.
const LOCK: &str = "lock";
/// Streams on one connection, at most.
const STREAMS: u32 = 1024;
const KEEPALIVE: Duration = Duration::from_secs(2);
/// How long connections may take to end when the namenode stops.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// Runs a namenode until `shutdown` becomes true (or its sender is gone), or until it must stop. After an error the
/// process should end: nothing more is served, and what was acknowledged is on disk.
pub async fn run(config: Config, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    run_checked(config.checked()?, shutdown).await
}

/// As [`run`], with options that [`Config::checked`] would refuse: for who knows what they are good for.
pub async fn run_checked(mut config: Config, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    descriptors::raise_limit();
    let tls = secure(&mut config)?;
    let _lock = take_directory(&config)?;
    let listener = config.host.network.bind(config.listen).await.map_err(|error| {
        ErrorCode::Unavailable.because(format!("listening on {}: {error}", config.listen))
    })?;
    let seat = Arc::new(Seat::default());
    if let Some(identity) = Identity::load(&*config.disk, &config.dir)? {
        seat.identify(identity);
    }
    let door = Door::new(listener, config.max_connections);
    let _http = match config.http {
        Some(address) => Some(open_site(address, &config, tls, &seat, door.census()).await?),
        None => None,
    };
    let alarm = Alarm::default();
    let (closing, closed) = watch::channel(false);
    let mut server = tokio::spawn(serve(seat.clone(), config.host.clone(), door, closed));
    let stopped = stop_asked(shutdown);
    tokio::pin!(stopped);

    let result = tokio::select! {
        result = take_place(&config, &seat, &alarm) => result,
        () = &mut stopped => Ok(false),
        ended = &mut server => Err(server_error(ended)),
    };
    let result = match result {
        Ok(true) => tokio::select! {
            () = &mut stopped => Ok(()),
            why = alarm.raised() => Err(ErrorCode::Io.because(why)),
            ended = &mut server => Err(server_error(ended)),
        },
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };

    alarm.disarm();
    closing.send_replace(true);
    if let Some(member) = seat.leave()
        && patience::within(member.stop(), patience::STEP).await.is_none()
    {
        tracing::warn!("the disk does not answer; what is not durable in the store is in the log");
        // Whoever lets go of the log last waits for its writer, and this process has to end.
        std::mem::forget(member);
    }
    if !server.is_finished() && tokio::time::timeout(CLOSE_PATIENCE, &mut server).await.is_err() {
        server.abort();
    }
    result
}

/// Serves metrics and the dashboard.
async fn open_site(
    address: SocketAddr,
    config: &Config,
    tls: Option<Tls>,
    seat: &Arc<Seat>,
    census: Census,
) -> Result<Serving, Error> {
    let names = config.http_names.iter().chain([&config.advertise]);
    let names = Names::new(names.map(String::as_str));
    let site = Site::new(config, seat.clone(), census);
    http::start(address, names, tls, Arc::new(site))
        .await
        .map_err(|error| ErrorCode::Unavailable.because(error))
}

/// Puts TLS on the network, if there is a certificate.
fn secure(config: &mut Config) -> Result<Option<Tls>, Error> {
    let Some(dir) = &config.tls else {
        tls::warn_insecure();
        return Ok(None);
    };
    let tls = Tls::load(dir).map_err(|error| ErrorCode::Invalid.because(error.to_string()))?;
    let own = tls.own();
    if !matches!(&own.kind, Kind::Node(roles) if roles.namenode) {
        let detail = format!("{}: the certificate of {own} is not a namenode's", dir.display());
        return Err(ErrorCode::Invalid.because(detail));
    }
    config.host = config.host.clone().under(tls.clone());
    Ok(Some(tls))
}

fn take_directory(config: &Config) -> Result<Box<dyn DiskLock>, Error> {
    let dir = config.dir.display();
    disk::create_dirs(&*config.disk, &config.dir)
        .map_err(|error| ErrorCode::Io.because(format!("{dir}: {error}")))?;
    config.disk.lock(&config.dir.join(LOCK)).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => ErrorCode::Unavailable.because(format!("{dir}: {error}")),
        std::io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied
            .because(format!("{dir} must belong, with all in it, to the user that this runs as (chown -R)")),
        _ => ErrorCode::Io.because(format!("{dir}: {error}")),
    })
}

async fn stop_asked(mut shutdown: watch::Receiver<bool>) {
    // Nobody left who could ask counts as asking.
    let _ = shutdown.wait_for(|&asked| asked).await;
}

/// Brings the namenode into its group.
async fn take_place(config: &Config, seat: &Seat, alarm: &Alarm) -> Result<bool, Error> {
    let held = seat.identity().filter(|identity| identity.phase != Phase::Awaiting);
    let mut identity = match held {
        Some(identity) => identity,
        None => formation::find_place(config, seat).await?,
    };
    let member = Member::start(config, &mut identity, alarm.clone()).await?;
    seat.identify(identity);
    seat.take(member);
    Ok(true)
}

async fn serve(
    seat: Arc<Seat>,
    host: Host,
    door: Door,
    mut closed: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let namenode = NamenodeServer::new(NamenodeService::new(seat.clone(), &host, closed.clone()))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(2 * MAX_MESSAGE);
    let raft = RaftServer::new(RaftService::new(seat))
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .add_service(namenode)
        .add_service(raft)
        .serve_with_incoming_shutdown(door, async move {
            // Nobody left who could close counts as closing.
            let _ = closed.wait_for(|&closed| closed).await;
        })
        .await
}

fn server_error(ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>) -> Error {
    let what = match ended {
        Ok(Ok(())) => "it ended by itself".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    ErrorCode::Io.because(format!("the server failed: {what}"))
}
