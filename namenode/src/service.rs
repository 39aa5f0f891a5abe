//! The service `Namenode`: who may come in, and to whom it is passed on.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use cairn_host::Host;
use cairn_host::clock::Clock;
use cairn_host::net::Network;
use cairn_host::seldom::Seldom;
use cairn_host::tls::peer::Caller;
use cairn_ops::http::Asked;
use cairn_proto::control::membership_request::Action;
use cairn_proto::control::namenode_server::Namenode;
use cairn_proto::control::{
    BadReplica, BadReplicaReply, BalanceReply, BalanceRequest, CallBatch, DatanodeMessage, LookReply,
    LookRequest, MembershipReply, MembershipRequest, MetadataPart, NamenodeMessage, ReplyBatch, ScrubReply,
    ScrubRequest, SetDatanodeReply, SetDatanodeRequest, SnapshotMetadataRequest, WhoLeadsReply,
    WhoLeadsRequest, namenode_message,
};
use cairn_proto::{Error, ErrorCode};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::backup::{self, Backups};
use crate::caller::may_converse;
use crate::channel;
use crate::converse::converse;
use crate::door::Pass;
use crate::member::Member;
use crate::seat::Seat;
use crate::site::{self, Look};

/// Messages of one stream between a handler and the network.
const OUTGOING: usize = 64;
/// How long a namenode that wants to join may take to answer.
const JOINER_PATIENCE: Duration = Duration::from_secs(2);

/// Serves the namenode on `seat`.
pub struct NamenodeService {
    seat: Arc<Seat>,
    network: Arc<dyn Network>,
    backups: Backups,
    clock: Arc<dyn Clock>,
    /// Becomes true when the namenode stops: streams end then.
    closing: watch::Receiver<bool>,
}

impl NamenodeService {
    /// The service of a namenode.
    pub fn new(seat: Arc<Seat>, host: &Host, closing: watch::Receiver<bool>) -> NamenodeService {
        let Host { network, clock, .. } = host.clone();
        NamenodeService { seat, network, backups: Backups::default(), clock, closing }
    }

    /// Who calls, if `rule` lets them; they are no stranger then.
    fn know<T>(request: &Request<T>, rule: fn(&Caller) -> bool) -> Result<Caller, Status> {
        // What came over no door is a call from this process.
        let Some(pass) = Pass::of(request) else { return Ok(Caller::Unchecked) };
        let caller = pass.caller();
        if !rule(caller) {
            static LINES: Seldom = Seldom::new();
            if let Some(left_out) = LINES.admit() {
                tracing::warn!(%caller, left_out, "refused: its certificate does not allow what it asked for");
            }
            return Err(Status::permission_denied("the certificate does not allow this"));
        }
        pass.trust();
        Ok(caller.clone())
    }

    /// Runs a stream's handler until it ends or the namenode stops.
    fn spawn(&self, handler: impl Future<Output = ()> + Send + 'static) {
        let mut closing = self.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = handler => {}
                // An error means that the namenode is gone altogether.
                _ = closing.wait_for(|&closing| closing) => {}
            }
        });
    }

    fn leader(&self) -> Result<Arc<Member>, Error> {
        let member = self.seat.member();
        let member =
            member.ok_or_else(|| ErrorCode::NoLeader.because("this namenode is not part of a group yet"))?;
        match member.refusal() {
            Some(error) => Err(error),
            None => Ok(member),
        }
    }

    async fn change(&self, ask: &MembershipRequest) -> Result<MembershipReply, Error> {
        let action =
            Action::try_from(ask.action).map_err(|_| ErrorCode::Malformed.because("an unknown action"))?;
        if action == Action::Join
            && let Some((id, cluster_id)) = self.seat.place_for(&ask.address)
        {
            // A group that is being formed gives places away before there is a leader.
            return Ok(MembershipReply { id, cluster_id, ..MembershipReply::default() });
        }
        let member = self.leader()?;
        let mut reply = MembershipReply::default();
        match action {
            Action::Join => {
                check_joiner(&self.network, &member, &ask.address).await?;
                reply.id = member.group.admit(&ask.address).await?;
                reply.cluster_id = member.group.cluster_id().to_owned();
            }
            Action::Remove => member.group.remove(ask.id).await?,
            Action::TransferLeader => member.group.transfer_leader(ask.id).await?,
        }
        Ok(reply)
    }
}

/// Only a namenode that can be reached at its address, and that is blank, may take a place at that address: a
/// running member must not be replaced because somebody else was given its address.
async fn check_joiner(network: &Arc<dyn Network>, member: &Member, address: &str) -> Result<(), Error> {
    let mut client = channel::namenode(network, address)?;
    let asked = tokio::time::timeout(JOINER_PATIENCE, client.who_leads(WhoLeadsRequest {})).await;
    let reply = match asked {
        Ok(Ok(reply)) => reply.into_inner(),
        _ => return Err(ErrorCode::Unavailable.because(format!("the leader does not reach {address}"))),
    };
    if reply.blank {
        return Ok(());
    }
    if reply.cluster_id != member.group.cluster_id() {
        return Err(ErrorCode::WrongCluster.because(format!("the namenode at {address}")));
    }
    Err(ErrorCode::Exists.because(format!("namenode {} at {address} is a member already", reply.id)))
}

#[tonic::async_trait]
impl Namenode for NamenodeService {
    type ConverseStream = ReceiverStream<Result<ReplyBatch, Status>>;
    type AttendStream = ReceiverStream<Result<NamenodeMessage, Status>>;
    type SnapshotMetadataStream = ReceiverStream<Result<MetadataPart, Status>>;

    async fn converse(
        &self,
        request: Request<Streaming<CallBatch>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        let caller = NamenodeService::know(&request, may_converse)?;
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        self.spawn(converse(self.seat.clone(), caller, request.into_inner(), outgoing));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn attend(
        &self,
        request: Request<Streaming<DatanodeMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        NamenodeService::know(&request, Caller::may_be_datanode)?;
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        match self.leader() {
            Ok(member) => {
                let incoming = request.into_inner();
                self.spawn(async move { member.datanodes.attend(incoming, outgoing).await });
            }
            Err(error) => {
                let leader_address = self.seat.who_leads().leader_address;
                let kind = Some(namenode_message::Kind::Refused(error.into()));
                // There is room: nothing was sent yet.
                let _ = outgoing.try_send(Ok(NamenodeMessage { kind, leader_address }));
            }
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn who_leads(&self, _: Request<WhoLeadsRequest>) -> Result<Response<WhoLeadsReply>, Status> {
        Ok(Response::new(WhoLeadsReply { now_ns: self.clock.now_ns(), ..self.seat.who_leads() }))
    }

    async fn report_bad_replica(
        &self,
        request: Request<BadReplica>,
    ) -> Result<Response<BadReplicaReply>, Status> {
        NamenodeService::know(&request, Caller::is_known)?;
        let member = self.leader().map_err(|error| Status::unavailable(error.to_string()))?;
        member.datanodes.report_bad(request.into_inner());
        Ok(Response::new(BadReplicaReply {}))
    }

    async fn change_membership(
        &self,
        request: Request<MembershipRequest>,
    ) -> Result<Response<MembershipReply>, Status> {
        let joins = request.get_ref().action == Action::Join as i32;
        NamenodeService::know(
            &request,
            if joins { Caller::may_be_namenode } else { Caller::may_administer },
        )?;
        let reply = self.change(request.get_ref()).await.unwrap_or_else(|error| {
            let leader_address = self.seat.who_leads().leader_address;
            MembershipReply { error: Some(error.into()), leader_address, ..MembershipReply::default() }
        });
        Ok(Response::new(reply))
    }

    async fn look(&self, request: Request<LookRequest>) -> Result<Response<LookReply>, Status> {
        NamenodeService::know(&request, Caller::may_administer)?;
        let LookRequest { path, query } = request.into_inner();
        let reply = match (self.leader(), site::question(&Asked { path, query })) {
            (Err(error), _) => {
                let leader_address = self.seat.who_leads().leader_address;
                LookReply { error: Some(error.into()), leader_address, ..LookReply::default() }
            }
            (Ok(_), None) => LookReply { status: 404, ..LookReply::default() },
            (Ok(member), Some(question)) => {
                let Look { status, json } = site::answer(&member, &question);
                LookReply { status, json: json.into(), ..LookReply::default() }
            }
        };
        Ok(Response::new(reply))
    }

    async fn scrub(&self, request: Request<ScrubRequest>) -> Result<Response<ScrubReply>, Status> {
        NamenodeService::know(&request, Caller::may_administer)?;
        let told = self.leader().and_then(|member| member.datanodes.scrub(request.get_ref()));
        let reply = match told {
            Ok(datanodes) => ScrubReply { datanodes, ..ScrubReply::default() },
            Err(error) => {
                let leader_address = self.seat.who_leads().leader_address;
                ScrubReply { error: Some(error.into()), leader_address, datanodes: 0 }
            }
        };
        Ok(Response::new(reply))
    }

    async fn balance(&self, request: Request<BalanceRequest>) -> Result<Response<BalanceReply>, Status> {
        NamenodeService::know(&request, Caller::may_administer)?;
        let done = self.leader().and_then(|member| member.datanodes.balance(request.get_ref()));
        Ok(Response::new(done.unwrap_or_else(|error| {
            let leader_address = self.seat.who_leads().leader_address;
            BalanceReply { error: Some(error.into()), leader_address, ..BalanceReply::default() }
        })))
    }

    async fn snapshot_metadata(
        &self,
        request: Request<SnapshotMetadataRequest>,
    ) -> Result<Response<Self::SnapshotMetadataStream>, Status> {
        NamenodeService::know(&request, Caller::may_administer)?;
        let (outgoing, receiver) = mpsc::channel(1);
        match self.leader().and_then(|member| Ok((member, self.backups.begin()?))) {
            Ok((member, turn)) => self.spawn(backup::send(member, turn, outgoing)),
            Err(error) => {
                let leader_address = self.seat.who_leads().leader_address;
                // There is room: nothing was sent yet.
                let _ = outgoing.try_send(Ok(MetadataPart {
                    error: Some(error.into()),
                    leader_address,
                    ..MetadataPart::default()
                }));
            }
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn set_datanode(
        &self,
        request: Request<SetDatanodeRequest>,
    ) -> Result<Response<SetDatanodeReply>, Status> {
        NamenodeService::know(&request, Caller::may_administer)?;
        let done = match self.leader() {
            Ok(member) => member.datanodes.set_state(request.get_ref()).await,
            Err(error) => Err(error),
        };
        let reply = match done {
            Ok(()) => SetDatanodeReply::default(),
            Err(error) => SetDatanodeReply {
                error: Some(error.into()),
                leader_address: self.seat.who_leads().leader_address,
            },
        };
        Ok(Response::new(reply))
    }
}
