//! What the pages name exists: maps that still show what is gone mislead more than no map.
//!
//! Owns the check of ARCHITECTURE.md and the other pages against the tree. It reads words in backticks only; a
//! word is a path if its first part is a folder at the root or if it ends like a file there.

use crate::tidy::Source;
use crate::workspace::Workspace;

/// Pages whose paths are held; `docs/` entirely.
const PAGES: &[&str] = &["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"];

pub(crate) fn check(workspace: &Workspace, sources: &[Source], faults: &mut Vec<String>) {
    let is_page = |path: &str| PAGES.contains(&path) || (path.starts_with("docs/") && path.ends_with(".md"));
    let exists = |path: &str| workspace.root.join(path).exists();
    for page in sources.iter().filter(|s| is_page(&s.path)) {
        for name in
            paths(&page.text, &|folder| sources.iter().any(|s| s.path.split('/').next() == Some(folder)))
        {
            if !exists(name) {
                faults.push(format!("{}: names {name}, which does not exist", page.path));
            }
        }
    }
    let Some(architecture) = sources.iter().find(|s| s.path == "ARCHITECTURE.md") else {
        faults.push("ARCHITECTURE.md: missing".to_owned());
        return;
    };
    for member in workspace.members.iter().filter(|m| !architecture.text.contains(&format!("`{}`", m.folder)))
    {
        faults.push(format!("ARCHITECTURE.md: the map lacks {}", member.folder));
    }
}

/// The words in backticks that are paths of this tree.
fn paths<'t>(text: &'t str, is_folder: &dyn Fn(&str) -> bool) -> Vec<&'t str> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Odd parts of a line cut at backticks are what stands between them.
        for word in line.split('`').skip(1).step_by(2) {
            let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
            let Some((first, _)) = word.split_once('/') else { continue };
            if plain && is_folder(first) && !word.contains("..") {
                found.push(word.trim_end_matches('/'));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_words() {
        let text = "see `events/log.rs`, `a / b`, `nowhere/x`, `handle_*(now)` and `docs/` `GET /api/v1`\n\
                    ```\n`events/fenced.rs`\n```\n| `tracker/x`, `tracker/y` |";
        let folders = ["events", "docs", "tracker"];
        let found = paths(text, &|folder| folders.contains(&folder));
        assert_eq!(found, ["events/log.rs", "docs", "tracker/x", "tracker/y"]);
    }
}
