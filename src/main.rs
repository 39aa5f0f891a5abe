//! The `cairn` program: parse, dispatch, exit. No logic of the system lives here.

// They panic when nobody reads: `output` and `exit::say` say what then happens.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

#[cfg(test)]
mod alone;
mod args;
mod bench;
mod ca;
mod client;
mod cluster;
mod config;
mod demo;
mod doctor;
mod exit;
mod hangup;
mod manual;
mod mode;
mod output;
mod paths;
mod roles;
mod top;
mod transfer;
mod tree;
mod verbs;

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cairn_ops::trace::{self, Tracing};
use clap::Parser;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, Connection};
use client::Client;
use roles::mount::helper;

/// What the long-running roles log unless told otherwise. The Raft library tells of every message.
const SERVING: &str = "info,openraft=warn";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    if helper::is_called(arguments.next().as_deref()) {
        return ExitCode::from(helper::run(arguments.collect()));
    }
    let cli = match Cli::parse() {
        Cli { connection, command: Command::Mount(on) } if on.args.daemon => {
            let connection = on.connection.merged(&connection);
            return ExitCode::from(finish("mount", roles::mount::run_daemon(connection, on.args)));
        }
        cli => cli,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            exit::say(format_args!("cairn: cannot start the runtime: {error}"));
            return ExitCode::from(exit::FAILED);
        }
    };
    // The root task runs on this one thread and would be woken across threads for every step.
    let code = runtime.block_on(async {
        match tokio::spawn(dispatch(cli)).await {
            Ok(code) => code,
            Err(error) => {
                exit::say(format_args!("cairn: internal error: {error}"));
                exit::FAILED
            }
        }
    });
    // A blocked read of stdin must not hold the process.
    runtime.shutdown_background();
    ExitCode::from(code)
}

async fn dispatch(cli: Cli) -> u8 {
    let top = cli.connection;
    macro_rules! verb {
        ($name:literal, $on:ident, $run:path) => {
            on_cluster($name, $on.connection.merged(&top), move |client| Box::pin($run(client, $on.args)))
                .await
        };
    }
    match cli.command {
        Command::Ls(on) => verb!("ls", on, verbs::ls::run),
        Command::Put(on) => verb!("put", on, verbs::put::run),
        Command::Get(on) => verb!("get", on, verbs::get::run),
        Command::Cat(on) => verb!("cat", on, verbs::cat::run),
        Command::Head(on) => verb!("head", on, verbs::cat::run_head),
        Command::Tail(on) => verb!("tail", on, verbs::tail::run),
        Command::Stat(on) => verb!("stat", on, verbs::stat::run),
        Command::Mkdir(on) => verb!("mkdir", on, verbs::mkdir::run),
        Command::Rm(on) => verb!("rm", on, verbs::rm::run),
        Command::Mv(on) => verb!("mv", on, verbs::mv::run),
        Command::Cp(on) => verb!("cp", on, verbs::cp::run),
        Command::Du(on) => verb!("du", on, verbs::du::run),
        Command::Df(on) => verb!("df", on, verbs::df::run),
        Command::Touch(on) => verb!("touch", on, verbs::touch::run),
        Command::Chmod(on) => verb!("chmod", on, verbs::chmod::run),
        Command::Chown(on) => verb!("chown", on, verbs::chown::run),
        Command::Ln(on) => verb!("ln", on, verbs::ln::run),
        Command::Truncate(on) => verb!("truncate", on, verbs::truncate::run),
        Command::Append(on) => verb!("append", on, verbs::append::run),
        Command::Checksum(on) => verb!("checksum", on, verbs::checksum::run),
        Command::Setrep(on) => verb!("setrep", on, verbs::setrep::run),
        Command::Chunks(on) => verb!("chunks", on, verbs::chunks::run),
        Command::Fsck(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), "off");
            Box::pin(verbs::fsck::run(&connection, on.args)).await
        }
        Command::Status(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), "off");
            Box::pin(verbs::status::run(&connection, on.args)).await
        }
        Command::Doctor(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), "off");
            finish("doctor", Box::pin(doctor::run(&connection, on.args)).await)
        }
        Command::Top(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), "off");
            finish("top", Box::pin(top::run(&connection, on.args)).await)
        }
        Command::Report(on) => verb!("report", on, verbs::report::run),
        Command::Balance(on) => verb!("balance", on, verbs::balance::run),
        Command::SnapshotMetadata(on) => verb!("snapshot-metadata", on, verbs::metadata::snapshot),
        Command::RestoreMetadata(args) => {
            start_log(top.log.as_deref(), "off");
            finish("restore-metadata", verbs::metadata::run_restore(&args))
        }
        Command::Admin(verbs::admin::Admin::RemoveNamenode(on)) => {
            verb!("admin remove-namenode", on, verbs::admin::remove_namenode)
        }
        Command::Admin(verbs::admin::Admin::TransferLeader(on)) => {
            verb!("admin transfer-leader", on, verbs::admin::transfer_leader)
        }
        Command::Admin(verbs::admin::Admin::Scrub(on)) => verb!("admin scrub", on, verbs::admin::scrub),
        Command::Node(verbs::node::Node::Decommission(on)) => {
            verb!("node decommission", on, verbs::node::decommission)
        }
        Command::Node(verbs::node::Node::Maintenance(on)) => {
            verb!("node maintenance", on, verbs::node::maintenance)
        }
        Command::Node(verbs::node::Node::Recommission(on)) => {
            verb!("node recommission", on, verbs::node::recommission)
        }
        Command::Trash(verbs::trash::Trash::Ls(on)) => verb!("trash ls", on, verbs::trash::list),
        Command::Trash(verbs::trash::Trash::Restore(on)) => verb!("trash restore", on, verbs::trash::restore),
        Command::Trash(verbs::trash::Trash::Empty(on)) => verb!("trash empty", on, verbs::trash::empty),
        Command::Trash(verbs::trash::Trash::Keep(on)) => verb!("trash keep", on, verbs::trash::keep),
        Command::Snapshot(verbs::snapshot::Snapshot::Create(on)) => {
            verb!("snapshot create", on, verbs::snapshot::create)
        }
        Command::Snapshot(verbs::snapshot::Snapshot::Ls(on)) => {
            verb!("snapshot ls", on, verbs::snapshot::list)
        }
        Command::Snapshot(verbs::snapshot::Snapshot::Rm(on)) => {
            verb!("snapshot rm", on, verbs::snapshot::remove)
        }
        Command::Snapshot(verbs::snapshot::Snapshot::Diff(on)) => {
            verb!("snapshot diff", on, verbs::snapshot::diff)
        }
        Command::Snapshot(verbs::snapshot::Snapshot::Restore(on)) => {
            verb!("snapshot restore", on, verbs::snapshot::restore)
        }
        Command::Quota(verbs::quota::Quota::Set(on)) => verb!("quota set", on, verbs::quota::set),
        Command::Quota(verbs::quota::Quota::Clear(on)) => verb!("quota clear", on, verbs::quota::clear),
        Command::Quota(verbs::quota::Quota::Get(on)) => verb!("quota get", on, verbs::quota::get),
        Command::Quota(verbs::quota::Quota::Ls(on)) => verb!("quota ls", on, verbs::quota::list),
        Command::Mount(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), SERVING);
            finish("mount", Box::pin(roles::mount::run(connection, on.args)).await)
        }
        Command::Umount(umount) => finish("umount", roles::mount::umount(umount).await),
        Command::Namenode(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), SERVING);
            finish("namenode", Box::pin(roles::namenode::run(connection, on.args)).await)
        }
        Command::Datanode(on) => {
            let connection = on.connection.merged(&top);
            start_log(connection.log.as_deref(), SERVING);
            finish("datanode", Box::pin(roles::datanode::run(connection, on.args)).await)
        }
        Command::Cluster(verb) => {
            start_log(top.log.as_deref(), "off");
            finish("cluster", Box::pin(cluster::run(verb)).await)
        }
        Command::Bench(on) => {
            let connection = on.connection.merged(&top);
            let run = {
                let connection = connection.clone();
                move |client| -> Work { Box::pin(bench::run(client, connection, on.args)) }
            };
            on_cluster("bench", connection, run).await
        }
        Command::Ca(verb) => finish("ca", ca::run(verb)),
        Command::Completions(args) => finish("completions", manual::completions(args)),
        Command::Man(args) => finish("man", manual::man(args)),
        Command::Demo(demo) => {
            start_log(top.log.as_deref(), "off");
            finish("demo", Box::pin(demo::run(demo)).await)
        }
    }
}

/// What one command does.
///
/// Boxed, because the future of `dispatch` would otherwise hold that of every command: half of the time it takes to
/// build the program went into the code that moves and drops it.
type Work = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Runs a command on files: connect, do it, close the session, and say whether all went well.
async fn on_cluster<F>(verb: &'static str, connection: Connection, run: F) -> u8
where
    F: FnOnce(Arc<Client>) -> Work,
{
    start_log(connection.log.as_deref(), "off");
    if let Err(error) = follow_requests(&connection) {
        return exit::code_of(verb, &error);
    }
    let client = match Client::connect(verb, &connection).await {
        Ok(client) => Arc::new(client),
        Err(error) => return exit::code_of(verb, &error),
    };
    let result = run(client.clone()).await;
    if let Err(error) = client.cluster.close().await {
        // What the command did is committed; only the session stays until its lease ends.
        tracing::debug!(%error, "closing the session");
    }
    trace::flush().await;
    match result {
        Ok(()) if client.report.failures() > 0 => exit::FAILED,
        Ok(()) => 0,
        Err(error) => exit::code_of(verb, &error),
    }
}

/// A command's requests are followed as its configuration says, but what is slow is not logged: its user sees it.
fn follow_requests(connection: &Connection) -> Result<()> {
    let section = config::File::of(connection)?.trace;
    let tracing = Tracing { slow: Duration::ZERO, ..section.tracing() };
    let instance = std::process::id().to_string();
    trace::start(&tracing, "cli", &instance).map_err(|why| exit::Usage(format!("[trace] {why}")).into())
}

fn finish(verb: &str, result: Result<u8>) -> u8 {
    result.unwrap_or_else(|error| exit::code_of(verb, &error))
}

/// Logs to stderr what `--log`, else `RUST_LOG`, else `default` says.
fn start_log(flag: Option<&str>, default: &str) {
    let filter = match flag {
        Some(text) => EnvFilter::try_new(text).with_context(|| format!("--log {text}")),
        None => Ok(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))),
    };
    let filter = filter.unwrap_or_else(|error| {
        exit::say(format_args!("cairn: {error:#}; logging {default} instead"));
        EnvFilter::new(default)
    });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
