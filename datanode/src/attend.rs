//! A datanode's attendance: a stream to the leader that carries reports up and orders down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cairn_host::net::{Connector, Network};
use cairn_host::work::blocking;
use cairn_proto::control::namenode_client::NamenodeClient;
use cairn_proto::control::{
    DatanodeMessage, DiskSpace, Heartbeat, NamenodeMessage, Order, OrderDone, Register, Registered,
    ReplicaBad, WhoLeadsRequest, datanode_message, namenode_message, order,
};
use cairn_proto::error::Reaction;
use cairn_proto::limits::{HEARTBEAT_MS, MAX_MESSAGE};
use cairn_proto::{Error, ErrorCode, Result};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::counters::Counters;
use crate::orders::Executor;
use crate::store::Store;
use crate::trust::Trust;

/// Between attempts to find the leader.
const RETRY: Duration = Duration::from_millis(200);
/// After a refusal that will not pass at once.
const RETRY_REFUSED: Duration = Duration::from_secs(1);
/// For a namenode to answer a single question.
const ANSWER: Duration = Duration::from_secs(1);
/// For the disks to say how full they are.
const MEASURE: Duration = Duration::from_millis(500);
/// For the leader to register a datanode: that goes through the log.
const REGISTRATION: Duration = Duration::from_secs(10);
/// The leader acknowledges every heartbeat; one that is silent for so long is left.
const SILENCE: Duration = Duration::from_secs(4);
/// Between whole inventories.
const INVENTORY: Duration = Duration::from_secs(600);
/// Replicas in a page of inventory.
const PAGE: usize = 10_000;
/// Messages that may wait for the stream.
const OUTBOX: usize = 64;

/// Who attends, and where.
#[derive(Clone)]
pub struct Attendance {
    /// The replicas.
    pub store: Arc<Store>,
    /// Learns this datanode's number; 0 until it is registered.
    pub node: Arc<AtomicU32>,
    /// What it counts; whether it attends is noted there.
    pub counters: Arc<Counters>,
    /// Carries out orders.
    pub executor: Executor,
    /// Learns the keys of capabilities.
    pub trust: Arc<Trust>,
    /// The way to the namenodes.
    pub network: Arc<dyn Network>,
    /// All namenodes.
    pub namenodes: Vec<String>,
    /// The data plane's address for others.
    pub advertise: String,
    /// Failure domain.
    pub rack: String,
    /// Machine.
    pub host: String,
    /// One permit: whoever asks the disks for their space holds it.
    pub measuring: Arc<Semaphore>,
}

/// How one stream ended.
enum End {
    /// The leader is said to be elsewhere.
    Moved(String),
    /// It broke, or there was none.
    Lost(Error),
    /// The leader refuses this datanode for now.
    Refused(Error),
    /// This datanode must stop.
    Final(Error),
    /// The process stops.
    Shutdown,
}

impl Attendance {
    /// Attends whoever leads until told to stop. The error is one that no retry can mend.
    pub async fn run(&self, mut shutdown: watch::Receiver<bool>) -> Result<()> {
        let mut hint = String::new();
        let mut said = String::new();
        loop {
            let end = tokio::select! {
                end = self.attend_once(std::mem::take(&mut hint), shutdown.clone()) => end,
                _ = stopped(&mut shutdown) => return Ok(()),
            };
            let pause = match end {
                End::Shutdown => return Ok(()),
                End::Final(error) => return Err(error),
                End::Moved(address) => {
                    hint = address;
                    RETRY
                }
                End::Lost(error) => {
                    // Once a cause, not five times a second.
                    if said != error.to_string() {
                        said = error.to_string();
                        tracing::warn!(%error, "not attending");
                    }
                    RETRY
                }
                End::Refused(error) => {
                    tracing::error!(%error, "the namenode refuses this datanode");
                    RETRY_REFUSED
                }
            };
            tokio::select! {
                _ = tokio::time::sleep(pause) => {}
                _ = stopped(&mut shutdown) => return Ok(()),
            }
        }
    }

    async fn attend_once(&self, hint: String, shutdown: watch::Receiver<bool>) -> End {
        let leader =
            if hint.is_empty() { find_leader(&self.network, &self.namenodes).await } else { Ok(hint) };
        let opened = match leader {
            Ok(leader) => self.open(&leader).await.map(|opened| (leader, opened)),
            Err(error) => Err(error),
        };
        let (leader, (outbox, mut inbox)) = match opened {
            Ok(opened) => opened,
            Err(error) => return End::Lost(error),
        };
        match self.register(&mut inbox).await {
            Ok(registered) => {
                let (node, cluster) = (registered.node, &registered.cluster_id);
                tracing::info!(node, %cluster, %leader, "attending");
                let stream = Stream {
                    attendance: self,
                    outbox,
                    heartbeat_ms: registered.heartbeat_ms,
                    cluster_id: registered.cluster_id,
                };
                let _attending = self.counters.attend();
                stream.run(inbox, shutdown).await
            }
            Err(end) => end,
        }
    }

    /// Opens the stream and sends the registration.
    async fn open(
        &self,
        leader: &str,
    ) -> Result<(mpsc::Sender<DatanodeMessage>, Streaming<NamenodeMessage>)> {
        let lost = |error: &dyn std::fmt::Display| {
            ErrorCode::Unavailable.because(format!("namenode {leader}: {error}"))
        };
        let mut client = connect(&self.network, leader).await?;
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let register = Register {
            uuid: self.store().uuid(),
            cluster_id: self.store().cluster_id().unwrap_or_default(),
            address: self.advertise.clone(),
            rack: self.rack.clone(),
            host: self.host.clone(),
            space: Some(measure(self.store().clone(), &self.measuring, REGISTRATION).await),
        };
        outbox
            .send(message(datanode_message::Kind::Register(register)))
            .await
            .map_err(|error| lost(&error))?;
        let stream = timeout(REGISTRATION, client.attend(ReceiverStream::new(queue)))
            .await
            .map_err(|error| lost(&error))?
            .map_err(|status| lost(&status.message()))?;
        Ok((outbox, stream.into_inner()))
    }

    async fn register(&self, inbox: &mut Streaming<NamenodeMessage>) -> Result<Registered, End> {
        let lost = |detail: String| End::Lost(ErrorCode::Unavailable.because(detail));
        let first = timeout(REGISTRATION, inbox.message())
            .await
            .map_err(|_| lost("registration is not answered".into()))?
            .map_err(|status| lost(status.message().to_owned()))?
            .ok_or_else(|| lost("the namenode ended the stream".into()))?;
        match first.kind {
            Some(namenode_message::Kind::Registered(registered)) => {
                match self.store().adopt_cluster(&registered.cluster_id) {
                    Ok(()) => {}
                    Err(error) if error.code == ErrorCode::WrongCluster => return Err(End::Final(error)),
                    Err(error) => return Err(End::Refused(error)),
                }
                // Before its number: who is registered can be asked for chunks.
                if let Some(keys) = &registered.keys {
                    self.trust.learn(&registered.cluster_id, keys);
                }
                self.node.store(registered.node, Ordering::Relaxed);
                Ok(registered)
            }
            Some(namenode_message::Kind::Refused(refused)) => {
                Err(refusal(refused.into(), first.leader_address))
            }
            _ => Err(lost("the namenode answered the registration with something else".into())),
        }
    }

    fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

fn refusal(error: Error, leader_address: String) -> End {
    match error.code.reaction() {
        Reaction::Stop => End::Final(error),
        _ if error.code == ErrorCode::NotLeader && !leader_address.is_empty() => End::Moved(leader_address),
        Reaction::Retry | Reaction::Redirect => End::Lost(error),
        Reaction::Fail => End::Refused(error),
    }
}

/// Orders under way, with the chunk that each is to make a replica of.
type Orders = JoinSet<(Option<u64>, OrderDone)>;

/// One registered stream.
struct Stream<'a> {
    attendance: &'a Attendance,
    outbox: mpsc::Sender<DatanodeMessage>,
    heartbeat_ms: u32,
    cluster_id: String,
}

impl Stream<'_> {
    async fn run(&self, mut inbox: Streaming<NamenodeMessage>, mut shutdown: watch::Receiver<bool>) -> End {
        let store = self.attendance.store();
        let every = if self.heartbeat_ms == 0 { HEARTBEAT_MS } else { u64::from(self.heartbeat_ms).max(50) };
        let mut heartbeat = interval(Duration::from_millis(every));
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inventory = interval(INVENTORY);
        // Answers are sent from this loop, as the pages of inventory are: a page that was made before an order
        // was carried out can never follow the order's answer and undo it. Dropping the set with the stream
        // aborts orders that only wait; those that run go on to their end.
        let mut orders = Orders::new();
        let mut heard = Instant::now();
        loop {
            let sent = tokio::select! {
                _ = stopped(&mut shutdown) => return End::Shutdown,
                message = inbox.message() => {
                    heard = Instant::now();
                    match message {
                        Ok(Some(message)) => self.take(message, &mut orders).await,
                        Ok(None) => Err(End::Lost(ErrorCode::Unavailable.because("the namenode ended the stream"))),
                        Err(status) => Err(End::Lost(ErrorCode::Unavailable.because(status.message()))),
                    }
                }
                _ = heartbeat.tick() => {
                    if heard.elapsed() > SILENCE.max(Duration::from_millis(every) * 3) {
                        return End::Lost(ErrorCode::Timeout.because("the namenode is silent"));
                    }
                    let space = Some(measure(store.clone(), &self.attendance.measuring, MEASURE).await);
                    let scrub = self.attendance.executor.scrub_info();
                    let failed = store.failed_directories();
                    let traffic = Some(self.attendance.counters.traffic());
                    let heartbeat = Heartbeat { space, scrub, failed, draining: store.draining(), traffic };
                    self.send(datanode_message::Kind::Heartbeat(heartbeat)).await
                }
                _ = inventory.tick() => self.send_everything().await,
                () = store.notices().wait() => self.send_news().await,
                Some(done) = orders.join_next(), if !orders.is_empty() => match done {
                    Ok((chunk, done)) => self.answer(chunk, done).await,
                    // An order that panicked is planned again when its time is up, a deletion when this stream ends.
                    Err(_) => Ok(()),
                },
            };
            if let Err(end) = sent {
                return end;
            }
        }
    }

    async fn take(&self, message: NamenodeMessage, orders: &mut Orders) -> Result<(), End> {
        match message.kind {
            Some(namenode_message::Kind::Order(order)) => self.order(order, orders).await,
            Some(namenode_message::Kind::Refused(refused)) => {
                Err(refusal(refused.into(), message.leader_address))
            }
            Some(namenode_message::Kind::Ack(ack)) => {
                self.attendance.store().set_leaving(ack.leaving);
                if let Some(keys) = &ack.keys {
                    self.attendance.trust.learn(&self.cluster_id, keys);
                }
                Ok(())
            }
            Some(namenode_message::Kind::Registered(_)) | None => Ok(()),
        }
    }

    async fn order(&self, order: Order, orders: &mut Orders) -> Result<(), End> {
        if matches!(order.kind, Some(order::Kind::Inventory(_))) {
            self.send_inventory().await?;
        }
        let executor = self.attendance.executor.clone();
        let copied = copied(&order);
        orders.spawn(async move { (copied, executor.execute(order).await) });
        Ok(())
    }

    /// The leader takes a copy for good from its answer on. What was found in it since it was there may have been sent
    /// before the answer, and is said again after it.
    async fn answer(&self, copied: Option<u64>, done: OrderDone) -> Result<(), End> {
        let whole = copied.filter(|_| done.error.is_none());
        self.send(datanode_message::Kind::Done(done)).await?;
        if let Some(chunk) = whole {
            self.attendance.store().notices().again(chunk);
        }
        Ok(())
    }

    async fn send(&self, kind: datanode_message::Kind) -> Result<(), End> {
        let lost = || End::Lost(ErrorCode::Unavailable.because("the stream to the namenode is stuck"));
        match timeout(SILENCE, self.outbox.send(message(kind))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(lost()),
        }
    }

    /// All that a leader should know, also one that has lost a part of it.
    async fn send_everything(&self) -> Result<(), End> {
        self.send_bad(self.attendance.store().notices().all_bad()).await?;
        self.send_inventory().await
    }

    async fn send_inventory(&self) -> Result<(), End> {
        let mut first = 0;
        loop {
            let page = self.attendance.store().inventory_page(first, PAGE);
            first = page.next;
            self.send(datanode_message::Kind::Inventory(page)).await?;
            if first == 0 {
                return Ok(());
            }
        }
    }

    async fn send_news(&self) -> Result<(), End> {
        let store = self.attendance.store();
        let news = store.notices().take();
        self.send_bad(news.bad).await?;
        if news.everything || news.changed.len() > 100 {
            return self.send_inventory().await;
        }
        for chunk in news.changed {
            self.send(datanode_message::Kind::Inventory(store.inventory_of(chunk))).await?;
        }
        Ok(())
    }

    async fn send_bad(&self, bad: std::collections::BTreeMap<u64, String>) -> Result<(), End> {
        for (chunk, reason) in bad {
            self.send(datanode_message::Kind::Bad(ReplicaBad { chunk, reason })).await?;
        }
        Ok(())
    }
}

/// The chunk that an order is to make a replica of.
fn copied(order: &Order) -> Option<u64> {
    match &order.kind {
        Some(order::Kind::Copy(copy)) => Some(copy.chunk),
        Some(order::Kind::Gather(gather)) => Some(gather.chunk),
        _ => None,
    }
}

fn message(kind: datanode_message::Kind) -> DatanodeMessage {
    DatanodeMessage { kind: Some(kind) }
}

/// Resolves when the process is to stop, also when whoever would say so is gone.
pub(crate) async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: that is a stop, too.
    let _ = shutdown.wait_for(|&stop| stop).await;
}

/// The space, by what the disks said last when one does not say soon enough: a disk that stalls must not make the whole
/// datanode look dead, and one that hangs has no room for anything. At most one question waits for such a disk.
async fn measure(store: Arc<Store>, measuring: &Arc<Semaphore>, patience: Duration) -> DiskSpace {
    let Ok(asking) = measuring.clone().try_acquire_owned() else { return store.last_space() };
    let (disk, asked) = (store.disk().clone(), store.clone());
    let asked = blocking(&disk, move || {
        let space = asked.space();
        drop(asking);
        space
    });
    match timeout(patience, asked).await {
        Ok(Ok(space)) => space,
        _ => store.last_space(),
    }
}

async fn connect(network: &Arc<dyn Network>, address: &str) -> Result<NamenodeClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| ErrorCode::Invalid.because(format!("namenode address {address}: {error}")))?
        .connect_timeout(ANSWER)
        .http2_keep_alive_interval(ANSWER)
        .keep_alive_timeout(ANSWER * 2)
        .keep_alive_while_idle(true);
    let channel = endpoint
        .connect_with_connector(Connector(network.clone()))
        .await
        .map_err(|error| ErrorCode::Unavailable.because(format!("namenode {address}: {error}")))?;
    Ok(NamenodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Asks all namenodes at once; the answer of the highest term counts.
async fn find_leader(network: &Arc<dyn Network>, namenodes: &[String]) -> Result<String> {
    let mut asked = JoinSet::new();
    for address in namenodes {
        let (address, network) = (address.clone(), network.clone());
        asked.spawn(async move {
            let ask = async {
                let mut client = connect(&network, &address).await?;
                let reply = client.who_leads(WhoLeadsRequest {}).await;
                reply.map(|reply| reply.into_inner()).map_err(|status| {
                    ErrorCode::Unavailable.because(format!("namenode {address}: {}", status.message()))
                })
            };
            timeout(ANSWER, ask)
                .await
                .unwrap_or_else(|_| Err(ErrorCode::Timeout.because(format!("namenode {address}"))))
        });
    }
    let mut best: Option<(u64, String)> = None;
    let mut failure = ErrorCode::NoLeader.because("namenodes");
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok(reply)) if !reply.leader_address.is_empty() => {
                if best.as_ref().is_none_or(|(term, _)| *term < reply.term) {
                    best = Some((reply.term, reply.leader_address));
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => failure = error,
            Err(error) => failure = ErrorCode::Io.because(error.to_string()),
        }
    }
    best.map(|(_, address)| address).ok_or(failure)
}

#[cfg(test)]
mod tests {
    use crate::store::StoreConfig;

    use super::*;

    #[tokio::test]
    async fn while_a_disk_is_asked_in_vain_it_has_the_room_it_had_and_none_once_it_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { dirs: vec![dir.path().to_owned()], ..StoreConfig::default() };
        let store = Arc::new(Store::open(&config).unwrap());
        let measuring = Arc::new(Semaphore::new(1));
        let said = measure(store.clone(), &measuring, REGISTRATION).await;
        assert!(said.available > 0);
        let _asking = measuring.clone().try_acquire_owned().unwrap();
        let again = measure(store.clone(), &measuring, MEASURE).await;
        assert_eq!((again.capacity, again.available), (said.capacity, said.available));
        let _hung = store.hang(0);
        let hung = measure(store.clone(), &measuring, MEASURE).await;
        assert_eq!((hung.capacity, hung.available, hung.failed_dirs), (0, 0, 1));
    }
}
