//! One fault at a time, and what is promised for it. Times are printed, not judged.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::check;
use crate::history::{Operation, Outcome, Recorder};
use crate::network::can_run;
use crate::nodes::{Nodes, PATIENCE, Role, Shape, all_voters, replicated};
use crate::stage::Stage;
use crate::work::{Fault, Place};

/// Nothing that should go on may take longer than this, or it hangs.
const HANGS: Duration = Duration::from_secs(60);

const SHAPE: Shape = Shape { namenodes: 3, datanodes: 4, mounts: 1, clients: 2, give_up: 20, settings: "" };

fn point(stage: &Stage) -> std::path::PathBuf {
    stage.nodes.mount_point("mount1")
}

/// The longest of many short steps.
struct Longest {
    since: Instant,
    longest: Duration,
}

impl Longest {
    fn new() -> Longest {
        Longest { since: Instant::now(), longest: Duration::ZERO }
    }

    fn step(&mut self) {
        self.longest = self.longest.max(self.since.elapsed());
        self.since = Instant::now();
    }
}

#[test]
fn when_the_leader_dies_writes_go_on_and_open_files_stay_open() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(SHAPE);
    let path = point(&stage).join("log");
    let library = Arc::clone(&stage.places[1]);
    library.mkdir("made").expect("a directory");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let by_mount = scope.spawn(|| {
            let mut log = OpenOptions::new().create(true).append(true).open(&path).expect("a log");
            let (mut expected, mut time) = (String::new(), Longest::new());
            for number in 0.. {
                let line = format!("record {number}\n");
                log.write_all(line.as_bytes()).expect("an append");
                log.sync_all().expect("a sync");
                expected += &line;
                time.step();
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
            (expected, time.longest)
        });
        let by_library = scope.spawn(|| {
            let mut time = Longest::new();
            for number in 0.. {
                // Made twice, it would be refused the second time.
                library.claim(&format!("made/{number}")).expect("a file");
                time.step();
                if over.load(Ordering::Relaxed) {
                    return (number + 1, time.longest);
                }
            }
            unreachable!("it ends when it is told to")
        });
        for _ in 0..2 {
            thread::sleep(Duration::from_secs(2));
            let leader = stage.nodes.leader();
            stage.nodes.kill(&leader);
            thread::sleep(Duration::from_secs(3));
            stage.nodes.start(&leader);
        }
        over.store(true, Ordering::Relaxed);
        let (expected, by_mount) = by_mount.join().expect("the mount goes on");
        let (made, by_library) = by_library.join().expect("the library goes on");
        println!(
            "leader killed: longest step {by_mount:.2?} through the mount, {by_library:.2?} of the library"
        );
        assert!(by_mount < HANGS && by_library < HANGS);
        assert_eq!(fs::read_to_string(&path).expect("the log"), expected, "each record once, in order");
        let there = stage.places[1].read("log").expect("the log").expect("it is there");
        assert_eq!(there, expected.as_bytes());
        let names = fs::read_dir(point(&stage).join("made")).expect("a directory").count();
        assert_eq!(names, made);
    });
}

#[test]
fn an_old_leader_that_is_cut_off_serves_nothing_stale_and_acknowledges_nothing() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(Shape { datanodes: 3, clients: 3, give_up: 4, ..SHAPE });
    let recorder = Recorder::new(&stage.nodes.dir().join("history"));
    let (mount, inside, outside) = (&stage.places[0], &stage.places[1], &stage.places[2]);
    let over = AtomicBool::new(false);
    let value = |found: Option<Vec<u8>>| {
        found.map(|bytes| String::from_utf8(bytes).expect("text").trim().parse().expect("a number"))
    };
    let read = |place: &Arc<dyn Place>, by: &str| {
        let start = recorder.now();
        let found = place.read("register");
        if let Ok(found) = found {
            let operation = Operation::Read { register: "register".into(), value: value(found) };
            recorder.record(by, start, operation, Outcome::Done);
        }
    };
    let write = |number: u64| {
        let draft = format!("draft{number}");
        let stored = outside.store(&draft, format!("{number:8}\n").as_bytes());
        let start = recorder.now();
        let outcome = match stored.and_then(|()| outside.rename(&draft, "register")) {
            Ok(()) => Outcome::Done,
            Err(Fault::Refused(why) | Fault::Unknown(why)) => Outcome::Unknown(why),
        };
        recorder.record(
            "outside",
            start,
            Operation::Write { register: "register".into(), value: number },
            outcome,
        );
    };
    write(1);
    let leader = stage.nodes.node(&stage.nodes.leader()).host;
    let set = vec![leader, stage.nodes.node("mount1").host, stage.nodes.client_host(0)];
    let seen_by_mount = point(&stage).join("register");
    let network = &mut stage.nodes.network;
    thread::scope(|scope| {
        let readers = [(inside, "inside"), (mount, "mount"), (outside, "reader outside")];
        for (place, by) in readers {
            let (read, over) = (&read, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    read(place, by);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        scope.spawn(|| {
            for number in 2.. {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                write(number);
                thread::sleep(Duration::from_millis(30));
            }
        });
        thread::sleep(Duration::from_secs(2));
        network.part(&set, true, true).expect("links can be cut");
        let cut = recorder.now();
        thread::sleep(Duration::from_secs(2));
        // Attributes that the mount's kernel knew are too old by now.
        let refused = fs::metadata(&seen_by_mount).map(|found| found.len());
        assert!(refused.is_err(), "attributes were served from the wrong side: {refused:?}");
        let refused = inside.claim("inside");
        assert!(matches!(refused, Err(Fault::Unknown(_))), "the old leader acknowledged: {refused:?}");
        // Whatever was read after the other side had gone on.
        let events = recorder.events();
        let written = events.iter().find(|event| {
            matches!(event.operation, Operation::Write { .. }) && event.done() && event.start > cut
        });
        let written = written.expect("the other side goes on");
        println!("the other side went on {:.2?} after the cut", Duration::from_micros(written.end - cut));
        network.heal().expect("links can be mended");
        thread::sleep(Duration::from_secs(3));
        over.store(true, Ordering::Relaxed);
    });
    let violations = check::all(&recorder.events(), &check::Final::default());
    assert!(violations.is_empty(), "{}", violations[0].render());
    for place in [mount, inside] {
        let give_up = Instant::now() + PATIENCE;
        while place.read("register").is_err() {
            assert!(Instant::now() < give_up, "{} does not go on", place.name());
        }
        read(place, place.name());
    }
    let events = recorder.events();
    let violations = check::all(&events, &check::Final::default());
    assert!(violations.is_empty(), "{}", violations[0].render());
    assert!(events.len() > 100, "{} operations", events.len());
}

#[test]
fn a_namenode_that_fell_behind_a_snapshot_catches_up_and_counts() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(Shape { datanodes: 3, mounts: 0, ..SHAPE });
    let library = Arc::clone(&stage.places[0]);
    let leader = stage.nodes.leader();
    let names = stage.nodes.names(Role::Namenode);
    let (behind, other) = {
        let mut others = names.iter().filter(|name| **name != leader);
        (others.next().expect("a follower").clone(), others.next().expect("another").clone())
    };
    stage.nodes.kill(&behind);
    library.mkdir("many").expect("a directory");
    // Each is an entry of the log, more than twice those between snapshots and many times those kept.
    for number in 0..800 {
        library.claim(&format!("many/{number}")).expect("a file");
    }
    stage.nodes.start(&behind);
    stage.nodes.wait_for("all namenodes", |status| {
        let nodes = status["namenodes"].as_array().cloned().unwrap_or_default();
        let matched = |node: &Value| node["matched"].as_u64().unwrap_or(0);
        let most = nodes.iter().map(matched).max().unwrap_or(0);
        all_voters(status, 3) && nodes.iter().all(|node| matched(node) + 20 > most)
    });
    assert!(stage.nodes.log_text(&behind).contains("snapshot"), "it was brought up by a snapshot");
    // Without another one, it makes the majority, and has everything.
    stage.nodes.kill(&other);
    library.claim("many/more").expect("a file");
    stage.nodes.kill(&leader);
    stage.nodes.start(&other);
    library.claim("many/most").expect("a file");
    assert_eq!(library.names("many").expect("names").len(), 802);
}

#[test]
fn the_first_read_after_a_power_cut_sees_everything_that_was_acknowledged() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(Shape { datanodes: 3, mounts: 0, ..SHAPE });
    let library = Arc::clone(&stage.places[0]);
    library.mkdir("made").expect("a directory");
    let mut made = 0;
    for round in 0..4 {
        // The leader comes back first, and with it what it has not made durable of its store.
        let leader = stage.nodes.leader();
        let mut namenodes = stage.nodes.names(Role::Namenode);
        namenodes.sort_by_key(|name| *name != leader);
        for _ in 0..150 {
            library.claim(&format!("made/{made}")).expect("a file");
            made += 1;
        }
        for name in &namenodes {
            stage.nodes.kill(name);
        }
        for name in &namenodes {
            stage.nodes.start(name);
        }
        // The one answer that comes first; it waits until somebody leads.
        let last = library.read(&format!("made/{}", made - 1)).expect("an answer");
        assert!(last.is_some(), "round {round}: the last of {made} is not there");
    }
}

/// The datanode whose replica was written to last.
fn in_the_chain(nodes: &Nodes) -> String {
    let newest = |name: &String| {
        let mut newest = std::time::UNIX_EPOCH;
        let mut todo = vec![nodes.dir().join(name)];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(found) if found.is_dir() => todo.push(entry.path()),
                    Ok(found) => newest = newest.max(found.modified().expect("a time")),
                    Err(_) => {}
                }
            }
        }
        newest
    };
    nodes.names(Role::Datanode).into_iter().max_by_key(newest).expect("a datanode")
}

#[test]
fn when_a_datanode_dies_or_sleeps_in_the_middle_of_a_write_no_program_notices() {
    if !can_run() {
        return;
    }
    for sleeps in [false, true] {
        let mut stage = Stage::set(SHAPE);
        let path = point(&stage).join("large");
        let piece = |number: u32| -> Vec<u8> {
            (0..65_536u32).flat_map(|at| (at ^ (number << 20)).to_le_bytes()).collect()
        };
        let mut file = File::create(&path).expect("a file");
        let mut time = Longest::new();
        let mut victim = None;
        for number in 0..120 {
            file.write_all(&piece(number)).expect("a write");
            if number % 8 == 7 {
                file.sync_data().expect("a sync");
            }
            time.step();
            if number == 40 {
                let name = in_the_chain(&stage.nodes);
                if sleeps {
                    stage.nodes.pause(&name)
                } else {
                    stage.nodes.kill(&name)
                }
                victim = Some(name);
            }
        }
        file.sync_all().expect("a sync");
        time.step();
        let victim = victim.expect("somebody");
        let how = if sleeps { "stopped" } else { "killed" };
        println!("{victim} {how} in the middle of a write: longest step {:.2?}", time.longest);
        assert!(time.longest < HANGS);
        drop(file);
        let found = stage.places[1].read("large").expect("a read").expect("it is there");
        let expected: Vec<u8> = (0..120).flat_map(piece).collect();
        assert!(found == expected, "{} bytes of {}", found.len(), expected.len());
        if sleeps {
            stage.nodes.resume(&victim)
        } else {
            stage.nodes.start(&victim)
        }
        stage.nodes.wait_for("the chunks to be whole", replicated);
    }
}

#[test]
fn repair_goes_on_when_a_datanode_that_takes_part_in_it_dies() {
    if !can_run() {
        return;
    }
    // Slow enough to be watched.
    let settings = "repair_bytes_per_second = 4000000\n";
    let mut stage = Stage::set(Shape { datanodes: 5, mounts: 0, settings, ..SHAPE });
    let library = Arc::clone(&stage.places[0]);
    let content = |number: u8| vec![number; 8 << 20];
    for number in 0..10 {
        library.store(&format!("file{number}"), &content(number)).expect("a file");
    }
    stage.libraries[0].close();
    stage.nodes.wait_for("all chunks sealed", |status| {
        replicated(status) && status["open_chunks"].as_u64() == Some(0)
    });
    stage.nodes.kill("dn1");
    let left = |status: &Value| status["repair"]["under_replicated"].as_u64().unwrap_or(0);
    let began = Instant::now();
    let status = stage.nodes.wait_for("repair to begin", |status| {
        left(status) > 0 && status["repair"]["in_flight"].as_u64() > Some(0)
    });
    println!("repair began {:.1?} after the kill: {}", began.elapsed(), status["repair"]);
    // Whoever takes part now as source or target: with four left, most copies go to or from this one.
    stage.nodes.kill("dn2");
    let mut shown = Vec::new();
    let status = stage.nodes.wait_for("all chunks on the three that are left", |status| {
        shown.push(left(status));
        if left(status) > 0 {
            assert!(
                status["repair"]["bytes_left"].as_u64() > Some(0),
                "progress is shown: {}",
                status["repair"]
            );
        }
        let dead = |node: &&Value| node["liveness"] == "dead";
        let dead = status["datanodes"].as_array().map_or(0, |nodes| nodes.iter().filter(dead).count());
        dead == 2 && replicated(status)
    });
    shown.dedup();
    println!("whole again {:.1?} after the first kill; chunks left over time: {shown:?}", began.elapsed());
    assert!(status["repair"]["chunks_repaired"].as_u64() > Some(0));
    for number in 0..10 {
        let found = library.read(&format!("file{number}")).expect("a read").expect("it is there");
        assert!(found == content(number));
    }
}

#[test]
fn what_a_killed_mount_leaves_is_sealed_and_collected() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(Shape { datanodes: 3, ..SHAPE });
    let point = point(&stage);
    let synced = vec![1; 3 << 20];
    fs::write(point.join("stays"), &synced).expect("a file");
    File::open(point.join("stays")).and_then(|file| file.sync_all()).expect("a sync");
    // Open without a name, and bytes that nobody has committed.
    let unlinked = File::create(point.join("unlinked")).expect("a file");
    unlinked.write_all_at(&vec![2; 9 << 20], 0).and_then(|()| unlinked.sync_all()).expect("a write");
    fs::remove_file(point.join("unlinked")).expect("it can be removed");
    let unsynced = File::create(point.join("unsynced")).expect("a file");
    unsynced.write_all_at(&vec![3; 5 << 20], 0).expect("a write");
    stage.nodes.kill("mount1");
    drop((unlinked, unsynced));
    let killed = Instant::now();
    stage.nodes.wait_for("the session to end", |status| status["open_chunks"].as_u64() == Some(0));
    println!("chunks sealed {:.1?} after the kill", killed.elapsed());
    assert_eq!(stage.places[1].read("stays").expect("a read").expect("it is there"), synced);
    let on_disk = |nodes: &Nodes| -> u64 {
        let replicas = nodes.replicas(false);
        replicas.iter().filter_map(|(.., path)| fs::metadata(path).ok()).map(|found| found.len()).sum()
    };
    // What is left is three replicas of at most two chunks.
    let give_up = Instant::now() + PATIENCE;
    while on_disk(&stage.nodes) > 3 * (8 << 20) {
        assert!(
            Instant::now() < give_up,
            "garbage stays: {} bytes\n{}",
            on_disk(&stage.nodes),
            stage.nodes.logs()
        );
        thread::sleep(Duration::from_millis(300));
    }
    println!("garbage collected {:.1?} after the kill", killed.elapsed());
    stage.nodes.start("mount1");
    assert_eq!(fs::read(point.join("stays")).expect("a file"), synced);
    assert!(!point.join("unlinked").exists());
}

#[test]
fn a_mount_waits_for_a_leader_and_then_says_that_there_is_none() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::set(Shape { datanodes: 3, give_up: 3, ..SHAPE });
    let point = point(&stage);
    fs::write(point.join("there"), "content").expect("a file");
    for name in ["nn1", "nn2"] {
        stage.nodes.kill(name);
    }
    // Longer than the kernel believes what it knows.
    thread::sleep(Duration::from_millis(1500));
    let tries: [(&str, &dyn Fn() -> std::io::Result<()>); 4] = [
        ("stat", &|| fs::metadata(point.join("there")).map(drop)),
        ("open", &|| File::open(point.join("there")).map(drop)),
        ("create", &|| File::create(point.join("new")).map(drop)),
        ("list", &|| fs::read_dir(&point).and_then(|mut names| names.try_for_each(|name| name.map(drop)))),
    ];
    for (what, attempt) in tries {
        let began = Instant::now();
        let error = attempt().expect_err(what);
        println!("without a majority, {what}: {error} after {:.1?}", began.elapsed());
        assert!(matches!(error.raw_os_error(), Some(libc::EIO | libc::ETIMEDOUT)), "{what}: {error}");
        assert!(began.elapsed() < HANGS, "{what} hangs");
    }
    let log = stage.nodes.log_text("mount1");
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("leader")), "{log}");
    stage.nodes.start("nn1");
    let give_up = Instant::now() + PATIENCE;
    while fs::read_to_string(point.join("there")).ok().as_deref() != Some("content") {
        assert!(Instant::now() < give_up, "the mount does not go on\n{}", stage.nodes.logs());
    }
    fs::write(point.join("new"), "more").expect("a file");
    assert_eq!(stage.places[1].read("new").expect("a read").as_deref(), Some(b"more".as_slice()));
}
