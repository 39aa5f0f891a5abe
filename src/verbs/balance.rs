//! `cairn balance`: fills datanodes evenly, as `hdfs balancer` does, for as long as it runs.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use cairn_client::control::{BalanceReply, BalanceRequest};
use clap::Args;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Client;
use crate::output;

/// How often it is asked for again; a leader goes on for ten seconds by itself.
const PACE: Duration = Duration::from_secs(1);
/// How long the leader may take to hear that it is over.
const FAREWELL: Duration = Duration::from_secs(3);
/// Between two lines where nobody watches.
const SELDOM: Duration = Duration::from_secs(60);

/// Arguments of `cairn balance`.
#[derive(Args)]
pub struct Balance {
    /// How far from the mean a datanode's used space may be, in percent of its capacity
    #[arg(long, short, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    threshold: u32,
    /// Bytes a second to move in the whole cluster (0: no limit)
    #[arg(long, value_name = "SIZE", default_value = "100M", value_parser = output::parse_size)]
    rate: u64,
    /// Print the result as JSON, and nothing on the way
    #[arg(long)]
    json: bool,
}

/// Balances until all datanodes are within the threshold.
pub async fn run(client: Arc<Client>, args: Balance) -> Result<()> {
    let began = Instant::now();
    let ask = BalanceRequest { threshold_percent: args.threshold, bytes_per_second: args.rate };
    let watched = std::io::stdout().is_terminal();
    let mut said: Option<Instant> = None;
    let mut last = String::new();
    // One for all rounds: what is pressed between two, or while nobody answers, counts as well.
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let reply = tokio::select! {
            reply = client.cluster.balance(ask) => reply.map_err(|error| anyhow!("{error}"))?,
            _ = interrupt.recv() => return Err(interrupted(&client).await),
        };
        let is_over = reply.balanced || reply.stuck;
        let line = line(&reply);
        let pace = if watched { PACE } else { SELDOM };
        if !args.json && line != last && (is_over || said.is_none_or(|said| said.elapsed() >= pace)) {
            let mut out = output::stdout();
            writeln!(out, "{line}")?;
            out.flush()?;
            (last, said) = (line, Some(Instant::now()));
        }
        if is_over {
            stop(&client).await;
            return conclude(&reply, &args, began.elapsed());
        }
        tokio::select! {
            () = tokio::time::sleep(PACE) => {}
            _ = interrupt.recv() => return Err(interrupted(&client).await),
        }
    }
}

async fn interrupted(client: &Client) -> anyhow::Error {
    stop(client).await;
    anyhow!("interrupted; what was moved stays where it is now")
}

/// Ends it at once; it would end by itself in a few seconds, so that a leader that does not answer is not waited for.
async fn stop(client: &Client) {
    let told = client.cluster.balance(BalanceRequest::default());
    match tokio::time::timeout(FAREWELL, told).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the leader was not told that it is over"),
        Err(_) => tracing::debug!("the leader was not told in time that it is over"),
    }
}

fn percent(share: u32) -> String {
    format!("{}.{} %", share / 100, share % 100 / 10)
}

fn line(reply: &BalanceReply) -> String {
    let spread = format!(
        "used {} on average, {} to {}",
        percent(reply.mean),
        percent(reply.lowest),
        percent(reply.highest)
    );
    if reply.waiting > 0 {
        return format!("{spread}; waiting: {} chunks lack replicas and come first", reply.waiting);
    }
    format!(
        "{spread}; moved {} in {} chunks, {} on their way, about {} left",
        output::size(reply.moved_bytes),
        reply.moved_chunks,
        reply.moving,
        output::size(reply.bytes_left)
    )
}

fn conclude(reply: &BalanceReply, args: &Balance, took: Duration) -> Result<()> {
    if args.json {
        output::print_json(&json!({
            "balanced": reply.balanced,
            "mean_percent": f64::from(reply.mean) / 100.0,
            "lowest_percent": f64::from(reply.lowest) / 100.0,
            "highest_percent": f64::from(reply.highest) / 100.0,
            "moved_bytes": reply.moved_bytes,
            "moved_chunks": reply.moved_chunks,
            "bytes_left": reply.bytes_left,
        }))?;
    }
    if !reply.balanced {
        return Err(anyhow!(
            "no chunk of the fullest datanode can go to the emptiest without bringing its replicas closer together; add \
             datanodes in other racks, or use a larger --threshold"
        ));
    }
    if !args.json {
        let mut out = output::stdout();
        writeln!(
            out,
            "balanced: every datanode is within {} % of the mean; {:.0} s",
            args.threshold,
            took.as_secs_f64()
        )?;
        out.flush()?;
    }
    Ok(())
}
