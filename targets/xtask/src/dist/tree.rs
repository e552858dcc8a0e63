//! The sources of one commit, laid out in a folder of their own: what somebody changes meanwhile does not get in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// What is built.
pub(super) struct Commit {
    /// git's name for it, or for the tree that it has.
    pub(super) id: String,
    /// Seconds since 1970, which all files in packages have: a time that is part of the input.
    pub(super) time: u64,
    /// The same as RFC 3339 has it, in UTC.
    pub(super) stamp: String,
    /// Where git keeps it.
    git: PathBuf,
}

impl Commit {
    /// The newest one of the tree at `root`, whatever was changed since.
    pub(super) fn newest(root: &Path) -> Result<Self> {
        let ask = |args: &[&str]| said(git().current_dir(root).args(args));
        let (id, folder) = (ask(&["rev-parse", "HEAD"])?, ask(&["rev-parse", "--absolute-git-dir"])?);
        let time = ask(&["log", "-1", "--format=%ct", &id])?.parse().context("the commit's time")?;
        let stamp = said(git().env("TZ", "UTC").current_dir(root).args([
            "log",
            "-1",
            "--date=format-local:%Y-%m-%dT%H:%M:%SZ",
            "--format=%cd",
            &id,
        ]))?;
        Ok(Self { id, time, stamp, git: folder.into() })
    }

    /// The tree at `root` as it is, with what is not committed yet, for who tests what he changes. `index` is a file that git
    /// may use meanwhile.
    pub(super) fn as_it_is(root: &Path, index: &Path) -> Result<Self> {
        let ask = |args: &[&str]| said(git().env("GIT_INDEX_FILE", index).current_dir(root).args(args));
        ask(&["read-tree", "HEAD"])?;
        ask(&["add", "--all"])?;
        Ok(Self { id: ask(&["write-tree"])?, ..Self::newest(root)? })
    }

    /// The first digits of its name.
    pub(super) fn short(&self) -> &str {
        self.id.get(..10).unwrap_or(&self.id)
    }

    /// The text of one of its files.
    pub(super) fn file(&self, root: &Path, path: &str) -> Result<String> {
        said(git().current_dir(root).args(["show", &format!("{}:{path}", self.id)])).map(|text| text + "\n")
    }

    /// Makes `tree` hold its files and nothing else. What is there already and right is left alone, with its time, so that
    /// cargo compiles only what is new; `git archive` would give all of it the commit's time, by which cargo would take
    /// the files of an older commit for those that it compiled.
    pub(super) fn lay_out(&self, tree: &Path) -> Result<()> {
        fs::create_dir_all(tree)?;
        let command = |args: &[&str]| {
            let mut command = git();
            // Neither where the index is nor what this machine does to line ends is git's choice here.
            command.env("GIT_INDEX_FILE", tree.with_extension("index")).current_dir(tree);
            command.args(["-c", "core.autocrlf=false", "-c", "core.sparseCheckout=false"]);
            command
                .args(["-c", "core.fsmonitor=false", "--git-dir"])
                .arg(&self.git)
                .arg("--work-tree")
                .arg(tree);
            said(command.args(args))
        };
        command(&["read-tree", "--reset", "-u", &self.id])?;
        command(&["clean", "-ffdxq"])?;
        let changed = command(&["diff", "--no-ext-diff", "--name-only", &self.id])?;
        let differs = format!("{changed}{}", command(&["ls-files", "--others"])?);
        ensure!(differs.is_empty(), "{} is not commit {}:\n{differs}", tree.display(), self.id);
        Ok(())
    }
}

/// Refuses to go on where what packs (this program, which was compiled from the tree at `root`) is not the commit's.
pub(super) fn refuse_other_packers(root: &Path) -> Result<()> {
    // What was measured of one program is no reason to refuse the next.
    let but = ":(exclude)targets/measured.toml";
    let inputs = ["status", "--porcelain", "--", "targets", but, "Cargo.toml", "Cargo.lock"];
    let changed = said(git().current_dir(root).args(inputs))?;
    ensure!(
        changed.is_empty(),
        "what is built is the newest commit, but what packs it was changed since; commit that first:\n{changed}"
    );
    Ok(())
}

/// git without what a hook tells it about the repository that it is run for.
fn git() -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("GIT_")) {
        command.env_remove(name);
    }
    command
}

fn said(command: &mut Command) -> Result<String> {
    let output = command.output().context("running git, which has the sources of what is built")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(root: &Path, message: &str) {
        for args in [&["add", "."][..], &["commit", "-q", "-m", message]] {
            let as_somebody = ["-c", "user.name=somebody", "-c", "user.email=somebody@localhost"];
            said(git().current_dir(root).args(as_somebody).args(args)).expect("committed");
        }
    }

    #[test]
    fn a_tree_holds_what_was_committed_and_nothing_else() {
        let folder = tempfile::tempdir().expect("room");
        let (root, tree) = (folder.path().join("root"), folder.path().join("tree"));
        fs::create_dir_all(root.join("targets")).expect("made");
        said(git().args(["init", "-q"]).arg(&root)).expect("a repository");
        fs::write(root.join(".gitignore"), "/built\n").expect("written");
        fs::write(root.join("stays"), "1").expect("written");
        fs::write(root.join("targets/packs"), "1").expect("written");
        change(&root, "first");
        let first = Commit::newest(&root).expect("a commit");
        first.lay_out(&tree).expect("laid out");
        assert_eq!(fs::read_to_string(tree.join("targets/packs")).expect("read"), "1");
        let laid = fs::metadata(tree.join("stays")).and_then(|m| m.modified()).expect("a time");

        // Changed in the repository and not committed; changed and left in the tree.
        fs::write(root.join("stays"), "2").expect("written");
        fs::write(root.join("targets/measured.toml"), "").expect("written");
        assert!(refuse_other_packers(&root).is_ok(), "not what packs");
        fs::write(root.join("targets/new"), "").expect("written");
        assert!(refuse_other_packers(&root).is_err(), "what packs");
        fs::write(tree.join("targets/packs"), "changed").expect("written");
        for stray in ["stray", "built"] {
            fs::write(tree.join(stray), "").expect("written");
        }
        Commit::newest(&root).expect("a commit").lay_out(&tree).expect("laid out");
        assert_eq!(fs::read_to_string(tree.join("targets/packs")).expect("read"), "1");
        assert_eq!(fs::read_to_string(tree.join("stays")).expect("read"), "1");
        assert!(
            !tree.join("stray").exists()
                && !tree.join("built").exists()
                && !tree.join("targets/new").exists()
        );
        assert_eq!(fs::metadata(tree.join("stays")).and_then(|m| m.modified()).expect("a time"), laid);

        let now = Commit::as_it_is(&root, &folder.path().join("index")).expect("a tree");
        now.lay_out(&tree).expect("laid out");
        assert_eq!(fs::read_to_string(tree.join("stays")).expect("read"), "2");
        assert!(tree.join("targets/new").exists());
        assert!(refuse_other_packers(&root).is_err(), "nothing was committed");

        change(&root, "second");
        let second = Commit::newest(&root).expect("a commit");
        assert_ne!(second.id, first.id);
        second.lay_out(&tree).expect("laid out");
        assert_eq!(fs::read_to_string(tree.join("stays")).expect("read"), "2");
        // An older one: its files are newer than all that was compiled before.
        first.lay_out(&tree).expect("laid out");
        assert_eq!(fs::read_to_string(tree.join("stays")).expect("read"), "1");
        assert!(fs::metadata(tree.join("stays")).and_then(|m| m.modified()).expect("a time") > laid);
    }
}
