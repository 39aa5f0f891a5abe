//! The reference of the configuration, out of the definitions that the parser fills.

use cairn_ops::settings::Key;

use crate::config::{ClientSection, MountSection, TraceSection};

/// What the file is.
pub const ABOUT: &str = "One file in TOML serves all roles; each reads its own section, and flags override it. Every \
                         section and every key may be left out, but `dir` of a namenode and `dirs` of a datanode where \
                         no flag gives them. A key that is not known is an error.";

/// A section of the file.
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// Who reads it.
    pub about: &'static str,
    /// What can stand in it.
    pub keys: Vec<Key>,
}

/// All of them.
pub fn sections() -> [Section; 5] {
    [
        Section {
            name: "client",
            about: "Read by all commands and mounts, and by a datanode that has no namenodes of its own.",
            keys: ClientSection::keys(),
        },
        Section {
            name: "namenode",
            about: "Read by `cairn namenode`.",
            keys: cairn_namenode::Config::keys(),
        },
        Section {
            name: "datanode",
            about: "Read by `cairn datanode`.",
            keys: cairn_datanode::Config::keys(),
        },
        Section {
            name: "mount",
            about: "Read by `cairn mount`; `options` are as mount(8) has them, and win over the other keys and the command's \
                    flags, but for `-o`. The mount helper of mount(8) and /etc/fstab takes its options from there alone.",
            keys: MountSection::keys(),
        },
        Section {
            name: "trace",
            about: "Read by namenodes, datanodes, mounts and commands (which log nothing slow): how requests are followed \
                    from one to the next.",
            keys: TraceSection::keys(),
        },
    ]
}

/// `docs/configuration.md`.
#[cfg(test)]
fn page() -> String {
    let mut page = format!(
        "<!-- Written by `just reference` out of the definitions in the code. -->\n\n# Configuration\n\n{ABOUT}\n\n\
         A command looks for the file where `--config` or `CAIRN_CONFIG` say, else in `~/.config/cairn/cairn.toml`, \
         else in\n`/etc/cairn/cairn.toml`; what `[client]` of the former lacks is taken from the latter, unless the\n\
         former names the namenodes. `cairn namenode` and `cairn datanode` read only a file that is named;\n\
         a datanode that is told no namenodes looks for those of `[client]` as commands do.\n\
         `cairn doctor` checks the file and what it says; `man cairn.toml` has this page.\n"
    );
    for Section { name, about, keys } in sections() {
        page += &format!(
            "\n## [{name}]\n\n{about}\n\n| key | type | unit | default | meaning |\n|---|---|---|---|---|\n"
        );
        for key in keys {
            let default = key.default.map(|default| format!("`{default}`")).unwrap_or_default();
            let about = key.about.replace('|', "\\|");
            page += &format!("| `{}` | {} | {} | {default} | {about} |\n", key.name, key.kind, key.unit);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    #[test]
    fn the_page_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        if std::env::var_os("CAIRN_WRITE_REFERENCE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == page(), "docs/configuration.md is old: run `just reference`");
    }

    #[test]
    fn every_default_is_what_the_parser_takes() {
        for Section { name, keys, .. } in sections() {
            for key in keys {
                assert!(!key.about.is_empty(), "{name}.{} has no meaning", key.name);
                let Some(default) = key.default else { continue };
                File::parse(&format!("[{name}]\n{} = {default}\n", key.name)).unwrap();
            }
        }
    }

    #[test]
    fn the_packaged_file_is_sound_with_and_without_its_comments() {
        let text = include_str!("../../deploy/cairn.toml");
        File::parse(text).unwrap();
        let bare: Vec<&str> = text
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line))
            .filter(|line| !line.starts_with(' '))
            .collect();
        let file = File::parse(&bare.join("\n")).unwrap();
        file.namenode.unwrap().checked().unwrap();
        assert_eq!(file.client.namenodes.len(), 3);
        assert!(!file.datanode.unwrap().dirs.is_empty());
    }
}
