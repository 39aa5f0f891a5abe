//! Where a namenode stands at the moment, for everybody who asks: blank, waiting for its group, or part of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_proto::control::{RaftBytes, WhoLeadsReply};
use tokio::sync::Notify;
use tonic::Status;

use crate::identity::{Identity, Phase};
use crate::member::Member;
use crate::raft::Group;
use crate::recalls::Recalls;

/// Shared by the services and by whoever brings the namenode into its group.
#[derive(Default)]
pub struct Seat {
    state: Mutex<State>,
    /// A message for the promised place has come: the group has begun.
    pub called: Notify,
    /// Clients that can be asked for what is delegated to them.
    pub recalls: Arc<Recalls>,
}

#[derive(Default)]
struct State {
    identity: Option<Identity>,
    /// The cluster this namenode is about to form, with the addresses in order of id.
    offer: Option<(String, Vec<String>)>,
    member: Option<Arc<Member>>,
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running part of the group, once there is one.
    pub fn member(&self) -> Option<Arc<Member>> {
        self.lock().member.clone()
    }

    /// Takes part from now on.
    pub fn take(&self, member: Arc<Member>) {
        self.lock().member = Some(member);
    }

    /// Takes part no more.
    pub fn leave(&self) -> Option<Arc<Member>> {
        self.lock().member.take()
    }

    /// The place this namenode has or was promised.
    pub fn identity(&self) -> Option<Identity> {
        self.lock().identity.clone()
    }

    /// Notes what was written to disk.
    pub fn identify(&self, identity: Identity) {
        self.lock().identity = Some(identity);
    }

    /// Offers places in a cluster to be formed: the `n`th address gets id `n + 1`.
    pub fn offer(&self, cluster_id: String, addresses: Vec<String>) {
        self.lock().offer = Some((cluster_id, addresses));
    }

    /// Promises nothing more.
    pub fn withdraw_offer(&self) {
        self.lock().offer = None;
    }

    /// The place offered to `address`, if a cluster is being formed here.
    pub fn place_for(&self, address: &str) -> Option<(u64, String)> {
        let state = self.lock();
        let (cluster_id, addresses) = state.offer.as_ref()?;
        let position = addresses.iter().position(|known| known == address)?;
        Some((position as u64 + 1, cluster_id.clone()))
    }

    /// The group a Raft message is for, if it is for this namenode as it is now.
    pub fn addressed(&self, head: &RaftBytes) -> Result<Group, Status> {
        let state = self.lock();
        let Some(identity) = &state.identity else {
            return Err(Status::failed_precondition("this namenode belongs to no cluster yet"));
        };
        if identity.cluster_id != head.cluster_id || identity.id != head.to {
            return Err(Status::failed_precondition(format!(
                "this is namenode {} of cluster {}, not {} of {}",
                identity.id, identity.cluster_id, head.to, head.cluster_id
            )));
        }
        match &state.member {
            Some(member) => Ok(member.group.clone()),
            None => {
                self.called.notify_one();
                Err(Status::unavailable("this namenode is starting"))
            }
        }
    }

    /// The answer to `WhoLeads`.
    pub fn who_leads(&self) -> WhoLeadsReply {
        let state = self.lock();
        let mut reply = WhoLeadsReply { blank: true, ..WhoLeadsReply::default() };
        if let Some(identity) = &state.identity {
            reply.cluster_id = identity.cluster_id.clone();
            reply.id = identity.id;
            reply.blank = identity.phase == Phase::Awaiting;
        }
        if let Some(member) = &state.member {
            let leadership = member.group.leadership();
            reply.term = leadership.term;
            if let Some((id, address)) = leadership.leader {
                reply.leader_id = id;
                reply.leader_address = address;
            }
        }
        reply
    }
}
