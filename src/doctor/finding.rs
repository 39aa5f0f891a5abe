//! What was found: how bad it is, its code, and how it is shown.

use std::fmt::Write;

use cairn_ops::code::Code;
use serde_json::{Value, json};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Fine,
    /// Works, and should be looked at.
    Warning,
    /// Does not work.
    Failure,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Fine => "ok",
            Level::Warning => "warning",
            Level::Failure => "failure",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What it is about: `cluster`, `datanode`, ...
    pub area: &'static str,
    /// Nothing if it is fine.
    pub code: Option<Code>,
    /// In words.
    pub text: String,
}

/// Everything that was found, in order.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Something is as it should be.
    pub fn fine(&mut self, area: &'static str, text: impl Into<String>) {
        self.0.push(Finding { level: Level::Fine, area, code: None, text: text.into() });
    }

    /// Something works and should be looked at.
    pub fn warn(&mut self, area: &'static str, code: Code, text: impl Into<String>) {
        self.found(Level::Warning, area, code, text);
    }

    /// Something does not work.
    pub fn fail(&mut self, area: &'static str, code: Code, text: impl Into<String>) {
        self.found(Level::Failure, area, code, text);
    }

    /// Something is wrong, so badly.
    pub fn found(&mut self, level: Level, area: &'static str, code: Code, text: impl Into<String>) {
        self.0.push(Finding { level, area, code: Some(code), text: text.into() });
    }

    /// All of them.
    #[cfg(test)]
    pub fn codes(&self) -> Vec<(Level, Code)> {
        self.0.iter().filter_map(|one| Some((one.level, one.code?))).collect()
    }

    fn worst(&self) -> Level {
        self.0.iter().map(|one| one.level).max().unwrap_or(Level::Fine)
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|one| one.level == level).count()
    }

    /// How many things are wrong.
    pub fn wrong(&self) -> usize {
        self.0.iter().filter(|one| one.level > Level::Fine).count()
    }

    /// 0 nothing is wrong, 1 warnings, 2 failures.
    pub fn exit_code(&self) -> u8 {
        match self.worst() {
            Level::Fine => 0,
            Level::Warning => 1,
            Level::Failure => 2,
        }
    }

    /// For people: by area, each with its remedy, and a summary. What is fine is left out if `quiet`.
    pub fn render(&self, quiet: bool) -> String {
        let mut text = String::new();
        let mut area = "";
        for one in self.0.iter().filter(|one| !quiet || one.level > Level::Fine) {
            if one.area != area {
                area = one.area;
                let gap = if text.is_empty() { "" } else { "\n" };
                let _ = writeln!(text, "{gap}{area}");
            }
            let mark = match one.level {
                Level::Fine => "ok  ",
                Level::Warning => "WARN",
                Level::Failure => "FAIL",
            };
            let _ = writeln!(text, "  {mark}  {}", one.text);
            if let Some(code) = one.code {
                let _ = writeln!(text, "        {}: {}", code.name(), code.remedy());
            }
        }
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = match (self.count(Level::Failure), self.count(Level::Warning)) {
            (0, 0) => writeln!(text, "{gap}nothing is wrong"),
            (failures, warnings) => {
                let plural = |count: usize, noun| cairn_ops::health::counted(count as u64, noun);
                let all = format!("{}, {}", plural(failures, "failure"), plural(warnings, "warning"));
                writeln!(text, "{gap}{all}; docs/health.md has more about each code")
            }
        };
        text
    }

    /// For programs.
    pub fn as_json(&self) -> Value {
        let one = |one: &Finding| {
            json!({
                "level": one.level.name(), "area": one.area, "text": one.text,
                "code": one.code.map(Code::name), "remedy": one.code.map(Code::remedy),
            })
        };
        json!({
            "result": self.worst().name(),
            "failures": self.count(Level::Failure), "warnings": self.count(Level::Warning),
            "findings": self.0.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let mut found = Findings::default();
        assert_eq!((found.exit_code(), found.render(false).as_str()), (0, "nothing is wrong\n"));
        found.fine("limits", "1024 open files");
        found.warn("mount", Code::FuseAbsent, "/dev/fuse does not exist");
        assert_eq!(found.exit_code(), 1);
        let quiet = found.render(true);
        assert!(!quiet.contains("limits") && quiet.contains("FUSE_ABSENT: Load"), "{quiet}");
        assert!(quiet.ends_with("0 failures, 1 warning; docs/health.md has more about each code\n"));
        found.fail("datanode", Code::SyncFails, "/disk1: input/output error");
        assert_eq!(found.exit_code(), 2);
        assert_eq!(found.as_json()["findings"][2]["code"], "SYNC_FAILS");
        assert_eq!(found.as_json()["result"], "failure");
    }
}
