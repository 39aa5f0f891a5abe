//! What is written about the program out of its own definitions: manual pages, completions, the reference of the
//! configuration.

mod pages;
mod reference;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

/// Arguments of `cairn completions`.
#[derive(Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

/// Arguments of `cairn man`.
#[derive(Args)]
pub struct Man {
    /// Where to write them; `man1` and `man5` are made in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Prints what makes a shell complete our command lines.
pub fn completions(args: Completions) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cairn", &mut script);
    let mut out = output::stdout();
    out.write_all(&script)?;
    out.flush()?;
    Ok(0)
}

/// Writes the manual pages.
pub fn man(args: Man) -> Result<u8> {
    pages::write(&args.dir)?;
    Ok(0)
}
