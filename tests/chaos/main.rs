//! Chaos: a real cluster on a network of its own, broken in every way that it promises to survive, while clients work on
//! it and record what they did. Afterwards the record is checked, and the cluster must be whole.

mod behaviours;
mod check;
mod history;
mod nemesis;
mod network;
mod nodes;
mod stage;
#[path = "../cluster/waiting.rs"]
mod waiting;
mod work;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use check::Final;
use history::{Event, Operation, Recorder};
use nemesis::Nemesis;
use nodes::{PATIENCE, Role, Shape, all_voters, replicated};
use stage::Stage;
use work::{Crew, Fault, Name, Place};

/// How long things are broken, unless `CAIRN_CHAOS_SECONDS` says otherwise.
const SECONDS: u64 = 40;
/// An operation gives up after so many seconds.
const GIVE_UP: u64 = 20;

fn from_environment(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

#[test]
fn whatever_breaks_nothing_acknowledged_is_lost_and_all_heals() {
    if !network::can_run() {
        return;
    }
    let seconds = from_environment("CAIRN_CHAOS_SECONDS").unwrap_or(SECONDS);
    let seed = from_environment("CAIRN_CHAOS_SEED").unwrap_or_else(|| rand::rng().random::<u32>().into());
    println!("chaos for {seconds} s; CAIRN_CHAOS_SEED={seed} repeats its faults");
    let mut stage = Stage::set(Shape {
        namenodes: 3,
        datanodes: 5,
        mounts: 2,
        clients: 3,
        give_up: GIVE_UP,
        settings: "",
    });
    let recorder = Arc::new(Recorder::new(&stage.nodes.dir().join("history")));
    for directory in Name::DIRECTORIES {
        stage.places[0].mkdir(directory).expect("a directory");
    }
    let crew = Crew::start(&stage.places, &recorder, seed);
    let mut nemesis = Nemesis::new(&mut stage.nodes, &recorder, SmallRng::seed_from_u64(seed));
    nemesis.rage(Duration::from_secs(seconds));
    let (faults, mut wrong) = (nemesis.faults, std::mem::take(&mut nemesis.fallen));
    // An operation gives up by itself, and then ends within a few such times: a write, a sync and a close.
    wrong.extend(crew.stop(Duration::from_secs(4 * GIVE_UP)));
    let events = recorder.events();
    let end = look_at_the_end(&stage, &events, &mut wrong);
    let violations = check::all(&events, &end);
    wrong.extend(violations.iter().take(20).map(|violation| violation.render()));
    let healing = Instant::now();
    wrong.extend(heal(&mut stage));
    wrong.extend(check_records(&stage));
    wrong.extend(stage.nodes.complaints());
    summary(&events, faults, healing.elapsed());
    if !wrong.is_empty() {
        stage.nodes.keep();
        let report = wrong.join("\n");
        let _ = fs::write(stage.nodes.dir().join("wrong"), &report);
        panic!(
            "{} things are wrong; CAIRN_CHAOS_SEED={seed}, history and logs in {}\n{report}",
            wrong.len(),
            stage.nodes.dir().display()
        );
    }
}

fn summary(events: &[Event], faults: usize, healing: Duration) {
    let mut kinds: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for event in events {
        let kind = format!("{:?}", event.operation);
        let kind = kind.split(' ').next().unwrap_or_default().to_string();
        let column = if event.done() { 0 } else { 1 + usize::from(!event.refused()) };
        kinds.entry(kind).or_default()[column] += 1;
    }
    println!(
        "{} operations under {faults} faults; whole again {:.1} s after",
        events.len(),
        healing.as_secs_f64()
    );
    for (kind, [done, refused, unknown]) in kinds {
        println!("  {kind:8} {done:7} done {refused:7} refused {unknown:7} unknown");
    }
}

/// Reads until there is an answer: all faults are over.
fn surely<T>(what: &str, wrong: &mut Vec<String>, mut look: impl FnMut() -> Result<T, Fault>) -> Option<T> {
    // Who waited in vain once is not patient again.
    let give_up = Instant::now() + if wrong.is_empty() { PATIENCE } else { Duration::ZERO };
    loop {
        match look() {
            Ok(seen) => return Some(seen),
            Err(error) if Instant::now() > give_up => {
                wrong.push(format!("{what}: no answer after all faults are over: {error:?}"));
                return None;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// What the cluster holds now, as one client sees it; the logs also as all others do.
fn look_at_the_end(stage: &Stage, events: &[Event], wrong: &mut Vec<String>) -> Final {
    let mut end = Final::default();
    let place = stage.places.last().expect("a place");
    for event in events {
        match &event.operation {
            Operation::Append { log, .. } if !end.logs.contains_key(log) => {
                let read = |place: &Arc<dyn Place>, wrong: &mut Vec<String>| {
                    surely(log, wrong, || place.read(log)).flatten().unwrap_or_default()
                };
                let content = read(place, wrong);
                for other in &stage.places {
                    let seen = read(other, wrong);
                    if seen != content {
                        let (one, other) = (place.name(), other.name());
                        let at = seen.iter().zip(&content).position(|(seen, there)| seen != there);
                        let (there, seen) = (content.len(), seen.len());
                        wrong.push(format!(
                            "log {log}: {one} sees {there} bytes and {other} {seen}, different from {at:?} on"
                        ));
                    }
                }
                end.logs.insert(log.clone(), content);
            }
            Operation::Move { directory, .. } if !end.directories.contains_key(directory) => {
                let names = surely(directory, wrong, || place.names(directory)).unwrap_or_default();
                end.directories.insert(directory.clone(), names);
            }
            Operation::Keep { path, .. } if !event.refused() => {
                if let Some(content) = surely(path, wrong, || place.read(path)).flatten() {
                    end.files.insert(path.clone(), blake3::hash(&content).to_hex().to_string());
                }
            }
            Operation::Claim { name }
                if event.done() && surely(name, wrong, || place.read(name)).flatten().is_some() =>
            {
                end.claimed.push(name.clone());
            }
            _ => {}
        }
    }
    end
}

/// Has everything checked that the cluster records. What was purged a moment ago may still lie on a disk: it has to go.
fn check_records(stage: &Stage) -> Option<String> {
    let onlooker = stage.nodes.client_host(stage.nodes.shape.clients - 1);
    let give_up = Instant::now() + PATIENCE;
    loop {
        let checked = stage.nodes.command(onlooker, &["fsck", "/"]).output().expect("cairn starts");
        if checked.status.success() {
            return None;
        }
        if Instant::now() > give_up {
            return Some(format!("fsck: {} {}", checked.status, String::from_utf8_lossy(&checked.stdout)));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Ends all clients and waits until the cluster is whole: says what is not.
fn heal(stage: &mut Stage) -> Vec<String> {
    for name in stage.nodes.names(Role::Mount) {
        stage.nodes.stop(&name);
    }
    for library in &stage.libraries {
        library.close();
    }
    let shape = stage.nodes.shape;
    let whole = |status: &Value| {
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        let live: Vec<&Value> = nodes.iter().filter(|node| node["liveness"] == "live").collect();
        let held: u64 = live.iter().filter_map(|node| node["replicas"].as_u64()).sum();
        status["health"] == "healthy"
            && replicated(status)
            && status["open_chunks"].as_u64() == Some(0)
            && live.len() == shape.datanodes
            && all_voters(status, shape.namenodes)
            && status["sealed_chunks"].as_u64().is_some_and(|sealed| held == 3 * sealed)
    };
    let give_up = Instant::now() + 2 * PATIENCE;
    loop {
        let status = stage.nodes.status();
        if status.as_ref().is_some_and(whole) {
            return stage.nodes.ended_by_themselves();
        }
        if Instant::now() > give_up {
            return vec![format!("it does not heal: {status:#?}")];
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
