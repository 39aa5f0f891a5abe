//! `cairn top`: the cluster as it works, in a terminal.
//!
//! The status is asked for once a period ([`sample`]), keys change what is chosen ([`keys`]), and both are drawn
//! ([`draw`]). Only [`terminal`] touches the terminal.

mod draw;
mod keys;
mod sample;
mod terminal;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use cairn_client::Cluster;
use cairn_client::fs::ClusterStatus;
use cairn_ops::health::judge;
use clap::Args;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::draw::{HEAD, View, paint};
use self::keys::{Act, Choice};
use self::sample::Sample;
use self::terminal::{Input, Screen};
use crate::args::Connection;
use crate::client;
use crate::exit::Usage;
use crate::output;

/// How long the cluster may take for one answer before the picture is called old.
const PATIENCE: Duration = Duration::from_secs(5);
/// Width of what is printed where there is no terminal.
const WIDTH: u16 = 128;
/// What a process ends with that a signal ended, as a shell reports it.
const BY_SIGNAL: u8 = 128;

/// Arguments of `cairn top`.
#[derive(Args)]
pub struct Top {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = crate::args::seconds)]
    delay: Duration,
    /// Print what it would draw, one look after the other, for scripts
    #[arg(short, long)]
    batch: bool,
    /// End after so many looks
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,
    /// Print one look and end: -b -n 1
    #[arg(long, conflicts_with = "iterations")]
    once: bool,
}

/// Runs until it is quit. Printing, the exit code tells the last verdict as that of `cairn status` does.
pub async fn run(connection: &Connection, args: Top) -> Result<u8> {
    let batch = args.batch || args.once;
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !(batch || terminal) {
        bail!(Usage("this is not a terminal; -b prints instead of drawing, --once does so once".into()));
    }
    let cluster = client::connect("top", connection, Some(PATIENCE)).await?;
    if batch {
        let count = if args.once { Some(1) } else { args.iterations };
        return print(&cluster, args.delay, count).await;
    }
    live(cluster, args.delay, args.iterations).await
}

/// Asks the cluster, and remembers the answer before for what is told by two.
struct Looker {
    cluster: Cluster,
    before: Option<(ClusterStatus, Instant)>,
}

impl Looker {
    async fn look(&mut self) -> Result<Sample> {
        let status = self.cluster.status().await.map_err(|error| anyhow!("{error}"))?;
        let now = Instant::now();
        let before = self.before.as_ref().map(|(status, at)| (status, now.duration_since(*at)));
        let sample = Sample::of(status.clone(), before);
        self.before = Some((status, now));
        Ok(sample)
    }
}

async fn print(cluster: &Cluster, delay: Duration, count: Option<u64>) -> Result<u8> {
    let mut looker = Looker { cluster: cluster.clone(), before: None };
    // Rates are told from two looks: the first one is not printed.
    looker.look().await?;
    let mut code = 0;
    for round in 0.. {
        if count.is_some_and(|count| round >= count) {
            break;
        }
        tokio::time::sleep(delay).await;
        let sample = looker.look().await?;
        code = judge(&sample.status).health.exit_code();
        let mut out = output::stdout();
        let gap = if round > 0 { "\n" } else { "" };
        write!(out, "{gap}{}", text(&sample, width(), &time_of_day()))?;
        out.flush()?;
    }
    Ok(code)
}

/// Of the terminal that is printed to; elsewhere what `COLUMNS` says, or enough for everything.
fn width() -> u16 {
    let terminal = std::io::stdout().is_terminal().then(|| crossterm::terminal::size().ok()).flatten();
    let said = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal.map(|(width, _)| width).or_else(said).unwrap_or(WIDTH).clamp(40, 400)
}

/// The picture as lines, as many as there are datanodes for.
fn text(sample: &Sample, width: u16, time: &str) -> String {
    let nodes = u16::try_from(sample.status.datanodes.len()).unwrap_or(u16::MAX - HEAD);
    let area = Rect::new(0, 0, width, HEAD.saturating_add(nodes));
    let choice = Choice::default();
    let view = View { sample: Some(sample), choice: &choice, trouble: None, time, color: false, keys: false };
    let mut buffer = Buffer::empty(area);
    paint(&mut buffer, area, &view);
    lines(&buffer)
}

/// What stands in a buffer, without the blanks at the ends of lines.
fn lines(buffer: &Buffer) -> String {
    let area = buffer.area;
    let line = |y| {
        let line: String = (area.left()..area.right()).map(|x| buffer[(x, y)].symbol()).collect();
        format!("{}\n", line.trim_end())
    };
    (area.top()..area.bottom()).map(line).collect()
}

/// Signals that end it.
struct Ends([(Signal, u8); 3]);

impl Ends {
    fn new() -> Result<Ends> {
        let of = |kind: SignalKind| -> Result<(Signal, u8)> {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
            Ok((signal(kind)?, BY_SIGNAL + number))
        };
        Ok(Ends([of(SignalKind::terminate())?, of(SignalKind::interrupt())?, of(SignalKind::hangup())?]))
    }

    /// The exit code of the one that came.
    async fn come(&mut self) -> u8 {
        let [(a, a_code), (b, b_code), (c, c_code)] = &mut self.0;
        tokio::select! {
            _ = a.recv() => *a_code,
            _ = b.recv() => *b_code,
            _ = c.recv() => *c_code,
        }
    }
}

async fn live(cluster: Cluster, delay: Duration, count: Option<u64>) -> Result<u8> {
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut ends = Ends::new()?;
    let (ask, asked) = mpsc::channel(1);
    let mut samples = look_again_and_again(cluster, delay, asked);
    let mut screen = Screen::take()?;
    let mut input = terminal::input();
    let mut choice = Choice::default();
    let (mut sample, mut trouble): (Option<Sample>, Option<String>) = (None, None);
    let mut seen = 0;
    loop {
        let time = time_of_day();
        let view = View {
            sample: sample.as_ref(),
            choice: &choice,
            trouble: trouble.as_deref(),
            time: &time,
            color,
            keys: true,
        };
        screen.show(&view)?;
        if count.is_some_and(|count| seen >= count) {
            return Ok(0);
        }
        tokio::select! {
            code = ends.come() => return Ok(code),
            came = samples.recv() => match came {
                _ if choice.paused => {}
                Some(Ok(new)) => {
                    (sample, trouble) = (Some(new), None);
                    seen += 1;
                }
                Some(Err(error)) => trouble = Some(format!("{error:#}")),
                None => bail!("the task that asks the cluster has ended"),
            },
            pressed = input.recv() => {
                let rows = sample.as_ref().map_or(0, |sample| sample.status.datanodes.len());
                match pressed {
                    Some(Input::Key(key)) => match choice.press(key, rows) {
                        Act::Draw => {}
                        // One question is enough.
                        Act::Ask => drop(ask.try_send(())),
                        Act::Suspend => screen.suspend()?,
                        Act::Quit => return Ok(0),
                    },
                    Some(Input::Resized) => {}
                    None => return Ok(0),
                }
            }
        }
    }
}

/// A task of its own asks, so that keys are heard while the cluster is silent.
fn look_again_and_again(
    cluster: Cluster,
    delay: Duration,
    mut asked: mpsc::Receiver<()>,
) -> mpsc::Receiver<Result<Sample>> {
    let (send, receive) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut looker = Looker { cluster, before: None };
        loop {
            let sample = looker.look().await;
            if send.send(sample).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                more = asked.recv() => if more.is_none() { return },
            }
        }
    });
    receive
}

fn time_of_day() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let shown = output::local_time(i64::try_from(since.as_nanos()).unwrap_or(0), true);
    shown.split(' ').nth(1).unwrap_or_default().to_owned()
}
