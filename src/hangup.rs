//! SIGHUP: the terminal that something was started from is closed.

use std::mem::MaybeUninit;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for it, unless whoever started this wants it to go on then, as nohup(1) does.
pub struct Hangup(Option<Signal>);

impl Hangup {
    /// From now on.
    pub fn listen() -> std::io::Result<Hangup> {
        let listened = if is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Hangup(listened))
    }

    /// Waits for the next one; for ever if none is to be heard.
    pub async fn come(&mut self) {
        match &mut self.0 {
            Some(signal) => {
                let _ = signal.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

fn is_ignored() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is changed, and what is read was written, or is zero, which a sigaction may be.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr());
        now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
