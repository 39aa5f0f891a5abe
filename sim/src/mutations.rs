//! The patches in `sim/mutations` fit the code: one that does not would only be noticed by who runs the check.

use std::fs;
use std::path::{Path, PathBuf};

/// What each hunk of a patch expects to find, with the file that it expects it in.
fn expected(patch: &str) -> Vec<(String, String)> {
    let (mut file, mut hunks) = (String::new(), Vec::new());
    for line in patch.lines() {
        if let Some(path) = line.strip_prefix("--- a/") {
            file = path.to_owned();
        } else if line.starts_with("@@") {
            hunks.push((file.clone(), String::new()));
        } else if let Some((_, before)) = hunks.last_mut()
            && let Some(kept) = line.strip_prefix([' ', '-'])
        {
            before.push_str(kept);
            before.push('\n');
        }
    }
    hunks
}

#[test]
fn each_takes_something_away_that_is_there() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = fs::read_dir(here.join("mutations")).unwrap().map(|entry| entry.unwrap().path());
    let patches: Vec<PathBuf> =
        all.filter(|path| path.extension().is_some_and(|suffix| suffix == "patch")).collect();
    assert!(!patches.is_empty());
    for path in patches {
        let hunks = expected(&fs::read_to_string(&path).unwrap());
        assert!(!hunks.is_empty(), "{}", path.display());
        for (file, before) in hunks {
            let source = fs::read_to_string(here.join("..").join(&file)).unwrap();
            assert!(source.contains(&before), "{}: not in {file}:\n{before}", path.display());
        }
    }
}
