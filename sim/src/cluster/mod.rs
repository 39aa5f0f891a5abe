//! All machines of a run, and what is on them; what befalls them is in `faults`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cairn_host::Host;
use cairn_host::disk::simulated::SimulatedDisk;
use tokio::sync::watch;

use crate::clock::SimulatedClock;
use crate::history::History;
use crate::invariants::namespace;
use crate::machine::{Id, Machines, now};
use crate::network::Net;
use crate::nodes::{datanode, namenode};
use crate::plan::Plan;
use crate::random::Random;
use crate::{check, client, event};

mod faults;

use faults::{Mend, new_disk};

/// Namenodes in every run.
pub const NAMENODES: u64 = 3;
const FIRST_NAMENODE: Id = 1;
const FIRST_DATANODE: Id = 11;
const FIRST_CLIENT: Id = 21;
/// The machine of the client that checks everything at the end.
const CHECKER: Id = 31;
/// Enough for namenodes to elect, and for one to join and be sent what it lacks.
const CATCHING_UP_MS: u64 = 12_000;

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Namenode,
    Datanode,
    Client(u64),
    Checker,
}

struct Node {
    role: Role,
    name: String,
    address: String,
    clock: SimulatedClock,
    slow_ms: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    /// How often it was started.
    lives: u64,
    /// When it is started again, while it is down.
    back_at: Option<u64>,
    /// What ended it last.
    ended: Option<String>,
}

/// See the module.
pub struct Cluster {
    plan: Plan,
    random: Random,
    machines: Machines,
    net: Net,
    nodes: BTreeMap<Id, Node>,
    disks: BTreeMap<Id, SimulatedDisk>,
    history: Arc<History>,
    ended: Arc<Mutex<Vec<(Id, String)>>>,
    /// Things to be mended, and when.
    mending: Vec<(u64, Mend)>,
    next_fault: u64,
    calm: bool,
    /// The namenode whose disk was emptied or damaged: a second one might be the majority's last copy.
    spoilt: Option<Id>,
    /// What is on its disk is damaged.
    flipped: bool,
}

fn nanos(time: Duration) -> u64 {
    time.as_nanos() as u64
}

impl Cluster {
    /// All machines as they are before anything runs.
    pub fn new(plan: Plan) -> Cluster {
        let seed = plan.seed;
        let mut cluster = Cluster {
            random: Random::new(seed, "faults"),
            machines: Machines::new(seed),
            net: Net::new(seed),
            nodes: BTreeMap::new(),
            disks: BTreeMap::new(),
            history: History::new(),
            ended: Arc::default(),
            mending: Vec::new(),
            next_fault: 2_500_000_000,
            calm: false,
            spoilt: None,
            flipped: false,
            plan,
        };
        let add = |cluster: &mut Cluster, id: Id, role: Role, name: String, port: u16| {
            let node = Node {
                role,
                name,
                address: format!("10.0.0.{id}:{port}"),
                clock: SimulatedClock::default(),
                slow_ms: Arc::default(),
                stop: watch::Sender::new(false),
                lives: 0,
                back_at: Some(0),
                ended: None,
            };
            cluster.nodes.insert(id, node);
        };
        for at in 0..NAMENODES as Id {
            add(&mut cluster, FIRST_NAMENODE + at, Role::Namenode, format!("n{}", at + 1), 7400);
        }
        for at in 0..cluster.plan.datanodes as Id {
            add(&mut cluster, FIRST_DATANODE + at, Role::Datanode, format!("d{}", at + 1), 7500);
        }
        for at in 0..cluster.plan.clients as Id {
            add(&mut cluster, FIRST_CLIENT + at, Role::Client(at as u64 + 1), format!("c{}", at + 1), 0);
        }
        let stored: Vec<Id> = cluster.of(|role| matches!(role, Role::Namenode | Role::Datanode));
        for id in stored {
            cluster.disks.insert(id, new_disk(seed ^ id as u64));
        }
        cluster
    }

    fn of(&self, which: impl Fn(Role) -> bool) -> Vec<Id> {
        self.nodes.iter().filter(|(_, node)| which(node.role)).map(|(id, _)| *id).collect()
    }

    fn namenodes(&self) -> Vec<Id> {
        self.of(|role| role == Role::Namenode)
    }

    fn datanodes(&self) -> Vec<Id> {
        self.of(|role| role == Role::Datanode)
    }

    fn clients(&self) -> Vec<Id> {
        self.of(|role| matches!(role, Role::Client(_)))
    }

    fn addresses(&self) -> Vec<String> {
        self.namenodes().iter().map(|id| self.nodes[id].address.clone()).collect()
    }

    /// What is remembered of the run.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Runs everything: work under faults, healing, checks.
    pub fn run(mut self) -> Arc<History> {
        event!("{:?}", self.plan);
        let busy = nanos(self.plan.busy);
        while now() < busy {
            self.step();
        }
        self.heal();
        let patience = now() + 40_000_000_000;
        while now() < patience && self.clients().iter().any(|id| self.machines.is_up(*id)) {
            self.step();
        }
        for id in self.clients() {
            if self.machines.is_up(id) {
                self.history.violation(format!("client {} does not come to an end", self.nodes[&id].name));
                self.take_down(id, false, None);
            }
        }
        self.start_checker();
        let patience = now() + nanos(check::PATIENCE) * 2;
        while self.machines.is_up(CHECKER) && now() < patience {
            self.step();
        }
        if self.machines.is_up(CHECKER) {
            self.history.violation("the checker does not come to an end");
        }
        self.idle(1_500);
        self.await_replaced();
        self.stop(self.namenodes().into_iter().chain(self.datanodes()).collect());
        self.even_out();
        let disks =
            |ids: Vec<Id>| ids.into_iter().map(|id| (self.nodes[&id].name.clone(), self.disks[&id].clone()));
        // Damage that nobody has read yet is there still.
        let damaged = self.spoilt.filter(|_| self.flipped);
        let sound = self.namenodes().into_iter().filter(|id| Some(*id) != damaged).collect();
        check::offline(&self.history, disks(sound).collect(), disks(self.datanodes()).collect());
        self.history
    }

    fn step(&mut self) {
        self.machines.step();
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, why) in ended {
            self.has_ended(id, why);
        }
        self.mend_due();
        let due: Vec<Id> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.back_at.is_some_and(|at| at <= now()))
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().for_each(|id| self.start(id));
        if !self.calm && now() >= self.next_fault {
            let (least, most) = self.plan.every_ms;
            self.next_fault = now() + nanos(self.random.millis(least, most));
            if !self.plan.faults.is_empty() {
                let fault = *self.random.pick(&self.plan.faults.clone());
                self.befall(fault);
            }
        }
    }

    fn has_ended(&mut self, id: Id, why: String) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        event!("{} ended: {why}", node.name);
        node.ended = Some(why);
        let back = match node.role {
            Role::Namenode | Role::Datanode => Some(self.random.millis(200, 1_500)),
            Role::Client(_) | Role::Checker => None,
        };
        self.take_down(id, false, back);
        if self.flipped && self.spoilt == Some(id) {
            // It stops when it finds damage, and names the remedy.
            self.empty(id);
        }
    }

    /// Somebody puts an empty disk into a namenode that is down.
    fn empty(&mut self, id: Id) {
        self.spoilt = Some(id);
        self.flipped = false;
        self.disks.insert(id, new_disk(self.random.any()));
    }

    fn host(&self, id: Id) -> Host {
        Host { network: self.net.of(id), clock: Arc::new(self.nodes[&id].clock.clone()), tls: None }
    }

    fn start(&mut self, id: Id) {
        let (peers, machine) = (self.addresses(), self.host(id));
        let (seed, pause_ms, plan) = (self.plan.seed, self.plan.pause_ms, self.plan.clone());
        let check_after = self.random.millis(0, 400);
        let history = self.history.clone();
        let mount = self.disks.get(&id).map(|disk| Arc::new(disk.mount()) as Arc<dyn cairn_host::disk::Disk>);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.back_at = None;
        node.lives += 1;
        node.stop = watch::Sender::new(false);
        event!("{} starts", node.name);
        let (ended, stop, address) = (self.ended.clone(), node.stop.subscribe(), node.address.clone());
        let (lives, name) = (node.lives, node.name.clone());
        let slow_ms = node.slow_ms.clone();
        let role = node.role;
        let process = async move {
            let why = match (role, mount) {
                (Role::Namenode, Some(disk)) => {
                    let config = namenode::config(&address, &peers, disk, machine, &plan);
                    namenode::run(config, stop)
                        .await
                        .map_or_else(|error| error.to_string(), |()| "stopped".into())
                }
                (Role::Datanode, Some(disk)) => {
                    let network = machine.network;
                    let (namenodes, host) = (peers, format!("host-{name}"));
                    let setup =
                        datanode::Setup { address, host, namenodes, disk, network, check_after, slow_ms };
                    datanode::run(setup, stop)
                        .await
                        .map_or_else(|error| error.to_string(), |()| "stopped".into())
                }
                (Role::Client(number), _) => {
                    let setup = client::Setup {
                        life: (number, lives),
                        seed,
                        namenodes: peers,
                        machine,
                        history,
                        pause_ms,
                    };
                    client::run(setup).await;
                    "done".into()
                }
                _ => "nothing to run".into(),
            };
            ended.lock().unwrap_or_else(PoisonError::into_inner).push((id, why));
        };
        self.machines.start(id, &self.nodes[&id].name.clone(), process);
    }

    /// Ends a process where it is; `power`: its machine loses what was not synced.
    fn take_down(&mut self, id: Id, power: bool, back: Option<Duration>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.back_at = back.map(|after| now() + nanos(after));
        let is_datanode = node.role == Role::Datanode;
        self.net.sever(id);
        if let Some(disk) = self.disks.get(&id) {
            if power {
                if is_datanode {
                    self.history.losses.fetch_add(1, Ordering::Relaxed);
                }
                disk.crash();
            } else {
                disk.kill();
            }
        }
        self.machines.crash(id);
    }

    fn up(&mut self, ids: Vec<Id>) -> Option<Id> {
        let up: Vec<Id> = ids.into_iter().filter(|id| self.machines.is_up(*id)).collect();
        (!up.is_empty()).then(|| *self.random.pick(&up))
    }

    fn start_checker(&mut self) {
        let datanodes: Vec<(String, SimulatedDisk)> = self
            .datanodes()
            .iter()
            .map(|id| (self.nodes[id].address.clone(), self.disks[id].clone()))
            .collect();
        let setup = check::Setup {
            namenodes: self.addresses(),
            machine: Host {
                network: self.net.of(CHECKER),
                clock: Arc::new(SimulatedClock::default()),
                tls: None,
            },
            history: self.history.clone(),
            datanodes,
        };
        let ended = self.ended.clone();
        let node = Node {
            role: Role::Checker,
            name: "chk".into(),
            address: String::new(),
            clock: SimulatedClock::default(),
            slow_ms: Arc::default(),
            stop: watch::Sender::new(false),
            lives: 1,
            back_at: None,
            ended: None,
        };
        self.nodes.insert(CHECKER, node);
        self.machines.start(CHECKER, "chk", async move {
            check::run(setup).await;
            ended.lock().unwrap_or_else(PoisonError::into_inner).push((CHECKER, "done".into()));
        });
    }

    fn idle(&mut self, millis: u64) {
        let until = now() + millis * 1_000_000;
        while now() < until {
            self.step();
        }
    }

    /// A namenode may have found the damage on its disk only now, and got an empty one: it is not up yet, or not filled.
    fn await_replaced(&mut self) {
        let Some(id) = self.spoilt.filter(|id| !self.machines.is_up(*id)) else { return };
        let patience = now() + 10_000_000_000;
        while !self.machines.is_up(id) && now() < patience {
            self.step();
        }
        self.idle(CATCHING_UP_MS);
    }

    /// Lets the namenodes come to the same point of their log. A leader may be told to stop right after it has done
    /// something of its own accord (a lease was over, garbage was purged), and then the others have that in their logs
    /// and do not know that it is committed. Alone, they soon have nothing left to do.
    fn even_out(&mut self) {
        for _ in 0..5 {
            let places: BTreeSet<Vec<u8>> =
                self.namenodes().iter().filter_map(|id| namespace::applied(&self.disks[id])).collect();
            if places.len() == 1 || !self.history.records().violations.is_empty() {
                return;
            }
            event!("the namenodes are not at the same point");
            self.namenodes().into_iter().for_each(|id| self.start(id));
            self.idle(CATCHING_UP_MS);
            self.await_replaced();
            self.stop(self.namenodes());
        }
        self.history.violation("the namenodes do not come to the same point of their log");
    }

    /// Stops servers at once, in the proper way.
    fn stop(&mut self, ids: Vec<Id>) {
        let mut waiting: BTreeSet<Id> = BTreeSet::new();
        for &id in &ids {
            if self.machines.is_up(id) {
                self.nodes[&id].stop.send_replace(true);
                waiting.insert(id);
            } else {
                let (name, why) = (&self.nodes[&id].name, &self.nodes[&id].ended);
                self.history.violation(format!("{name} does not run: {}", why.clone().unwrap_or_default()));
            }
        }
        let patience = now() + 20_000_000_000;
        while !waiting.is_empty() && now() < patience {
            self.machines.step();
            let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
            for (id, why) in ended {
                waiting.remove(&id);
                let is_damaged = self.flipped && self.spoilt == Some(id);
                if why != "stopped" && !is_damaged {
                    self.history.violation(format!("{} did not stop well: {why}", self.nodes[&id].name));
                }
            }
        }
        for id in waiting {
            self.history.violation(format!("{} does not stop", self.nodes[&id].name));
        }
        for id in ids {
            self.take_down(id, false, None);
        }
    }
}
