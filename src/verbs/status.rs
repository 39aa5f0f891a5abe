//! `cairn status`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use cairn_client::Cluster;
use cairn_ops::code::Code;
use clap::Args;
use serde_json::json;

use super::health;
use crate::args::{Connection, seconds};
use crate::client;
use crate::exit;
use crate::output;

/// What `cairn status` exits with when nobody answers.
const UNREACHABLE: u8 = 2;
/// Between two looks, at least: who asks for less asks the leader for nothing else.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long it waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `cairn status`.
#[derive(Args)]
pub struct Status {
    /// Show it again and again, every so many seconds
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    watch: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows the status; returns the exit code that tells it too.
pub async fn run(connection: &Connection, args: Status) -> u8 {
    let shown = async {
        let config = client::settings("status", connection, Some(PATIENCE))?;
        let secure = config.machine.tls.is_some();
        let cluster = client::reach(config).await?;
        match args.watch {
            Some(pause) => watch(&cluster, pause, args.json).await,
            None => once(&cluster, args.json, secure).await,
        }
    };
    match shown.await {
        Ok(code) => code,
        Err(error) => {
            if args.json && args.watch.is_none() {
                let _ = output::print_json(&json!({
                    "health": "unreachable", "reasons": [format!("{error:#}")],
                    "codes": [Code::ClusterUnreachable.name()],
                }));
            }
            match exit::code_of("status", &error) {
                exit::PIPE_CLOSED => exit::PIPE_CLOSED,
                _ => UNREACHABLE,
            }
        }
    }
}

async fn once(cluster: &Cluster, as_json: bool, secure: bool) -> Result<u8> {
    let status = cluster.status().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    if as_json {
        let mut shown = health::as_json(&status);
        shown["tls"] = secure.into();
        output::print_json(&shown)?;
    } else {
        let mut out = output::stdout();
        out.write_all(health::render(&status).as_bytes())?;
        if !secure {
            writeln!(
                out,
                "INSECURE: TLS is off; whoever reaches the ports can read and change everything (cairn ca)"
            )?;
        }
        out.flush()?;
    }
    Ok(health::judge(&status).health.exit_code())
}

/// Until it is interrupted. While nobody answers it says so and goes on asking.
async fn watch(cluster: &Cluster, pause: Duration, as_json: bool) -> Result<u8> {
    let pause = pause.max(SHORTEST);
    let terminal = std::io::stdout().is_terminal();
    loop {
        let mut out = output::stdout();
        match cluster.status().await {
            Ok(status) if as_json => writeln!(out, "{}", health::as_json(&status))?,
            Ok(status) => {
                if terminal {
                    write!(out, "\x1b[H\x1b[2J")?;
                }
                writeln!(out, "{}", health::render(&status))?;
            }
            Err(error) => writeln!(out, "no answer: {error}")?,
        }
        out.flush()?;
        tokio::time::sleep(pause).await;
    }
}
