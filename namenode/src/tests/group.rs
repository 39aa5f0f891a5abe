//! Three namenodes: elections, lost disks, followers that lag.

use cairn_host::Host;
use cairn_proto::control::MembershipRequest;
use cairn_proto::control::membership_request::Action;

use super::*;

struct Group {
    nodes: Vec<Node>,
    client: Client,
    _dir: tempfile::TempDir,
}

fn group(adjust: impl Fn(&mut Config)) -> Group {
    let dir = tempfile::tempdir().unwrap();
    let mut configs = configs(dir.path(), 3);
    configs.iter_mut().for_each(adjust);
    let nodes = configs.iter().cloned().map(Node::start).collect();
    let mut client = Client::new(&configs);
    client.open_session();
    Group { nodes, client, _dir: dir }
}

impl Group {
    fn change_members(&self, action: Action, id: u64) -> Option<Error> {
        let leader = &self.client.addresses[self.client.leader()];
        let ask = MembershipRequest { action: action as i32, id, address: String::new() };
        let asked = async {
            channel::namenode(&Host::default().network, leader).unwrap().change_membership(ask).await.unwrap()
        };
        self.client.block_on(asked).into_inner().error.map(Error::from)
    }

    fn id_at(&self, at: usize) -> Option<u64> {
        let status = self.client.status();
        let address = &self.client.addresses[at];
        status.namenodes.iter().find(|namenode| namenode.address == *address).map(|namenode| namenode.id)
    }
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut group = group(|_| {});
    assert_eq!(error_of(&group.client.mkdir("before")), None);
    let first = group.client.change_as(500, mkdir("once"));
    let leader = group.client.leader();
    let term = group.client.status().term;
    group.nodes[leader].kill();
    assert_eq!(error_of(&group.client.mkdir("after")), None);
    assert!(group.client.exists("before"));
    assert!(group.client.status().term > term);
    assert_eq!(group.client.change_as(500, mkdir("once")), first, "the outcome survives the leader");
    group.nodes[leader].restart();
    let address = group.client.addresses[leader].clone();
    group.client.wait_status("the killed one catches up", |status| {
        let back = status.namenodes.iter().find(|namenode| namenode.address == address);
        back.is_some_and(|back| back.reachable && back.matched >= status.applied)
    });
}

#[test]
fn a_follower_names_the_leader() {
    let group = group(|_| {});
    let leader = group.client.leader();
    let follower = (leader + 1) % 3;
    let query = call::Kind::Query(Query { op: Some(query::Op::Status(GetStatus {})) });
    let start = Instant::now();
    loop {
        // A follower learns the leader with its first heartbeat.
        let reply = group.client.ask_one(&group.client.addresses[follower], query.clone()).unwrap();
        if reply.leader_address == group.client.addresses[leader] {
            assert!(matches!(reply.result, Some(reply::Result::Error(_))));
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{reply:?}");
    }
    let told = group.client.who_leads(&group.client.addresses[follower]).unwrap();
    assert_eq!(told.leader_address, group.client.addresses[leader]);
    assert!(!told.blank);
}

#[test]
fn a_namenode_that_lost_its_disk_joins_again_under_a_new_id() {
    let mut group = group(|_| {});
    group.client.mkdir("kept");
    let lost = (group.client.leader() + 1) % 3;
    let old = group.id_at(lost).unwrap();
    group.nodes[lost].kill();
    std::fs::remove_dir_all(&group.nodes[lost].config.dir).unwrap();
    group.nodes[lost].restart();
    let address = group.client.addresses[lost].clone();
    let status = group.client.wait_status("it votes under a new id", |status| {
        let at: Vec<_> = status.namenodes.iter().filter(|namenode| namenode.address == address).collect();
        at.len() == 1 && at[0].id > 3 && at[0].voter && at[0].matched >= status.applied
    });
    assert!(status.namenodes.iter().all(|namenode| namenode.id != old));
    assert_eq!(status.namenodes.len(), 3);
    // It counts: with one of the others gone, there is a majority only with it.
    let other = (0..3).find(|&at| at != lost && at != group.client.leader()).unwrap();
    group.nodes[other].kill();
    assert_eq!(error_of(&group.client.mkdir("more")), None);
    assert!(group.client.exists("kept"));
}

#[test]
fn a_follower_behind_the_log_gets_the_whole_store() {
    let mut group = group(|config| {
        config.snapshot_every = 20;
        config.log_keep = 5;
    });
    let behind = (group.client.leader() + 1) % 3;
    let id = group.id_at(behind).unwrap();
    group.nodes[behind].kill();
    for number in 0..150 {
        assert_eq!(error_of(&group.client.mkdir(&format!("d{number}"))), None);
    }
    group.nodes[behind].restart();
    group.client.wait_status("it catches up", |status| {
        status.namenodes.iter().any(|namenode| namenode.id == id && namenode.matched >= status.applied)
    });
    let start = Instant::now();
    while group.client.leader() != behind {
        assert_eq!(
            group.change_members(Action::TransferLeader, id).filter(|e| e.code == ErrorCode::NotFound),
            None
        );
        assert!(start.elapsed() < PATIENCE, "leadership was not handed over");
        std::thread::sleep(Duration::from_millis(300));
    }
    for number in [0, 77, 149] {
        assert!(group.client.exists(&format!("d{number}")));
    }
    assert!(!group.client.exists("d150"));
    // What was installed is what is there after a restart.
    group.nodes[behind].restart();
    assert_eq!(error_of(&group.client.mkdir("last")), None);
    group.client.wait_status("it is back", |status| {
        status.namenodes.iter().any(|namenode| namenode.id == id && namenode.matched >= status.applied)
    });
}

#[test]
fn members_leave_but_not_the_last() {
    let group = group(|_| {});
    let leader = group.client.leader();
    let gone = group.id_at((leader + 1) % 3).unwrap();
    assert_eq!(group.change_members(Action::Remove, gone), None);
    let status = group.client.wait_status("two are left", |status| status.namenodes.len() == 2);
    assert!(status.namenodes.iter().all(|namenode| namenode.id != gone));
    assert_eq!(group.change_members(Action::Remove, 99).unwrap().code, ErrorCode::NotFound);
}

#[test]
fn a_group_whose_members_start_one_by_one_and_crash_meanwhile_still_forms() {
    let dir = tempfile::tempdir().unwrap();
    let configs = configs(dir.path(), 3);
    let mut nodes: Vec<Node> = configs[..2].iter().cloned().map(Node::start).collect();
    let client = Client::new(&configs);
    let start = Instant::now();
    while client.who_leads(&configs[0].advertise).is_none() && start.elapsed() < PATIENCE {}
    std::thread::sleep(Duration::from_millis(500));
    assert!(client.who_leads(&configs[0].advertise).unwrap().blank, "two of three form nothing");
    nodes[0].restart();
    nodes.push(Node::start(configs[2].clone()));
    std::thread::sleep(Duration::from_millis(300));
    nodes[1].restart();
    let status = client.wait_status("all three are members", |status| {
        status.namenodes.iter().filter(|namenode| namenode.voter && namenode.reachable).count() == 3
    });
    assert_eq!(status.namenodes.len(), 3);
}
