//! Witnesses from the command line: who holds what, and their checkpoints against an export.

use std::path::{Path, PathBuf};

use event_audit::SignedCheckpoint;
use event_audit::export::{Expectation, ExportError, ExportReader};

use super::client::Client;
use super::{Done, Failure, output};
use crate::api::view::{WitnessView, WitnessesView};

/// `flotilla audit witnesses`.
pub(super) fn show(client: &Client, as_json: bool) -> Done {
    let mut rest = None;
    let witnesses = client.list("audit/witnesses", |mut page: WitnessesView| {
        let next = page.next.take();
        let witnesses = std::mem::take(&mut page.witnesses);
        rest = Some(page);
        (witnesses, next)
    })?;
    let rest = rest.ok_or_else(|| Failure::Failed("the service gave no answer".into()))?;
    if as_json {
        return output::say_json(&WitnessesView { witnesses, ..rest });
    }
    output::say(&format!("log      {}", rest.origin))?;
    match &rest.sealed {
        Some(head) => {
            output::say(&format!("sealed   {} entries of {}, root {}", head.size, rest.as_of, head.root))?
        }
        None => output::say(&format!("sealed   nothing yet of {} entries", rest.as_of))?,
    }
    if let Some(why) = &rest.sealing_detail {
        output::say(&format!("{}  {why}", if rest.sealing == "stopped" { "STOPPED" } else { "waiting" }))?;
    }
    let row = |w: &WitnessView| {
        let held = |f: &dyn Fn(&crate::api::view::HeadView) -> String| w.held.as_ref().map_or("-".into(), f);
        vec![
            w.name.clone(),
            if w.state == "conflict" { "CONFLICT".into() } else { w.state.clone() },
            held(&|head| head.size.to_string()),
            w.lag.map_or("-".into(), |lag| lag.to_string()),
            w.told.clone().unwrap_or_else(|| "-".into()),
            held(&|head| head.root.clone()),
        ]
    };
    output::table(&["AGENT", "STATE", "HOLDS", "BEHIND", "SAID SO", "ROOT"], witnesses.iter().map(row))?;
    rest.conflicts.iter().try_for_each(|conflict| {
        let holder = conflict.name.as_deref().unwrap_or("this service itself");
        output::say(&format!(
            "ALARM  two histories, found {}\n  {holder} holds  size {}, root {}\n  this log has  size {}, root {}",
            conflict.found, conflict.held.size, conflict.held.root, conflict.log.size, conflict.log.root
        ))
    })
}

/// Checkpoints that came from witnesses, each signed by a key that the export lists.
pub(super) struct Notes(Vec<(PathBuf, SignedCheckpoint)>);

impl Notes {
    /// Reads them; what none of the log's keys has signed proves nothing, and is a mistake to be told.
    pub(super) fn read(
        paths: &[PathBuf],
        export: impl std::io::Read,
        origin: Option<&String>,
        bad: impl Fn(ExportError) -> Failure,
    ) -> Result<Self, Failure> {
        if paths.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let expectation = Expectation { origin: origin.cloned(), heads: Vec::new() };
        let reader = ExportReader::open(export, &expectation).map_err(bad)?;
        let keys = reader.keys();
        let mut notes: Vec<(PathBuf, SignedCheckpoint)> = Vec::new();
        for path in paths {
            let failed = |what: String| {
                Failure::Failed(format!("the witness's checkpoint {} proves nothing: {what}", path.display()))
            };
            let note = super::audit::read_note(path)?;
            let checkpoint = SignedCheckpoint::open(&note, keys.origin(), keys.log_keys())
                .map_err(|error| failed(error.to_string()))?;
            let fork = notes.iter().find(|(_, other)| {
                other.head().size == checkpoint.head().size && other.head() != checkpoint.head()
            });
            if let Some((other_path, other)) = fork {
                return Err(Failure::Failed(format!(
                    "TWO HISTORIES, both signed by the log's key: ({}) in {}, ({}) in {}",
                    other.head(),
                    other_path.display(),
                    checkpoint.head(),
                    path.display()
                )));
            }
            notes.push((path.clone(), checkpoint));
        }
        Ok(Self(notes))
    }

    /// What the export has to continue.
    pub(super) fn heads(&self) -> impl Iterator<Item = event_audit::Head> {
        self.0.iter().map(|(_, checkpoint)| *checkpoint.head())
    }

    /// Whose checkpoint it is that an export does not continue.
    pub(super) fn named_in(&self, error: &ExportError) -> Option<&Path> {
        let head = match error {
            ExportError::Forked { claimed, expected: true, .. } => claimed,
            ExportError::Older { seen, .. } => seen,
            _ => return None,
        };
        self.0.iter().find(|(_, checkpoint)| checkpoint.head() == head).map(|(path, _)| path.as_path())
    }
}
