//! Rules about the tree that no compiler holds: `cargo xtask tidy`, and a unit test of this crate.
//!
//! Owns the list of rules and the walk over the files that git knows or would add. The rules themselves:
//! `arrows` (who may depend on whom), `map` (what the pages name exists), `sources` (what a file may hold).
//! A rule earns its place by a fault it would have caught; it says what to do instead.

mod arrows;
mod map;
mod sources;

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::workspace::Workspace;

/// A text file of the tree.
pub(crate) struct Source {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

pub(crate) fn run() -> Result<ExitCode> {
    let faults = faults(&Workspace::load()?)?;
    for fault in &faults {
        println!("{fault}");
    }
    if faults.is_empty() {
        println!("tidy");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} faults", faults.len());
    Ok(ExitCode::FAILURE)
}

/// Every breach of a rule, one line each, as `place: what is wrong`.
pub(crate) fn faults(workspace: &Workspace) -> Result<Vec<String>> {
    let sources = sources_of(workspace)?;
    let mut faults = Vec::new();
    arrows::check(workspace, &mut faults);
    map::check(workspace, &sources, &mut faults);
    sources::check(workspace, &sources, &mut faults);
    faults.sort();
    faults.dedup();
    Ok(faults)
}

/// What git tracks or would add, as far as it is text. Files deleted in the working copy are left out.
fn sources_of(workspace: &Workspace) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .current_dir(&workspace.root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("running git")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let mut sources = Vec::new();
    for path in listing.split_terminator('\0') {
        let Ok(bytes) = fs::read(workspace.root.join(path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let faults = faults(&Workspace::load().unwrap()).unwrap();
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }
}
