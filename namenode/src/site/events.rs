//! One sample a second for everybody who looks, taken only while somebody does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_ops::http::{Answer, Events};
use futures::future::BoxFuture;
use http::StatusCode;
use tokio::sync::watch;

/// Between two samples.
const PERIOD: Duration = Duration::from_secs(1);
/// Pages that look at the same time.
const LOOKERS: usize = 32;

/// Takes a sample: a line of JSON.
pub type Take = Arc<dyn Fn() -> BoxFuture<'static, String> + Send + Sync>;

/// The source of samples.
#[derive(Clone)]
pub struct Sampler {
    take: Take,
    samples: Arc<watch::Sender<Arc<str>>>,
    running: Arc<Mutex<bool>>,
}

impl Sampler {
    /// Nothing is taken before somebody looks.
    pub fn new(take: Take) -> Sampler {
        Sampler { take, samples: Arc::new(watch::Sender::new("".into())), running: Arc::default() }
    }

    /// A stream of samples.
    pub fn look(&self) -> Answer {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if self.samples.receiver_count() >= LOOKERS {
            return Answer::text(StatusCode::SERVICE_UNAVAILABLE, "too many pages look already\n");
        }
        let (answer, events) = Answer::events();
        tokio::spawn(pass_on(self.samples.subscribe(), events));
        if !*running {
            *running = true;
            tokio::spawn(self.clone().run());
        }
        answer
    }

    async fn run(self) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let sample = (self.take)().await;
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if self.samples.receiver_count() == 0 {
                *running = false;
                return;
            }
            drop(running);
            self.samples.send_replace(sample.into());
        }
    }
}

/// Sends the latest sample, again and again; one that comes while the last is not taken is passed over.
async fn pass_on(mut samples: watch::Receiver<Arc<str>>, events: Events) {
    loop {
        let sample = samples.borrow_and_update().clone();
        if !sample.is_empty() && events.send(&sample).await.is_err() {
            return;
        }
        if samples.changed().await.is_err() {
            return;
        }
    }
}
