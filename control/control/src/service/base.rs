//! A log whose beginning is in archives (`events/AUDIT_FORMAT.md` §11.4): the state at its base, which takes the place of
//! everything that was archived.

use std::collections::BTreeMap;

use control_core::projection::Views;
use control_core::snapshot::{Snapshot, SnapshotRef};
use control_core::{State, form};
use event_log::{EventLog, Position, ReadLimit};
use event_schema::{Event, Record};

use super::Service;
use super::snapshots::Snapshots;
use super::writer::remember;
use crate::archive::BaseNote;
use crate::at::At;

impl Snapshots {
    /// Makes sure that the state at `position` of the log is kept as a snapshot, folding it from the nearest one before,
    /// and reads it back. Every attested state on the way has to come out.
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub(crate) async fn keep_state_at(&self, log: &dyn EventLog, position: u64) -> Result<(), String> {
        let found = self.find(log, Some(At::Position(position)), 0).await;
        if found.as_ref().is_some_and(|found| found.views.position() == position) {
            return Ok(());
        }
        let Snapshot { mut state, mut views, mut correlations, mut attested } =
            found.unwrap_or_else(|| Snapshot {
                state: State::default(),
                views: Views::default(),
                correlations: BTreeMap::new(),
                attested: 0,
            });
        let mut last = Vec::new();
        while views.position() < position {
            let next = views.position() + 1;
            let page =
                log.read(Position(next), ReadLimit::default()).await.map_err(|error| error.to_string())?;
            if page.first().is_none_or(|entry| entry.position.0 != next) {
                return Err(format!("the log has no record {next}"));
            }
            for entry in page.into_iter().take_while(|entry| entry.position.0 <= position) {
                let record = Record::decode(&entry.bytes)
                    .map_err(|error| format!("record {} cannot be read: {error}", entry.position))?;
                if let Some(Err(differs)) = form::check(&views, entry.position.0, &record) {
                    return Err(differs.to_string());
                }
                for event in &record.events {
                    remember(&mut correlations, event, record.id);
                    if matches!(event, Event::StateAttested(_)) {
                        attested = entry.position.0;
                    }
                    state.evolve(event);
                }
                views.apply(entry.position.0, &record);
                last = entry.bytes;
            }
        }
        let snapshot = SnapshotRef { state: &state, views: &views, correlations: &correlations, attested };
        self.write(Self::encode(snapshot, &last))
            .map_err(|error| format!("the snapshot cannot be written: {error}"))?;
        let again = self.find(log, Some(At::Position(position)), position - 1).await;
        match again {
            Some(again) if again.views.position() == position => Ok(()),
            _ => Err("the snapshot that was written does not hold".into()),
        }
    }
}

impl Service {
    /// Makes sure that the log need not begin before `position`, which is in it, for the state there to be had.
    ///
    /// # Errors
    /// Why it can't be had, for people.
    pub(crate) async fn keep_state_at(&self, position: u64) -> Result<(), String> {
        match &self.shared.snapshots {
            Some(snapshots) => snapshots.keep_state_at(&**self.log(), position).await,
            None => Err("this service keeps no snapshots".into()),
        }
    }

    /// The log begins behind this now.
    pub(crate) fn begins_behind(&self, base: &BaseNote) {
        if let Some(snapshots) = &self.shared.snapshots {
            snapshots.begin_behind(base);
        }
    }
}
