//! The fleet as it was: projections folded to any place of the log, from the nearest snapshot before it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use control_core::projection::Views;
use event_log::{Position, ReadError, ReadLimit};
use event_schema::{Record, Timestamp};
use tokio::sync::Semaphore;

use super::{Service, now};
use crate::at::At;

/// Places that are remembered: the pages of one list, and a few steps of a walk through time.
const REMEMBERED_MAX: usize = 4;

/// Folds at once; more wait. Each holds a whole state.
const FOLDS_MAX: usize = 2;

/// Folds of one place while texts are erased.
const TRIES: u32 = 5;

/// Why there is no state of that place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PastError {
    /// Nothing had happened yet.
    #[error("nothing had happened at {at}: the log begins at {first}")]
    Before { at: Timestamp, first: Timestamp },
    /// The log is not that long.
    #[error("there is no record {position} yet: the log ends with record {end}")]
    Beyond { position: u64, end: u64 },
    /// Nobody knows yet.
    #[error("{at} is still to come: it is {now}")]
    ToCome { at: Timestamp, now: Timestamp },
    /// It was archived.
    #[error(
        "{at} is before what is kept here: the log begins with position {first}. What was before it is in the archives: \
         `flotilla audit state --archive FOLDER --at PLACE` tells it"
    )]
    Archived {
        /// What was asked for.
        at: At,
        /// The log's first position.
        first: u64,
    },
    /// The log cannot be read.
    #[error("the past cannot be folded: {0}")]
    Unavailable(String),
}

/// Places that were folded.
#[derive(Debug)]
pub(super) struct Past {
    remembered: Mutex<Remembered>,
    folds: Semaphore,
}

#[derive(Debug, Default)]
struct Remembered {
    /// Newest use last; each the last state at or before any place up to the next record's.
    folded: VecDeque<Folded>,
    /// How often everything was forgotten: what was folded before holds texts that were erased since.
    forgotten: u64,
}

/// A state, and the record that ends its time.
#[derive(Clone, Debug)]
struct Folded {
    views: Arc<Views>,
    next: (u64, Timestamp),
}

impl Folded {
    /// Whether this is the state at the place.
    fn is_at(&self, at: At) -> bool {
        !at.is_before(self.views.position(), self.views.time()) && at.is_before(self.next.0, self.next.1)
    }

    /// The state, unless the place is a time before everything.
    fn seen_at(self, at: At) -> Result<Arc<Views>, PastError> {
        match at {
            At::Time(at) if self.views.position() == 0 => Err(PastError::Before { at, first: self.next.1 }),
            _ => Ok(self.views),
        }
    }
}

impl Default for Past {
    fn default() -> Self {
        Self { remembered: Mutex::default(), folds: Semaphore::new(FOLDS_MAX) }
    }
}

impl Past {
    /// What is remembered of a place, or the nearest before it.
    fn recall(&self, at: At) -> (Option<Folded>, Option<Arc<Views>>) {
        let remembered = &mut self.remembered().folded;
        if let Some(nth) = remembered.iter().position(|folded| folded.is_at(at)) {
            let found = remembered.remove(nth);
            remembered.extend(found.clone());
            return (found, None);
        }
        let before = remembered.iter().filter(|f| !at.is_before(f.views.position(), f.views.time()));
        (None, before.max_by_key(|folded| folded.views.position()).map(|folded| Arc::clone(&folded.views)))
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        // A list of what can be folded again.
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything, also what is being folded.
    pub(super) fn forget(&self) {
        let mut remembered = self.remembered();
        remembered.folded.clear();
        remembered.forgotten += 1;
    }

    /// How often everything was forgotten: to be taken before a fold begins.
    fn forgotten(&self) -> u64 {
        self.remembered().forgotten
    }

    /// Keeps what was folded, unless everything was forgotten since the fold began; says whether it does.
    fn remember(&self, folded: Folded, forgotten: u64) -> bool {
        let mut remembered = self.remembered();
        if remembered.forgotten != forgotten {
            return false;
        }
        if remembered.folded.iter().any(|known| known.next.0 == folded.next.0) {
            return true;
        }
        while remembered.folded.len() >= REMEMBERED_MAX {
            remembered.folded.pop_front();
        }
        remembered.folded.push_back(folded);
        true
    }
}

impl Service {
    /// The projections at a place of the log that is past; none if that is the present.
    ///
    /// # Errors
    /// [`PastError`].
    pub(crate) async fn past(&self, at: At) -> Result<Option<Arc<Views>>, PastError> {
        let (end, time) = {
            let views = self.views();
            (views.position(), views.time())
        };
        match at {
            At::Position(position) if position > end => return Err(PastError::Beyond { position, end }),
            At::Position(position) if position == end => return Ok(None),
            At::Time(at) if at >= time => {
                // Another service's clock may be ahead of ours, and its records with it.
                let now = now().max(time);
                return if at > now { Err(PastError::ToCome { at, now }) } else { Ok(None) };
            }
            _ => {}
        }
        if let (Some(folded), _) = self.shared.past.recall(at) {
            return folded.seen_at(at).map(Some);
        }
        let _fold = self.shared.past.folds.acquire().await.map_err(unavailable)?;
        for _ in 0..TRIES {
            let forgotten = self.shared.past.forgotten();
            let folded = self.fold_to(at).await?;
            // What was erased meanwhile may have been opened before: it is folded again without.
            if self.shared.past.remember(folded.clone(), forgotten) {
                return folded.seen_at(at).map(Some);
            }
        }
        Err(PastError::Unavailable("texts are being erased, ask again".into()))
    }

    /// Folds to a place, from the nearest state before it.
    async fn fold_to(&self, at: At) -> Result<Folded, PastError> {
        // Whoever waited may find what the one before has folded.
        let base = match self.shared.past.recall(at) {
            (Some(folded), _) => return Ok(folded),
            (None, base) => base,
        };
        let beyond = base.as_ref().map_or(0, |views| views.position());
        let log = self.log();
        let snapshot = match &self.shared.snapshots {
            Some(snapshots) => {
                let found = snapshots.find_open(&**log, Some(at), beyond, self.ring()).await;
                found.map_err(unavailable)?
            }
            None => None,
        };
        let base = snapshot.map(|snapshot| Arc::new(snapshot.views)).or(base);
        let mut views = base.map_or_else(Views::default, |base| Views::clone(&base));
        let next = 'fold: loop {
            let from = views.position() + 1;
            let page = match log.read(Position(from), ReadLimit::default()).await {
                Err(ReadError::Archived { first }) => return Err(PastError::Archived { at, first: first.0 }),
                page => page.map_err(unavailable)?,
            };
            if page.first().is_none_or(|entry| entry.position.0 != from) {
                return Err(PastError::Unavailable(format!("the log has no record {from}")));
            }
            for entry in page {
                let mut record = Record::decode(&entry.bytes).map_err(unavailable)?;
                self.ring().open_record(&mut record).await.map_err(unavailable)?;
                if at.is_before(entry.position.0, record.time) {
                    break 'fold (entry.position.0, record.time);
                }
                views.apply(entry.position.0, &record);
            }
            // A long way is folded in one go, and others have to live on this thread too.
            tokio::task::yield_now().await;
        };
        Ok(Folded { views: Arc::new(views), next })
    }
}

fn unavailable(error: impl std::fmt::Display) -> PastError {
    PastError::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was being folded while something was erased holds its texts: it must not be remembered.
    #[test]
    fn a_fold_that_an_erasure_overtook_is_not_remembered() {
        let past = Past::default();
        let folded = Folded { views: Arc::default(), next: (1, Timestamp(10)) };
        let forgotten = past.forgotten();
        past.forget();
        assert!(!past.remember(folded.clone(), forgotten));
        assert!(past.recall(At::Position(0)).0.is_none());
        assert!(past.remember(folded, past.forgotten()));
        assert!(past.recall(At::Position(0)).0.is_some());
    }
}
