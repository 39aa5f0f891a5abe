//! Carrying out a request: at once where it can be, on the runtime where it must wait.
//!
//! Handing every request to another thread costs a third of a mount's throughput, so each is begun in the session
//! thread that read it. What is in a cache, or only goes into a buffer, is answered there; what has to wait has by
//! then already sent its message, and goes on in the runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;

use crate::interrupts::Ticket;

/// Runs `request` until it first waits, and the rest of it on the runtime, after `waits` was called.
pub(crate) fn serve(
    runtime: &Handle,
    request: impl Future<Output = ()> + Send + 'static,
    waits: impl FnOnce() -> Option<Ticket>,
) {
    let mut request = Box::pin(request);
    let _entered = runtime.enter();
    // The runtime polls once more in any case, with its own waker, so nothing is lost by this one.
    let mut context = Context::from_waker(Waker::noop());
    match catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(&mut context))) {
        Ok(Poll::Ready(())) => {}
        Ok(Poll::Pending) => {
            let ticket = waits();
            runtime.spawn(async move {
                request.await;
                drop(ticket);
            });
        }
        // Its reply answers EIO as it is dropped; the session thread lives on for all the other requests.
        Err(_) => tracing::error!("a request failed unexpectedly and was answered with an I/O error"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn what_need_not_wait_is_done_in_the_calling_thread() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (done, when) = mpsc::channel();
        serve(runtime.handle(), async move { done.send(thread::current().id()).unwrap() }, || None);
        assert_eq!(when.try_recv().unwrap(), thread::current().id());
    }

    #[test]
    fn what_waits_is_finished_elsewhere() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let (done, when) = mpsc::channel();
        serve(
            runtime.handle(),
            async move {
                wait.await.unwrap();
                done.send(thread::current().id()).unwrap();
            },
            || None,
        );
        assert!(when.try_recv().is_err());
        go.send(()).unwrap();
        assert_ne!(when.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn a_failing_request_takes_nobody_with_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        serve(runtime.handle(), async { panic!("on purpose") }, || None);
        serve(runtime.handle(), async {}, || None);
    }
}
