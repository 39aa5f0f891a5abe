//! Orders whose copies are made by a script.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_proto::control::{CopyReplica, GatherReplica, Order, OrderDone, datanode_message, order};
use cairn_proto::{ErrorCode, Result};
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::attendance::Rig;
use super::{CLUSTER, Node};
use crate::orders::{Copier, Executor};
use crate::store::{Seal, Store};

/// Says when a copy has begun, and makes it when it is let.
struct Gated(Mutex<Vec<(oneshot::Sender<()>, oneshot::Receiver<()>)>>);

/// Makes an empty replica, that is sealed.
fn make(store: &Store, chunk: u64) -> Result<Seal> {
    let whole = store.incoming(chunk, 0, &[], true)?.expect("what is here is bad");
    whole.finish(store, blake3::hash(b"").as_bytes())
}

impl Copier for Gated {
    fn copy(
        &self,
        store: Arc<Store>,
        order: CopyReplica,
        _: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        let (begun, go) = self.0.lock().unwrap().pop().unwrap();
        Box::pin(async move {
            begun.send(()).unwrap();
            go.await.unwrap();
            make(&store, order.chunk)
        })
    }

    fn gather(
        &self,
        _: Arc<Store>,
        _: GatherReplica,
        _: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        Box::pin(async { Err(ErrorCode::NotSupported.because("not in this test")) })
    }
}

/// Makes copies that rot, and are found bad, before anybody is told of them.
struct Rotting;

impl Copier for Rotting {
    fn copy(
        &self,
        store: Arc<Store>,
        order: CopyReplica,
        _: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        Box::pin(async move {
            let seal = make(&store, order.chunk)?;
            store.accuse(&store.get(order.chunk)?, "it rots");
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(seal)
        })
    }

    fn gather(
        &self,
        store: Arc<Store>,
        order: GatherReplica,
        stop: Arc<AtomicBool>,
    ) -> BoxFuture<'static, Result<Seal>> {
        self.copy(store, CopyReplica { chunk: order.chunk, ..CopyReplica::default() }, stop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_in_a_copy_before_its_answer_is_said_after_it() {
    let node = tokio::task::spawn_blocking(|| Node::start(1)).await.unwrap();
    let mut rig = Rig::attend(&node, Arc::new(Rotting)).await;
    let mut talk = rig.next().await;
    talk.register(CLUSTER).await;
    let kinds = [
        order::Kind::Copy(CopyReplica { chunk: 9, ..CopyReplica::default() }),
        order::Kind::Gather(GatherReplica { chunk: 9, ..GatherReplica::default() }),
    ];
    for (id, kind) in (1..).zip(kinds) {
        let done = talk.order(id, kind).await;
        assert_eq!(done.error, None);
        let bad = |kind: &datanode_message::Kind| match kind {
            datanode_message::Kind::Bad(bad) => Some(bad.chunk),
            _ => None,
        };
        assert_eq!(talk.until(bad).await, 9);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_outlives_its_stream_is_told_as_news() {
    let node = tokio::task::spawn_blocking(|| Node::start(1)).await.unwrap();
    let store = node.store().clone();
    for is_given_up in [false, true] {
        let (begin, begun) = oneshot::channel();
        let (go, going) = oneshot::channel();
        let copier = Arc::new(Gated(Mutex::new(vec![(begin, going)])));
        let executor = Executor::new(store.clone(), copier, 1);
        let kind = order::Kind::Copy(CopyReplica { chunk: 9, ..CopyReplica::default() });
        let ordered = tokio::spawn(async move { executor.execute(Order { id: 1, kind: Some(kind) }).await });
        begun.await.unwrap();
        if is_given_up {
            ordered.abort();
            assert!(ordered.await.unwrap_err().is_cancelled());
            go.send(()).unwrap();
            store.notices().wait().await;
            assert!(store.get(9).is_ok(), "it was made all the same");
            assert!(store.notices().take().changed.contains(&9));
        } else {
            go.send(()).unwrap();
            assert_eq!(ordered.await.unwrap().error, None);
            assert!(store.notices().take().changed.is_empty(), "the answer says it");
            store.delete(9).unwrap();
        }
    }
}

/// Of a copy: hears that it has begun, and lets it end.
type Ends = (oneshot::Receiver<()>, oneshot::Sender<()>);

/// A datanode that has one place for copies, in which one to chunk 8 is under way.
struct Crowded {
    node: Node,
    executor: Executor,
    first: JoinHandle<OrderDone>,
    go_first: oneshot::Sender<()>,
    /// Of the next.
    second: Ends,
}

async fn crowded() -> Crowded {
    let node = tokio::task::spawn_blocking(|| Node::start(1)).await.unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let ((begin, begun), (go, going)) = (oneshot::channel(), oneshot::channel());
        ours.push((begun, go));
        theirs.push((begin, going));
    }
    let executor = Executor::new(node.store().clone(), Arc::new(Gated(Mutex::new(theirs))), 1);
    let first = copy_to(&executor, 8);
    let (begun, go_first) = ours.pop().unwrap();
    begun.await.unwrap();
    let second = ours.pop().unwrap();
    Crowded { node, executor, first, go_first, second }
}

fn copy_to(executor: &Executor, chunk: u64) -> JoinHandle<OrderDone> {
    let kind = order::Kind::Copy(CopyReplica { chunk, ..CopyReplica::default() });
    let executor = executor.clone();
    tokio::spawn(async move { executor.execute(Order { id: chunk, kind: Some(kind) }).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_has_its_place_until_it_is_done_whatever_becomes_of_its_stream() {
    let Crowded { node, executor, first, go_first, second: (mut begun, go) } = crowded().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = copy_to(&executor, 9);
    // Time enough for a second copy that did not wait.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(begun.try_recv().is_err(), "there is one place");
    go_first.send(()).unwrap();
    begun.await.unwrap();
    go.send(()).unwrap();
    assert_eq!(second.await.unwrap().error, None);
    assert!(node.store().get(8).is_ok() && node.store().get(9).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_a_disk_may_keep_waiting_makes_room_for_the_next() {
    let Crowded { node, executor, first, go_first, second: (begun, go) } = crowded().await;
    let second = copy_to(&executor, 9);
    let hung = node.store().hang(0);
    begun.await.unwrap();
    drop(hung);
    node.store().look_at_disks();
    go.send(()).unwrap();
    assert_eq!(second.await.unwrap().error, None);
    go_first.send(()).unwrap();
    assert_eq!(first.await.unwrap().error, None, "it went on");
    assert!(node.store().get(8).is_ok() && node.store().get(9).is_ok());
}
