//! The terminal while it is ours: taken, and given back however we end.

use std::io::{self, Stdout, Write};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossterm::cursor::{Hide, Show};
use crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use nix::sys::signal::{Signal, raise};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use tokio::sync::mpsc;

use super::draw::{View, draw};

/// Whether the terminal is ours at the moment.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// A panic gives it back before it says anything.
static HOOK: Once = Once::new();
/// How often the thread that reads keys looks whether anybody still wants them.
const LOOK: Duration = Duration::from_millis(250);

/// What a user does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Pressed a key.
    Key(KeyEvent),
    /// Made the window larger or smaller.
    Resized,
}

/// The terminal, given back when it is dropped.
pub struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    /// Takes the terminal.
    pub fn take() -> io::Result<Screen> {
        HOOK.call_once(|| {
            let usual = panic::take_hook();
            panic::set_hook(Box::new(move |about| {
                give_back();
                usual(about);
            }));
        });
        enter()?;
        // From here on it is given back also when something fails.
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout()));
        terminal.map(Screen).inspect_err(|_| give_back())
    }

    /// Shows a picture.
    pub fn show(&mut self, view: &View<'_>) -> io::Result<()> {
        self.0.draw(|frame| draw(frame, view)).map(drop)
    }

    /// Stops the process as Ctrl-Z does; returns when it goes on.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        raise(Signal::SIGTSTP)?;
        enter()?;
        self.0.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, Hide).inspect_err(|_| give_back())
}

/// Leaves the terminal as it was found; once.
fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // A terminal that is gone needs nothing back.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = io::stdout().flush();
    let _ = disable_raw_mode();
}

/// Keys and changes of size, from a thread that ends when the receiver is dropped.
pub fn input() -> mpsc::Receiver<Input> {
    let (send, receive) = mpsc::channel(64);
    thread::spawn(move || {
        while !send.is_closed() {
            let input = match event::poll(LOOK) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let input = match input {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Input::Key(key),
                Ok(Event::Resize(..)) => Input::Resized,
                Ok(_) => continue,
                // The terminal is gone.
                Err(_) => return,
            };
            if send.blocking_send(input).is_err() {
                return;
            }
        }
    });
    receive
}
