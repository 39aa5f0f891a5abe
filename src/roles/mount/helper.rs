//! The mount helper: `cairn` called as `mount.cairn` or `mount.fuse.cairn` does what mount(8) asks of one.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cairn_fuse::MountOptions;
use nix::mount::{MsFlags, mount};

use super::{Plan, daemon, options};
use crate::args::Connection;
use crate::config::{File, check_address, split_addresses};
use crate::exit::{self, Usage};

/// Wrong arguments, as mount(8) has it.
const USAGE: u8 = 1;
/// The mount failed, as mount(8) has it.
const FAILED: u8 = 32;
/// Names of the helper, for `mount -t cairn` and `mount -t fuse.cairn`.
const NAMES: [&str; 2] = ["mount.cairn", "mount.fuse.cairn"];
/// Sources that mean "the cluster that the configuration names".
const CONFIGURED: [&str; 3] = ["cairn", "none", "-"];

/// What mount(8) asks for: `SOURCE DIR [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Invocation {
    source: String,
    dir: PathBuf,
    options: String,
    sloppy: bool,
    fake: bool,
    verbose: bool,
}

/// Whether the program was called as the helper.
pub fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|path| Path::new(path).file_name()).and_then(OsStr::to_str);
    name.is_some_and(|name| NAMES.contains(&name))
}

/// Mounts as asked and returns when the mount can be used, with mount(8)'s exit codes.
pub fn run(arguments: Vec<OsString>) -> u8 {
    let planned = parse(arguments).and_then(|invocation| plan(&invocation));
    let result = match planned {
        Ok(Some(plan)) if daemon::is_serving() => return daemon::serve(plan),
        Ok(Some(plan)) if plan.asides.remount => remount(&plan.options),
        Ok(Some(_)) => daemon::launch(),
        Ok(None) => return 0,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            exit::say(format_args!("mount.cairn: {error:#}"));
            if error.downcast_ref::<Usage>().is_some() { USAGE } else { FAILED }
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Invocation> {
    let mut found = Invocation::default();
    let mut places = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let Some(letters) =
            argument.to_str().and_then(|text| text.strip_prefix('-')).filter(|it| !it.is_empty())
        else {
            places.push(argument);
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                's' => found.sloppy = true,
                'f' => found.fake = true,
                'n' => {}
                'v' => found.verbose = true,
                'o' | 't' | 'N' => {
                    let value = match &letters[at + 1..] {
                        "" => arguments.next().and_then(|value| value.into_string().ok()),
                        rest => Some(rest.to_string()),
                    };
                    let Some(value) = value else { bail!(Usage(format!("-{letter} needs a value"))) };
                    if letter == 'o' {
                        found.options = format!("{},{value}", found.options);
                    }
                    break;
                }
                _ => bail!(Usage(format!(
                    "unknown flag -{letter}; usage: mount.cairn SOURCE DIR [-sfnv] [-o OPTIONS]"
                ))),
            }
        }
    }
    let Ok([source, dir]) = <[OsString; 2]>::try_from(places) else {
        bail!(Usage("usage: mount.cairn HOST:PORT[,HOST:PORT...] DIR [-sfnv] [-o OPTIONS]".into()));
    };
    let Ok(source) = source.into_string() else { bail!(Usage("the source is not text".into())) };
    Ok(Invocation { source, dir: dir.into(), ..found })
}

/// What is to be done; nothing if it was only to be tried.
fn plan(invocation: &Invocation) -> Result<Option<Plan>> {
    let mut connection = Connection::default();
    let mut mount = MountOptions::new(std::path::absolute(&invocation.dir)?);
    // What `df`, findmnt and `mount -a` know it by.
    mount.fs_name = invocation.source.clone();
    mount.allow_other = nix::unistd::geteuid().is_root();
    if !CONFIGURED.contains(&invocation.source.as_str()) {
        connection.namenodes = split_addresses(&invocation.source);
        for address in &connection.namenodes {
            if let Err(error) = check_address(address) {
                bail!(Usage(format!("source {}: {error}", invocation.source)));
            }
        }
    }
    let asides = options::apply(&invocation.options, invocation.sloppy, &mut mount, &mut connection)?;
    if invocation.verbose {
        let _ =
            writeln!(io::stdout(), "mount.cairn: {} on {}", invocation.source, mount.mount_point.display());
    }
    if invocation.fake {
        return Ok(None);
    }
    let trace = File::of(&connection)?.trace;
    Ok(Some(Plan { connection, options: mount, asides, trace }))
}

/// Only the kernel's own options can be changed under way; it ignores the others.
fn remount(options: &MountOptions) -> Result<()> {
    let mut flags = MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NODEV, !options.devices);
    flags.set(MsFlags::MS_NOSUID, !options.set_id);
    flags.set(MsFlags::MS_NOEXEC, !options.programs);
    flags.set(MsFlags::MS_SYNCHRONOUS, options.sync);
    flags.set(MsFlags::MS_DIRSYNC, options.dirsync);
    flags.set(MsFlags::MS_NOATIME, options.atime == cairn_fuse::Atime::Never);
    let dir = &options.mount_point;
    mount(None::<&str>, dir, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("remounting {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Invocation> {
        parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_helper_is_known_by_its_name() {
        for name in ["/sbin/mount.fuse.cairn", "mount.cairn"] {
            assert!(is_called(Some(OsStr::new(name))), "{name}");
        }
        for name in ["/usr/bin/cairn", "umount.cairn", ""] {
            assert!(!is_called(Some(OsStr::new(name))), "{name}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn arguments_come_as_mount_passes_them() {
        let found = parsed(&["a:1,b:2", "/mnt", "-sv", "-n", "-t", "fuse.cairn", "-o", "rw,noexec", "-oro"]);
        let expected = Invocation {
            source: "a:1,b:2".into(),
            dir: "/mnt".into(),
            options: ",rw,noexec,ro".into(),
            sloppy: true,
            fake: false,
            verbose: true,
        };
        assert_eq!(found.unwrap(), expected);
        for wrong in [&["/mnt"][..], &["a", "b", "c"], &["a", "b", "-o"], &["a", "b", "-x"]] {
            assert!(parsed(wrong).unwrap_err().downcast_ref::<Usage>().is_some(), "{wrong:?}");
        }
    }

    #[test]
    fn the_source_names_the_cluster_and_the_mount() {
        let plan_of = |source: &str, options: &str| {
            let invocation = Invocation {
                source: source.into(),
                dir: "/mnt".into(),
                options: options.into(),
                ..Invocation::default()
            };
            plan(&invocation)
        };
        let plan = plan_of("a:1,b:2", "ro").unwrap().unwrap();
        assert_eq!(plan.connection.namenodes, ["a:1", "b:2"]);
        assert_eq!((plan.options.fs_name.as_str(), plan.options.read_only), ("a:1,b:2", true));
        assert!(plan_of("none", "").unwrap().unwrap().connection.namenodes.is_empty());
        for (source, options) in [("a", ""), ("a:1,b", ""), ("a:1", "colour")] {
            let Err(error) = plan_of(source, options) else { panic!("{source} {options}") };
            assert!(error.downcast_ref::<Usage>().is_some());
        }
    }
}
