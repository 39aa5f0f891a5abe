//! The namenodes a client knows, and which of them leads.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use cairn_host::net::{Connector, Network};
use cairn_proto::control::namenode_client::NamenodeClient;
use cairn_proto::control::{WhoLeadsReply, WhoLeadsRequest};
use cairn_proto::limits::MAX_MESSAGE;
use cairn_proto::{Error, ErrorCode, Result};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::{Channel, Endpoint};

/// How long one namenode may take to say who leads.
const ROUND_LIMIT: Duration = Duration::from_millis(700);
/// How long a round goes on after the first useful answer, for one with a newer term.
const ROUND_GRACE: Duration = Duration::from_millis(100);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Most addresses remembered beyond the configured ones.
const MAX_LEARNED: usize = 16;
/// Room for the envelope around the largest message.
const MESSAGE_SLACK: usize = 1 << 20;

/// A client stub for one namenode.
pub(crate) type Stub = NamenodeClient<Channel>;

/// Addresses, idle connections and the last known leader.
pub(crate) struct Namenodes {
    network: Arc<dyn Network>,
    configured: Vec<String>,
    cluster_id: OnceLock<String>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    learned: Vec<String>,
    stubs: BTreeMap<String, Stub>,
    leader: Option<String>,
    trouble: Option<String>,
}

impl Namenodes {
    pub(crate) fn new(configured: Vec<String>, network: Arc<dyn Network>) -> Result<Namenodes> {
        if configured.is_empty() {
            return Err(ErrorCode::Invalid.because("no namenode address was given"));
        }
        for address in &configured {
            endpoint(address)?;
        }
        Ok(Namenodes { network, configured, cluster_id: OnceLock::new(), known: Mutex::default() })
    }

    /// The cluster's id; empty before any namenode told it.
    pub(crate) fn cluster_id(&self) -> &str {
        self.cluster_id.get().map_or("", String::as_str)
    }

    /// The leader as last heard.
    pub(crate) fn leader(&self) -> Option<String> {
        self.known().leader.clone()
    }

    pub(crate) fn set_leader(&self, address: Option<String>) {
        let mut known = self.known();
        if let Some(address) = &address
            && !self.configured.contains(address)
            && !known.learned.contains(address)
        {
            if known.learned.len() >= MAX_LEARNED {
                known.learned.remove(0);
            }
            known.learned.push(address.clone());
        }
        if address.is_some() {
            known.trouble = None;
        }
        known.leader = address;
    }

    /// Remembers why the leader cannot be reached, for the error of whoever runs out of patience.
    pub(crate) fn note(&self, trouble: impl Into<String>) {
        self.known().trouble = Some(trouble.into());
    }

    /// The error of an operation that waited too long.
    pub(crate) fn out_of_time(&self, limit: Duration) -> Error {
        let names = self.configured.join(", ");
        let waited = limit.as_secs_f32();
        match self.known().trouble.clone() {
            Some(trouble) => {
                ErrorCode::NoLeader.because(format!("namenodes {names} after {waited:.0} s: {trouble}"))
            }
            None => ErrorCode::Timeout.because(format!("namenodes {names} after {waited:.0} s")),
        }
    }

    /// A stub over a shared connection, for single requests.
    pub(crate) fn stub(&self, address: &str) -> Result<Stub> {
        let mut known = self.known();
        if let Some(stub) = known.stubs.get(address) {
            return Ok(stub.clone());
        }
        let stub =
            sized(NamenodeClient::new(endpoint(address)?.connect_with_connector_lazy(self.connector())));
        if known.stubs.len() >= MAX_LEARNED + self.configured.len() {
            known.stubs.clear();
        }
        known.stubs.insert(address.to_owned(), stub.clone());
        Ok(stub)
    }

    /// A stub over a connection of its own, established.
    pub(crate) async fn dial(&self, address: &str) -> Result<Stub> {
        let unreachable = |why: String| ErrorCode::Unavailable.because(format!("namenode {address}: {why}"));
        let connecting = endpoint(address)?;
        match timeout(CONNECT_LIMIT + CONNECT_LIMIT / 2, connecting.connect_with_connector(self.connector()))
            .await
        {
            Ok(Ok(channel)) => Ok(sized(NamenodeClient::new(channel))),
            Ok(Err(error)) => Err(unreachable(cause(&error))),
            Err(_) => Err(unreachable("no connection in time".into())),
        }
    }

    /// Asks every known namenode who leads and takes the answer of the newest term. An answer without a
    /// leader's address is returned when there is no better one.
    pub(crate) async fn who_leads(&self) -> Result<WhoLeadsReply> {
        let addresses: Vec<String> = {
            let known = self.known();
            self.configured.iter().chain(&known.learned).cloned().collect()
        };
        let mut answers: FuturesUnordered<_> = addresses.iter().map(|address| self.ask(address)).collect();
        let mut best: Option<WhoLeadsReply> = None;
        let mut trouble = Vec::new();
        let mut until = Instant::now() + ROUND_LIMIT;
        while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
            let reply = match answer {
                Ok(reply) => reply,
                Err(error) => {
                    trouble.push(error);
                    continue;
                }
            };
            if !reply.leader_address.is_empty() {
                until = until.min(Instant::now() + ROUND_GRACE);
            }
            let rank = |r: &WhoLeadsReply| (!r.leader_address.is_empty(), !r.cluster_id.is_empty(), r.term);
            if best.as_ref().is_none_or(|best| rank(&reply) > rank(best)) {
                best = Some(reply);
            }
        }
        if let Some(reply) = best {
            if reply.leader_address.is_empty() {
                self.note("no leader is known");
            }
            return Ok(reply);
        }
        // One that is not trusted, or does not trust us, may be the only one; the others may be back soon.
        let refused =
            !trouble.is_empty() && trouble.iter().all(|error| error.code == ErrorCode::NotPermitted);
        let error = trouble
            .into_iter()
            .map(|error| match error.code {
                ErrorCode::NotPermitted if !refused => ErrorCode::Unavailable.because(error.detail),
                _ => error,
            })
            .max_by_key(|error| error.code == ErrorCode::WrongCluster)
            .unwrap_or_else(|| ErrorCode::Timeout.because("the namenodes do not answer"));
        self.note(error.detail.clone());
        Err(error)
    }

    async fn ask(&self, address: &str) -> Result<WhoLeadsReply> {
        let mut stub = self.stub(address)?;
        let reply = match timeout(ROUND_LIMIT, stub.who_leads(WhoLeadsRequest {})).await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                let code = if is_refusal(&status) { ErrorCode::NotPermitted } else { ErrorCode::Unavailable };
                return Err(code.because(format!("namenode {address}: {}", status_text(&status))));
            }
            Err(_) => return Err(ErrorCode::Timeout.because(format!("namenode {address}"))),
        };
        if !reply.cluster_id.is_empty()
            && self.cluster_id.get_or_init(|| reply.cluster_id.clone()) != &reply.cluster_id
        {
            let detail = format!("namenode {address} is of cluster {}", reply.cluster_id);
            return Err(ErrorCode::WrongCluster.because(detail));
        }
        Ok(reply)
    }

    fn connector(&self) -> Connector {
        Connector(Arc::clone(&self.network))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn endpoint(address: &str) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| {
        ErrorCode::Invalid.because(format!("namenode address {address:?}: {error}; host:port is wanted"))
    })?;
    // A frozen or vanished namenode must be noticed within a few seconds, also while nothing is asked of it.
    Ok(endpoint
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20))
}

fn sized(stub: Stub) -> Stub {
    stub.max_decoding_message_size(MAX_MESSAGE + MESSAGE_SLACK)
        .max_encoding_message_size(MAX_MESSAGE + MESSAGE_SLACK)
}

/// The innermost cause of a transport error: the outer ones only say "transport error".
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether the other side will not have us, or we will not have it, however often it is asked.
pub(crate) fn is_refusal(status: &tonic::Status) -> bool {
    if status.code() == tonic::Code::PermissionDenied {
        return true;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == ErrorKind::PermissionDenied)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What a status says for people.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => cause(source),
        None => format!("{}: {}", status.code(), status.message()),
    }
}
