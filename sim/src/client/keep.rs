//! Snapshots of a client's own directory: each stays what the directory was, whatever becomes of it afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_client::Result;

use super::{Client, Done, at, observe, root};
use crate::event;
use crate::model::Kept;

/// Snapshots that a client keeps at the same time.
const MOST: usize = 3;

/// Where a snapshot is seen.
pub fn path(directory: &str, name: &str) -> String {
    format!("{directory}/.snapshot/{name}")
}

impl Client {
    /// Makes a snapshot, looks at one, or gives one up.
    pub(super) async fn keep(&mut self) {
        let names: Vec<String> = self.kept(|kept| kept.keys().cloned().collect());
        match self.random.below(3) {
            _ if names.is_empty() => self.make_snapshot().await,
            0 if names.len() < MOST => self.make_snapshot().await,
            1 => {
                let name = self.random.pick(&names).clone();
                self.give_up_snapshot(name).await;
            }
            _ => {
                let name = self.random.pick(&names).clone();
                self.look_at_snapshot(&name).await;
            }
        }
    }

    fn kept<T: Default>(&self, look: impl FnOnce(&mut BTreeMap<String, Kept>) -> T) -> T {
        self.history
            .records()
            .models
            .get_mut(&self.life)
            .map(|model| look(&mut model.kept))
            .unwrap_or_default()
    }

    async fn make_snapshot(&mut self) {
        let name = format!("s{}", self.operation);
        let state = self.now();
        self.kept(|kept| drop(kept.insert(name.clone(), Kept { state, is_sure: false })));
        let asked = self.cluster.create_snapshot(&root(), at(&self.directory), name.clone().into()).await;
        self.conclude_snapshot("make", name, asked, true).await;
    }

    async fn give_up_snapshot(&mut self, name: String) {
        self.kept(|kept| kept.get_mut(&name).into_iter().for_each(|kept| kept.is_sure = false));
        let asked = self.cluster.remove_snapshot(&root(), at(&self.directory), name.clone().into()).await;
        self.conclude_snapshot("give up", name, asked, false).await;
    }

    async fn conclude_snapshot<T>(&mut self, what: &str, name: String, result: Result<T>, there: bool) {
        match self.done(&format!("{what} snapshot {name}"), result) {
            Done::Yes(_) => self.settle_snapshot(&name, there),
            Done::No(error) => {
                self.violation(format!("{what} snapshot {name} was refused with {error}"));
                self.settle_snapshot(&name, !there);
            }
            Done::Unknown => self.find_snapshot(&name).await,
        }
    }

    fn settle_snapshot(&self, name: &str, there: bool) {
        self.kept(|kept| match kept.get_mut(name) {
            Some(kept) if there => kept.is_sure = true,
            _ => drop(kept.remove(name)),
        });
    }

    async fn find_snapshot(&mut self, name: &str) {
        if !self.bar_the_past().await {
            return;
        }
        while !self.history.stopping() {
            match self.cluster.snapshots(&root(), Some(at(&self.directory))).await {
                Ok(list) => {
                    return self.settle_snapshot(name, list.iter().any(|snapshot| snapshot.name == name));
                }
                Err(error) => event!("cannot list snapshots yet: {:?}", error.code),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn look_at_snapshot(&self, name: &str) {
        let Some(kept) = self.kept(|kept| kept.get(name).cloned()) else { return };
        match observe(&self.cluster, &path(&self.directory, name), &[&kept.state], &self.history).await {
            Ok(Some(_)) => event!("{} looked at snapshot {name}", self.operation),
            Ok(None) => self.violation(format!("snapshot {name} is not what it was made of")),
            Err(error) => event!("{} cannot look at snapshot {name}: {:?}", self.operation, error.code),
        }
    }
}
