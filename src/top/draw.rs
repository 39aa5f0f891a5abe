//! The picture: a function of a sample and what was chosen.

use cairn_client::fs::{AdminState, DatanodeInfo, Liveness};
use cairn_ops::health::{Health, is_drained, replaced};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Widget};

use super::keys::{Choice, Order, share};
use super::sample::{Flow, Rate, Sample};
use crate::output::size;
use crate::verbs::health::{counted, judge, liveness_name, repair_line};

/// Lines above the list of datanodes, its heading among them.
pub const HEAD: u16 = 9;
/// From this width on, hosts, racks and replicas are shown, too.
const WIDE: u16 = 110;
const HELP: &[&str] = &[
    "q F10 Esc     quit               F1 h ?   this help",
    "arrows j k    move               PgUp PgDn Home End",
    "n             sort by number",
    "s             sort by state, the dead first",
    "u             sort by space used, the fullest first",
    "r  w          sort by bytes read, written",
    "t             sort by time since it was heard",
    "< >           sort by the column before, after",
    "I             the other way round (or the same key again)",
    "space         look again now     p        pause",
];

/// Everything that is shown.
pub struct View<'a> {
    /// The cluster; nothing before the first answer.
    pub sample: Option<&'a Sample>,
    /// What the user has chosen.
    pub choice: &'a Choice,
    /// Why the sample is old.
    pub trouble: Option<&'a str>,
    /// The time of day.
    pub time: &'a str,
    /// Whether there are colours.
    pub color: bool,
    /// Whether there are keys to tell of, and a row to mark.
    pub keys: bool,
}

/// Draws on a terminal.
pub fn draw(frame: &mut Frame<'_>, view: &View<'_>) {
    let area = frame.area();
    paint(frame.buffer_mut(), area, view);
}

/// Draws into memory.
pub fn paint(buffer: &mut Buffer, area: Rect, view: &View<'_>) {
    let mut lines = heading(area.width, view);
    let below = area.height.saturating_sub(HEAD + u16::from(view.keys));
    if let Some(sample) = view.sample {
        lines.extend(datanodes(area.width, below, sample, view));
    }
    Paragraph::new(lines).render(area, buffer);
    if view.keys && area.height > 0 {
        let bar = Rect { y: area.bottom() - 1, height: 1, ..area };
        key_bar(view).render(bar, buffer);
    }
    if view.choice.help {
        help(area, buffer);
    }
}

impl View<'_> {
    fn style(&self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn bold(&self, color: Color) -> Style {
        self.style(color).add_modifier(Modifier::BOLD)
    }

    /// A name before what it is the name of.
    fn label(&self, text: &str) -> Span<'static> {
        Span::styled(format!("{text:<8}"), self.style(Color::Cyan))
    }
}

fn heading(width: u16, view: &View<'_>) -> Vec<Line<'static>> {
    let Some(sample) = view.sample else {
        let what = view.trouble.unwrap_or("asking the namenodes").to_owned();
        return vec![Line::from("CairnFS"), Line::styled(what, view.bold(Color::Yellow))];
    };
    let (status, fs) = (&sample.status, sample.status.fs.clone().unwrap_or_default());
    let verdict = judge(status);
    let color = match verdict.health {
        Health::Healthy => Color::Green,
        Health::Degraded => Color::Yellow,
        Health::Missing => Color::Red,
    };
    let first = vec![
        Span::styled("CairnFS ", Style::new().add_modifier(Modifier::BOLD)),
        Span::raw(format!("{}  ", fs.cluster_id)),
        Span::styled(verdict.health.name().to_uppercase(), view.bold(color)),
    ];
    let paused = if view.choice.paused { "paused  " } else { "" };
    let second = match view.trouble {
        Some(trouble) => Line::styled(format!("old: {trouble}"), view.bold(Color::Red)),
        None if verdict.reasons.is_empty() => Line::from("everything is as it should be"),
        None => Line::styled(verdict.texts().join(", "), view.style(color)),
    };
    vec![
        apart(first, format!("{paused}{}", view.time), width),
        second,
        leader(sample, view),
        space(sample, width, view),
        labelled(
            view,
            "data",
            format!(
                "{} in {}; {} open, {} sealed; {}",
                size(fs.live_bytes),
                counted(status.files, "file"),
                counted(status.open_chunks, "chunk"),
                status.sealed_chunks,
                counted(status.sessions, "session"),
            ),
        ),
        labelled(view, "repair", repair_line(&status.repair.unwrap_or_default())),
        work(sample, view),
        traffic(sample, view),
        columns(width, view),
    ]
}

fn labelled(view: &View<'_>, label: &str, text: String) -> Line<'static> {
    Line::from(vec![view.label(label), Span::raw(text)])
}

/// Something on the left, something on the right.
fn apart(mut left: Vec<Span<'static>>, right: String, width: u16) -> Line<'static> {
    let taken: usize = left.iter().map(Span::width).sum::<usize>() + right.chars().count();
    left.push(Span::raw(" ".repeat(usize::from(width).saturating_sub(taken).max(1))));
    left.push(Span::raw(right));
    Line::from(left)
}

fn leader(sample: &Sample, view: &View<'_>) -> Line<'static> {
    let nodes = &sample.status.namenodes;
    let up = nodes.iter().filter(|node| node.reachable || node.leader).count();
    let text = match nodes.iter().find(|node| node.leader) {
        Some(leader) => format!("{} (id {}), term {}", leader.address, leader.id, sample.status.term),
        None => "none".into(),
    };
    let color = if up < nodes.len() { Color::Yellow } else { Color::Reset };
    Line::from(vec![
        view.label("leader"),
        Span::raw(format!("{text}; ")),
        Span::styled(format!("{up} of {} up", counted(nodes.len() as u64, "namenode")), view.style(color)),
    ])
}

fn space(sample: &Sample, width: u16, view: &View<'_>) -> Line<'static> {
    let fs = sample.status.fs.clone().unwrap_or_default();
    let used: u64 = sample
        .status
        .datanodes
        .iter()
        .filter(|node| node.liveness() != Liveness::Dead)
        .map(|node| node.used)
        .sum();
    let whole = used.saturating_add(fs.available);
    let part = if whole == 0 { 0.0 } else { used as f64 / whole as f64 };
    let color = match part {
        0.9.. => Color::Red,
        0.75.. => Color::Yellow,
        _ => Color::Green,
    };
    let cells = usize::from(width.clamp(60, 120)) - 48;
    // What is not empty shows.
    let full = ((part * cells as f64).ceil() as usize).min(cells);
    Line::from(vec![
        view.label("space"),
        Span::raw("["),
        Span::styled("|".repeat(full), view.style(color)),
        Span::raw(" ".repeat(cells - full)),
        Span::raw(format!("] {:.1}% of {}, {} left", part * 100.0, size(whole), size(fs.available))),
    ])
}

fn work(sample: &Sample, view: &View<'_>) -> Line<'static> {
    let Some(work) = sample.work else { return labelled(view, "work", "-".into()) };
    let one = |name: &str, rate: Rate| {
        let took = rate.ms.map(|ms| format!(" {ms:.2} ms")).unwrap_or_default();
        format!("{name} {:.0}/s{took}", rate.per_second)
    };
    let all = [one("queries", work.queries), one("changes", work.mutations), one("commits", work.commits)];
    labelled(view, "work", all.join("   "))
}

fn traffic(sample: &Sample, view: &View<'_>) -> Line<'static> {
    let text = match sample.flow() {
        Some(Flow { read, written }) => format!("read {}/s   written {}/s", bytes(read), bytes(written)),
        None => "-".into(),
    };
    labelled(view, "traffic", text)
}

fn bytes(per_second: f64) -> String {
    size(per_second.round() as u64)
}

/// The heading of the list; the column that it is sorted by is marked.
fn columns(width: u16, view: &View<'_>) -> Line<'static> {
    let titles = row(width, &Order::ALL.map(title), ["ADDRESS", "HOST", "RACK", "REPLICAS", "CAPACITY"]);
    let style = if view.color {
        Style::new().fg(Color::Black).bg(Color::Green)
    } else {
        Style::new().add_modifier(Modifier::REVERSED)
    };
    let mark = title(view.choice.order);
    let at = titles.find(mark).unwrap_or(0);
    let (before, rest) = titles.split_at(at);
    let (marked, after) = rest.split_at(mark.len().min(rest.len()));
    let sorted = style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
    Line::from(vec![
        Span::styled(before.to_owned(), style),
        Span::styled(marked.to_owned(), sorted),
        Span::styled(after.to_owned(), style),
    ])
}

fn title(order: Order) -> &'static str {
    match order {
        Order::Node => "NODE",
        Order::State => "STATE",
        Order::Used => "USED%",
        Order::Read => "READ/s",
        Order::Written => "WRITE/s",
        Order::Heard => "HEARD",
    }
}

/// A line of the list as wide as the terminal: what can be sorted by, and the rest.
fn row(width: u16, cells: &[&str; 6], rest: [&str; 5]) -> String {
    let [node, state, used, read, written, heard] = cells;
    let [address, host, rack, replicas, capacity] = rest;
    let width = usize::from(width);
    let mut line = if width >= usize::from(WIDE) {
        format!(
            "{node:>5} {address:<22.22} {host:<12.12} {rack:<10.10} {state:<13.13} {used:>6} {capacity:>10} \
             {replicas:>8} {read:>10} {written:>10} {heard:>9}"
        )
    } else {
        format!("{node:>5} {address:<21.21} {state:<13.13} {used:>6} {read:>10} {written:>10} {heard:>8}")
    };
    let missing = width.saturating_sub(line.chars().count());
    line.push_str(&" ".repeat(missing));
    line.chars().take(width).collect()
}

fn datanodes(width: u16, height: u16, sample: &Sample, view: &View<'_>) -> Vec<Line<'static>> {
    let nodes = view.choice.sorted(sample);
    let height = usize::from(height).max(1);
    let marked = view.choice.row.min(nodes.len().saturating_sub(1));
    // The marked row is in sight, and no more is scrolled than that takes.
    let from = if view.keys { (marked + 1).saturating_sub(height) } else { 0 };
    let line = |(index, node): (usize, &&DatanodeInfo)| {
        let color = match node.liveness() {
            Liveness::Dead => Color::Red,
            Liveness::Suspect => Color::Yellow,
            _ if node.failed_dirs > 0 => Color::Yellow,
            _ => Color::Reset,
        };
        let mut style = view.style(color);
        if view.keys && index == marked {
            style = style.add_modifier(Modifier::REVERSED);
        }
        Line::styled(datanode(width, node, sample), style)
    };
    nodes.iter().enumerate().skip(from).take(height).map(line).collect()
}

fn datanode(width: u16, node: &DatanodeInfo, sample: &Sample) -> String {
    let used = format!("{:.1}%", share(node) * 100.0);
    let flow = sample.flows.get(&node.node).filter(|_| node.liveness() != Liveness::Dead);
    let (read, written) = match flow {
        Some(flow) => (bytes(flow.read), bytes(flow.written)),
        None => ("-".into(), "-".into()),
    };
    let heard = match node.liveness() {
        Liveness::Unknown => "-".into(),
        _ => short_span(node.last_heard_ms),
    };
    let (number, replicas, capacity) =
        (node.node.to_string(), node.replicas.to_string(), size(node.capacity));
    row(
        width,
        &[&number, &state(node, sample), &used, &read, &written, &heard],
        [&node.address, &node.host, &node.rack, &replicas, &capacity],
    )
}

/// A span in at most seven letters.
fn short_span(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// One word or two: what is planned goes before what is seen, unless it is bad.
fn state(node: &DatanodeInfo, sample: &Sample) -> String {
    let liveness = liveness_name(node.liveness());
    if replaced(&sample.status, node) {
        return "replaced".into();
    }
    match node.admin() {
        AdminState::Decommissioning if is_drained(node, &sample.status.repair.unwrap_or_default()) => {
            "drained".into()
        }
        AdminState::Decommissioning => format!("{liveness} leaving"),
        AdminState::Maintenance => format!("{liveness} maint."),
        AdminState::Normal if node.failed_dirs > 0 => format!("{liveness} {} bad", node.failed_dirs),
        AdminState::Normal => liveness.into(),
    }
}

fn key_bar(view: &View<'_>) -> Line<'static> {
    let bar = if view.color {
        Style::new().fg(Color::Black).bg(Color::Cyan)
    } else {
        Style::new().add_modifier(Modifier::REVERSED)
    };
    let keys = [("F1", "Help"), ("n s u r w t", "Sort"), ("I", "Invert"), ("p", "Pause"), ("F10", "Quit")];
    let spans = keys.iter().flat_map(|(key, what)| {
        [Span::raw(format!("{key} ")), Span::styled(format!("{what} "), bar), Span::raw(" ")]
    });
    Line::from(spans.collect::<Vec<_>>())
}

fn help(area: Rect, buffer: &mut Buffer) {
    let width = (HELP.iter().map(|line| line.len()).max().unwrap_or(0) as u16 + 4).min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let x = area.x + (area.width - width) / 2;
    let y = area.y + (area.height - height) / 2;
    let place = Rect { x, y, width, height };
    Clear.render(place, buffer);
    let lines: Vec<Line<'static>> = HELP.iter().map(|line| Line::from(format!(" {line}"))).collect();
    Paragraph::new(lines).block(Block::bordered().title(" keys ")).render(place, buffer);
}
