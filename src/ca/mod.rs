//! `cairn ca`: the cluster's own authority, and the certificates it gives to nodes and users.

mod authority;
mod files;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cairn_host::tls::files::CA;
use cairn_host::tls::peer::{Kind, Peer, Roles, User, is_name};
use clap::{Args, Subcommand, ValueEnum};

pub use authority::{Authority, Order};
pub use show::{Certificate, revoked_serials};

use crate::exit::Usage;
use crate::output;

/// `cairn ca ...`.
#[derive(Subcommand)]
pub enum Verb {
    /// Make the authority of a cluster in a directory, which stays where nobody else comes
    Init(Init),
    /// Make a certificate for a namenode or datanode
    Node(Node),
    /// Make a certificate for a user, with whose rights its holder acts
    User(UserArgs),
    /// Take a certificate back
    Revoke(Revoke),
    /// Show certificates
    Show(Show),
}

/// Where the authority is.
#[derive(Args)]
struct At {
    /// The authority's directory (else the current one)
    #[arg(long, value_name = "DIR", env = "CAIRN_CA", default_value = ".", hide_default_value = true)]
    ca: PathBuf,
}

/// What is wanted of any certificate.
#[derive(Args)]
struct Wanted {
    #[command(flatten)]
    at: At,
    /// Where it is put, with its key (else nodes/NAME or users/NAME beside the authority)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long it is good
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace the one that is there
    #[arg(long)]
    force: bool,
}

/// A new authority.
#[derive(Args)]
pub struct Init {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What the authority is called
    #[arg(long, value_name = "NAME", default_value = "CairnFS")]
    name: String,
    /// How long it is good
    #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace the one that is there: no certificate it gave is good any more
    #[arg(long)]
    force: bool,
}

/// A node's certificate.
#[derive(Args)]
pub struct Node {
    /// What the node is called
    #[arg(value_name = "NAME")]
    name: String,
    /// Names and addresses under which others reach it, without ports
    #[arg(long, value_name = "HOST,...", value_delimiter = ',', required = true)]
    address: Vec<String>,
    /// What it may be (else both)
    #[arg(long, value_name = "ROLE,...", value_delimiter = ',')]
    role: Vec<Role>,
    #[command(flatten)]
    wanted: Wanted,
}

/// What a node may be.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// A namenode
    Namenode,
    /// A datanode
    Datanode,
}

/// A user's certificate.
#[derive(Args)]
pub struct UserArgs {
    /// What the user is called
    #[arg(value_name = "NAME")]
    name: String,
    /// The user's number (else that of the user of this name on this machine)
    #[arg(long, value_name = "N")]
    uid: Option<u32>,
    /// The number of the user's group (else as on this machine)
    #[arg(long, value_name = "N")]
    gid: Option<u32>,
    /// Numbers of the user's other groups (else as on this machine)
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    groups: Option<Vec<u32>>,
    /// It may act for every user, as a mount that many use must
    #[arg(long)]
    proxy: bool,
    #[command(flatten)]
    wanted: Wanted,
}

/// A certificate that is good no more.
#[derive(Args)]
pub struct Revoke {
    /// Its file, or the directory it is in
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    at: At,
}

/// What to show.
#[derive(Args)]
pub struct Show {
    /// Directories of certificates, or of an authority: then all that is below it
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    at: At,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Runs a command of `cairn ca`.
pub fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Init(args) => {
            let authority = Authority::create(&args.dir, &args.name, args.days, args.force)?;
            say(&format!(
                "the authority is in {dir}\nkeep {dir}/{key} to yourself: whoever has it can be anybody\n\
                 next: cairn ca node NAME --address HOST --ca {dir}",
                dir = authority.dir().display(),
                key = authority::CA_KEY
            ))
        }
        Verb::Node(args) => node(args),
        Verb::User(args) => user(args),
        Verb::Revoke(args) => {
            let authority = Authority::open(&args.at.ca)?;
            let list = authority.revoke(&args.paths)?;
            say(&format!(
                "{} is to be copied to every directory of certificates that nodes use; they read it within seconds",
                list.display()
            ))
        }
        Verb::Show(args) => {
            let dirs = if args.dirs.is_empty() { vec![args.at.ca] } else { args.dirs };
            show::show(&dirs, args.json)
        }
    }?;
    Ok(0)
}

fn say(text: &str) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

fn checked_name(name: &str) -> Result<()> {
    if !is_name(name) {
        bail!(Usage(format!("{name:?} is no name: up to 64 letters, digits, dots, dashes and underscores")));
    }
    Ok(())
}

fn node(args: Node) -> Result<()> {
    checked_name(&args.name)?;
    for address in &args.address {
        if address.is_empty() || address.parse::<std::net::IpAddr>().is_err() && address.contains(':') {
            bail!(Usage(format!("{address:?} is no name or address of a machine; ports are left out")));
        }
    }
    let has = |role| args.role.is_empty() || args.role.contains(&role);
    let roles = Roles { namenode: has(Role::Namenode), datanode: has(Role::Datanode) };
    let peer = Peer { name: args.name, kind: Kind::Node(roles) };
    issue(peer, &args.address, args.wanted)
}

fn user(args: UserArgs) -> Result<()> {
    checked_name(&args.name)?;
    let named = nix::unistd::User::from_name(&args.name).ok().flatten();
    // Another user's group by chance of the same name is not meant.
    let here = named.filter(|user| args.uid.is_none_or(|uid| uid == user.uid.as_raw()));
    let uid = args.uid.or(here.as_ref().map(|user| user.uid.as_raw()));
    let gid = args.gid.or(here.as_ref().map(|user| user.gid.as_raw()));
    let (Some(uid), Some(gid)) = (uid, gid) else {
        let number = args.uid.map(|uid| format!(" with the number {uid}")).unwrap_or_default();
        bail!(Usage(format!("there is no user {}{number} on this machine: give --uid and --gid", args.name)));
    };
    let groups = match args.groups {
        Some(groups) => groups,
        // Those of another user by chance of the same name are not meant.
        None if here.is_some() && args.uid.is_none() => groups_here(&args.name, gid)?,
        None => Vec::new(),
    };
    let user = User { uid, gid, groups, proxy: args.proxy };
    issue(Peer { name: args.name, kind: Kind::User(user) }, &[], args.wanted)
}

fn groups_here(name: &str, gid: u32) -> Result<Vec<u32>> {
    let name = std::ffi::CString::new(name)?;
    let groups =
        nix::unistd::getgrouplist(&name, nix::unistd::Gid::from_raw(gid)).context("looking up groups")?;
    Ok(groups.into_iter().map(|group| group.as_raw()).filter(|&group| group != gid).collect())
}

fn issue(peer: Peer, addresses: &[String], wanted: Wanted) -> Result<()> {
    let authority = Authority::open(&wanted.at.ca)?;
    let out = wanted.out.unwrap_or_else(|| default_place(authority.dir(), &peer));
    let order = Order { peer, addresses, days: wanted.days };
    authority.issue(&order, &out, wanted.force)?;
    let dir = out.display();
    let section = if matches!(order.peer.kind, Kind::Node(_)) { "namenode] or [datanode" } else { "client" };
    say(&format!(
        "{dir} has all that {} needs\ncopy it there, and say tls = \"DIRECTORY\" in [{section}]",
        order.peer
    ))
}

fn default_place(dir: &Path, peer: &Peer) -> PathBuf {
    let kind = if matches!(peer.kind, Kind::Node(_)) { "nodes" } else { "users" };
    dir.join(kind).join(&peer.name)
}

/// Whether `dir` has an authority.
fn is_authority(dir: &Path) -> bool {
    dir.join(authority::CA_KEY).exists() && dir.join(CA).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_users_group_is_not_taken_by_the_name() {
        let at = At { ca: "/nowhere".into() };
        let wanted = Wanted { at, out: None, days: 1, force: false };
        let name = "root".to_owned();
        let args = UserArgs { name, uid: Some(4242), gid: None, groups: None, proxy: false, wanted };
        let error = user(args).unwrap_err();
        assert!(error.downcast_ref::<Usage>().is_some_and(|usage| usage.0.contains("4242")), "{error}");
    }
}
