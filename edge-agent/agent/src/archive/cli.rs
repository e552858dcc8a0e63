//! `flotilla-agent archive`: what it asks for and what it prints.

use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use event_schema::Timestamp;
use serde_json::json;

use super::browse::{self, Choice, Kept};

#[derive(Subcommand)]
pub(crate) enum Archive {
    /// List what is in a folder's archive, by where it was, the latest of each path first.
    #[command(after_help = "\
Example:
  flotilla-agent archive list /srv/plans --path offers/2026

ARCHIVED is when something came into the archive; KEPT UNTIL when the agent deletes it. The last column names it for
`archive restore --id`.")]
    List(Chosen),
    /// Bring back the latest of each path that is named.
    #[command(after_help = "\
Examples:
  flotilla-agent archive restore /srv/plans --path offers/2026/huber.odt
  flotilla-agent archive restore /srv/plans --path offers --since-hours 2
  flotilla-agent archive restore /srv/plans --id sync-0193…-020511/offers/huber.odt~1 --to offers/huber-old.odt

It is moved out of the archive, at once and with everything it had. What is in its place stays, unless --replace: then that
goes to the archive, for 30 days. If the folder is synchronized, what comes back is a change like any other, for all members. Run it as the
user of the agent, or as root. Exit code 1 if nothing was found or something could not be brought back.")]
    Restore(Restore),
}

#[derive(Args)]
pub(crate) struct Chosen {
    /// The folder of the job on this machine.
    folder: PathBuf,
    /// What was at this path of the folder, or below it.
    #[arg(long, value_name = "PATH")]
    path: Option<PathBuf>,
    /// What came into the archive in the last so many hours.
    #[arg(long, value_name = "HOURS")]
    since_hours: Option<u32>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["path", "since_hours", "id"]))]
pub(crate) struct Restore {
    #[command(flatten)]
    chosen: Chosen,
    /// This one alone, as `archive list` names it.
    #[arg(long, value_name = "ID")]
    id: Option<PathBuf>,
    /// To this path of the folder instead of where it was.
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Let it change places with what is there.
    #[arg(long)]
    replace: bool,
}

impl Chosen {
    fn choice(&self, id: Option<PathBuf>) -> Choice {
        let hours =
            |hours: u32| Timestamp(crate::clock::now().0.saturating_sub(u64::from(hours) * 3_600_000));
        let mut path = self.path.clone().map(bytes).unwrap_or_default();
        while path.ends_with(b"/") {
            path.pop();
        }
        Choice { path, at: id.map(bytes), since: self.since_hours.map(hours) }
    }
}

fn bytes(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_vec()
}

/// A path as people read it, whatever its bytes are.
fn text(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

fn shown(kept: &Kept) -> serde_json::Value {
    json!({
        "path": String::from_utf8_lossy(&kept.path),
        "id": String::from_utf8_lossy(&kept.at),
        "kind": kept.kind,
        "size": kept.size,
        "archived": kept.since.to_string(),
        "kept_until": kept.until.map(|until| until.to_string()),
    })
}

/// Why not all was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the archive of {} cannot be read: {error}", folder.display())]
    Read { folder: PathBuf, error: io::Error },
    #[error("nothing like that is in the archive of {}", .0.display())]
    Nothing(PathBuf),
    #[error("{left} of {all} stay in the archive")]
    Left { left: usize, all: usize },
    #[error("printing: {0}")]
    Print(#[from] io::Error),
}

type Done<T> = Result<T, Failure>;

/// Carries it out.
///
/// # Errors
/// If the archive cannot be read, nothing was found to be brought back, or something could not be.
pub(crate) fn run(command: Archive) -> Done<()> {
    match command {
        Archive::List(chosen) => list(&chosen),
        Archive::Restore(line) => restore(line),
    }
}

fn list(chosen: &Chosen) -> Done<()> {
    let all = read(chosen, browse::list(&chosen.folder, &chosen.choice(None)))?;
    let mut out = io::stdout().lock();
    if !chosen.json {
        writeln!(out, "{:24}  {:24}  {:>12}  PATH  (ID)", "ARCHIVED", "KEPT UNTIL", "BYTES")?;
    }
    for kept in &all {
        if chosen.json {
            writeln!(out, "{}", shown(kept))?;
            continue;
        }
        let until = kept.until.map_or_else(|| "it is removed".into(), |until| until.to_string());
        let size = if kept.kind == "file" { kept.size.to_string() } else { kept.kind.into() };
        writeln!(
            out,
            "{:24}  {until:24}  {size:>12}  {}  ({})",
            kept.since.to_string(),
            text(&kept.path),
            text(&kept.at)
        )?;
    }
    Ok(())
}

fn restore(line: Restore) -> Done<()> {
    let Restore { chosen, id, to, replace } = line;
    let to = to.map(bytes);
    let choice = chosen.choice(id);
    let all = read(&chosen, browse::restore(&chosen.folder, &choice, to.as_deref(), replace))?;
    if all.is_empty() {
        return Err(Failure::Nothing(chosen.folder));
    }
    let mut out = io::stdout().lock();
    for one in &all {
        if chosen.json {
            let mut object = shown(&one.kept);
            object["to"] = String::from_utf8_lossy(&one.to).into();
            object["restored"] = one.trouble.is_none().into();
            object["replaced"] = one.replaced.into();
            object["trouble"] = one.trouble.clone().into();
            writeln!(out, "{object}")?;
            continue;
        }
        match &one.trouble {
            None => writeln!(out, "{}", text(&one.to))?,
            Some(trouble) => eprintln!("{}: {trouble}", text(&one.to)),
        }
    }
    let left = all.iter().filter(|one| one.trouble.is_some()).count();
    if left > 0 { Err(Failure::Left { left, all: all.len() }) } else { Ok(()) }
}

fn read<T>(chosen: &Chosen, result: rustix::io::Result<T>) -> Done<T> {
    result.map_err(|errno| Failure::Read { folder: chosen.folder.clone(), error: errno.into() })
}
