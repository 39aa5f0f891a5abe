//! Pictures of samples, compared with those in `screens/`. `CAIRN_WRITE_SCREENS=1` writes them anew.

use std::path::Path;
use std::time::Duration;

use cairn_client::fs::{
    AdminState, ClusterStatus, DatanodeInfo, FsStats, Liveness, NamenodeInfo, RepairInfo, Traffic, WorkInfo,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

use super::draw::{View, draw};
use super::keys::{Choice, Order};
use super::sample::Sample;
use super::{lines, text};

fn status(turn: u64) -> ClusterStatus {
    let node = |node: u32, liveness: Liveness| DatanodeInfo {
        node,
        address: format!("10.0.0.{node}:7500"),
        host: format!("dn{node}"),
        rack: "/row1".into(),
        liveness: liveness.into(),
        capacity: 4 << 40,
        used: u64::from(node) << 38,
        available: (3 << 40) - (u64::from(node) << 38),
        replicas: 1000 * u64::from(node),
        last_heard_ms: 300,
        traffic: Some(Traffic {
            bytes_read: turn * (u64::from(node) << 20),
            bytes_written: turn * (5 << 20),
        }),
        ..DatanodeInfo::default()
    };
    let mut datanodes: Vec<DatanodeInfo> = (1..=4).map(|number| node(number, Liveness::Live)).collect();
    datanodes.push(DatanodeInfo { last_heard_ms: 95_000, ..node(5, Liveness::Dead) });
    datanodes.push(DatanodeInfo { admin: AdminState::Decommissioning.into(), ..node(6, Liveness::Live) });
    let namenode = |id: u64| NamenodeInfo {
        id,
        address: format!("nn{id}:7400"),
        leader: id == 2,
        voter: true,
        matched: 100,
        reachable: true,
    };
    let repair = RepairInfo {
        under_replicated: 12,
        in_flight: 4,
        bytes_left: 700 << 20,
        bytes_per_second: 50 << 20,
        seconds_left: Some(14),
        ..RepairInfo::default()
    };
    ClusterStatus {
        fs: Some(FsStats {
            capacity: 20 << 40,
            available: 12 << 40,
            live_bytes: 1 << 40,
            default_replication: 3,
            cluster_id: "3f2c9a52-7f1e-4a7e-9a52-0d6a4c1b2e77".into(),
            ..FsStats::default()
        }),
        datanodes,
        namenodes: (1..=3).map(namenode).collect(),
        repair: Some(repair),
        open_chunks: 6,
        sealed_chunks: 16_384,
        sessions: 9,
        term: 7,
        files: 120_000,
        directories: 3_400,
        work: Some(Box::new(WorkInfo {
            mutations: turn * 840,
            mutation_ns: turn * 840 * 2_100_000,
            queries: turn * 5_200,
            query_ns: turn * 5_200 * 40_000,
            commits: turn * 90,
            commit_ns: turn * 90 * 1_700_000,
        })),
        ..ClusterStatus::default()
    }
}

fn sample() -> Sample {
    Sample::of(status(3), Some((&status(2), Duration::from_secs(1))))
}

fn view<'a>(sample: Option<&'a Sample>, choice: &'a Choice) -> View<'a> {
    View { sample, choice, trouble: None, time: "12:34:56", color: true, keys: true }
}

fn shown(width: u16, height: u16, view: &View<'_>) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    terminal
}

#[track_caller]
fn check(name: &str, picture: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/screens").join(format!("{name}.txt"));
    if std::env::var_os("CAIRN_WRITE_SCREENS").is_some() {
        std::fs::write(&path, picture).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == picture, "{}, which was\n{kept}\nis\n{picture}", path.display());
}

#[test]
fn pictures_are_as_they_were() {
    let sample = sample();
    let usual = Choice::default();
    let picture = |width, height, view: &View<'_>| lines(shown(width, height, view).backend().buffer());
    check("usual", &picture(80, 24, &view(Some(&sample), &usual)));
    check("wide", &picture(140, 20, &view(Some(&sample), &usual)));
    let help = Choice { help: true, ..Choice::default() };
    check("help", &picture(80, 24, &view(Some(&sample), &help)));
    let by_reads = Choice { order: Order::Read, row: 1, paused: true, ..Choice::default() };
    let old = View { trouble: Some("the namenodes do not answer"), ..view(Some(&sample), &by_reads) };
    check("old", &picture(80, 24, &old));
    check("first", &picture(80, 24, &view(None, &usual)));
    check("printed", &text(&sample, 120, "12:34:56"));
}

#[test]
fn any_size_will_do() {
    let sample = sample();
    let choice = Choice { help: true, row: 99, ..Choice::default() };
    for (width, height) in [(1, 1), (2, 40), (20, 5), (79, 10), (300, 100), (40, 1)] {
        shown(width, height, &view(Some(&sample), &choice));
        shown(width, height, &view(None, &choice));
    }
}

#[test]
fn the_marked_row_is_in_sight() {
    let sample = sample();
    let choice = Choice { row: 5, ..Choice::default() };
    // Room for two of six.
    let terminal = shown(80, 12, &view(Some(&sample), &choice));
    let picture = lines(terminal.backend().buffer());
    assert!(picture.contains("10.0.0.6:7500") && !picture.contains("10.0.0.1:7500"), "{picture}");
}

#[test]
fn without_colors_there_are_none() {
    let sample = sample();
    let choice = Choice::default();
    let colors = |color| {
        let view = View { color, ..view(Some(&sample), &choice) };
        let terminal = shown(80, 24, &view);
        let cells = &terminal.backend().buffer().content;
        let marked = cells.iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED)).count();
        (cells.iter().filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count(), marked)
    };
    assert!(colors(true).0 > 0);
    let (colored, marked) = colors(false);
    assert!(colored == 0 && marked > 0, "{colored} {marked}");
}
