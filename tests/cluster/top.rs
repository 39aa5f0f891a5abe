//! `cairn top` in a pseudo terminal: what is on the screen while a datanode dies, and what is left behind.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::Cluster;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a terminal would show of what was written to it: characters, moves, and clearing; colours are passed over.
struct Screen {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
    raw: Vec<u8>,
    read: usize,
}

impl Screen {
    fn new(width: usize, height: usize) -> Screen {
        Screen { cells: vec![vec![' '; width]; height], at: (0, 0), raw: Vec::new(), read: 0 }
    }

    fn text(&self) -> String {
        self.cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    /// Takes in what can be understood so far.
    fn take(&mut self, bytes: &[u8]) {
        self.raw.extend(bytes);
        while let Some(&byte) = self.raw.get(self.read) {
            if byte == 0x1b {
                let rest = &self.raw[self.read + 1..];
                let Some(end) = rest.iter().skip(1).position(|byte| (0x40..=0x7e).contains(byte)) else {
                    return;
                };
                let (parameters, last) = (rest[1..=end].to_vec(), rest[end + 1]);
                self.read += end + 3;
                self.obey(&String::from_utf8_lossy(&parameters), last);
                continue;
            }
            // Of a letter in UTF-8, by its first byte.
            let length = match byte {
                0xe0.. => 3,
                0xc0.. => 2,
                _ => 1,
            };
            let Some(letter) = self.raw.get(self.read..self.read + length) else { return };
            let letter = String::from_utf8_lossy(letter).chars().next().unwrap_or(' ');
            self.read += length;
            let (x, y) = self.at;
            if let Some(cell) = self.cells.get_mut(y).and_then(|line| line.get_mut(x)) {
                *cell = letter;
            }
            self.at.0 += 1;
        }
    }

    fn obey(&mut self, parameters: &str, last: u8) {
        let numbers: Vec<usize> = parameters.split(';').filter_map(|number| number.parse().ok()).collect();
        match last {
            b'H' => {
                let number = |index: usize| numbers.get(index).copied().unwrap_or(1).max(1) - 1;
                self.at = (number(1), number(0));
            }
            b'J' => self.cells.iter_mut().for_each(|line| line.fill(' ')),
            _ => {}
        }
    }
}

/// A pseudo terminal with `cairn top` in it.
struct Terminal {
    ours: File,
    theirs: OwnedFd,
    child: Child,
    screen: Arc<Mutex<Screen>>,
}

impl Terminal {
    fn run(cluster: &Cluster, arguments: &[&str], no_color: bool) -> Terminal {
        let (mut ours, mut theirs) = (0, 0);
        let size = libc::winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: both numbers and the size live across the call; nothing else is passed.
        let opened =
            unsafe { libc::openpty(&mut ours, &mut theirs, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(opened, 0, "openpty");
        // SAFETY: the call has just opened both, and nobody else has them.
        let (ours, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let mut command = cluster.command(arguments);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").stdin(end()).stdout(end()).stderr(end());
        if no_color {
            command.env("NO_COLOR", "1");
        }
        // SAFETY: both calls may be made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("cairn starts");
        // Larger than any size it is given here.
        let screen = Arc::new(Mutex::new(Screen::new(200, 60)));
        let (mut reader, shown) = (ours.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                shown.lock().unwrap().take(&bytes[..length]);
            }
        });
        Terminal { ours, theirs, child, screen }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().text()
    }

    fn raw(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap().raw).into_owned()
    }

    /// Waits until all of this is on the screen.
    #[track_caller]
    fn wait_for(&self, what: &[&str]) -> String {
        self.wait_until(&what.join(", "), |text| what.iter().all(|what| text.contains(what)))
    }

    #[track_caller]
    fn wait_until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(Instant::now() < give_up, "waited in vain for {what} on\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn press(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, width: u16, height: u16) {
        let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open, and the size is what the request reads.
        assert_eq!(unsafe { libc::ioctl(self.ours.as_raw_fd(), libc::TIOCSWINSZ, &size) }, 0);
    }

    /// Waits for its end; the terminal must be as it was.
    #[track_caller]
    fn ended(mut self) -> ExitStatus {
        let give_up = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < give_up, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        // SAFETY: zeroes are a valid termios, and the call fills it.
        let about = unsafe {
            let mut about: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.theirs.as_raw_fd(), &mut about), 0);
            about
        };
        let wanted = libc::ECHO | libc::ICANON | libc::ISIG;
        assert_eq!(about.c_lflag & wanted, wanted, "the terminal is still raw");
        let left =
            |raw: &str| raw.rfind("\x1b[?1049l") > raw.rfind("\x1b[?1049h") && raw.ends_with("\x1b[?25h");
        let give_up = Instant::now() + PATIENCE;
        while !left(&self.raw()) {
            assert!(Instant::now() < give_up, "the other screen was not left: {:?}", self.raw());
            std::thread::sleep(Duration::from_millis(20));
        }
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_datanode_dies_before_our_eyes() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "3", "--dead-after", "2"]);
    cluster.wait_for("a healthy cluster", |status| status["health"] == "healthy");
    let mut top = Terminal::run(&cluster, &["top", "--delay", "0.3"], false);
    let text = top.wait_for(&["HEALTHY", "everything is as it should be", "commits", "queries"]);
    assert_eq!(text.matches(" live ").count(), 3, "{text}");
    assert!(text.lines().nth(23).is_some_and(|line| line.starts_with("F1 Help")), "{text}");
    assert!(top.raw().contains("\x1b[38;5"), "no colours");
    top.press("h");
    top.wait_for(&["keys", "sort by number"]);
    top.press("\x1b");
    top.wait_until("no help", |text| !text.contains("sort by number"));
    cluster.kill("dn2");
    top.wait_for(&["DEGRADED", "1 datanode dead", "2 datanodes for 3 replicas"]);
    top.press("s");
    // Below the heading, the dead come first.
    top.wait_until("the dead first", |text| {
        text.lines().nth(9).is_some_and(|line| line.contains(" dead ") && line.contains("127.0.0.1"))
    });
    top.resize(130, 20);
    top.wait_for(&["REPLICAS", "RACK"]);
    top.press("q");
    assert_eq!(top.ended().code(), Some(0));
}

#[test]
fn whatever_ends_it_the_terminal_is_given_back() {
    let cluster = Cluster::up(&["--namenodes", "1", "--datanodes", "1"]);
    let top = Terminal::run(&cluster, &["top"], true);
    top.wait_for(&["CairnFS", "leader"]);
    assert!(!top.raw().contains("\x1b[38;5") && !top.raw().contains("\x1b[48;5"), "{:?}", top.raw());
    // SAFETY: a signal to our own child.
    unsafe { libc::kill(top.child.id() as i32, libc::SIGTERM) };
    let status = top.ended();
    assert_eq!((status.code(), status.signal()), (Some(143), None));
    let mut top = Terminal::run(&cluster, &["top"], false);
    top.wait_for(&["CairnFS", "leader"]);
    top.press("\x03");
    assert_eq!(top.ended().code(), Some(0));
    let printed = cluster.run(&["top", "--once", "-d", "0.2"]);
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(text.contains("HEALTHY") && text.contains("queries") && !text.contains('\x1b'), "{text}");
    assert_eq!((printed.status.code(), text.lines().count()), (Some(0), 10), "{text}");
    assert!(cluster.fails(&["top"]).contains("not a terminal"));
}
