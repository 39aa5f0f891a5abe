//! Serving a mount in the background: who asked for it goes on when the mount can be used.
//!
//! The program starts itself once more with the same arguments. That one leaves its terminal, mounts, and says on its
//! standard output how it went; the first one waits for that.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::{env, io};

use anyhow::{Context, Result, bail};

use super::{Plan, log};
use crate::exit;

/// Set for the one in the background.
const SERVING: &str = "CAIRN_MOUNT_SERVE";
/// What it says when the mount can be used; anything else is why it cannot.
const MOUNTED: &str = "mounted\n";

/// Whether this process is the one in the background.
pub fn is_serving() -> bool {
    env::var_os(SERVING).is_some()
}

/// Starts the one in the background and waits until its mount can be used.
pub fn launch() -> Result<()> {
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| "cairn".into());
    let mut serving = Command::new(env::current_exe().context("finding this program")?)
        .arg0(name)
        .args(arguments)
        .env(SERVING, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting the mount's process")?;
    let mut said = String::new();
    if let Some(mut output) = serving.stdout.take() {
        output.read_to_string(&mut said).context("waiting for the mount")?;
    }
    if said == MOUNTED {
        return Ok(());
    }
    let status = serving.wait().context("waiting for the mount")?;
    match said.trim() {
        "" => bail!("the mount's process ended early: {status}"),
        why => bail!("{why}"),
    }
}

/// Mounts and serves, and says on standard output when the mount can be used or why it cannot.
pub fn serve(plan: Plan) -> u8 {
    // Refused only to the leader of a session, which has left its terminal already.
    let _ = nix::unistd::setsid();
    log::start(plan.connection.log.as_deref(), plan.asides.log_file.as_deref());
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(super::serve(plan, announce)));
    match served {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error:#}");
            // Nobody reads this any more once the mount was announced.
            let _ = writeln!(io::stdout(), "{error:#}");
            exit::FAILED
        }
    }
}

/// Says that the mount can be used, and lets go of everything that belongs to who asked for it.
fn announce() {
    let mut output = io::stdout();
    let _ = output.write_all(MOUNTED.as_bytes()).and_then(|()| output.flush());
    if let Ok(null) = File::options().write(true).open("/dev/null")
        && let Err(error) = nix::unistd::dup2_stdout(null)
    {
        tracing::warn!(%error, "the output could not be closed");
    }
    let _ = env::set_current_dir("/");
}
