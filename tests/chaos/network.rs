//! A network of this test's own: a namespace for each host, a bridge between them, links that can be cut and slowed.
//!
//! Namespaces are held by descriptors of this process, so they go with it however it ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// A network namespace.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// Makes one. A thread that leaves the common namespace shows the way and ends.
    pub fn new() -> io::Result<Namespace> {
        let made = std::thread::spawn(|| {
            // SAFETY: changes the network namespace of this thread, which does nothing else.
            match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
                0 => File::open("/proc/thread-self/ns/net"),
                _ => Err(io::Error::last_os_error()),
            }
        });
        let file = Arc::new(made.join().expect("the thread ends")?);
        Ok(Namespace { file })
    }

    /// Moves the calling thread here.
    pub fn enter(&self) -> io::Result<()> {
        enter(self.file.as_raw_fd())
    }

    /// A program that will run here, and end with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let namespace = self.file.as_raw_fd();
        // SAFETY: setns and prctl are async-signal-safe and touch no memory of the parent.
        unsafe {
            command.pre_exec(move || {
                enter(namespace)?;
                match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        command
    }

    /// Runs lines of `ip -batch` here.
    fn ip(&self, lines: &str) -> io::Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().expect("it is piped").write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("ip: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    fn path(&self) -> String {
        // Of this thread: descriptors may be its own.
        // SAFETY: only returns a number.
        let thread = unsafe { libc::gettid() };
        format!("/proc/{}/task/{thread}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

fn enter(namespace: i32) -> io::Result<()> {
    // SAFETY: takes a number; if it names no namespace, this fails.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Hosts on one bridge, by number.
pub struct Network {
    hosts: Vec<Namespace>,
    _bridge: Namespace,
    cut: Vec<(usize, usize)>,
    slow: Vec<usize>,
}

/// An address that no host answers to.
const NOBODY: &str = "02:77:ff:ff:ff:ff";

fn hardware(host: usize) -> String {
    format!("02:77:00:00:00:{host:02x}")
}

/// The address of a host.
pub fn address(host: usize) -> String {
    format!("10.77.0.{}", host + 1)
}

impl Network {
    /// Makes so many hosts that all reach each other.
    pub fn new(hosts: usize) -> io::Result<Network> {
        let bridge = Namespace::new()?;
        bridge.ip("link set lo up\nlink add bridge type bridge\nlink set bridge up\n")?;
        let mut made = Vec::new();
        for host in 0..hosts {
            let namespace = Namespace::new()?;
            let (own, to) = (hardware(host), namespace.path());
            bridge.ip(&format!(
                "link add v{host} type veth peer name eth0 address {own} netns {to}\n\
                 link set v{host} master bridge\nlink set v{host} up\n"
            ))?;
            let mut lines =
                format!("link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0 nodad\n", address(host));
            // Nobody has to ask who has an address, so a link is cut by telling one side a wrong one.
            for other in (0..hosts).filter(|&other| other != host) {
                lines += &neighbour(other, &hardware(other));
            }
            namespace.ip(&lines)?;
            made.push(namespace);
        }
        Ok(Network { hosts: made, _bridge: bridge, cut: Vec::new(), slow: Vec::new() })
    }

    /// The namespace of a host.
    pub fn host(&self, host: usize) -> &Namespace {
        &self.hosts[host]
    }

    /// From now on nothing that `from` sends reaches `to`, and nobody is told.
    pub fn cut(&mut self, from: usize, to: &[usize]) -> io::Result<()> {
        let fresh: Vec<usize> =
            to.iter().copied().filter(|&to| to != from && !self.cut.contains(&(from, to))).collect();
        let lines: String = fresh.iter().map(|&to| neighbour(to, NOBODY)).collect();
        self.cut.extend(fresh.into_iter().map(|to| (from, to)));
        self.hosts[from].ip(&lines)
    }

    /// Cuts a set of hosts off from all others: what it sends, what it is sent, or both.
    pub fn part(&mut self, set: &[usize], sends: bool, hears: bool) -> io::Result<()> {
        let others: Vec<usize> = (0..self.hosts.len()).filter(|host| !set.contains(host)).collect();
        for &inside in set.iter().filter(|_| sends) {
            self.cut(inside, &others)?;
        }
        for &outside in others.iter().filter(|_| hears) {
            self.cut(outside, set)?;
        }
        Ok(())
    }

    /// Mends all links of a set of hosts.
    pub fn join(&mut self, set: &[usize]) -> io::Result<()> {
        let all = std::mem::take(&mut self.cut);
        let (mended, kept) = all.into_iter().partition(|(from, to)| set.contains(from) || set.contains(to));
        self.cut = kept;
        self.mend(mended)
    }

    fn mend(&self, links: Vec<(usize, usize)>) -> io::Result<()> {
        for (host, namespace) in self.hosts.iter().enumerate() {
            let own = links.iter().filter(|(from, _)| *from == host);
            let lines: String = own.map(|&(_, to)| neighbour(to, &hardware(to))).collect();
            if !lines.is_empty() {
                namespace.ip(&lines)?;
            }
        }
        Ok(())
    }

    /// Lets a host send no more than so many kilobits a second.
    pub fn slow(&mut self, host: usize, kilobits: u32) -> io::Result<()> {
        self.slow.push(host);
        let rate = format!("{kilobits}kbit");
        self.tc(
            host,
            &["replace", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "32kbit", "latency", "300ms"],
        )
    }

    /// Takes back what [`Network::slow`] did.
    pub fn quicken(&mut self, host: usize) -> io::Result<()> {
        let before = self.slow.len();
        self.slow.retain(|&slow| slow != host);
        if self.slow.len() == before {
            return Ok(());
        }
        self.tc(host, &["del", "dev", "eth0", "root"])
    }

    fn tc(&self, host: usize, arguments: &[&str]) -> io::Result<()> {
        let output = self.hosts[host].command("tc").arg("qdisc").args(arguments).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(io::Error::other(format!("tc {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }

    /// All links as they were at first.
    pub fn heal(&mut self) -> io::Result<()> {
        let links = std::mem::take(&mut self.cut);
        self.mend(links)?;
        for host in self.slow.clone() {
            self.quicken(host)?;
        }
        Ok(())
    }
}

fn neighbour(host: usize, hardware: &str) -> String {
    format!("neigh replace {} lladdr {hardware} dev eth0 nud permanent\n", address(host))
}

/// Whether this machine lets a test make networks and mounts. On CI it must; elsewhere the reason is printed.
pub fn can_run() -> bool {
    let trial = || -> io::Result<()> {
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        let mut network = Network::new(2)?;
        network.slow(0, 1000)?;
        network.cut(0, &[1])?;
        network.heal()
    };
    match trial() {
        Ok(()) => true,
        Err(error) => {
            let why = format!("needs root, /dev/fuse and iproute2 (ip, tc) for networks of its own: {error}");
            assert!(std::env::var_os("CI").is_none(), "{why}");
            eprintln!("skipped: {why}");
            false
        }
    }
}
