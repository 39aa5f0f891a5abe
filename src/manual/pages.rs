//! Manual pages: `cairn(1)`, one for each command, and `cairn.toml(5)`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::reference::{self, Section};
use crate::args::Cli;

/// What stands in the middle of a page's head.
const MANUAL: &str = "CairnFS";

/// Writes all pages below a directory.
pub fn write(dir: &Path) -> Result<()> {
    let (commands, files) = (dir.join("man1"), dir.join("man5"));
    for directory in [&commands, &files] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    for command in visible(&program) {
        put(&commands, &format!("{}.1", name_of(command)), &page(command)?)?;
    }
    put(&files, "cairn.toml.5", &configuration())
}

fn put(dir: &Path, name: &str, text: &[u8]) -> Result<()> {
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A command and all below it.
fn visible(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    std::iter::once(command).chain(below.flat_map(visible)).collect()
}

/// `cairn-node-maintenance`.
fn name_of(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command) -> Result<Vec<u8>> {
    let version = format!("cairn {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone().display_name(name_of(command))).source(version).manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut rest = Roff::new();
    exit_status(&mut rest, command);
    environment(&mut rest);
    see_also(&mut rest, command);
    text.extend(rest.render().into_bytes());
    Ok(text)
}

fn entry(page: &mut Roff, term: &str, meaning: &str) {
    page.control("TP", []).text([bold(term)]).text([roman(meaning)]);
}

fn exit_status(page: &mut Roff, command: &Command) {
    let codes: &[(&str, &str)] = match command.get_name() {
        "doctor" => &[("0", "Nothing is wrong."), ("1", "Warnings."), ("2", "Failures.")],
        "status" => &[("0", "Healthy."), ("1", "Degraded."), ("2", "Data is missing, or nobody answers.")],
        "top" => &[
            ("0", "Quit by a key; printing: healthy."),
            ("1", "Nobody answers; printing: degraded."),
            ("2", "The command line is wrong; printing: data is missing."),
        ],
        "fsck" => {
            &[("0", "Healthy."), ("1", "Degraded."), ("2", "Data is missing or corrupt, or nobody answers.")]
        }
        _ => &[
            ("0", "All was done."),
            ("1", "Something was not; the messages say what."),
            ("2", "The command line is wrong."),
        ],
    };
    page.control("SH", ["EXIT STATUS"]);
    codes.iter().for_each(|(code, meaning)| entry(page, code, meaning));
}

fn environment(page: &mut Roff) {
    page.control("SH", ["ENVIRONMENT"]);
    entry(
        page,
        "CAIRN_NAMENODES",
        "Addresses of the namenodes, divided by commas, unless --namenodes is given.",
    );
    entry(page, "CAIRN_CONFIG", "The configuration file, unless --config is given.");
    entry(page, "CAIRN_TLS", "The directory with a certificate, unless --tls is given.");
    entry(page, "CAIRN_CA", "The directory of the authority, unless --ca is given.");
    entry(page, "CAIRN_CLUSTER_DIR", "The directory of the local cluster, unless --dir is given.");
    entry(page, "RUST_LOG", "What to log to stderr, unless --log is given.");
    page.control("SH", ["FILES"]);
    entry(
        page,
        "~/.config/cairn/cairn.toml, /etc/cairn/cairn.toml",
        "Where the configuration is looked for.",
    );
}

fn see_also(page: &mut Roff, command: &Command) {
    let parts: Vec<String> = name_of(command).split('-').map(str::to_owned).collect();
    let above = if parts.len() > 1 { parts[..parts.len() - 1].join("-") } else { String::new() };
    page.control("SH", ["SEE ALSO"]);
    let mut others = vec![];
    if !above.is_empty() {
        others.extend([bold(above), roman("(1), ")]);
    }
    others.extend([bold("cairn.toml"), roman("(5)")]);
    page.text(others);
}

/// `cairn.toml(5)`.
fn configuration() -> Vec<u8> {
    let mut page = Roff::new();
    let version = format!("cairn {}", env!("CARGO_PKG_VERSION"));
    page.control("TH", ["cairn.toml", "5", "", &version, MANUAL]);
    page.control("SH", ["NAME"]).text([roman("cairn.toml - configuration of CairnFS")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(reference::ABOUT)]);
    for Section { name, about, keys } in reference::sections() {
        page.control("SH", [format!("[{name}]").as_str()]).text([roman(about)]);
        for key in keys {
            let kind =
                if key.unit.is_empty() { key.kind.clone() } else { format!("{}, {}", key.kind, key.unit) };
            let default = key.default.map(|default| format!(" Default: {default}.")).unwrap_or_default();
            page.control("TP", []).text([bold(key.name), roman(format!(" = {kind}"))]);
            page.text([roman(format!("{}{default}", key.about))]);
        }
    }
    page.control("SH", ["SEE ALSO"]).text([bold("cairn"), roman("(1)")]);
    page.render().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_sections() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for name in ["cairn", "cairn-ls", "cairn-node-maintenance", "cairn-cluster-up", "cairn-doctor"] {
            let page = read(&format!("man1/{name}.1"));
            for section in ["NAME", "SYNOPSIS", "OPTIONS", "\"EXIT STATUS\"", "ENVIRONMENT"] {
                assert!(page.contains(&format!(".SH {section}\n")), "{name} lacks {section}:\n{page}");
            }
        }
        assert!(read("man5/cairn.toml.5").contains("scrub_period_hours"));
    }
}
