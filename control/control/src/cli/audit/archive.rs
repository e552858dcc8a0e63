//! `flotilla audit verify --archive`: archives of a log held against what was signed, with nothing else at hand
//! (`events/AUDIT_FORMAT.md` §11.5).

use std::path::{Path, PathBuf};

use event_audit::{Head, SignedCheckpoint};
use event_schema::Record;
use serde_json::{Value, json};

use super::{Done, Failure, States, Verify, output, read_checkpoint};
use crate::archive::{self, ArchiveError, Checked};

/// An archive to be checked.
struct Named<'l> {
    path: &'l Path,
    first: u64,
    checkpoint: SignedCheckpoint,
}

/// Why it is not good, with the archive.
struct Bad<'l>(&'l Path, ArchiveError);

pub(super) fn check(as_json: bool, line: &Verify) -> Done {
    if !line.witness.is_empty() {
        return Err(Failure::Usage("--witness is for exports; --seen holds a head against archives".into()));
    }
    if line.archives.archive.len() > archive::ARCHIVES_MAX {
        return Err(Failure::Usage(format!("at most {} archives can be named", archive::ARCHIVES_MAX)));
    }
    let mut origin = line.origin.clone();
    let mut seen = Vec::new();
    for path in &line.seen {
        let checkpoint = read_checkpoint(path)?;
        if origin.get_or_insert(checkpoint.origin.clone()) != &checkpoint.origin {
            return Err(Failure::Failed(format!(
                "the checkpoint in {} is of another log, {}",
                path.display(),
                checkpoint.origin
            )));
        }
        seen.push(checkpoint.head);
    }
    let mut states = States::default();
    match check_all(&line.archives.archive, origin.as_deref(), &seen, &mut states) {
        Ok(checked) => good(as_json, line, origin.is_some(), &checked, &states),
        Err(Bad(path, error)) if as_json => {
            output::say_json(&json!({
                "good": false, "error": error.to_string(), "archive": path.to_string_lossy(),
                "first_bad": error.position(),
            }))?;
            Err(Failure::Quiet)
        }
        Err(Bad(path, error)) => Err(Failure::Failed(format!("BAD: {}: {error}", path.display()))),
    }
}

fn check_all<'l>(
    folders: &'l [PathBuf],
    origin: Option<&str>,
    seen: &[Head],
    states: &mut States,
) -> Result<Vec<(&'l Path, Checked)>, Bad<'l>> {
    let mut named = Vec::new();
    for path in folders {
        let (manifest, checkpoint) = archive::peek(path).map_err(|error| Bad(path, error))?;
        named.push(Named { path, first: manifest.first().unwrap_or(0), checkpoint });
    }
    // The longest tree has to have had all the others' heads: they are one history.
    let longest = named.iter().map(|named| named.checkpoint.head().size).max().unwrap_or(0);
    let heads: Vec<Head> =
        seen.iter().copied().chain(named.iter().map(|named| *named.checkpoint.head())).collect();
    let mut origin = origin.map(str::to_owned);
    named.sort_by_key(|named| named.first);
    let mut checked = Vec::new();
    for named in named {
        let heads = if named.checkpoint.head().size == longest { &heads[..] } else { &[] };
        let found = archive::check(named.path, origin.as_deref(), heads, |position, bytes| {
            states.take(position, bytes);
        });
        let found = found.map_err(|error| Bad(named.path, error))?;
        origin.get_or_insert(found.manifest.origin.clone());
        checked.push((named.path, found));
    }
    Ok(checked)
}

impl States {
    /// What is told of it to scripts.
    pub(super) fn json(&self) -> Value {
        let fold = &self.fold;
        json!({
            "folded": fold.views().position(),
            "state_hash": data_encoding::HEXLOWER.encode(&fold.views().hash()),
            "checked": fold.checked,
            "unknown": fold.unknown,
            "unread_from": self.unread.as_ref().map(|(position, _)| *position),
        })
    }

    /// Folds an entry that follows what was folded; what does not is left out.
    fn take(&mut self, position: u64, bytes: &[u8]) {
        if self.unread.is_some() || position != self.fold.views().position() + 1 {
            return;
        }
        match Record::decode(bytes) {
            Ok(record) => {
                if let Err(differs) = self.fold.apply(position, &record) {
                    self.differing.get_or_insert(differs);
                }
            }
            Err(error) => self.unread = Some((position, error)),
        }
    }
}

fn good(
    as_json: bool,
    line: &Verify,
    origin_expected: bool,
    checked: &[(&Path, Checked)],
    states: &States,
) -> Done {
    let newest = checked.iter().max_by_key(|(_, found)| found.checkpoint.head().size);
    let Some((_, newest)) = newest else { return Ok(()) };
    if let Some(path) = &line.keep {
        crate::private_file::write(path, newest.checkpoint.note().as_bytes())
            .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display())))?;
    }
    let (fold, differing) = (&states.fold, &states.differing);
    let state_hash = data_encoding::HEXLOWER.encode(&fold.views().hash());
    let entries = |found: &Checked| found.manifest.segments.iter().map(|s| s.last - s.first + 1).sum::<u64>();
    if as_json {
        let one = |(path, found): &(&Path, Checked)| {
            json!({
                "path": path.to_string_lossy(),
                "first": found.manifest.first(),
                "last": found.manifest.last(),
                "entries": entries(found),
                "entry_bytes": found.entry_bytes,
                "segments": found.manifest.segments.len(),
                "bytes": found.manifest.bytes(),
            })
        };
        output::say_json(&json!({
            "good": differing.is_none(),
            "error": differing.as_ref().map(ToString::to_string),
            "first_bad": differing.as_ref().map(|differs| differs.position),
            "origin": newest.checkpoint.origin(),
            "origin_expected": origin_expected,
            "archives": checked.iter().map(one).collect::<Vec<Value>>(),
            "root": newest.checkpoint.head().root.to_string(),
            "checkpoint": newest.checkpoint.note(),
            "seen": line.seen.len(),
            "states": states.json(),
        }))?;
        return if differing.is_some() { Err(Failure::Quiet) } else { Ok(()) };
    }
    if let Some(differs) = differing {
        return Err(Failure::Failed(format!(
            "BAD: all entries are those that were signed, but they do not say what was attested: {differs}"
        )));
    }
    let mut told = String::from("good: all entries are those that were signed");
    for (path, found) in checked {
        let (first, last) = (found.manifest.first().unwrap_or(0), found.manifest.last().unwrap_or(0));
        let (segments, bytes) = (found.manifest.segments.len(), output::bytes(found.manifest.bytes()));
        told += &format!("\n  {first} to {last}, {segments} segments, {bytes}, in {}", path.display());
    }
    let head = newest.checkpoint.head();
    let hint = if origin_expected {
        ""
    } else {
        " (NOT CHECKED: give --origin, or this may be any fleet's history)"
    };
    told += &format!(
        "\n  log          {}{hint}\n  checkpoint   over {} entries, root {}",
        newest.checkpoint.origin(),
        head.size,
        head.root
    );
    let folded = fold.views().position();
    told += &match folded {
        0 => "\n  states       NOT FOLDED: the archives do not begin with position 1".to_owned(),
        _ => format!(
            "\n  states       {} attested, all as folded anew; at {folded} {state_hash}",
            fold.checked
        ),
    };
    if let Some((position, error)) = &states.unread {
        told += &format!("\n               NOT FOLDED from entry {position} on: {error}");
    }
    output::say(&told)
}
