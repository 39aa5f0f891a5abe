//! What was lost, and who has heard of it.
//!
//! As Linux does it for local file systems (`errseq_t`): each loss is told once to everybody who had something open when it
//! happened, whoever of them caused it. Only the latest is remembered, so that neither many losses nor many who never
//! ask take memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cairn_proto::Error;

/// How often something of one kind was lost, and why the last time.
#[derive(Default)]
pub(crate) struct Losses {
    count: u64,
    /// Up to which one somebody was told.
    told: u64,
    latest: Option<Error>,
}

impl Losses {
    /// One more.
    pub(crate) fn add(&mut self, error: Error) {
        self.count += 1;
        self.latest = Some(error);
    }
}

/// Of the losses of one kind, how many were heard of. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<AtomicU64>);

impl Heard {
    /// For somebody whom only what is lost from now on concerns.
    pub(crate) fn from_now(losses: &Losses) -> Heard {
        Heard(Arc::new(AtomicU64::new(losses.count)))
    }

    /// As [`Heard::from_now`], and what nobody was told of yet: it may concern who comes now as much as those before.
    pub(crate) fn from_last_told(losses: &Losses) -> Heard {
        Heard(Arc::new(AtomicU64::new(losses.told)))
    }

    /// The latest loss, if it was not heard of.
    pub(crate) fn unheard<'a>(&self, losses: &'a Losses) -> Option<&'a Error> {
        losses.latest.as_ref().filter(|_| losses.count > self.0.load(Ordering::Relaxed))
    }

    /// As [`Heard::unheard`], and it is from now on.
    pub(crate) fn hear(&self, losses: &mut Losses) -> Option<Error> {
        let loss = self.unheard(losses).cloned()?;
        self.0.store(losses.count, Ordering::Relaxed);
        losses.told = losses.count;
        Some(loss)
    }
}

#[cfg(test)]
mod tests {
    use cairn_proto::ErrorCode;

    use super::*;

    #[test]
    fn several_losses_are_told_once_to_each() {
        let mut losses = Losses::default();
        let (one, two) = (Heard::from_now(&losses), Heard::from_now(&losses));
        losses.add(ErrorCode::Io.into());
        losses.add(ErrorCode::QuotaExceeded.into());
        for heard in [&one, &two] {
            assert_eq!(heard.hear(&mut losses).map(|error| error.code), Some(ErrorCode::QuotaExceeded));
            assert!(heard.hear(&mut losses).is_none());
        }
        losses.add(ErrorCode::Io.into());
        assert!(one.clone().hear(&mut losses).is_some() && one.hear(&mut losses).is_none());
    }

    #[test]
    fn what_nobody_was_told_of_can_be_told_to_who_comes_later() {
        let mut losses = Losses::default();
        losses.add(ErrorCode::Io.into());
        let (strict, one, two) =
            (Heard::from_now(&losses), Heard::from_last_told(&losses), Heard::from_last_told(&losses));
        assert!(strict.hear(&mut losses).is_none());
        assert!(one.hear(&mut losses).is_some());
        assert!(Heard::from_last_told(&losses).hear(&mut losses).is_none());
        assert!(two.hear(&mut losses).is_some(), "it was there before that");
    }
}
