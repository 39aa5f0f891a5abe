//! Mount options, as `mount -o` and `/etc/fstab` have them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use cairn_fuse::{Atime, MountOptions};

use crate::args::Connection;
use crate::exit::Usage;

/// Most that names and attributes may be believed: a day.
const LONGEST_TIMEOUT: f64 = 86_400.0;

/// Options that concern others (mount(8), init, people) or that are so in any case.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "diratime",
    "nodiratime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "nonempty",
    "rbind",
    "bind",
    "subtype=cairn",
];
/// Beginnings of such options; the last ones are the kernel's own, which a remount repeats.
const IGNORED_PREFIXES: &[&str] =
    &["x-", "X-", "comment=", "user=", "helper=", "user_id=", "group_id=", "rootmode=", "fd=", "max_read="];

/// What a list of options says besides how to mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asides {
    /// Change the options of what is mounted already.
    pub remount: bool,
    /// Where a daemon writes its log, instead of the system's.
    pub log_file: Option<PathBuf>,
    /// Where it serves metrics over HTTP, and under which names.
    pub http: Option<(SocketAddr, Vec<String>)>,
}

/// Takes a list of options apart, the later ones winning. `sloppy`: what is not known is passed over.
pub fn apply(
    list: &str,
    sloppy: bool,
    options: &mut MountOptions,
    connection: &mut Connection,
) -> Result<Asides> {
    let mut asides = Asides::default();
    for option in split(list) {
        let known = flag(&option, options)
            || valued(&option, options, connection)?
            || aside(&option, &mut asides)
            || IGNORED.contains(&option.as_str())
            || IGNORED_PREFIXES.iter().any(|prefix| option.starts_with(prefix));
        if !known && !sloppy {
            bail!(Usage(format!("unknown mount option {option:?}")));
        }
    }
    Ok(asides)
}

/// Options are divided by commas; `\,` is a comma within one, and quotes keep commas together.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut letters = list.chars();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        let Some(last) = options.last_mut() else { break };
        match letter {
            '\\' => last.extend(letters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => options.push(String::new()),
            _ => last.push(letter),
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

fn flag(option: &str, options: &mut MountOptions) -> bool {
    match option {
        "ro" => options.read_only = true,
        "rw" => options.read_only = false,
        "allow_other" => options.allow_other = true,
        "noallow_other" => options.allow_other = false,
        "default_permissions" => options.default_permissions = true,
        "nodefault_permissions" => options.default_permissions = false,
        "relatime" | "atime" => options.atime = Atime::Relative,
        "noatime" | "norelatime" => options.atime = Atime::Never,
        "strictatime" => options.atime = Atime::Always,
        "nostrictatime" => options.atime = Atime::Relative,
        "dev" => options.devices = true,
        "nodev" => options.devices = false,
        "suid" => options.set_id = true,
        "nosuid" => options.set_id = false,
        "exec" => options.programs = true,
        "noexec" => options.programs = false,
        "sync" => options.sync = true,
        "dirsync" => options.dirsync = true,
        "delegate" => options.delegate = true,
        "nodelegate" => options.delegate = false,
        "shortcircuit" => options.short_circuit = true,
        "noshortcircuit" => options.short_circuit = false,
        _ => return false,
    }
    true
}

fn valued(option: &str, options: &mut MountOptions, connection: &mut Connection) -> Result<bool> {
    let Some((name, value)) = option.split_once('=') else { return Ok(false) };
    match name {
        "uid" => options.shown.uid = Some(number(name, value)?),
        "gid" => options.shown.gid = Some(number(name, value)?),
        "umask" => match u32::from_str_radix(value, 8) {
            Ok(umask) if umask <= 0o777 => options.shown.umask = Some(umask),
            _ => bail!(Usage(format!("mount option umask={value}: an octal number up to 777 is expected"))),
        },
        "attr_timeout" => options.attr_ttl = timeout(name, value)?,
        "entry_timeout" => options.entry_ttl = timeout(name, value)?,
        "fsname" => options.fs_name = value.into(),
        "threads" => options.threads = (number(name, value)? as usize).clamp(1, 64),
        "read_ahead_kib" => options.read_ahead_kib = number(name, value)? as usize,
        "tls" => connection.tls = Some(value.into()),
        "config" => connection.config = Some(value.into()),
        "log" => connection.log = Some(value.into()),
        "timeout" => match crate::args::seconds(value) {
            Ok(span) => connection.timeout = Some(span),
            Err(why) => bail!(Usage(format!("mount option timeout={value}: {why}"))),
        },
        _ => return Ok(false),
    }
    Ok(true)
}

fn aside(option: &str, asides: &mut Asides) -> bool {
    if option == "remount" {
        asides.remount = true;
    } else if let Some(path) = option.strip_prefix("log_file=") {
        asides.log_file = Some(path.into());
    } else {
        return false;
    }
    true
}

fn number(name: &str, value: &str) -> Result<u32> {
    match value.parse() {
        Ok(number) => Ok(number),
        Err(_) => bail!(Usage(format!("mount option {name}={value}: a number is expected"))),
    }
}

fn timeout(name: &str, value: &str) -> Result<Duration> {
    match value.parse::<f64>() {
        Ok(seconds) if (0.0..=LONGEST_TIMEOUT).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => bail!(Usage(format!("mount option {name}={value}: seconds are expected, as 0 or 0.5"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(list: &str) -> Result<(MountOptions, Connection, Asides)> {
        let (mut options, mut connection) = (MountOptions::new("/mnt"), Connection::default());
        let asides = apply(list, false, &mut options, &mut connection)?;
        Ok((options, connection, asides))
    }

    #[test]
    fn the_usual_options_are_understood_and_the_last_one_wins() {
        let list = "rw,noexec,dev,suid,nodev,noatime,sync,dirsync,uid=5,gid=6,umask=022,attr_timeout=0.5,ro,\
                    entry_timeout=0,fsname=a:1\\,b:2,noallow_other,remount,timeout=3,log_file=/l";
        let (options, connection, asides) = applied(list).unwrap();
        assert!(options.read_only && !options.programs && !options.devices && options.set_id);
        assert!(options.sync && options.dirsync && !options.allow_other);
        assert_eq!(options.atime, Atime::Never);
        assert_eq!(
            (options.shown.uid, options.shown.gid, options.shown.umask),
            (Some(5), Some(6), Some(0o22))
        );
        assert_eq!((options.attr_ttl, options.entry_ttl), (Duration::from_millis(500), Duration::ZERO));
        assert_eq!(options.fs_name, "a:1,b:2");
        assert_eq!(connection.timeout, Some(Duration::from_secs(3)));
        assert_eq!(asides, Asides { remount: true, log_file: Some("/l".into()), http: None });
    }

    #[test]
    fn what_concerns_others_is_passed_over() {
        let list = "defaults,_netdev,nofail,noauto,user,user=joe,x-systemd.automount,comment=x,user_id=0,,";
        assert!(applied(list).is_ok());
    }

    #[test]
    fn an_unknown_option_is_named_unless_sloppy() {
        for list in ["rw,colour", "colour=red", "umask=888", "uid=joe", "attr_timeout=-1", "attr_timeout=nan"]
        {
            let error = applied(list).unwrap_err();
            assert!(error.downcast_ref::<Usage>().is_some(), "{list}");
            let option = list.rsplit(',').next().unwrap();
            assert!(error.to_string().contains(option.split('=').next().unwrap()), "{error}");
        }
        let (mut options, mut connection) = (MountOptions::new("/mnt"), Connection::default());
        assert!(apply("colour,ro", true, &mut options, &mut connection).is_ok());
        assert!(options.read_only);
    }

    #[test]
    fn quotes_and_backslashes_keep_commas() {
        assert_eq!(split("a,\"b,c\",d\\,e"), ["a", "b,c", "d,e"]);
        assert!(split("").is_empty());
    }
}
