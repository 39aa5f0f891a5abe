//! Who may hold a connection, and for how long.
//!
//! A crowd that says nothing keeps nobody out: when all places are taken, whoever came first of those that have not
//! asked anything yet has to go. Whoever reads an answer slowly has to go when its time is up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Connections at once.
pub(super) const PLACES: usize = 64;
/// For a whole answer, and for each event of a stream.
const PATIENCE: Duration = Duration::from_secs(20);

/// Those that are there.
#[derive(Default)]
pub(super) struct Guests {
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    next: u64,
    /// In the order in which they came.
    tickets: BTreeMap<u64, Ticket>,
}

/// A connection's place; given back when it is dropped.
pub(super) struct Pass {
    number: u64,
    ticket: Ticket,
    guests: Arc<Guests>,
}

/// What is known of a connection.
#[derive(Clone)]
pub(super) struct Ticket(Arc<Known>);

struct Known {
    has_asked: AtomicBool,
    until: Mutex<Instant>,
    cut: Notify,
}

impl Guests {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, taken from a stranger if need be; `None` when all are being answered.
    pub fn admit(self: &Arc<Guests>) -> Option<Pass> {
        let mut inside = self.lock();
        if inside.tickets.len() >= PLACES {
            let has_asked = |ticket: &Ticket| ticket.0.has_asked.load(Ordering::Relaxed);
            let number = *inside.tickets.iter().find(|(_, ticket)| !has_asked(ticket))?.0;
            inside.tickets.remove(&number)?.0.cut.notify_one();
        }
        let number = inside.next;
        inside.next += 1;
        let known = Known {
            has_asked: AtomicBool::new(false),
            until: Mutex::new(Instant::now() + PATIENCE),
            cut: Notify::new(),
        };
        let ticket = Ticket(Arc::new(known));
        inside.tickets.insert(number, ticket.clone());
        Some(Pass { number, ticket, guests: self.clone() })
    }
}

impl Ticket {
    /// It has sent the whole head of a request.
    pub fn is_known(&self) {
        self.0.has_asked.store(true, Ordering::Relaxed);
    }

    /// It takes what it asked for: it has as long again for the rest.
    pub fn is_reading(&self) {
        *self.until() = Instant::now() + PATIENCE;
    }

    fn until(&self) -> MutexGuard<'_, Instant> {
        self.0.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    pub fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// Returns when the connection has to end.
    pub async fn over(&self) {
        loop {
            let until = *self.ticket.until();
            tokio::select! {
                () = self.ticket.0.cut.notified() => return,
                () = sleep_until(until) => {}
            }
            if *self.ticket.until() <= Instant::now() {
                return;
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.guests.lock().tickets.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn strangers_make_room_and_those_that_asked_stay() {
        let guests = Arc::new(Guests::default());
        let mut passes: Vec<Pass> = (0..PLACES).map(|_| guests.admit().unwrap()).collect();
        passes[0].ticket().is_known();
        let another = guests.admit().unwrap();
        passes[1].over().await;
        assert_eq!(guests.lock().tickets.len(), PLACES);
        // The place was given away already: it is not given back a second time.
        drop(passes.remove(1));
        assert_eq!(guests.lock().tickets.len(), PLACES);
        another.ticket().is_known();
        passes.iter().for_each(|pass| pass.ticket().is_known());
        assert!(guests.admit().is_none());
        drop(another);
        assert!(guests.admit().is_some());
    }
}
